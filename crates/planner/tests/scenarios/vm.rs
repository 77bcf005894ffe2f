//! The life of a VM without migrations.

use model::lifecycle::Phase;
use model::report::RunState;
use model::vm::{Goal, Outcome, Power};
use model::{Incarnation, Kind, Reason, VmId, key};

use super::world::{Conflict, World};

#[test]
fn a_created_vm_is_placed_prepared_booted_and_runs() {
    let mut world = World::new(2);
    let vm = world.vm("web", Power::Running);
    assert_eq!(
        (world.phase(vm), world.host_of(vm).as_str()),
        (Phase::Prolog, "h1")
    );
    assert_eq!(world.told("h1", vm), "run 1 from disk");
    assert_eq!(world.told("h2", vm), "nothing");
    for (state, phase) in [
        (RunState::Preparing, Phase::Prolog),
        (RunState::Booting, Phase::Boot),
        (RunState::Running, Phase::Running),
    ] {
        world.run(vm, |run| run.state = state);
        assert_eq!(world.phase(vm), phase);
    }
}

#[test]
fn without_room_the_explanation_is_kept_once_and_a_new_host_is_taken() {
    let mut world = World::new(0);
    let small = world.host("small", 300);
    let vm = world.vm("web", Power::Running);
    assert_eq!(world.phase(vm), Phase::Pending);
    let kept = world.intent(vm).placement.unwrap();
    assert_eq!(
        (kept.chosen, kept.considered, kept.refused[0].reason.code.as_str()),
        (None, 1, "memory-short")
    );
    let revision = world.view.revision;
    world.pass(60);
    world.settle();
    world.host_status(small, 300, "other");
    world.settle();
    assert_eq!(
        world.view.revision,
        revision + 2,
        "the report and what the host is made of now: the same refusal is not written again"
    );
    let decision = planner::vm::plan(&world.view, vm, world.now);
    assert!(decision.is_waiting, "it is woken when a host changes");
    world.host("large", 4096);
    world.settle();
    assert_eq!(
        (world.phase(vm), world.host_of(vm).as_str()),
        (Phase::Prolog, "large")
    );
}

#[test]
fn a_vm_with_a_blank_disk_waits_for_its_mediums_content() {
    let mut world = World::new(1);
    let image = world.image();
    world.write(key::image_status(image), &model::image::ImageStatus::default());
    let vm = world.asked_for("web", Power::Running, 256);
    world.change_vm(vm, |object| {
        let spec = &mut object.spec;
        spec.image = None;
        spec.disk_bytes = Some(1 << 30);
        spec.cdrom = Some(model::vm::Cdrom {
            medium: Some(image),
            force: false,
        });
    });
    world.settle();
    assert_eq!(world.phase(vm), Phase::Pending);
    world.write(key::image_status(image), &model::samples::image_status());
    world.settle();
    let machine = world.order("h1", vm).unwrap().machine;
    assert_eq!((machine.disk.image, machine.disk.bytes), (None, 1 << 30));
    assert_eq!(machine.cdrom.unwrap().medium.unwrap().sha256, "0".repeat(64));
}

#[test]
fn a_vm_waits_for_its_images_content() {
    let mut world = World::new(1);
    let image = world.image();
    world.write(key::image_status(image), &model::image::ImageStatus::default());
    let vm = world.vm("web", Power::Running);
    assert_eq!(world.phase(vm), Phase::Pending);
    assert!(planner::vm::plan(&world.view, vm, world.now).is_waiting);
}

#[test]
fn pause_and_resume_change_the_goal_only() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.ask(vm, Power::Paused);
    assert_eq!(world.told("h1", vm), "run 1 from disk paused");
    world.run(vm, |run| run.state = RunState::Paused);
    assert_eq!(world.phase(vm), Phase::Paused);
    world.ask(vm, Power::Running);
    assert_eq!(world.told("h1", vm), "run 1 from disk");
    world.run(vm, |run| run.state = RunState::Running);
    assert_eq!(
        (world.phase(vm), world.open(vm)),
        (Phase::Running, Incarnation(1))
    );
}

fn suspended(world: &mut World, host: &str) -> model::VmId {
    let vm = world.running("web", host);
    world.ask(vm, Power::Suspended);
    assert_eq!(world.told(host, vm), "stop 1 suspend");
    world.run(vm, |run| run.state = RunState::Saving);
    world.report(host, vm, Incarnation(1), |run| {
        run.state = RunState::Closed;
        run.saved_bytes = Some(1000);
    });
    assert_eq!(world.phase(vm), Phase::Suspended);
    vm
}

#[test]
fn a_suspended_vm_resumes_where_its_state_is() {
    let mut world = World::new(3);
    let vm = suspended(&mut world, "h2");
    // Its size may change meanwhile; the saved machine cannot.
    world.change_vm(vm, |object| object.spec.memory_mib = 512);
    world.ask(vm, Power::Running);
    assert_eq!(
        (world.host_of(vm).as_str(), world.told("h2", vm).as_str()),
        ("h2", "run 2 from saved")
    );
    assert_eq!(world.intent(vm).open.unwrap().memory_mib, 256);
    assert_eq!(world.intent(vm).saved, None, "a saved state is used once");
    world.run(vm, |run| run.state = RunState::Running);
    assert_eq!(world.phase(vm), Phase::Running);
}

#[test]
fn a_saved_state_that_died_with_its_host_does_not_hold_the_vm_back() {
    let mut world = World::new(2);
    let vm = suspended(&mut world, "h2");
    world.confirm_dead("h2");
    assert_eq!(world.phase(vm), Phase::Suspended);
    world.ask(vm, Power::Running);
    assert_eq!(world.told("h1", vm), "run 2 from disk");
}

#[test]
fn a_failed_suspend_is_taken_back_and_can_be_asked_for_again() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.ask(vm, Power::Suspended);
    world.run(vm, |run| {
        run.reason = Some(Reason::new("suspend-failed", "the disk is full"))
    });
    assert_eq!(
        (world.phase(vm), world.told("h1", vm).as_str()),
        (Phase::Running, "run 1 from disk")
    );
    world.run(vm, |run| run.reason = None);
    world.ask(vm, Power::Suspended);
    assert_eq!(world.told("h1", vm), "stop 1 suspend");
}

#[test]
fn a_failed_suspend_is_taken_back_also_after_another_wish() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.ask(vm, Power::Suspended);
    world.run(vm, |run| run.state = RunState::Saving);
    world.ask(vm, Power::Running);
    assert_eq!(world.told("h1", vm), "stop 1 suspend");
    world.run(vm, |run| {
        run.state = RunState::Running;
        run.reason = Some(Reason::new("suspend-failed", "the disk is full"));
    });
    assert_eq!(world.told("h1", vm), "run 1 from disk");
}

#[test]
fn a_shut_down_vm_stays_off_until_it_is_started() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.ask(vm, Power::Off);
    assert_eq!(
        (world.told("h1", vm).as_str(), world.phase(vm)),
        ("stop 1 shutdown", Phase::Shutdown)
    );
    world.close("h1", vm, Incarnation(1), None);
    assert_eq!(world.phase(vm), Phase::Off);
    world.ask(vm, Power::Running);
    assert_eq!(world.told("h1", vm), "run 2 from disk");
}

#[test]
fn a_start_during_the_shutdown_follows_it() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.ask(vm, Power::Off);
    world.ask(vm, Power::Running);
    assert_eq!(world.told("h1", vm), "stop 1 shutdown");
    world.close("h1", vm, Incarnation(1), None);
    assert_eq!(world.told("h1", vm), "run 2 from disk");
}

#[test]
fn force_pulls_the_plug_also_when_the_guest_was_asked_before() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.ask(vm, Power::Off);
    world.change_vm(vm, |object| {
        object.spec.force = true;
        object.spec.power_request += 1;
    });
    assert_eq!(world.told("h1", vm), "stop 1 kill");
}

#[test]
fn a_guest_that_shuts_itself_down_stays_off() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.close("h1", vm, Incarnation(1), Some("guest-shutdown"));
    assert_eq!(world.phase(vm), Phase::Off);
    world.pass(600);
    world.settle();
    assert_eq!(world.phase(vm), Phase::Off);
    world.ask(vm, Power::Running);
    assert_eq!(world.told("h1", vm), "run 2 from disk");
}

#[test]
fn a_failure_is_shown_with_its_cause_until_it_is_started_again() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.close("h1", vm, Incarnation(1), Some("qemu-died"));
    assert_eq!(world.phase(vm), Phase::Failed);
    let facts = world.view.facts(vm).unwrap();
    assert_eq!(
        model::lifecycle::reason(facts, Phase::Failed).unwrap().code,
        "qemu-died"
    );
    world.ask(vm, Power::Running);
    assert_eq!(world.told("h1", vm), "run 2 from disk");
}

#[test]
fn a_held_vm_is_placed_when_it_is_released() {
    let mut world = World::new(1);
    let vm = world.vm("web", Power::Hold);
    assert_eq!(
        (world.phase(vm), world.told("h1", vm).as_str()),
        (Phase::Hold, "nothing")
    );
    world.ask(vm, Power::Running);
    assert_eq!(world.phase(vm), Phase::Prolog);
}

#[test]
fn a_vm_created_switched_off_is_off_and_can_be_started() {
    let mut world = World::new(1);
    let vm = world.vm("web", Power::Off);
    assert_eq!(
        (world.phase(vm), world.told("h1", vm).as_str()),
        (Phase::Off, "nothing")
    );
    world.ask(vm, Power::Running);
    assert_eq!(world.phase(vm), Phase::Prolog);
}

fn is_gone(world: &World, vm: model::VmId) {
    assert!(!world.view.vms.contains_key(&vm), "{:#?}", world.log);
    let left: Vec<_> = world
        .store
        .keys()
        .filter(|key| key.contains(&vm.to_string()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(world.view.find(Kind::Vm, Some("default"), "web"), None);
}

#[test]
fn a_vm_that_owns_nothing_is_deleted_at_once() {
    for power in [Power::Hold, Power::Off, Power::Running] {
        let mut world = World::new(0);
        let vm = world.vm("web", power);
        world.delete(vm);
        is_gone(&world, vm);
    }
}

#[test]
fn a_vm_is_deleted_in_every_state_of_its_run() {
    for state in [
        RunState::Preparing,
        RunState::Booting,
        RunState::Running,
        RunState::Paused,
        RunState::Saving,
    ] {
        let mut world = World::new(2);
        let vm = world.vm("web", Power::Running);
        world.run(vm, |run| run.state = state);
        world.delete(vm);
        assert_eq!(world.told("h1", vm), "stop 1 remove", "{state:?}");
        world.close("h1", vm, Incarnation(1), None);
        assert_eq!(world.phase(vm), Phase::Epilog);
        world.report("h1", vm, Incarnation(1), |run| run.state = RunState::Removed);
        is_gone(&world, vm);
    }
}

#[test]
fn a_vm_is_deleted_though_its_host_has_forgotten_in_the_meantime_that_it_ran() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.close("h1", vm, Incarnation(1), Some("guest-shutdown"));
    world.delete(vm);
    world.report("h1", vm, Incarnation(1), |run| {
        (run.state, run.ran) = (RunState::Closed, true);
    });
    // It had begun to forget it before it was told to remove it.
    world.report("h1", vm, Incarnation(1), |run| {
        (run.state, run.ran) = (RunState::Removed, false);
    });
    is_gone(&world, vm);
}

#[test]
fn a_vm_that_is_off_suspended_or_failed_has_its_volumes_removed_by_its_host() {
    for reason in [None, Some("guest-shutdown"), Some("qemu-died")] {
        let mut world = World::new(2);
        let vm = world.running("web", "h2");
        world.report("h2", vm, Incarnation(1), |run| {
            run.state = RunState::Closed;
            run.saved_bytes = reason.is_none().then_some(5);
            run.reason = reason.map(|code| Reason::new(code, code));
        });
        world.delete(vm);
        assert_eq!(
            (world.told("h2", vm).as_str(), world.phase(vm)),
            ("stop 1 remove", Phase::Epilog)
        );
        world.report("h2", vm, Incarnation(1), |run| run.state = RunState::Removed);
        is_gone(&world, vm);
    }
}

#[test]
fn with_its_host_dead_another_removes_a_deleted_vms_volumes() {
    let mut world = World::new(2);
    let vm = world.running("web", "h1");
    world.delete(vm);
    world.confirm_dead("h1");
    assert_eq!(world.told("h2", vm), "stop 1 remove");
    world.report("h2", vm, Incarnation(1), |run| run.state = RunState::Removed);
    is_gone(&world, vm);
}

#[test]
fn a_silent_host_makes_its_vms_unknown_and_only_a_word_restarts_them() {
    let mut world = World::new(2);
    let vm = world.running("web", "h1");
    world.silent("h1", true);
    world.pass(3600);
    world.settle();
    assert_eq!(
        (world.phase(vm), world.open(vm)),
        (Phase::Unknown, Incarnation(1))
    );
    world.silent("h1", false);
    assert_eq!(world.phase(vm), Phase::Running);
    world.confirm_dead("h1");
    assert_eq!(
        (world.host_of(vm).as_str(), world.told("h2", vm).as_str()),
        ("h2", "run 2 from disk")
    );
    assert_eq!(world.told("h1", vm), "nothing");
    // What the dead host says late is not heard.
    let revision = world.view.revision;
    world.report("h1", vm, Incarnation(1), |run| run.state = RunState::Running);
    assert_eq!(world.view.revision, revision);
}

#[test]
fn a_vm_that_was_to_be_off_stays_off_when_its_host_dies() {
    let mut world = World::new(2);
    let vm = world.running("web", "h1");
    world.ask(vm, Power::Off);
    world.confirm_dead("h1");
    assert_eq!(
        (world.phase(vm), world.intent(vm).ended.unwrap().outcome),
        (Phase::Off, Outcome::Fenced)
    );
}

#[test]
fn of_two_controllers_on_the_same_view_one_commits() {
    let mut world = World::new(2);
    world.host_spec("h1", |spec| spec.cordoned = true);
    let vm = world.running("web", "h2");
    let mut object = world.object(vm).value;
    object.spec.power = Power::Off;
    object.spec.power_request += 1;
    world.write(key::object(Kind::Vm, vm.0), &object);
    let (first, second) = (world.next_plan().unwrap(), world.next_plan().unwrap());
    world.commit(first).unwrap();
    assert_eq!(world.commit(second), Err(Conflict(key::vm_intent(vm))));
    assert!(matches!(
        world.intent(vm).open.unwrap().goal,
        Goal::Shutdown { .. }
    ));
}

#[test]
fn two_vms_do_not_take_the_last_room_together() {
    let mut world = World::new(0);
    let host = world.host("h1", 500);
    let (a, b) = (world.vm("a", Power::Hold), world.vm("b", Power::Hold));
    for id in [a, b] {
        let mut object = world.object(id).value;
        (object.spec.power, object.spec.power_request) = (Power::Running, 2);
        world.write(key::object(Kind::Vm, id.0), &object);
    }
    let plans = [a, b].map(|id| planner::vm::plan(&world.view, id, world.now).plan.unwrap());
    let [first, second] = plans;
    world.commit(first).unwrap();
    assert_eq!(world.commit(second), Err(Conflict(key::host_reservations(host))));
    world.settle();
    assert_eq!((world.phase(a), world.phase(b)), (Phase::Prolog, Phase::Pending));
    world.delete(a);
    world.report("h1", a, Incarnation(1), |run| run.state = RunState::Removed);
    assert_eq!(world.phase(b), Phase::Prolog);
}

#[test]
fn a_repeated_or_late_report_changes_nothing() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    let running = world.status("h1", vm, Incarnation(1));
    let mut booting = running.clone();
    (booting.state, booting.ran) = (RunState::Booting, false);
    let revision = world.view.revision;
    world.post("h1", vm, running.clone());
    world.post("h1", vm, booting);
    assert_eq!(world.view.revision, revision);
    world.delete(vm);
    world.close("h1", vm, Incarnation(1), None);
    let revision = world.view.revision;
    world.post("h1", vm, running);
    assert_eq!(world.view.revision, revision, "what is closed stays closed");
}

#[test]
fn another_hosts_report_of_a_vm_is_not_heard() {
    let mut world = World::new(2);
    let vm = world.running("web", "h1");
    let revision = world.view.revision;
    let mut run = world.status("h1", vm, Incarnation(1));
    run.state = RunState::Closed;
    world.post("h2", vm, run.clone());
    run.incarnation = Incarnation(2);
    world.post("h1", vm, run);
    assert_eq!(world.view.revision, revision);
}

/// VMs that wait for a place.
fn waiting(world: &mut World, names: &[&str], memory_mib: u64) -> Vec<VmId> {
    let asked = names
        .iter()
        .map(|name| world.asked_for(name, Power::Running, memory_mib));
    asked.collect()
}

#[test]
fn vms_that_wait_are_placed_by_one_plan_as_if_one_after_the_other() {
    let [together, alone] = [true, false].map(|is_together| {
        let mut world = World::new(3);
        let vms = waiting(&mut world, &["a", "b", "c"], 256);
        if is_together {
            let plan = planner::vm::plan_beside(&world.view, vms[0], &vms[1..], world.now).plan;
            let plan = plan.unwrap();
            assert_eq!(plan.action, "start 3 VMs");
            world.commit(plan).unwrap();
        } else {
            world.settle();
        }
        vms.iter().map(|vm| world.host_of(*vm)).collect::<Vec<_>>()
    });
    assert_eq!(together, alone);
}

#[test]
fn whoever_has_no_room_or_waits_for_nothing_is_left_out() {
    let mut world = World::new(1);
    let running = world.running("there", "h1");
    let small = waiting(&mut world, &["a", "b"], 256);
    let large = waiting(&mut world, &["large"], 1 << 20);
    let beside = [large[0], running, small[0], small[1]];
    let plan = planner::vm::plan_beside(&world.view, small[0], &beside, world.now).plan;
    let plan = plan.unwrap();
    assert_eq!(plan.action, "start 2 VMs");
    world.commit(plan).unwrap();
    assert_eq!(
        small.iter().map(|vm| world.phase(*vm)).collect::<Vec<_>>(),
        [Phase::Prolog; 2]
    );
    assert_eq!(
        (world.phase(large[0]), world.open(running)),
        (Phase::Pending, Incarnation(1))
    );
    world.settle();
}

#[test]
fn one_plan_takes_no_more_vms_in_than_the_store_takes() {
    let mut world = World::new(20);
    let names: Vec<String> = (0..40).map(|n| format!("vm{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let vms = waiting(&mut world, &names, 256);
    let plan = planner::vm::plan_beside(&world.view, vms[0], &vms[1..], world.now).plan;
    let plan = plan.unwrap();
    assert!(plan.action.starts_with("start 1"), "{}", plan.action);
    world.commit(plan).unwrap();
}
