//! VMs that are copies of others: who makes the copy and when, what waits for it, and what becomes of it.

use model::copy::{CopyShape, CopyTo};
use model::image::ImageSpec;
use model::lifecycle::Phase;
use model::migration::MigrationPhase;
use model::report::{CopyState, RunState};
use model::vm::{Consistency, Goal, Outcome, Power};
use model::{ImageId, Incarnation, Kind, Reason, VmId, key, samples};

use planner::copies::Copier;

use super::world::World;

pub(super) fn clone(world: &mut World, name: &str, source: VmId) -> VmId {
    clone_asked(world, name, source, Power::Running)
}

fn clone_asked(world: &mut World, name: &str, source: VmId, power: Power) -> VmId {
    let id = world.asked_for(name, Power::Hold, 256);
    world.change_vm(id, |object| {
        object.spec.clone_of = Some(source);
        object.spec.power = power;
    });
    id
}

/// Its source's host says how far the copy is.
fn says(world: &mut World, source: VmId, to: VmId, state: CopyState) {
    world.run(source, |run| {
        run.copies.insert(to.into(), state);
    });
}

fn made(is_frozen: bool) -> CopyState {
    CopyState::Made { is_frozen }
}

fn why(world: &World, id: VmId) -> String {
    let facts = world.view.facts(id).unwrap();
    let reason = model::lifecycle::reason(facts, world.phase(id));
    reason.map(|reason| reason.code).unwrap_or_default()
}

/// The VMs to which a host is told to copy.
fn copies(world: &World, host: &str, source: VmId) -> Vec<VmId> {
    world
        .order(host, source)
        .map(|document| document.copies.into_keys().filter_map(CopyTo::vm).collect())
        .unwrap_or_default()
}

/// A VM that was switched off on this host.
pub(super) fn off(world: &mut World, name: &str, host: &str) -> VmId {
    let id = world.running(name, host);
    world.ask(id, Power::Off);
    let open = world.open(id);
    world.close(host, id, open, None);
    assert_eq!(world.phase(id), Phase::Off);
    id
}

#[test]
fn a_running_vm_is_copied_where_it_runs_and_the_copy_starts_when_it_is_whole() {
    for (is_frozen, consistency) in [(true, Consistency::Frozen), (false, Consistency::CrashConsistent)] {
        let mut world = World::new(2);
        let source = world.running("web", "h1");
        let copy = clone(&mut world, "test", source);
        assert_eq!(world.phase(copy), Phase::Pending);
        assert_eq!(why(&world, copy), "disk-copying");
        assert_eq!(copies(&world, "h1", source), [copy]);
        assert_eq!(world.told("h1", source), "run 1 from disk");
        says(&mut world, source, copy, CopyState::UnderWay);
        assert_eq!(world.phase(copy), Phase::Pending);
        says(&mut world, source, copy, made(is_frozen));
        assert_eq!(world.phase(copy), Phase::Prolog);
        assert_eq!(world.intent(copy).copied.unwrap().consistency, consistency);
        assert!(copies(&world, "h1", source).is_empty());
        assert_eq!(world.phase(source), Phase::Running);
    }
}

#[test]
fn so_many_copies_are_made_at_once_and_the_others_after_them() {
    let mut world = World::new(1);
    let source = world.running("web", "h1");
    let all: Vec<VmId> = (0..3)
        .map(|n| clone_asked(&mut world, &format!("c{n}"), source, Power::Prepared))
        .collect();
    assert_eq!(copies(&world, "h1", source), all[..2]);
    assert_eq!(why(&world, all[2]), "clone-waits");
    says(&mut world, source, all[0], made(true));
    assert_eq!(copies(&world, "h1", source), all[1..]);
    // What it has said is not said of another.
    says(&mut world, source, all[2], made(true));
    says(&mut world, source, all[1], made(true));
    assert!(all.iter().all(|id| world.intent(*id).copied.is_some()));
}

#[test]
fn a_vm_that_is_off_gets_an_incarnation_that_only_copies() {
    let mut world = World::new(2);
    let source = off(&mut world, "web", "h1");
    let copy = clone(&mut world, "test", source);
    assert_eq!(world.told("h1", source), "stop 2 prepare");
    assert_eq!(copies(&world, "h1", source), [copy]);
    assert_eq!(
        (world.phase(source), world.phase(copy)),
        (Phase::Off, Phase::Pending)
    );
    // It is not started meanwhile, and says why.
    world.ask(source, Power::Running);
    assert_eq!(world.told("h1", source), "stop 2 prepare");
    assert_eq!(
        (world.phase(source), why(&world, source).as_str()),
        (Phase::Pending, "disk-being-copied")
    );
    world.run(source, |run| {
        run.state = RunState::Closed;
        run.copies.insert(copy.into(), made(false));
    });
    assert_eq!(world.intent(copy).copied.unwrap().consistency, Consistency::Off);
    assert_eq!(world.phase(copy), Phase::Prolog);
    assert_eq!(world.told("h1", source), "run 3 from disk");
}

#[test]
fn what_was_saved_stays_saved_when_its_disk_is_copied() {
    let mut world = World::new(1);
    let source = world.running("web", "h1");
    world.ask(source, Power::Suspended);
    world.report("h1", source, Incarnation(1), |run| {
        run.state = RunState::Closed;
        run.saved_bytes = Some(1000);
    });
    let copy = clone(&mut world, "test", source);
    assert_eq!(
        (world.told("h1", source).as_str(), world.phase(source)),
        ("stop 2 prepare", Phase::Suspended)
    );
    world.run(source, |run| {
        run.state = RunState::Closed;
        run.copies.insert(copy.into(), made(false));
    });
    assert_eq!(
        world.intent(copy).copied.unwrap().consistency,
        Consistency::CrashConsistent
    );
    assert_eq!(world.phase(source), Phase::Suspended);
    world.ask(source, Power::Running);
    assert_eq!(world.told("h1", source), "run 3 from saved");
}

#[test]
fn a_host_that_dies_with_a_copy_takes_nothing_with_it() {
    let mut world = World::new(2);
    let source = off(&mut world, "web", "h1");
    let copy = clone(&mut world, "test", source);
    world.silent("h1", true);
    assert_eq!(why(&world, copy), "clone-source-unknown");
    assert_eq!(world.phase(source), Phase::Unknown);
    world.confirm_dead("h1");
    assert_eq!(world.told("h2", source), "stop 3 prepare");
    world.run(source, |run| {
        run.state = RunState::Closed;
        run.copies.insert(copy.into(), made(false));
    });
    assert_eq!(
        (world.phase(source), world.phase(copy)),
        (Phase::Off, Phase::Prolog)
    );
}

#[test]
fn a_copy_that_fails_fails_its_vm_until_somebody_asks_again() {
    let mut world = World::new(1);
    let source = world.running("web", "h1");
    let copy = clone(&mut world, "test", source);
    let reason = Reason::new("disk-full", "no space");
    says(&mut world, source, copy, CopyState::Failed { reason });
    assert_eq!(
        (world.phase(copy), why(&world, copy).as_str()),
        (Phase::Failed, "disk-full")
    );
    assert!(copies(&world, "h1", source).is_empty());
    world.run(source, |run| run.copies.clear());
    world.ask(copy, Power::Running);
    assert_eq!(copies(&world, "h1", source), [copy]);
    says(&mut world, source, copy, made(true));
    assert_eq!(world.phase(copy), Phase::Prolog);
}

#[test]
fn an_incarnation_that_ends_without_a_word_fails_the_copy() {
    let mut world = World::new(1);
    let source = off(&mut world, "web", "h1");
    let copy = clone(&mut world, "test", source);
    world.close("h1", source, Incarnation(2), Some("broken"));
    assert_eq!(
        (world.phase(copy), why(&world, copy).as_str()),
        (Phase::Failed, "broken")
    );
    assert_eq!(world.phase(source), Phase::Off);
    assert_eq!(world.intent(source).ended.unwrap().outcome, Outcome::Off);
}

#[test]
fn a_source_that_ends_is_copied_afterwards() {
    let mut world = World::new(1);
    let source = world.running("web", "h1");
    let copy = clone(&mut world, "test", source);
    says(&mut world, source, copy, CopyState::UnderWay);
    world.ask(source, Power::Off);
    assert!(
        copies(&world, "h1", source).is_empty(),
        "a shutdown waits for nothing"
    );
    world.close("h1", source, Incarnation(1), None);
    assert_eq!(world.told("h1", source), "stop 2 prepare");
    assert_eq!(copies(&world, "h1", source), [copy]);
}

#[test]
fn what_would_end_a_copy_waits_for_it_and_none_is_begun_meanwhile() {
    let mut world = World::new(2);
    let source = world.running("web", "h1");
    let copy = clone(&mut world, "test", source);
    let migration = world.migrate(source, Some("h2"));
    assert_eq!(world.stage(migration), MigrationPhase::Planned);
    let later = clone(&mut world, "later", source);
    assert_eq!(copies(&world, "h1", source), [copy]);
    says(&mut world, source, copy, made(true));
    assert_eq!(world.stage(migration), MigrationPhase::Preparing);
    assert_eq!(why(&world, later), "clone-source-busy");

    let mut world = World::new(1);
    let source = world.running("web", "h1");
    let copy = clone(&mut world, "test", source);
    for power in [Power::Suspended, Power::Stopped] {
        world.ask(source, power);
        assert_eq!(world.told("h1", source), "run 1 from disk");
        assert_eq!(why(&world, source), "disk-being-copied");
    }
    says(&mut world, source, copy, made(true));
    assert_eq!(world.told("h1", source), "stop 1 store");
}

#[test]
fn a_clone_is_deleted_when_nobody_writes_its_disk_any_more() {
    let mut world = World::new(1);
    let source = world.running("web", "h1");
    let copy = clone(&mut world, "test", source);
    says(&mut world, source, copy, CopyState::UnderWay);
    world.delete(copy);
    assert!(copies(&world, "h1", source).is_empty());
    assert_eq!(world.told("h1", copy), "nothing");
    world.run(source, |run| run.copies.clear());
    assert_eq!(
        world.told("h1", copy),
        "stop 0 remove",
        "of what there was of its disk nothing stays"
    );
    world.report("h1", copy, Incarnation(0), |run| run.state = RunState::Removed);
    assert!(!world.view.vms.contains_key(&copy));
}

#[test]
fn a_clone_whose_source_is_gone_fails() {
    let mut world = World::new(1);
    let source = world.running("web", "h1");
    let copy = clone(&mut world, "test", source);
    world.delete(source);
    assert_eq!(
        (world.phase(copy), why(&world, copy).as_str()),
        (Phase::Failed, "clone-source-gone")
    );
    assert!(planner::copies::waiting_for(&world.view, source).is_empty());
}

#[test]
fn a_copy_of_a_copy_waits_for_both() {
    let mut world = World::new(1);
    let source = off(&mut world, "web", "h1");
    let first = clone(&mut world, "first", source);
    let second = clone(&mut world, "second", first);
    assert_eq!(why(&world, second), "clone-source-starts");
    world.run(source, |run| {
        run.state = RunState::Closed;
        run.copies.insert(first.into(), made(false));
    });
    world.run(first, |run| run.state = RunState::Running);
    assert_eq!(copies(&world, "h1", first), [second]);
    assert!(matches!(world.intent(first).open.unwrap().goal, Goal::Run { .. }));
}

#[test]
fn a_full_clone_and_a_larger_one_are_ordered_as_such() {
    let mut world = World::new(1);
    let source = world.running("web", "h1");
    let copy = clone(&mut world, "test", source);
    let shape = |world: &World| world.order("h1", source).unwrap().copies[&copy.into()];
    assert_eq!(shape(&world), CopyShape::default());
    let bytes = Some(1 << 40);
    world.change_vm(copy, |object| object.spec.disk_bytes = bytes);
    assert_eq!(shape(&world), CopyShape { whole: false, bytes });
    world.change_vm(copy, |object| object.spec.image = None);
    assert_eq!(shape(&world), CopyShape { whole: true, bytes });
}

fn image_of(world: &mut World, name: &str, source: VmId) -> ImageId {
    let spec = ImageSpec {
        from_vm: Some(source),
        ..ImageSpec::default()
    };
    let id = ImageId(world.create(Kind::Image, name, spec));
    world.settle();
    id
}

fn images(world: &World, host: &str, source: VmId) -> Vec<CopyTo> {
    let copies = world.order(host, source).map(|document| document.copies);
    let copies = copies.unwrap_or_default();
    assert!(copies.values().all(|shape| shape.whole));
    copies.into_keys().collect()
}

fn awaited(world: &World, image: ImageId) -> String {
    let awaited = planner::copies::awaited_by_image(&world.view, image, world.now).unwrap();
    awaited.unwrap_or_else(|reason| reason).code
}

#[test]
fn a_vms_disk_is_copied_for_an_image_until_a_server_has_it() {
    let mut world = World::new(2);
    let source = world.running("web", "h1");
    let image = image_of(&mut world, "base", source);
    assert_eq!(images(&world, "h1", source), [image.into()]);
    assert_eq!(awaited(&world, image), "disk-copying");
    assert_eq!(
        planner::copies::waiting_for(&world.view, source),
        [(Kind::Image, "base")]
    );
    let [h1, h2] = ["h1", "h2"].map(|name| world.host_id(name));
    let made = |host, incarnation| {
        let by = Copier {
            host,
            incarnation,
            is_frozen: true,
        };
        planner::copies::made_for_image(&world.view, image, by, world.now)
    };
    let open = world.open(source);
    assert_eq!(made(h1, open).unwrap().consistency, Consistency::Frozen);
    assert_eq!(made(h2, open), None);
    assert_eq!(made(h1, open.next()), None);
    world.write(key::image_status(image), &samples::image_status());
    world.settle();
    assert!(images(&world, "h1", source).is_empty());
    assert!(planner::copies::waiting_for(&world.view, source).is_empty());
}

#[test]
fn an_image_whose_copy_failed_says_why_and_is_begun_anew_when_that_is_taken_back() {
    let mut world = World::new(1);
    let source = off(&mut world, "web", "h1");
    let image = image_of(&mut world, "base", source);
    assert_eq!(world.told("h1", source), "stop 2 prepare");
    let reason = Reason::new("disk-full", "no room");
    world.run(source, |run| {
        run.state = RunState::Closed;
        run.copies.insert(
            image.into(),
            CopyState::Failed {
                reason: reason.clone(),
            },
        );
    });
    let status = world.view.images[&image.0].status.clone().unwrap();
    assert_eq!(status.value.failure, Some(reason));
    assert_eq!(world.phase(source), Phase::Off);
    world.remove(key::image_status(image));
    assert_eq!(world.told("h1", source), "stop 3 prepare");
}

#[test]
fn an_image_that_is_deleted_is_not_copied_for() {
    let mut world = World::new(1);
    let source = world.running("web", "h1");
    let image = image_of(&mut world, "base", source);
    assert!(!images(&world, "h1", source).is_empty());
    world.remove(key::object(Kind::Image, image.0));
    assert!(images(&world, "h1", source).is_empty());
}
