//! Migrations, stage by stage: what the store holds, and what the documents of both hosts say.

use model::lifecycle::Phase;
use model::migration::MigrationPhase as M;
use model::report::{CdromState, OutgoingState, RunState};
use model::vm::{Cdrom, Outcome, Power};
use model::{HostId, Incarnation, MigrationId, Reason, VmId};

use super::world::World;

const N: Incarnation = Incarnation(1);
const TARGET: Incarnation = Incarnation(2);

/// A VM on `h1` that is asked to move to `h2`.
fn preparing() -> (World, VmId, MigrationId) {
    let mut world = World::new(3);
    let vm = world.running("web", "h1");
    let id = world.migrate(vm, Some("h2"));
    assert_eq!(
        (world.stage(id), world.phase(vm)),
        (M::Preparing, Phase::Migrating)
    );
    (world, vm, id)
}

/// Its target listens and the grant is stored.
fn transferring() -> (World, VmId, MigrationId) {
    let (mut world, vm, id) = preparing();
    listens(&mut world, "h2", vm, TARGET);
    assert_eq!(world.stage(id), M::Transferring);
    world.outgoing(vm, id, OutgoingState::Transferring);
    (world, vm, id)
}

/// Its source's QEMU has completed.
fn decided() -> (World, VmId, MigrationId) {
    let (mut world, vm, id) = transferring();
    world.report("h2", vm, TARGET, |run| run.state = RunState::Loaded);
    world.outgoing(vm, id, OutgoingState::Completed);
    assert_eq!(world.stage(id), M::Decided);
    (world, vm, id)
}

/// Its target runs.
fn activated() -> (World, VmId, MigrationId) {
    let (mut world, vm, id) = decided();
    world.report("h2", vm, TARGET, |run| run.state = RunState::Running);
    assert_eq!(world.stage(id), M::Activated);
    (world, vm, id)
}

fn listens(world: &mut World, host: &str, vm: VmId, to: Incarnation) {
    world.report(host, vm, to, |run| {
        run.state = RunState::Incoming;
        run.stream = Some("10.0.0.2:4444".to_owned());
    });
}

fn code(world: &World, id: MigrationId) -> String {
    world
        .moves(id)
        .reason
        .map(|reason| reason.code)
        .unwrap_or_default()
}

fn told(world: &World, vm: VmId) -> [String; 2] {
    [world.told("h1", vm), world.told("h2", vm)]
}

#[test]
fn a_migration_goes_through_its_stages() {
    let (mut world, vm, id) = preparing();
    assert_eq!(told(&world, vm), ["migrate 1 to 2", "target 2 from 1 Prepare"]);
    world.report("h2", vm, TARGET, |run| run.state = RunState::Preparing);
    assert_eq!(world.stage(id), M::Preparing);
    listens(&mut world, "h2", vm, TARGET);
    assert_eq!(
        told(&world, vm),
        ["migrate 1 to 2 granted", "target 2 from 1 Granted"]
    );
    world.outgoing(vm, id, OutgoingState::Transferring);
    world.outgoing(vm, id, OutgoingState::SwitchingOver);
    let route = world.moves(id).route.unwrap();
    assert!(planner::document::is_switching_over(&world.view.vms[&vm], &route));
    assert_eq!(world.stage(id), M::Transferring);
    world.report("h2", vm, TARGET, |run| run.state = RunState::Loaded);
    world.outgoing(vm, id, OutgoingState::Completed);
    assert_eq!(
        told(&world, vm),
        ["migrate 1 to 2 granted", "target 2 from 1 Decided"]
    );
    world.pass(2);
    world.report("h2", vm, TARGET, |run| run.state = RunState::Running);
    assert_eq!((world.stage(id), world.phase(vm)), (M::Activated, Phase::Running));
    assert_eq!(told(&world, vm), ["stop 1 release", "run 2 from never"]);
    world.close("h1", vm, N, None);
    assert_eq!((world.stage(id), code(&world, id).as_str()), (M::Done, ""));
    assert_eq!(told(&world, vm), ["nothing", "run 2 from never"]);
    let measured = world.moves(id).measured.unwrap();
    assert_eq!(
        (measured.downtime_ms, measured.total_ms, measured.bytes),
        (11, 2000, 1 << 20)
    );
    assert_eq!((world.host_of(vm).as_str(), world.open(vm)), ("h2", TARGET));
    assert_eq!(world.intent(vm).migration, None);
}

#[test]
fn the_target_may_run_before_the_store_hears_that_the_source_completed() {
    let (mut world, vm, id) = transferring();
    world.report("h2", vm, TARGET, |run| run.state = RunState::Running);
    assert_eq!(world.stage(id), M::Activated);
    world.outgoing(vm, id, OutgoingState::Completed);
    world.close("h1", vm, N, None);
    assert_eq!(world.stage(id), M::Done);
    assert_eq!(world.moves(id).measured.unwrap().downtime_ms, 11);
}

#[test]
fn a_paused_vm_moves_and_stays_paused() {
    let mut world = World::new(2);
    let vm = world.running("web", "h1");
    world.ask(vm, Power::Paused);
    world.run(vm, |run| run.state = RunState::Paused);
    let id = world.migrate(vm, None);
    listens(&mut world, "h2", vm, TARGET);
    world.outgoing(vm, id, OutgoingState::Completed);
    world.report("h2", vm, TARGET, |run| run.state = RunState::Paused);
    assert_eq!(
        (world.phase(vm), world.told("h2", vm).as_str()),
        (Phase::Paused, "run 2 from never paused")
    );
}

#[test]
fn a_vm_whose_medium_is_still_being_changed_is_not_moved() {
    let mut world = World::new(2);
    let vm = world.running("web", "h1");
    let image = world.image();
    let cdrom = Cdrom {
        medium: Some(image),
        force: false,
    };
    world.change_vm(vm, |object| object.spec.cdrom = Some(cdrom));
    world.run(vm, |run| run.cdrom = Some(CdromState::default()));
    let early = world.migrate(vm, Some("h2"));
    assert_eq!(world.moves(early).reason.unwrap().code, "medium-changing");
    let medium = Some("0".repeat(64));
    world.run(vm, |run| run.cdrom.as_mut().unwrap().medium = medium);
    let later = world.migrate(vm, Some("h2"));
    assert_eq!(world.stage(later), M::Preparing);
}

#[test]
fn what_cannot_move_is_refused_and_nothing_is_touched() {
    type Break = fn(&mut World, VmId) -> Option<&'static str>;
    let cases: [(&str, Break); 7] = [
        ("is there already", |_, _| Some("h1")),
        ("cordoned", |world, _| {
            world.host_spec("h2", |spec| spec.cordoned = true);
            Some("h2")
        }),
        ("short by", |world, _| {
            let h2 = world.host_id("h2");
            world.host_status(h2, 300, "qemu64");
            Some("h2")
        }),
        ("processor", |world, _| {
            let h2 = world.host_id("h2");
            world.host_status(h2, 4096, "other");
            Some("h2")
        }),
        ("not heard", |world, _| {
            world.silent("h2", true);
            Some("h2")
        }),
        ("only a running", |world, vm| {
            world.ask(vm, Power::Off);
            Some("h2")
        }),
        ("only a running", |world, vm| {
            world.close("h1", vm, N, Some("qemu-died"));
            None
        }),
    ];
    for (why, make) in cases {
        let mut world = World::new(2);
        let vm = world.running("web", "h1");
        let to = make(&mut world, vm);
        let before = world.intent(vm);
        let id = world.migrate(vm, to);
        assert_eq!(world.stage(id), M::Aborted, "{why}");
        let message = world.moves(id).reason.unwrap().message;
        assert!(message.contains(why), "{why}: {message}");
        assert_eq!((world.moves(id).route, world.intent(vm)), (None, before));
        assert_eq!(world.told("h2", vm), "nothing");
    }
}

#[test]
fn a_cancel_before_the_grant_ends_it_at_once() {
    let (mut world, vm, id) = preparing();
    world.cancel(id);
    assert_eq!((world.stage(id), world.phase(vm)), (M::Aborting, Phase::Running));
    assert_eq!(told(&world, vm), ["run 1 from disk", "target 2 from 1 Revoked"]);
    world.close("h2", vm, TARGET, None);
    assert_eq!(
        (world.stage(id), code(&world, id).as_str()),
        (M::Aborted, "cancelled")
    );
    assert_eq!(told(&world, vm), ["run 1 from disk", "nothing"]);
}

#[test]
fn a_cancel_after_the_grant_waits_for_the_sources_promise() {
    let (mut world, vm, id) = transferring();
    world.cancel(id);
    assert_eq!(world.stage(id), M::Transferring);
    assert_eq!(
        told(&world, vm),
        ["migrate 1 to 2 granted cancel", "target 2 from 1 Granted"]
    );
    world.outgoing(vm, id, OutgoingState::Promised);
    assert_eq!(told(&world, vm), ["run 1 from disk", "target 2 from 1 Revoked"]);
    world.close("h2", vm, TARGET, None);
    assert_eq!(
        (world.stage(id), code(&world, id).as_str()),
        (M::Aborted, "cancelled")
    );
    // The next attempt takes the next number.
    let next = world.migrate(vm, Some("h2"));
    assert_eq!(world.moves(next).route.unwrap().to, Incarnation(3));
}

#[test]
fn a_cancel_that_comes_too_late_changes_nothing() {
    let (mut world, vm, id) = decided();
    world.cancel(id);
    assert_eq!(world.stage(id), M::Decided);
    world.report("h2", vm, TARGET, |run| run.state = RunState::Running);
    assert_eq!(world.stage(id), M::Activated);
}

#[test]
fn a_target_that_does_not_start_ends_it() {
    let (mut world, vm, id) = preparing();
    world.close("h2", vm, TARGET, Some("qemu-died"));
    assert_eq!(
        (world.stage(id), code(&world, id).as_str()),
        (M::Aborted, "qemu-died")
    );
    assert_eq!(told(&world, vm), ["run 1 from disk", "nothing"]);
}

#[test]
fn a_target_that_does_not_listen_in_time_ends_it() {
    let (mut world, vm, id) = preparing();
    let wait = planner::migration::plan(&world.view, id, world.now).look_again_at;
    assert_eq!(wait, world.moves(id).deadline);
    world.pass(31);
    world.settle();
    assert_eq!(
        (world.stage(id), code(&world, id).as_str()),
        (M::Aborting, "target-late")
    );
    world.close("h2", vm, TARGET, None);
    assert_eq!(world.stage(id), M::Aborted);
}

#[test]
fn a_target_lost_after_the_grant_makes_the_source_cancel() {
    let (mut world, vm, id) = transferring();
    world.close("h2", vm, TARGET, Some("qemu-died"));
    assert_eq!(world.stage(id), M::Transferring);
    assert_eq!(world.told("h1", vm), "migrate 1 to 2 granted cancel");
    world.outgoing(vm, id, OutgoingState::Promised);
    assert_eq!((world.stage(id), world.phase(vm)), (M::Aborted, Phase::Running));
    assert_eq!(told(&world, vm), ["run 1 from disk", "nothing"]);
}

#[test]
fn a_completed_source_resumes_only_when_its_target_closed_and_never_ran() {
    let (mut world, vm, id) = decided();
    world.close("h2", vm, TARGET, Some("qemu-died"));
    assert_eq!(
        (world.stage(id), code(&world, id).as_str()),
        (M::Aborted, "target-lost")
    );
    assert_eq!(told(&world, vm), ["run 1 from disk resume", "nothing"]);
    assert_eq!(world.phase(vm), Phase::Running);
}

#[test]
fn a_source_that_has_to_resume_does_so_before_it_is_migrated_again() {
    let (mut world, vm, first) = decided();
    world.close("h2", vm, TARGET, None);
    assert_eq!(world.stage(first), M::Aborted);
    // The last that was heard of it is that it completed.
    let early = world.migrate(vm, Some("h2"));
    assert_eq!(code(&world, early), "resuming");
    assert_eq!(told(&world, vm), ["run 1 from disk resume", "nothing"]);
    world.run(vm, |run| {
        run.outgoing = None;
        run.state = RunState::Paused;
    });
    let early = world.migrate(vm, Some("h2"));
    assert_eq!(code(&world, early), "resuming");
    world.run(vm, |run| run.state = RunState::Running);
    let next = world.migrate(vm, Some("h2"));
    assert_eq!(world.stage(next), M::Preparing);
    assert_eq!(world.told("h1", vm), "migrate 1 to 3");
}

#[test]
fn a_source_that_has_to_resume_does_so_before_its_guest_is_saved_or_shut_down() {
    for (power, then) in [
        (Power::Suspended, "stop 1 suspend"),
        (Power::Stopped, "stop 1 store"),
        (Power::Off, "stop 1 shutdown"),
    ] {
        let (mut world, vm, _) = decided();
        world.ask(vm, Power::Paused);
        world.close("h2", vm, TARGET, None);
        world.ask(vm, power);
        // What it was told to wait for it says, until it is known to execute.
        let reason = |world: &World| {
            let facts = world.view.facts(vm).unwrap();
            model::lifecycle::reason(facts, world.phase(vm)).map(|reason| reason.code)
        };
        let waits = |world: &World| {
            assert_eq!(world.told("h1", vm), "run 1 from disk resume");
            assert_eq!(reason(world).as_deref(), Some("resuming"));
        };
        waits(&world);
        world.run(vm, |run| {
            run.outgoing = None;
            run.state = RunState::Paused;
        });
        waits(&world);
        world.run(vm, |run| run.state = RunState::Running);
        assert_eq!((world.told("h1", vm).as_str(), reason(&world)), (then, None));
    }
    // By force it ends at once, as it is.
    let (mut world, vm, _) = decided();
    world.close("h2", vm, TARGET, None);
    world.change_vm(vm, |object| {
        object.spec.power = Power::Off;
        object.spec.power_request += 1;
        object.spec.force = true;
    });
    assert_eq!(world.told("h1", vm), "stop 1 kill");
}

#[test]
fn a_source_that_has_gone_on_and_is_paused_later_is_saved_as_it_stands() {
    let (mut world, vm, _) = decided();
    world.close("h2", vm, TARGET, None);
    world.run(vm, |run| {
        run.outgoing = None;
        run.state = RunState::Running;
    });
    world.ask(vm, Power::Paused);
    assert_eq!(world.told("h1", vm), "run 1 from disk paused");
    world.run(vm, |run| run.state = RunState::Paused);
    world.ask(vm, Power::Suspended);
    assert_eq!(world.told("h1", vm), "stop 1 suspend");
}

#[test]
fn a_target_that_ran_and_ended_ends_the_vm_and_the_source_is_killed() {
    for (reason, phase) in [("guest-shutdown", Phase::Off), ("qemu-died", Phase::Failed)] {
        let (mut world, vm, id) = decided();
        world.report("h2", vm, TARGET, |run| {
            (run.state, run.ran) = (RunState::Closed, true);
            run.reason = Some(Reason::new(reason, reason));
        });
        assert_eq!(told(&world, vm), ["stop 1 kill", "nothing"]);
        assert_eq!(world.stage(id), M::Aborted);
        world.close("h1", vm, N, None);
        assert_eq!(world.phase(vm), phase);
        assert_eq!(world.intent(vm).ended.unwrap().incarnation, TARGET);
        world.ask(vm, Power::Running);
        assert!(world.open(vm) > TARGET);
    }
}

#[test]
fn a_completed_source_never_resumes_while_its_target_may_have_run() {
    let (mut world, vm, id) = decided();
    world.confirm_dead("h2");
    assert_eq!(world.told("h1", vm), "stop 1 kill", "{:#?}", world.log);
    assert_eq!(world.stage(id), M::Aborted);
    world.close("h1", vm, N, None);
    let (host, told) = (world.host_of(vm), world.open(vm));
    assert!(
        host != "h2" && told == Incarnation(3),
        "it is started again from its disk"
    );
}

#[test]
fn a_source_that_did_not_complete_goes_on_when_its_target_is_dead() {
    let (mut world, vm, id) = transferring();
    world.confirm_dead("h2");
    assert_eq!(world.told("h1", vm), "migrate 1 to 2 granted cancel");
    world.outgoing(vm, id, OutgoingState::Promised);
    assert_eq!(
        (world.stage(id), world.told("h1", vm).as_str()),
        (M::Aborted, "run 1 from disk")
    );
}

#[test]
fn a_lost_source_leaves_the_answer_to_the_target() {
    let (mut world, vm, id) = transferring();
    world.close("h1", vm, N, Some("qemu-died"));
    assert_eq!(
        (world.stage(id), world.told("h2", vm).as_str()),
        (M::Revoking, "target 2 from 1 Revoked")
    );
    world.close("h2", vm, TARGET, None);
    assert_eq!(
        (world.stage(id), code(&world, id).as_str()),
        (M::Aborted, "source-lost")
    );
    assert_eq!(world.phase(vm), Phase::Failed);

    let (mut world, vm, id) = transferring();
    world.close("h1", vm, N, Some("qemu-died"));
    world.report("h2", vm, TARGET, |run| run.state = RunState::Running);
    assert_eq!((world.stage(id), world.phase(vm)), (M::Done, Phase::Running));
    assert_eq!((world.open(vm), code(&world, id).as_str()), (TARGET, ""));
}

#[test]
fn a_dead_source_restarts_the_vm_only_when_its_target_is_closed() {
    let (mut world, vm, id) = transferring();
    world.confirm_dead("h1");
    assert_eq!((world.stage(id), world.open(vm)), (M::Revoking, N));
    world.close("h2", vm, TARGET, None);
    assert_eq!((world.stage(id), world.open(vm)), (M::Aborted, Incarnation(3)));
    assert_ne!(world.host_of(vm), "h1");
}

#[test]
fn with_both_hosts_dead_the_vm_starts_on_a_third() {
    for stage in [preparing, transferring, decided] {
        for order in [["h1", "h2"], ["h2", "h1"]] {
            let (mut world, vm, id) = stage();
            order.into_iter().for_each(|host| world.confirm_dead(host));
            assert_eq!(
                (world.stage(id), world.host_of(vm).as_str()),
                (M::Aborted, "h3"),
                "{order:?}"
            );
            assert_eq!(world.told("h3", vm), "run 3 from disk");
        }
    }
}

#[test]
fn a_target_that_ran_and_whose_host_died_restarts_the_vm() {
    let (mut world, vm, id) = activated();
    world.confirm_dead("h2");
    assert_eq!(world.intent(vm).open, None, "the source is not closed yet");
    world.close("h1", vm, N, None);
    assert_eq!((world.stage(id), world.open(vm)), (M::Done, Incarnation(3)));
}

#[test]
fn a_dead_source_after_the_commit_finishes_it() {
    let (mut world, vm, id) = activated();
    world.confirm_dead("h1");
    assert_eq!(
        (world.stage(id), world.phase(vm), world.open(vm)),
        (M::Done, Phase::Running, TARGET)
    );
}

#[test]
fn a_vm_deleted_on_its_way_ends_the_migration_first() {
    let (mut world, vm, id) = preparing();
    world.delete(vm);
    assert_eq!(told(&world, vm), ["stop 1 remove", "target 2 from 1 Revoked"]);
    world.report("h1", vm, N, |run| run.state = RunState::Removed);
    assert!(world.view.vms.contains_key(&vm), "its target is not closed yet");
    world.close("h2", vm, TARGET, None);
    assert!(!world.view.vms.contains_key(&vm));
    assert_eq!(world.stage(id), M::Aborted);

    let (mut world, vm, _) = transferring();
    world.delete(vm);
    assert_eq!(
        told(&world, vm),
        ["migrate 1 to 2 granted cancel", "target 2 from 1 Granted"]
    );
    world.outgoing(vm, id, OutgoingState::Promised);
    assert_eq!(told(&world, vm), ["stop 1 remove", "target 2 from 1 Revoked"]);
    world.close("h2", vm, TARGET, None);
    world.report("h1", vm, N, |run| run.state = RunState::Removed);
    assert!(!world.view.vms.contains_key(&vm));
}

#[test]
fn a_vm_deleted_after_its_source_completed_is_removed_where_it_went() {
    let (mut world, vm, id) = decided();
    world.delete(vm);
    world.report("h2", vm, TARGET, |run| run.state = RunState::Running);
    assert_eq!(told(&world, vm), ["stop 1 release", "stop 2 remove"]);
    world.report("h2", vm, TARGET, |run| run.state = RunState::Removed);
    assert!(world.view.vms.contains_key(&vm), "its source is not closed yet");
    world.close("h1", vm, N, None);
    assert!(!world.view.vms.contains_key(&vm));
    assert_eq!(world.stage(id), M::Done);

    let (mut world, vm, _) = decided();
    world.delete(vm);
    world.close("h2", vm, TARGET, None);
    assert_eq!(told(&world, vm), ["stop 1 remove", "nothing"]);
    world.report("h1", vm, N, |run| run.state = RunState::Removed);
    assert!(!world.view.vms.contains_key(&vm));
}

#[test]
fn a_power_request_asks_the_migration_to_end_and_is_then_done() {
    let (mut world, vm, id) = transferring();
    world.ask(vm, Power::Off);
    assert_eq!(world.told("h1", vm), "migrate 1 to 2 granted cancel");
    world.outgoing(vm, id, OutgoingState::Promised);
    assert_eq!(world.told("h1", vm), "stop 1 shutdown");
    world.close("h2", vm, TARGET, None);
    assert_eq!(
        (world.stage(id), code(&world, id).as_str()),
        (M::Aborted, "vm-wanted")
    );
    world.close("h1", vm, N, None);
    assert_eq!(world.phase(vm), Phase::Off);

    let (mut world, vm, _) = decided();
    world.ask(vm, Power::Suspended);
    world.report("h2", vm, TARGET, |run| run.state = RunState::Running);
    assert_eq!(told(&world, vm), ["stop 1 release", "stop 2 suspend"]);
}

#[test]
fn a_vm_that_ends_at_its_target_before_the_source_closed_waits_for_it() {
    let (mut world, vm, id) = activated();
    world.close("h2", vm, TARGET, Some("guest-shutdown"));
    assert_eq!(world.phase(vm), Phase::Off);
    world.ask(vm, Power::Running);
    assert_eq!(world.phase(vm), Phase::Pending);
    world.close("h1", vm, N, None);
    assert_eq!((world.stage(id), world.open(vm)), (M::Done, Incarnation(3)));
}

#[test]
fn two_migrations_a_host_at_once_and_the_next_ones_wait() {
    let mut world = World::new(2);
    let vms: Vec<_> = (0..4).map(|n| world.running(&format!("vm{n}"), "h1")).collect();
    let ids: Vec<_> = vms
        .iter()
        .enumerate()
        .map(|(n, vm)| world.migrate(*vm, (n % 2 == 0).then_some("h2")))
        .collect();
    let stages = |world: &World| ids.iter().map(|id| world.stage(*id)).collect::<Vec<_>>();
    assert_eq!(
        stages(&world),
        [M::Preparing, M::Preparing, M::Planned, M::Planned]
    );
    assert!(planner::migration::plan(&world.view, ids[2], world.now).is_waiting);
    world.cancel(ids[3]);
    assert_eq!(world.stage(ids[3]), M::Aborted);
    world.close("h2", vms[0], TARGET, None);
    assert_eq!(stages(&world)[..3], [M::Aborted, M::Preparing, M::Preparing]);
}

#[test]
fn a_migration_waits_while_only_busy_hosts_could_take_it() {
    let mut world = World::new(3);
    world.host_spec("h3", |spec| spec.cordoned = true);
    let (a, b) = (world.running("a", "h1"), world.running("b", "h1"));
    world.host_spec("h3", |spec| spec.cordoned = false);
    let c = world.running("c", "h3");
    world.host_spec("h1", |spec| spec.cordoned = true);
    for vm in [a, b] {
        world.migrate(vm, Some("h2"));
    }
    let waits = world.migrate(c, None);
    assert_eq!(world.stage(waits), M::Planned);
    world.close("h2", a, TARGET, None);
    assert_eq!(world.stage(waits), M::Preparing);
}

#[test]
fn late_and_repeated_reports_of_a_migration_change_nothing() {
    let (mut world, vm, id) = transferring();
    let loading = world.status("h2", vm, TARGET);
    world.outgoing(vm, id, OutgoingState::Completed);
    world.report("h2", vm, TARGET, |run| run.state = RunState::Running);
    let running = world.status("h2", vm, TARGET);
    let revision = world.view.revision;
    world.post("h2", vm, loading.clone());
    world.post("h2", vm, running.clone());
    assert_eq!((world.view.revision, world.stage(id)), (revision, M::Activated));
    world.close("h1", vm, N, None);
    let revision = world.view.revision;
    let source = world.status("h1", vm, N);
    world.post("h1", vm, source);
    world.post("h2", vm, loading);
    assert_eq!((world.view.revision, world.stage(id)), (revision, M::Done));
}

#[test]
fn a_report_overtakes_the_commit_that_did_not_see_it() {
    let (mut world, vm, id) = preparing();
    // The grant is planned on what the target said; then it says that it closed.
    let mut run = world.status("h2", vm, TARGET);
    (run.state, run.stream) = (RunState::Incoming, Some("x".to_owned()));
    let host: HostId = world.host_id("h2");
    let report = |run| model::report::Report {
        session: uuid::Uuid::from_u128(1),
        sequence: 1,
        host: None,
        runs: vec![model::report::VmRun { vm, run }],
        is_complete: true,
        samples: Default::default(),
    };
    let stored = planner::reports::plans(&world.view, host, &report(run.clone())).remove(0);
    world.commit(stored).unwrap();
    let grant = planner::migration::plan(&world.view, id, world.now).plan.unwrap();
    run.state = RunState::Closed;
    let closed = planner::reports::plans(&world.view, host, &report(run)).remove(0);
    world.commit(closed).unwrap();
    assert!(world.commit(grant).is_err());
    world.settle();
    assert_eq!(world.stage(id), M::Aborted);
}

#[test]
fn a_vm_whose_host_was_fenced_is_said_to_be_fenced() {
    let (mut world, vm, _) = transferring();
    for host in ["h2", "h3"] {
        world.host_spec(host, |spec| spec.cordoned = true);
    }
    world.confirm_dead("h1");
    world.close("h2", vm, TARGET, None);
    assert_eq!(
        (world.phase(vm), world.intent(vm).ended.unwrap().outcome),
        (Phase::Pending, Outcome::Fenced)
    );
}
