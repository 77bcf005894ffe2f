//! Templates that are kept warm: when their memory is kept, who starts from it, and what becomes of those that could not.

use model::lifecycle::Phase;
use model::report::RunState;
use model::template::{FIRST_VERSION, TemplateSpec};
use model::vm::{Firmware, GuestConfig, Power, SavedIn, StartChoice};
use model::{Incarnation, Kind, TemplateId, VmId, key};

use super::world::World;

const WARMED: Incarnation = Incarnation(1);

pub(super) fn template(world: &mut World) -> TemplateId {
    let image = world.image();
    let spec = TemplateSpec {
        image,
        vcpus: 1,
        memory_mib: 256,
        disk_bytes: None,
        networks: Vec::new(),
        guest: GuestConfig::default(),
        firmware: Firmware::Bios,
        profile: None,
        version: FIRST_VERSION,
        made: None,
        keep_warm: None,
    };
    TemplateId(world.create(Kind::Template, "small", spec))
}

pub(super) fn asked(world: &mut World, name: &str, template: TemplateId, start: StartChoice) -> VmId {
    let id = world.asked_for(name, Power::Hold, 256);
    world.change_vm(id, |object| {
        object.spec.template = Some(template);
        object.spec.start = start;
        object.spec.power = Power::Running;
    });
    id
}

/// A warm VM whose guest's agent has answered.
fn up(world: &mut World, template: TemplateId) -> VmId {
    let id = world.asked_for("warm", Power::Hold, 256);
    world.change_vm(id, |object| {
        object.spec.template = Some(template);
        object.spec.warms = Some(template);
        object.spec.power = Power::Running;
    });
    world.run(id, |run| {
        run.state = RunState::Running;
        run.ready = true;
    });
    id
}

pub(super) fn warm(world: &mut World, template: TemplateId) -> VmId {
    let id = up(world, template);
    let host = world.host_of(id);
    assert_eq!(world.told(&host, id), "stop 1 warm");
    world.report(&host, id, WARMED, |run| {
        run.state = RunState::Closed;
        run.saved_bytes = Some(4096);
        run.saved_in = SavedIn::Datastore;
    });
    id
}

/// How a VM was told to start, and why not from memory.
fn began(world: &World, id: VmId) -> (String, Option<String>) {
    let told = world.told(&world.host_of(id), id);
    (told, world.intent(id).booted_instead.map(|reason| reason.message))
}

#[test]
fn a_warm_vm_leaves_its_memory_and_holds_no_host() {
    let mut world = World::new(1);
    let template = template(&mut world);
    let id = warm(&mut world, template);
    let intent = world.intent(id);
    assert_eq!(world.phase(id), Phase::Stopped);
    assert!(intent.host.is_none() && intent.saved.is_some());
    // Whatever is asked of it, it is never started again.
    world.ask(id, Power::Running);
    assert!(world.intent(id).open.is_none());
}

#[test]
fn a_vm_starts_from_memory_with_its_disk_over_the_warm_ones() {
    let mut world = World::new(1);
    let template = template(&mut world);
    let form = warm(&mut world, template);
    for start in [StartChoice::Auto, StartChoice::AtOnce] {
        let id = asked(&mut world, &format!("{start:?}"), template, start);
        assert_eq!(began(&world, id), ("run 1 from warm".to_owned(), None));
        assert_eq!(world.order("h1", id).unwrap().machine.disk.layer, Some(form));
    }
    let booted = asked(&mut world, "booted", template, StartChoice::Boot);
    assert_eq!(began(&world, booted), ("run 1 from disk".to_owned(), None));
    assert_eq!(world.order("h1", booted).unwrap().machine.disk.layer, None);
}

#[test]
fn what_does_not_fit_is_booted_and_says_why() {
    let mut world = World::new(1);
    let template = template(&mut world);
    let early = asked(&mut world, "early", template, StartChoice::Auto);
    assert_eq!(began(&world, early), ("run 1 from disk".to_owned(), None));
    warm(&mut world, template);
    let large = asked(&mut world, "large", template, StartChoice::Boot);
    assert!(world.intent(large).open.is_some());
    let large = world.asked_for("larger", Power::Hold, 512);
    world.change_vm(large, |object| {
        object.spec.template = Some(template);
        object.spec.start = StartChoice::AtOnce;
        object.spec.power = Power::Running;
    });
    let (told, why) = began(&world, large);
    assert_eq!(told, "run 1 from disk");
    assert!(why.unwrap().contains("`memory_mib`"));
}

#[test]
fn one_whose_guest_never_was_its_own_gets_another_disk_and_boots() {
    for reason in ["instant-start-failed", "qemu-exited"] {
        let mut world = World::new(1);
        let template = template(&mut world);
        warm(&mut world, template);
        let id = asked(&mut world, "quick", template, StartChoice::AtOnce);
        world.run(id, |run| {
            run.state = RunState::Booting;
            run.ran = true;
        });
        world.close("h1", id, Incarnation(1), Some(reason));
        let (told, why) = began(&world, id);
        assert_eq!(told, "run 2 from disk");
        assert!(why.unwrap().contains(reason));
        assert_eq!(world.order("h1", id).unwrap().machine.disk.layer, None);
    }
}

#[test]
fn one_that_was_its_own_keeps_its_disk_through_later_boots() {
    let mut world = World::new(1);
    let template = template(&mut world);
    let form = warm(&mut world, template);
    let id = asked(&mut world, "quick", template, StartChoice::AtOnce);
    world.run(id, |run| {
        run.state = RunState::Running;
        run.has_identity = true;
    });
    world.ask(id, Power::Off);
    world.close("h1", id, Incarnation(1), None);
    assert_eq!(world.phase(id), Phase::Off);
    world.ask(id, Power::Running);
    assert_eq!(began(&world, id), ("run 2 from disk".to_owned(), None));
    assert_eq!(world.order("h1", id).unwrap().machine.disk.layer, Some(form));
}

#[test]
fn a_warm_vm_outlives_the_disks_over_its_own() {
    let mut world = World::new(1);
    let template = template(&mut world);
    let form = warm(&mut world, template);
    let id = asked(&mut world, "quick", template, StartChoice::AtOnce);
    world.run(id, |run| {
        run.state = RunState::Running;
        run.has_identity = true;
    });
    world.delete(form);
    assert_eq!(world.told("h1", form), "nothing");
    assert!(world.view.vms.contains_key(&form));
    // Nobody new starts from it.
    let late = asked(&mut world, "late", template, StartChoice::Auto);
    assert_eq!(began(&world, late).0, "run 1 from disk");
    // A copy of such a disk lies over the same.
    assert_eq!(
        planner::warm::users_of(&world.view, form).collect::<Vec<_>>(),
        [id]
    );
}

#[test]
fn a_warm_vm_stays_while_it_cannot_be_read_what_lies_over_it() {
    let mut world = World::new(1);
    let template = template(&mut world);
    let form = warm(&mut world, template);
    let id = asked(&mut world, "quick", template, StartChoice::AtOnce);
    world.delete(form);
    world.damage(&key::vm_intent(id));
    assert_eq!(
        planner::warm::users_of(&world.view, form).collect::<Vec<_>>(),
        [id]
    );
    assert!(world.next_plan().is_none(), "{:#?}", world.next_plan());
}

#[test]
fn a_template_that_has_changed_is_warmed_anew() {
    let mut world = World::new(1);
    let template = template(&mut world);
    let form = warm(&mut world, template);
    assert!(planner::warm::staleness(&world.view, form).is_none());
    world.change_vm(form, |object| object.spec.vcpus = 2);
    let stale = planner::warm::staleness(&world.view, form).unwrap();
    assert!(stale.message.contains("vcpus"));
    let id = asked(&mut world, "quick", template, StartChoice::Auto);
    let (told, why) = began(&world, id);
    assert!(told == "run 1 from disk" && why.is_some());
}
