//! The records of long actions: made with the request, ended by what the view says, kept for a while.

use model::lifecycle::Phase;
use model::report::{Rebooted, RunState};
use model::vm::{Power, SavedIn};
use model::{Incarnation, Kind, Reason, VmId, key};

use super::world::World;

/// Every operation in the order of its making, in a few words.
fn told(world: &World) -> Vec<String> {
    let all = world.view.operations.values().map(|operation| {
        let status = planner::operation::status(operation);
        let name = &operation.object.as_ref().unwrap().value.meta.name;
        let reason = status.reason.map(|reason| format!(" {}", reason.code));
        format!("{name} {:?}{}", status.phase, reason.unwrap_or_default())
    });
    all.collect()
}

fn status(world: &World, name: &str) -> model::operation::OperationStatus {
    let id = world.view.find(Kind::Operation, Some("default"), name).unwrap();
    planner::operation::status(&world.view.operations[&id])
}

#[test]
fn a_request_and_its_record_are_one_transaction() {
    let mut world = World::new(1);
    let vm = world.vm("web", Power::Running);
    let id = world
        .view
        .find(Kind::Operation, Some("default"), "web-start-1")
        .unwrap();
    let made = &world.view.operations[&id].object.as_ref().unwrap();
    assert_eq!(made.revision, world.object(vm).revision);
    let (meta, spec) = (&made.value.meta, &made.value.spec);
    assert_eq!(
        (meta.owner.as_str(), spec.owner.as_str()),
        ("controller", "controller")
    );
    assert_eq!(
        (spec.object, spec.object_name.as_str(), spec.request),
        (vm.0, "web", 1)
    );
    assert_eq!(told(&world), ["web-start-1 Running"]);
}

#[test]
fn a_life_leaves_its_records() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.ask(vm, Power::Paused);
    world.run(vm, |run| run.state = RunState::Paused);
    world.ask(vm, Power::Running);
    world.run(vm, |run| run.state = RunState::Running);
    assert_eq!(told(&world), ["web-start-1 Done"], "a pause is not long");
    world.ask(vm, Power::Suspended);
    assert_eq!(told(&world)[1], "web-suspend-4 Running");
    world.pass(5);
    world.report("h1", vm, Incarnation(1), |run| {
        run.state = RunState::Closed;
        run.saved_bytes = Some(1000);
    });
    assert_eq!(status(&world, "web-suspend-4").ended_at, Some(world.now));
    world.ask(vm, Power::Running);
    world.run(vm, |run| run.state = RunState::Booting);
    assert_eq!(told(&world)[2], "web-start-5 Running");
    world.run(vm, |run| run.state = RunState::Running);
    world.ask(vm, Power::Off);
    world.close("h1", vm, Incarnation(2), None);
    assert_eq!(
        told(&world)[1..],
        ["web-suspend-4 Done", "web-start-5 Done", "web-shutdown-6 Done"]
    );
}

#[test]
fn a_shutdown_has_the_deadline_that_its_host_was_told() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.ask(vm, Power::Off);
    let deadline = status(&world, "web-shutdown-2").deadline.unwrap();
    let grace = deadline.duration_since(world.now).as_millis();
    assert_eq!(grace, i128::from(planner::vm::SHUTDOWN_GRACE_MS));
    world.pass(61);
    world.close("h1", vm, Incarnation(1), Some("forced-off"));
    assert_eq!(told(&world)[1], "web-shutdown-2 Done forced-off");
    assert_eq!(status(&world, "web-shutdown-2").deadline, Some(deadline));
}

#[test]
fn what_failed_says_why_and_tries_in_a_row_are_counted() {
    let mut world = World::new(1);
    let vm = world.vm("web", Power::Running);
    // One more in a row, and the host would be avoided for a while.
    for n in 1..=2 {
        world.close("h1", vm, Incarnation(n), Some("image-unavailable"));
        assert_eq!(
            status(&world, &format!("web-start-{n}")).attempt,
            u32::try_from(n).unwrap()
        );
        assert_eq!(
            told(&world).last().unwrap(),
            &format!("web-start-{n} Failed image-unavailable")
        );
        world.ask(vm, Power::Running);
    }
    world.run(vm, |run| run.state = RunState::Running);
    assert_eq!(
        (status(&world, "web-start-3").attempt, told(&world)[2].as_str()),
        (3, "web-start-3 Done")
    );
    world.close("h1", vm, Incarnation(3), Some("qemu-exited"));
    world.ask(vm, Power::Running);
    assert_eq!(status(&world, "web-start-4").attempt, 1, "the row was broken");
}

#[test]
fn a_newer_request_supersedes_what_had_not_ended() {
    let mut world = World::new(1);
    let vm = world.vm("web", Power::Running);
    world.ask(vm, Power::Off);
    assert_eq!(
        told(&world),
        ["web-start-1 Superseded superseded", "web-shutdown-2 Running"]
    );
    let reason = status(&world, "web-start-1").reason.unwrap();
    assert_eq!(reason.message, "web-shutdown-2 was asked for before it had ended");
    world.delete(vm);
    assert_eq!(
        told(&world)[1..],
        ["web-shutdown-2 Superseded superseded", "web-delete-2 Running"]
    );
}

#[test]
fn a_suspend_that_was_taken_back_has_failed() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.ask(vm, Power::Suspended);
    world.run(vm, |run| {
        run.reason = Some(Reason::new("suspend-failed", "the disk is full"))
    });
    assert_eq!(told(&world)[1], "web-suspend-2 Failed suspend-failed");
    assert_eq!(world.phase(vm), Phase::Running);
}

#[test]
fn a_vm_that_dies_before_it_could_be_suspended_ends_the_wait() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.ask(vm, Power::Suspended);
    world.close("h1", vm, Incarnation(1), Some("suspend-lost"));
    assert_eq!(told(&world)[1], "web-suspend-2 Failed suspend-lost");
}

#[test]
fn a_start_waits_out_a_dead_host() {
    let mut world = World::new(2);
    let vm = world.vm("web", Power::Running);
    world.confirm_dead("h1");
    assert_eq!(
        (world.host_of(vm).as_str(), told(&world)[0].as_str()),
        ("h2", "web-start-1 Running")
    );
    world.run(vm, |run| run.state = RunState::Running);
    assert_eq!(told(&world), ["web-start-1 Done"]);
}

#[test]
fn the_record_of_a_deletion_outlives_its_vm_for_a_while() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.delete(vm);
    world.close("h1", vm, Incarnation(1), None);
    assert_eq!(told(&world), ["web-start-1 Done", "web-delete-1 Running"]);
    world.report("h1", vm, Incarnation(1), |run| run.state = RunState::Removed);
    assert_eq!(told(&world), ["web-delete-1 Done"]);
    // Another VM of that name has records of its own.
    let other = world.vm("web", Power::Hold);
    world.delete(other);
    assert_eq!(told(&world), ["web-delete-1 Done", "web-delete-1.2 Done"]);
    let decision = planner::vm::plan(&world.view, vm, world.now);
    let wait = decision
        .look_again_at
        .unwrap()
        .duration_since(world.now)
        .as_millis();
    assert_eq!(wait, i128::from(planner::operation::KEPT_AFTER_DELETION_MS));
    world.pass(600);
    world.settle();
    assert_eq!(told(&world), Vec::<String>::new());
    assert!(
        world.store.keys().all(|key| !key.contains("/operation/")),
        "{:?}",
        world.store.keys()
    );
}

#[test]
fn only_the_newest_that_have_ended_are_kept() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    for n in 1..20 {
        world.ask(vm, Power::Off);
        world.close("h1", vm, Incarnation(n), None);
        world.ask(vm, Power::Running);
        world.run(vm, |run| run.state = RunState::Running);
    }
    let kept = told(&world);
    assert_eq!(
        (kept.len(), kept.last().unwrap().as_str()),
        (10, "web-start-39 Done")
    );
}

/// Nobody looked while all this happened: the first look says the same of each as if somebody had.
#[test]
fn a_server_that_was_down_says_how_each_ended() {
    let mut world = World::new(1);
    let vm = world.vm("web", Power::Running);
    let mut run = world.status("h1", vm, Incarnation(1));
    (run.state, run.ran) = (RunState::Running, true);
    world.write(key::vm_run(vm, Incarnation(1)), &run);
    request(&mut world, vm, Power::Suspended);
    (run.state, run.saved_bytes) = (RunState::Closed, Some(5));
    assert_eq!(told(&world), ["web-start-1 Running", "web-suspend-2 Running"]);
    // The run says that the start has succeeded; then the save ends and the resume is asked for, with one look between.
    let plan = world.next_plan().unwrap();
    world.commit(plan).unwrap();
    assert_eq!(told(&world)[0], "web-start-1 Done");
    world.settle();
    world.write(key::vm_run(vm, Incarnation(1)), &run);
    request(&mut world, vm, Power::Running);
    world.settle();
    world.run(vm, |run| run.state = RunState::Running);
    assert_eq!(
        told(&world),
        ["web-start-1 Done", "web-suspend-2 Done", "web-start-3 Done"]
    );
}

/// As [`World::ask`], but nobody looks.
fn request(world: &mut World, vm: VmId, power: Power) {
    let mut object = world.object(vm).value;
    object.spec.power = power;
    object.spec.power_request += 1;
    world.write(key::object(Kind::Vm, vm.0), &object);
}

#[test]
fn many_requests_at_once_are_written_down_in_bounded_transactions() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    for n in 0..60 {
        request(
            &mut world,
            vm,
            if n % 2 == 0 { Power::Off } else { Power::Suspended },
        );
    }
    world.settle();
    assert_eq!(told(&world).len(), 11);
    world.delete(vm);
    world.report("h1", vm, Incarnation(1), |run| run.state = RunState::Removed);
    assert_eq!(told(&world), ["web-delete-61 Done"]);
}

#[test]
fn a_vms_events_say_how_large_its_disk_is() {
    use model::event::{EventSpec, What};
    let mut world = World::new(1);
    let vm = world.vm("web", Power::Running);
    world.delete(vm);
    world.report("h1", vm, Incarnation(1), |run| run.state = RunState::Removed);
    let events = world.view.events.values().map(|at| &at.value.spec);
    let held = |event: &EventSpec| match &event.what {
        What::Lifecycle(life) => Some((life.to, life.disk_bytes)),
        _ => None,
    };
    // The image says the size, since the VM does not: from the first step that makes the disk to its removal.
    let held: Vec<_> = events.filter_map(held).collect();
    let image = 1 << 20;
    assert_eq!(
        held,
        [
            (Phase::Pending, 0),
            (Phase::Prolog, image),
            (Phase::Shutdown, image),
            (Phase::Done, 0)
        ]
    );
}

#[test]
fn a_reboot_is_told_to_the_host_and_ends_with_its_word() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.reboot(vm, false);
    let told_host = world.order("h1", vm).unwrap().reboot.unwrap();
    assert_eq!(told_host.request, 1);
    let grace = told_host.force_at.duration_since(world.now).as_millis();
    assert_eq!(grace, i128::from(planner::vm::REBOOT_GRACE_MS));
    assert_eq!(status(&world, "web-reboot-1").deadline, Some(told_host.force_at));
    world.pass(5);
    world.run(vm, |run| {
        run.rebooted = Some(Rebooted {
            request: 1,
            forced: false,
        })
    });
    assert_eq!(told(&world), ["web-start-1 Done", "web-reboot-1 Done"]);
    assert_eq!(world.order("h1", vm).unwrap().reboot, None);
    assert_eq!(world.open(vm), Incarnation(1), "it is the same incarnation");
    world.reboot(vm, true);
    assert_eq!(world.order("h1", vm).unwrap().reboot.unwrap().force_at, world.now);
    world.run(vm, |run| {
        run.rebooted = Some(Rebooted {
            request: 2,
            forced: true,
        })
    });
    assert_eq!(told(&world)[2], "web-reboot-2 Done reset");
}

#[test]
fn a_reboot_of_a_guest_that_ends_or_is_to_end_is_over() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.reboot(vm, false);
    world.reboot(vm, true);
    assert_eq!(
        told(&world)[1..],
        ["web-reboot-1 Superseded superseded", "web-reboot-2 Running"]
    );
    world.ask(vm, Power::Off);
    assert_eq!(told(&world)[2], "web-reboot-2 Superseded superseded");
    world.close("h1", vm, Incarnation(1), None);
    world.ask(vm, Power::Running);
    world.run(vm, |run| run.state = RunState::Running);
    assert_eq!(
        world.order("h1", vm).unwrap().reboot,
        None,
        "a new incarnation is not rebooted"
    );
    world.reboot(vm, false);
    world.close("h1", vm, Incarnation(2), Some("qemu-exited"));
    assert_eq!(told(&world).last().unwrap(), "web-reboot-3 Failed qemu-exited");
}

#[test]
fn a_prepared_vm_has_its_disk_made_and_is_off() {
    let mut world = World::new(1);
    let vm = world.vm("web", Power::Prepared);
    assert_eq!(
        (world.phase(vm), world.told("h1", vm).as_str()),
        (Phase::Prolog, "stop 1 prepare")
    );
    world.run(vm, |run| run.state = RunState::Preparing);
    assert_eq!(told(&world), ["web-prepare-1 Running"]);
    world.close("h1", vm, Incarnation(1), None);
    assert_eq!(
        (world.phase(vm), told(&world)[0].as_str()),
        (Phase::Off, "web-prepare-1 Done")
    );
    world.settle();
    assert_eq!(world.told("h1", vm), "nothing", "once is enough");
    world.ask(vm, Power::Running);
    assert_eq!(world.told("h1", vm), "run 2 from disk");
}

#[test]
fn a_preparation_that_failed_is_tried_again_when_asked() {
    let mut world = World::new(1);
    let vm = world.vm("web", Power::Prepared);
    world.close("h1", vm, Incarnation(1), Some("image-unavailable"));
    assert_eq!(
        (world.phase(vm), told(&world)[0].as_str()),
        (Phase::Failed, "web-prepare-1 Failed image-unavailable")
    );
    world.ask(vm, Power::Prepared);
    assert_eq!(
        (
            world.told("h1", vm).as_str(),
            status(&world, "web-prepare-2").attempt
        ),
        ("stop 2 prepare", 2)
    );
    // Asked to start meanwhile, it is started when its disk is made.
    world.ask(vm, Power::Running);
    assert_eq!(world.told("h1", vm), "stop 2 prepare");
    world.close("h1", vm, Incarnation(2), None);
    assert_eq!(world.told("h1", vm), "run 3 from disk");
}

#[test]
fn a_saved_state_that_could_not_be_loaded_is_tried_again_or_given_up() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.ask(vm, Power::Suspended);
    world.report("h1", vm, Incarnation(1), |run| {
        run.state = RunState::Closed;
        run.saved_bytes = Some(1000);
    });
    world.ask(vm, Power::Running);
    world.close("h1", vm, Incarnation(2), Some("saved-state-not-loaded"));
    assert_eq!(world.phase(vm), Phase::Failed);
    world.ask(vm, Power::Running);
    assert_eq!(world.told("h1", vm), "run 3 from saved");
    world.close("h1", vm, Incarnation(3), Some("saved-state-not-loaded"));
    world.ask(vm, Power::Off);
    assert_eq!((world.phase(vm), world.intent(vm).saved), (Phase::Off, None));
    world.ask(vm, Power::Running);
    assert_eq!(world.told("h1", vm), "run 4 from disk");
    // Once the guest has executed, its state was used.
    world.run(vm, |run| run.state = RunState::Running);
    world.close("h1", vm, Incarnation(4), Some("qemu-exited"));
    assert_eq!(world.intent(vm).saved, None);
}

fn stopped(world: &mut World) -> VmId {
    let vm = world.running("web", "h1");
    world.ask(vm, Power::Stopped);
    assert_eq!(
        (world.told("h1", vm).as_str(), told(world)[1].as_str()),
        ("stop 1 store", "web-stop-2 Running")
    );
    world.run(vm, |run| run.state = RunState::Saving);
    world.report("h1", vm, Incarnation(1), |run| {
        run.state = RunState::Closed;
        (run.saved_bytes, run.saved_in) = (Some(1000), SavedIn::Datastore);
    });
    assert_eq!(
        (world.phase(vm), told(world)[1].as_str()),
        (Phase::Stopped, "web-stop-2 Done")
    );
    assert_eq!(world.host_of(vm), "", "it holds no host");
    vm
}

#[test]
fn a_stopped_vm_resumes_on_any_host_that_has_its_processor() {
    let mut world = World::new(2);
    let vm = stopped(&mut world);
    world.host_spec("h1", |spec| spec.cordoned = true);
    let other = world.host("other", 4096);
    world.host_status(other, 4096, "another-cpu");
    world.host_spec("h2", |spec| spec.cordoned = true);
    world.ask(vm, Power::Running);
    assert_eq!(
        world.phase(vm),
        Phase::Pending,
        "another processor cannot go on with it"
    );
    world.host_spec("h2", |spec| spec.cordoned = false);
    assert_eq!(
        (world.host_of(vm).as_str(), world.told("h2", vm).as_str()),
        ("h2", "run 2 from saved")
    );
    assert_eq!(world.intent(vm).saved, None, "a saved state is used once");
    world.run(vm, |run| run.state = RunState::Running);
    assert_eq!(
        (world.phase(vm), told(&world)[2].as_str()),
        (Phase::Running, "web-start-3 Done")
    );
}

#[test]
fn a_stopped_vm_outlives_the_host_that_saved_it() {
    let mut world = World::new(2);
    let vm = stopped(&mut world);
    world.confirm_dead("h1");
    world.ask(vm, Power::Running);
    assert_eq!(world.told("h2", vm), "run 2 from saved");
}

#[test]
fn a_stopped_vm_is_given_up_or_deleted_without_a_host_of_its_own() {
    let mut world = World::new(2);
    let vm = stopped(&mut world);
    world.ask(vm, Power::Off);
    assert_eq!((world.phase(vm), world.intent(vm).saved), (Phase::Off, None));
    let mut world = World::new(2);
    let vm = stopped(&mut world);
    world.delete(vm);
    assert_eq!(
        (world.phase(vm), world.told("h1", vm).as_str()),
        (Phase::Epilog, "stop 1 remove")
    );
    world.report("h1", vm, Incarnation(1), |run| run.state = RunState::Removed);
    assert_eq!(told(&world), ["web-delete-2 Done"]);
}

#[test]
fn what_cannot_be_saved_is_said_to_have_failed() {
    let mut world = World::new(0);
    let vm = world.vm("web", Power::Running);
    world.ask(vm, Power::Suspended);
    assert_eq!(told(&world)[1], "web-suspend-2 Failed ended-otherwise");
}
