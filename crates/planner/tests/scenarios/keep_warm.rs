//! Templates that are kept warm: a form is made when there is none that can be used, one at a time, and not for ever.

use model::event::What;
use model::host::HostStatus;
use model::lifecycle::Phase;
use model::report::RunState;
use model::template::{ANOTHER_BUILD, KeepWarm, TemplateSpec};
use model::vm::{Firmware, Power, SavedIn, StartChoice};
use model::{DatastoreId, Incarnation, Kind, Object, TemplateId, VmId, key, samples};
use planner::Plan;
use planner::keep_warm::{FAILURES_MAX, Warmth, warmth};

use super::warm::{asked, template};
use super::world::{Conflict, World};

const FIRST: Incarnation = Incarnation(1);

fn change(world: &mut World, id: TemplateId, change: impl FnOnce(&mut TemplateSpec)) {
    let mut object: Object<TemplateSpec> = world.view.templates[&id.0].value.clone();
    change(&mut object.spec);
    world.write(key::object(Kind::Template, id.0), &object);
    world.settle();
}

/// A template that is kept warm, and its first form, which is being made.
pub(super) fn kept(world: &mut World) -> (TemplateId, VmId) {
    let id = template(world);
    keep(world, id);
    (id, making(world, id))
}

fn keep(world: &mut World, id: TemplateId) {
    let datastore = DatastoreId(world.view.find(Kind::Datastore, None, "default").unwrap());
    change(world, id, |spec| spec.keep_warm = Some(KeepWarm { datastore }));
}

fn stands(world: &World, id: TemplateId) -> Warmth {
    warmth(&world.view, id).unwrap().0
}

fn making(world: &World, id: TemplateId) -> VmId {
    match stands(world, id) {
        Warmth::Making(form) => form,
        other => panic!("{other:?}: {:#?}", world.log),
    }
}

/// Its guest is up, and its memory is kept.
pub(super) fn succeed(world: &mut World, form: VmId) {
    world.run(form, |run| {
        run.state = RunState::Running;
        run.ready = true;
    });
    let host = world.host_of(form);
    world.report(&host, form, FIRST, |run| {
        run.state = RunState::Closed;
        run.saved_bytes = Some(4096);
        run.saved_in = SavedIn::Datastore;
    });
}

fn fail(world: &mut World, form: VmId) {
    let host = world.host_of(form);
    world.close(&host, form, FIRST, Some("warming-failed"));
}

/// Its host says that it runs another QEMU from now on.
fn update(world: &mut World, host: &str, qemu_version: &str) {
    let status = HostStatus {
        qemu_version: qemu_version.to_owned(),
        peer_address: None,
        ..samples::host_status(1, 4096)
    };
    let id = world.host_id(host);
    world.write(key::host_status(id), &status);
    world.settle();
}

/// Nothing of it is left.
fn remove(world: &mut World, vm: VmId) {
    let host = world.host_of(vm);
    world.delete(vm);
    world.report(&host, vm, FIRST, |run| run.state = RunState::Removed);
    assert!(!world.view.vms.contains_key(&vm));
}

/// How many forms were made.
fn made(world: &World) -> usize {
    world
        .log
        .iter()
        .filter(|line| line.contains(": make small-warm-"))
        .count()
}

fn is_deleted(world: &World, id: VmId) -> bool {
    let object = world.view.vms.get(&id).and_then(|vm| vm.object.as_ref());
    object.is_none_or(|at| at.value.meta.deleted_at.is_some())
}

fn events(world: &World) -> Vec<(bool, String)> {
    let events = world.view.events.values().map(|at| &at.value.spec);
    let of_forms = events.filter_map(|event| match event.what {
        What::WarmForm { has_failed, .. } => Some((has_failed, event.reason.clone()?.code)),
        _ => None,
    });
    of_forms.collect()
}

#[test]
fn a_form_is_made_once_and_again_when_it_is_deleted() {
    let mut world = World::new(1);
    let (id, form) = kept(&mut world);
    assert_eq!(world.object(form).value.meta.name, "small-warm-1");
    succeed(&mut world, form);
    assert_eq!(
        (stands(&world, id), world.phase(form)),
        (Warmth::Ready(form), Phase::Stopped)
    );
    for _ in 0..10 {
        world.pass(3600);
        world.settle();
    }
    assert_eq!(
        (made(&world), world.view.templates[&id.0].value.spec.version),
        (1, 1)
    );
    world.delete(form);
    let next = making(&world, id);
    assert!(next != form && made(&world) == 2);
    let event = (false, "warm-form-missing".to_owned());
    assert_eq!(events(&world), [event.clone(), event]);
}

#[test]
fn one_that_is_there_is_taken_as_it_is() {
    let mut world = World::new(1);
    let id = template(&mut world);
    let form = super::warm::warm(&mut world, id);
    keep(&mut world, id);
    assert_eq!((stands(&world, id), made(&world)), (Warmth::Ready(form), 0));
    // Nobody's wish: it is left as it was found.
    change(&mut world, id, |spec| spec.keep_warm = None);
    assert!(!is_deleted(&world, form));
}

#[test]
fn a_template_that_changes_gets_another_form_and_the_one_before_goes_when_nobody_needs_it() {
    let mut world = World::new(1);
    let (id, form) = kept(&mut world);
    succeed(&mut world, form);
    let user = asked(&mut world, "quick", id, StartChoice::AtOnce);
    assert_eq!(world.intent(user).layer, Some(form));
    change(&mut world, id, |spec| {
        spec.vcpus = 2;
        spec.version = 2;
    });
    let next = making(&world, id);
    let spec = world.object(next).value.spec;
    assert_eq!((spec.vcpus, spec.template_version), (2, Some(2)));
    succeed(&mut world, next);
    assert_eq!(stands(&world, id), Warmth::Ready(next));
    assert!(!is_deleted(&world, form), "its memory was taken from under a VM");
    remove(&mut world, user);
    assert!(is_deleted(&world, form) && !is_deleted(&world, next) && made(&world) == 2);
}

#[test]
fn another_qemu_on_the_host_leads_to_one_form_more() {
    let mut world = World::new(1);
    let (id, form) = kept(&mut world);
    succeed(&mut world, form);
    update(&mut world, "h1", "11.0.0");
    let next = making(&world, id);
    assert!(is_deleted(&world, form));
    succeed(&mut world, next);
    for _ in 0..10 {
        world.pass(3600);
        update(&mut world, "h1", "11.0.0");
    }
    assert_eq!((stands(&world, id), made(&world)), (Warmth::Ready(next), 2));
    assert!(events(&world).contains(&(false, ANOTHER_BUILD.to_owned())));
}

#[test]
fn a_form_that_some_host_can_use_is_kept() {
    let mut world = World::new(2);
    let (id, form) = kept(&mut world);
    let (own, other) = match world.host_of(form).as_str() {
        "h1" => ("h1", "h2"),
        _ => ("h2", "h1"),
    };
    succeed(&mut world, form);
    update(&mut world, other, "11.0.0");
    assert_eq!((stands(&world, id), made(&world)), (Warmth::Ready(form), 1));
    update(&mut world, own, "11.0.0");
    assert_ne!(making(&world, id), form);
}

#[test]
fn a_host_without_uefi_can_use_no_form_that_needs_it() {
    let mut world = World::new(2);
    let id = template(&mut world);
    change(&mut world, id, |spec| spec.firmware = Firmware::Uefi);
    keep(&mut world, id);
    let form = making(&world, id);
    let own = world.host_of(form);
    succeed(&mut world, form);
    let other = if own == "h1" { "h2" } else { "h1" };
    let without = HostStatus {
        uefi: false,
        peer_address: None,
        ..samples::host_status(1, 4096)
    };
    let other = world.host_id(other);
    world.write(key::host_status(other), &without);
    world.settle();
    assert_eq!(stands(&world, id), Warmth::Ready(form));
    update(&mut world, &own, "11.0.0");
    assert_ne!(making(&world, id), form);
}

#[test]
fn a_host_that_says_its_qemu_is_another_is_believed() {
    let mut world = World::new(1);
    let (id, form) = kept(&mut world);
    succeed(&mut world, form);
    let vm = asked(&mut world, "quick", id, StartChoice::AtOnce);
    world.close("h1", vm, FIRST, Some(ANOTHER_BUILD));
    assert_eq!(world.told("h1", vm), "run 2 from disk");
    assert!(world.intent(vm).booted_instead.is_some());
    world.pass(60);
    world.settle();
    let next = making(&world, id);
    assert!(is_deleted(&world, form) && made(&world) == 2);
    // Any other failure says nothing of the form.
    succeed(&mut world, next);
    let vm = asked(&mut world, "second", id, StartChoice::AtOnce);
    world.close("h1", vm, FIRST, Some("instant-start-failed"));
    assert_eq!((stands(&world, id), made(&world)), (Warmth::Ready(next), 2));
}

#[test]
fn what_fails_is_tried_ever_more_slowly_and_then_given_up_until_something_changes() {
    let mut world = World::new(1);
    let (id, mut form) = kept(&mut world);
    let mut waits = Vec::new();
    for failure in 1..=FAILURES_MAX {
        fail(&mut world, form);
        assert!(is_deleted(&world, form));
        if failure == FAILURES_MAX {
            break;
        }
        let Warmth::Due(Some(at)) = stands(&world, id) else {
            panic!("{:?}", stands(&world, id));
        };
        waits.push(at.duration_since(world.now).as_secs());
        world.pass(waits.last().unwrap() - 1);
        world.settle();
        assert_eq!(made(&world), failure as usize);
        world.pass(1);
        world.settle();
        form = making(&world, id);
    }
    assert_eq!(waits, [30, 120, 480, 1920]);
    world.pass(1_000_000);
    world.settle();
    let (stands, intent) = warmth(&world.view, id).unwrap();
    assert_eq!((stands, made(&world)), (Warmth::GivenUp, 5));
    assert_eq!(intent.unwrap().failed.as_ref().unwrap().code, "warming-failed");
    assert_eq!(events(&world).iter().filter(|(failed, _)| *failed).count(), 5);

    update(&mut world, "h1", "11.0.0");
    let form = making(&world, id);
    succeed(&mut world, form);
    let intent = warmth(&world.view, id).unwrap().1.unwrap();
    assert_eq!((intent.failures, &intent.failed, made(&world)), (0, &None, 6));
}

#[test]
fn a_guest_that_is_never_ready_has_failed() {
    let mut world = World::new(1);
    let (id, form) = kept(&mut world);
    world.run(form, |run| run.state = RunState::Booting);
    world.pass(1799);
    world.settle();
    assert_eq!(making(&world, id), form);
    world.pass(1);
    world.settle();
    assert!(is_deleted(&world, form));
    let intent = warmth(&world.view, id).unwrap().1.unwrap();
    assert_eq!(intent.failed.as_ref().unwrap().code, "warming-late");
}

#[test]
fn off_leaves_nothing_that_nobody_needs() {
    let mut world = World::new(1);
    let (id, form) = kept(&mut world);
    succeed(&mut world, form);
    let user = asked(&mut world, "quick", id, StartChoice::AtOnce);
    change(&mut world, id, |spec| spec.keep_warm = None);
    assert!(!is_deleted(&world, form) && warmth(&world.view, id).is_none());
    remove(&mut world, user);
    assert!(is_deleted(&world, form));
    assert!(!world.store.contains_key(&key::template_intent(id)));
    assert_eq!(made(&world), 1);
}

#[test]
fn what_was_made_goes_with_the_last_of_many_that_need_it() {
    let mut world = World::new(1);
    let (id, form) = kept(&mut world);
    succeed(&mut world, form);
    let users = ["first", "second", "third"].map(|name| asked(&mut world, name, id, StartChoice::AtOnce));
    change(&mut world, id, |spec| {
        spec.vcpus = 2;
        spec.version = 2;
    });
    let next = making(&world, id);
    succeed(&mut world, next);
    // In any order: what is waited for is only one of them.
    remove(&mut world, users[1]);
    remove(&mut world, users[0]);
    assert!(!is_deleted(&world, form), "it was taken from under a VM");
    // Its disk is made whole.
    let mut intent = world.intent(users[2]);
    intent.layer = None;
    world.write(key::vm_intent(users[2]), &intent);
    world.settle();
    assert!(is_deleted(&world, form) && stands(&world, id) == Warmth::Ready(next));
}

#[test]
fn one_that_is_deleted_under_a_vm_goes_when_that_has() {
    let mut world = World::new(1);
    let (id, form) = kept(&mut world);
    succeed(&mut world, form);
    let user = asked(&mut world, "quick", id, StartChoice::AtOnce);
    world.delete(form);
    let decision = planner::vm::plan(&world.view, form, world.now);
    assert_eq!((decision.plan, decision.awaits), (None, vec![user]));
}

#[test]
fn a_template_takes_with_it_what_was_made_for_it_once_nobody_needs_that() {
    let mut world = World::new(1);
    let (id, form) = kept(&mut world);
    succeed(&mut world, form);
    let user = asked(&mut world, "quick", id, StartChoice::AtOnce);
    world.remove(key::object(Kind::Template, id.0));
    assert!(!is_deleted(&world, form), "it was taken from under a VM");
    assert!(warmth(&world.view, id).is_none());
    remove(&mut world, user);
    assert!(is_deleted(&world, form));
    assert!(!world.store.contains_key(&key::template_intent(id)));
}

#[test]
fn at_a_templates_end_one_that_is_being_made_goes_and_one_that_somebody_asked_for_stays() {
    let mut world = World::new(1);
    let (id, form) = kept(&mut world);
    world.remove(key::object(Kind::Template, id.0));
    assert!(is_deleted(&world, form));

    let mut world = World::new(1);
    let id = template(&mut world);
    let form = super::warm::warm(&mut world, id);
    keep(&mut world, id);
    world.remove(key::object(Kind::Template, id.0));
    assert!(!is_deleted(&world, form));
}

#[test]
fn a_vm_of_an_earlier_version_boots_and_says_why() {
    let mut world = World::new(1);
    let (id, form) = kept(&mut world);
    succeed(&mut world, form);
    change(&mut world, id, |spec| {
        spec.memory_mib = 512;
        spec.version = 2;
    });
    let next = making(&world, id);
    // Before the memory of the next one is kept, and after.
    for name in ["early", "late"] {
        let pinned = world.asked_for(name, Power::Hold, 256);
        world.change_vm(pinned, |object| {
            object.spec.template = Some(id);
            object.spec.template_version = Some(1);
            object.spec.start = StartChoice::AtOnce;
            object.spec.power = Power::Running;
        });
        assert_eq!(world.told(&world.host_of(pinned), pinned), "run 1 from disk");
        let why = world.intent(pinned).booted_instead.unwrap().message;
        let expected = "it is of version 1 of its template and small-warm-2 of version 2, which has another `memory_mib`";
        assert!(why.contains(expected), "{why}");
        if name == "early" {
            succeed(&mut world, next);
        }
    }
}

#[test]
fn what_is_of_no_more_use_says_who_makes_the_next() {
    let mut world = World::new(1);
    let id = template(&mut world);
    let form = super::warm::warm(&mut world, id);
    let user = asked(&mut world, "quick", id, StartChoice::AtOnce);
    assert_eq!(world.intent(user).layer, Some(form));
    let says = |world: &World| planner::warm::staleness(&world.view, form).unwrap().message;
    change(&mut world, id, |spec| {
        spec.vcpus = 2;
        spec.version = 2;
    });
    assert!(says(&world).contains("`sterna template warm small` has another made"));
    keep(&mut world, id);
    assert!(says(&world).contains("another is made by itself"));
}

#[test]
fn two_controllers_make_one_form() {
    let mut world = World::new(1);
    let id = template(&mut world);
    let datastore = DatastoreId(world.view.find(Kind::Datastore, None, "default").unwrap());
    let mut object = world.view.templates[&id.0].value.clone();
    object.spec.keep_warm = Some(KeepWarm { datastore });
    world.write(key::object(Kind::Template, id.0), &object);
    let (one, other) = (world.next_plan().unwrap(), world.next_plan().unwrap());
    world.commit(one).unwrap();
    assert!(world.commit(other).is_err());
    // One that was killed after any of its writes goes on from what is stored.
    world.settle();
    assert_eq!(made(&world), 1);
}

/// A VM that is to start from memory, and a template's wish or the template itself taken away: nobody has looked yet.
fn at_the_same_time(world: &mut World, id: TemplateId, ends_too: bool) -> VmId {
    let vm = world.asked_for("quick", Power::Hold, 256);
    let mut object = world.object(vm).value;
    object.spec.template = Some(id);
    object.spec.start = StartChoice::AtOnce;
    object.spec.power = Power::Running;
    world.write(key::object(Kind::Vm, vm.0), &object);
    let at = world.view.templates[&id.0].clone();
    let key = key::object(Kind::Template, id.0);
    if ends_too {
        let mut plan = Plan::new("delete template small");
        plan.remove(key, at.revision);
        world.commit(plan).unwrap();
    } else {
        let mut object = at.value;
        object.spec.keep_warm = None;
        world.write(key, &object);
    }
    vm
}

#[test]
fn a_form_that_goes_and_a_vm_that_starts_from_it_are_decided_one_after_the_other() {
    for (ends_too, starts_first) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut world = World::new(1);
        let (id, form) = kept(&mut world);
        succeed(&mut world, form);
        let vm = at_the_same_time(&mut world, id, ends_too);
        // Two see the same.
        let start = planner::vm::plan(&world.view, vm, world.now).plan.unwrap();
        let no_id = &mut || panic!("no form is made");
        let end = planner::keep_warm::plan(&world.view, id, world.now, no_id)
            .plan
            .unwrap();
        if starts_first {
            world.commit(start).unwrap();
            world.commit(end).unwrap();
            world.settle();
            assert!(is_deleted(&world, form));
            assert_eq!(world.told("h1", form), "nothing", "its disk is under another");
            assert_eq!(world.order("h1", vm).unwrap().machine.disk.layer, Some(form));
            remove(&mut world, vm);
            assert!(world.told("h1", form).ends_with("remove"));
        } else {
            world.commit(end).unwrap();
            let form_key = key::object(Kind::Vm, form.0);
            assert_eq!(world.commit(start), Err(Conflict(form_key)));
            world.settle();
            assert_eq!(world.told("h1", vm), "run 1 from disk");
            assert_eq!(world.order("h1", vm).unwrap().machine.disk.layer, None);
        }
    }
}
