//! Disks that are made whole: by whom and when, what they give way to, and what does not need an image any more.

use std::collections::BTreeSet;

use model::copy::CopyTo;
use model::lifecycle::Phase;
use model::migration::MigrationPhase;
use model::operation::OperationPhase;
use model::report::{CopyState, RunState};
use model::vm::{Outcome, Power};
use model::{Incarnation, Kind, Reason, VmId};

use super::world::World;

fn ask(world: &mut World, id: VmId) -> CopyTo {
    world.change_vm(id, |object| object.spec.flatten_request += 1);
    let request = world.view.vms[&id]
        .object
        .as_ref()
        .unwrap()
        .value
        .spec
        .flatten_request;
    CopyTo::Itself { request }
}

fn says(world: &mut World, id: VmId, to: CopyTo, state: CopyState) {
    world.run(id, |run| {
        run.copies = [(to, state)].into();
    });
}

const WHOLE: CopyState = CopyState::Made { is_frozen: false };

fn ordered(world: &World, host: &str, id: VmId) -> BTreeSet<CopyTo> {
    let order = world.order(host, id);
    order
        .map(|document| document.copies.into_keys().collect())
        .unwrap_or_default()
}

fn needs_image(world: &World, id: VmId) -> bool {
    let mut needs = world.view.needs(Kind::Vm, id.0).into_iter();
    let needs_one = needs.any(|(kind, _)| kind == Kind::Image);
    let image = world.view.vms[&id]
        .object
        .as_ref()
        .unwrap()
        .value
        .spec
        .image
        .unwrap();
    let is_used = world
        .view
        .users_of_image(image.0)
        .any(|user| user == (Kind::Vm, id.0));
    assert_eq!(needs_one, is_used);
    needs_one
}

fn off(world: &mut World, name: &str) -> VmId {
    let id = world.running(name, "h1");
    world.ask(id, Power::Off);
    let open = world.open(id);
    world.close("h1", id, open, None);
    id
}

#[test]
fn a_running_vm_needs_its_image_until_its_host_says_that_its_disk_is_whole() {
    let mut world = World::new(1);
    let id = world.running("web", "h1");
    let before = world.order("h1", id).unwrap().machine.disk;
    assert!(before.image.is_some() && needs_image(&world, id));
    let to = ask(&mut world, id);
    assert_eq!(ordered(&world, "h1", id), [to].into());
    assert_eq!(world.told("h1", id), "run 1 from disk");
    says(&mut world, id, to, CopyState::UnderWay);
    assert!(needs_image(&world, id));
    says(&mut world, id, to, WHOLE);
    assert!(!needs_image(&world, id));
    let after = world.order("h1", id).unwrap();
    assert!(after.copies.is_empty() && after.machine.disk.image.is_none());
    assert_eq!(
        after.machine.disk.bytes, before.bytes,
        "the image that said it may be gone"
    );
    assert_eq!(world.phase(id), Phase::Running);
    // It is so for good.
    ask(&mut world, id);
    assert!(ordered(&world, "h1", id).is_empty());
}

#[test]
fn one_that_is_at_rest_gets_an_incarnation_for_it_and_a_start_goes_before() {
    let mut world = World::new(1);
    let id = off(&mut world, "web");
    let to = ask(&mut world, id);
    assert_eq!(
        (world.told("h1", id).as_str(), world.phase(id)),
        ("stop 2 prepare", Phase::Off)
    );
    assert_eq!(ordered(&world, "h1", id), [to].into());
    world.ask(id, Power::Running);
    assert!(ordered(&world, "h1", id).is_empty(), "a start waits for nothing");
    world.close("h1", id, Incarnation(2), None);
    assert_eq!(world.told("h1", id), "run 3 from disk");
    world.run(id, |run| {
        run.state = RunState::Running;
        run.ran = true;
    });
    assert_eq!(
        ordered(&world, "h1", id),
        [to].into(),
        "and it goes on afterwards"
    );
    says(&mut world, id, to, WHOLE);
    assert!(!needs_image(&world, id));
}

#[test]
fn a_disk_whose_vm_is_off_is_whole_when_its_incarnation_has_said_so() {
    let mut world = World::new(1);
    let id = off(&mut world, "web");
    let to = ask(&mut world, id);
    world.run(id, |run| {
        run.state = RunState::Closed;
        run.copies.insert(to, WHOLE);
    });
    assert!(!needs_image(&world, id));
    assert_eq!(
        (world.phase(id), world.told("h1", id).as_str()),
        (Phase::Off, "nothing")
    );
    assert_eq!(world.intent(id).ended.unwrap().outcome, Outcome::Off);
    // An unanswered request to be off is none that it gives way to, or it would never be done.
    let id = off(&mut world, "db");
    let to = ask(&mut world, id);
    world.ask(id, Power::Off);
    assert_eq!(ordered(&world, "h1", id), [to].into());
}

#[test]
fn it_gives_way_to_what_would_end_it_and_goes_on_afterwards() {
    for power in [Power::Suspended, Power::Stopped] {
        let mut world = World::new(1);
        let id = world.running("web", "h1");
        let to = ask(&mut world, id);
        says(&mut world, id, to, CopyState::UnderWay);
        world.ask(id, power);
        assert!(ordered(&world, "h1", id).is_empty());
        assert!(
            world.told("h1", id).starts_with("stop 1 "),
            "{}",
            world.told("h1", id)
        );
        world.report("h1", id, Incarnation(1), |run| {
            run.state = RunState::Closed;
            run.saved_bytes = Some(1000);
            run.copies.clear();
        });
        assert_eq!(world.told("h1", id), "stop 2 prepare");
        assert_eq!(ordered(&world, "h1", id), [to].into());
    }
    let mut world = World::new(2);
    let id = world.running("web", "h1");
    let to = ask(&mut world, id);
    says(&mut world, id, to, CopyState::UnderWay);
    let migration = world.migrate(id, Some("h2"));
    assert!(ordered(&world, "h1", id).is_empty());
    assert_eq!(world.stage(migration), MigrationPhase::Preparing);
}

#[test]
fn a_disk_is_not_copied_while_it_is_made_whole_nor_the_other_way_round() {
    let mut world = World::new(1);
    let id = world.running("web", "h1");
    let clone = |world: &mut World, name: &str| {
        let copy = world.asked_for(name, Power::Hold, 256);
        world.change_vm(copy, |object| {
            object.spec.clone_of = Some(id);
            object.spec.power = Power::Running;
        });
        copy
    };
    let first = clone(&mut world, "first");
    assert_eq!(ordered(&world, "h1", id), [first.into()].into());
    let to = ask(&mut world, id);
    let second = clone(&mut world, "second");
    assert_eq!(
        ordered(&world, "h1", id),
        [first.into()].into(),
        "none is begun before it"
    );
    says(&mut world, id, first.into(), WHOLE);
    assert_eq!(ordered(&world, "h1", id), [to].into());
    assert!(needs_image(&world, first));
    says(&mut world, id, to, WHOLE);
    assert_eq!(ordered(&world, "h1", id), [second.into()].into());
    says(&mut world, id, second.into(), WHOLE);
    assert!(
        !needs_image(&world, second),
        "what is copied of a whole disk is whole"
    );
    assert!(world.order("h1", second).unwrap().machine.disk.image.is_none());
    assert!(world.order("h1", first).unwrap().machine.disk.image.is_some());
}

#[test]
fn what_failed_is_said_and_begun_anew_when_it_is_asked_for_again() {
    let mut world = World::new(1);
    let id = world.running("web", "h1");
    let to = ask(&mut world, id);
    let reason = Reason::new("disk-full", "no room");
    says(
        &mut world,
        id,
        to,
        CopyState::Failed {
            reason: reason.clone(),
        },
    );
    assert_eq!(world.intent(id).flattening.failed, Some(reason));
    assert!(ordered(&world, "h1", id).is_empty() && needs_image(&world, id));
    assert_eq!(world.phase(id), Phase::Running);
    // What was said of the first is not said of the second.
    let again = ask(&mut world, id);
    assert_eq!(ordered(&world, "h1", id), [again].into());
    says(&mut world, id, again, WHOLE);
    assert!(world.intent(id).is_whole() && world.intent(id).flattening.failed.is_none());
}

#[test]
fn its_operation_ends_with_it() {
    for state in [
        WHOLE,
        CopyState::Failed {
            reason: Reason::new("disk-full", "no room"),
        },
    ] {
        let wanted = match &state {
            CopyState::Failed { .. } => OperationPhase::Failed,
            _ => OperationPhase::Done,
        };
        let mut world = World::new(1);
        let id = world.running("web", "h1");
        let to = ask(&mut world, id);
        world.ask(id, Power::Paused);
        let phase = |world: &World| {
            let all = world.view.operations.values();
            let found = all
                .filter(|one| {
                    one.object.as_ref().unwrap().value.spec.action == model::operation::Action::Flatten
                })
                .map(planner::operation::status);
            { found }.next_back().unwrap()
        };
        assert_eq!(phase(&world).phase, OperationPhase::Running);
        says(&mut world, id, to, state);
        assert_eq!(phase(&world).phase, wanted);
    }
}

#[test]
fn a_disk_over_a_warm_form_needs_that_no_more() {
    let mut world = World::new(1);
    let id = world.running("web", "h1");
    let layer = VmId(uuid::Uuid::from_u128(77));
    let mut intent = world.intent(id);
    intent.layer = Some(layer);
    world.write(model::key::vm_intent(id), &intent);
    world.settle();
    assert_eq!(planner::warm::users_of(&world.view, layer).count(), 1);
    let to = ask(&mut world, id);
    says(&mut world, id, to, WHOLE);
    assert_eq!(planner::warm::users_of(&world.view, layer).count(), 0);
    assert_eq!(world.order("h1", id).unwrap().machine.disk.layer, None);
}

#[test]
fn a_host_that_is_lost_with_it_takes_nothing_with_it() {
    let mut world = World::new(2);
    let id = off(&mut world, "web");
    let to = ask(&mut world, id);
    world.silent("h1", true);
    world.confirm_dead("h1");
    assert_eq!(world.told("h2", id), "stop 3 prepare");
    assert_eq!(ordered(&world, "h2", id), [to].into());
    // What is deleted is not made whole before.
    world.delete(id);
    assert!(ordered(&world, "h2", id).is_empty());
    assert_eq!(world.told("h2", id), "stop 3 remove");
}
