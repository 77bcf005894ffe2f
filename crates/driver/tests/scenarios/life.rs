//! One host, one incarnation: boot, steady state, every way to end.

use driver::types::{Effect, Input, Mark, Rebooting, RunStatusWord};
use model::Incarnation;
use model::document::{Order, StartFrom, Stop};
use model::report::{Rebooted, RunState, StartStep};
use model::vm::{Reboot, SavedIn};

use crate::world::{N, SOURCE, World};

pub(crate) fn run(paused: bool) -> Option<Order> {
    Some(Order::Run {
        paused,
        resume: false,
        start: StartFrom::Disk,
    })
}

pub(crate) fn resume_from(incarnation: u64) -> Option<Order> {
    let start = StartFrom::Saved {
        incarnation: Incarnation(incarnation),
        saved_in: SavedIn::Host,
    };
    Some(Order::Run {
        paused: false,
        resume: false,
        start,
    })
}

pub(crate) fn stop(how: Stop) -> Option<Order> {
    Some(Order::Stop(how))
}

/// A world with the guest running on the first host.
pub(crate) fn running() -> World {
    let mut world = World::new();
    world.order(SOURCE, run(false));
    world.settle(1_000_000);
    assert_eq!(world.hosts[SOURCE].state(), Some(RunState::Running));
    world.hosts[SOURCE].log.clear();
    world
}

/// What was carried out, looks left out.
fn log(world: &World) -> Vec<Effect> {
    let log = world.hosts[SOURCE].log.iter();
    log.filter(|effect| **effect != Effect::Look).cloned().collect()
}

fn closed(code: Option<&str>) -> impl Fn(&World) -> bool {
    let code = code.map(str::to_owned);
    move |world| {
        let last = world.hosts[SOURCE].last();
        last.state == RunState::Closed && last.reason.as_ref().map(|reason| reason.code.clone()) == code
    }
}

#[test]
fn a_boot_takes_its_steps_in_order_and_names_their_times() {
    let mut world = World::new();
    world.order(SOURCE, run(false));
    world.settle(1_000_000);
    assert_eq!(
        log(&world),
        [
            Effect::Prepare { as_target: false },
            Effect::Journal(Mark::Launched),
            Effect::Spawn { incoming: false },
            Effect::Journal(Mark::Ran),
            Effect::OpenPorts,
            Effect::Continue,
        ]
    );
    world.hosts[SOURCE].process.as_mut().unwrap().is_ready = true;
    world.settle(3_000_000);
    let last = world.hosts[SOURCE].last();
    assert_eq!(
        (last.state, last.ran, last.ready),
        (RunState::Running, true, true)
    );
    let steps: Vec<StartStep> = last.steps.iter().map(|step| step.step).collect();
    use StartStep::{Agent, Boot, Disk, Process};
    assert_eq!(steps, [Disk, Process, Boot, Agent]);
    let ends = last.steps.iter().map(|step| step.begun_ms + step.took_ms);
    let begins = last.steps.iter().skip(1).map(|step| step.begun_ms);
    assert!(
        ends.zip(begins).all(|(end, begin)| end <= begin),
        "{:?}",
        last.steps
    );
    let mut states: Vec<RunState> = world.hosts[SOURCE]
        .reports
        .iter()
        .map(|status| status.state)
        .collect();
    states.dedup();
    assert_eq!(
        states,
        [RunState::Preparing, RunState::Booting, RunState::Running]
    );
}

#[test]
fn nothing_is_launched_before_the_document_is_fresh() {
    let mut world = World::new();
    world.disconnect(SOURCE, 10_000_000);
    world.order(SOURCE, run(false));
    let (revision, document) = world.hosts[SOURCE].document.clone().unwrap();
    world.feed(
        SOURCE,
        Input::Desired {
            revision,
            document: document.map(Box::new),
        },
    );
    world.settle(5_000_000);
    assert_eq!(log(&world), []);
    world.settle(10_000_000);
    assert!(world.hosts[SOURCE].executes());
}

#[test]
fn a_paused_boot_stands_still_until_it_is_told_to_run() {
    let mut world = World::new();
    world.order(SOURCE, run(true));
    world.settle(1_000_000);
    assert_eq!(
        world.hosts[SOURCE].process.as_ref().unwrap().run,
        RunStatusWord::Prelaunch
    );
    assert_eq!(
        (world.hosts[SOURCE].last().state, world.hosts[SOURCE].last().ran),
        (RunState::Paused, false)
    );
    world.order(SOURCE, run(false));
    world.settle(1_000_000);
    assert_eq!(
        (world.hosts[SOURCE].last().state, world.hosts[SOURCE].last().ran),
        (RunState::Running, true)
    );
}

#[test]
fn pause_and_resume() {
    let mut world = running();
    world.order(SOURCE, run(true));
    world.settle(1_000_000);
    assert_eq!(world.hosts[SOURCE].state(), Some(RunState::Paused));
    world.order(SOURCE, run(false));
    world.settle(1_000_000);
    assert_eq!(world.hosts[SOURCE].state(), Some(RunState::Running));
    assert_eq!(log(&world), [Effect::Pause, Effect::Continue]);
}

#[test]
fn what_cannot_be_prepared_is_tried_three_times_and_closed_without_a_launch() {
    for (is_retryable, tries) in [(true, 3), (false, 1)] {
        let mut world = World::new();
        world.hosts[SOURCE].broken.insert("prepare", is_retryable);
        world.order(SOURCE, run(false));
        world.settle(60_000_000);
        let prepared = log(&world)
            .iter()
            .filter(|effect| matches!(effect, Effect::Prepare { .. }))
            .count();
        assert_eq!(prepared, tries);
        assert!(closed(Some("broken"))(&world));
        assert!(!world.hosts[SOURCE].marks.launched && !world.hosts[SOURCE].last().ran);
    }
}

#[test]
fn a_process_that_cannot_be_started_closes_the_incarnation() {
    let mut world = World::new();
    world.hosts[SOURCE].broken.insert("spawn", true);
    world.order(SOURCE, run(false));
    world.settle(60_000_000);
    assert!(closed(Some("broken"))(&world));
    assert_eq!(
        log(&world)
            .iter()
            .filter(|effect| matches!(effect, Effect::Spawn { .. }))
            .count(),
        1
    );
}

#[test]
fn a_shutdown_is_asked_for_every_second_and_done_when_the_guest_is_off() {
    let mut world = running();
    world.hosts[SOURCE].listens = false;
    let force_at = world.wall_in_ms(60_000);
    world.order(SOURCE, stop(Stop::Shutdown { force_at }));
    world.settle(3_500_000);
    assert_eq!(log(&world), vec![Effect::AskShutdown; 4]);
    world.hosts[SOURCE].listens = true;
    world.settle(3_000_000);
    let rest = log(&world).split_off(5);
    let mark = Mark::Closed {
        reason: None,
        saved_bytes: None,
        saved_in: SavedIn::Host,
    };
    assert_eq!(rest, [Effect::Kill, Effect::Journal(mark), Effect::Release]);
    assert!(closed(None)(&world));
}

#[test]
fn a_guest_that_does_not_listen_is_forced_off_at_the_deadline() {
    let mut world = running();
    world.hosts[SOURCE].listens = false;
    let force_at = world.wall_in_ms(5_000);
    world.order(SOURCE, stop(Stop::Shutdown { force_at }));
    world.settle(4_000_000);
    assert!(world.hosts[SOURCE].executes());
    world.settle(3_000_000);
    assert!(closed(Some("forced-off"))(&world));
}

#[test]
fn kill_and_release_close_and_remove_removes_the_volumes() {
    for (how, last) in [
        (Stop::Kill, RunState::Closed),
        (Stop::Release, RunState::Closed),
        (Stop::Remove, RunState::Removed),
    ] {
        let mut world = running();
        world.order(SOURCE, stop(how.clone()));
        world.settle(5_000_000);
        assert_eq!(world.hosts[SOURCE].state(), Some(last), "{how:?}");
        let removed = log(&world).contains(&Effect::RemoveVolumes);
        assert_eq!(removed, how == Stop::Remove);
        world.order(SOURCE, None);
        world.settle(5_000_000);
        assert!(!world.hosts[SOURCE].is_forgotten, "forgotten too early");
        world.settle(20_000_000);
        assert!(world.hosts[SOURCE].is_forgotten);
    }
}

#[test]
fn what_no_document_names_is_killed_and_closed_and_its_volumes_stay() {
    let mut world = running();
    world.order(SOURCE, None);
    world.settle(5_000_000);
    let mark = Mark::Closed {
        reason: None,
        saved_bytes: None,
        saved_in: SavedIn::Host,
    };
    assert_eq!(
        log(&world),
        [Effect::Kill, Effect::Journal(mark), Effect::Release]
    );
    assert!(closed(None)(&world));
}

#[test]
fn nothing_is_forgotten_while_the_servers_are_away() {
    let mut world = running();
    world.order(SOURCE, None);
    world.disconnect(SOURCE, 60_000_000);
    world.settle(50_000_000);
    assert!(!world.hosts[SOURCE].is_forgotten);
    world.settle(50_000_000);
    assert!(world.hosts[SOURCE].is_forgotten && closed(None)(&world));
}

#[test]
fn a_host_that_cannot_unplug_ports_still_says_that_it_closed() {
    let mut world = running();
    world.hosts[SOURCE].broken.insert("release", true);
    world.order(SOURCE, stop(Stop::Kill));
    world.settle(5_000_000);
    assert_eq!(world.hosts[SOURCE].state(), Some(RunState::Closed));
    world.hosts[SOURCE].broken.clear();
    world.hosts[SOURCE].log.clear();
    world.settle(60_000_000);
    assert!(log(&world).contains(&Effect::Release), "and tries again");
}

#[test]
fn suspend_saves_and_closes_with_the_size_and_the_next_one_resumes_from_it() {
    let mut world = running();
    world.order(SOURCE, stop(Stop::Suspend));
    world.settle(5_000_000);
    let mark = Mark::Closed {
        reason: None,
        saved_bytes: Some(4096),
        saved_in: SavedIn::Host,
    };
    assert_eq!(
        log(&world),
        [
            Effect::Journal(Mark::Saving),
            Effect::Save {
                saved_in: SavedIn::Host
            },
            Effect::Journal(mark),
            Effect::Kill,
            Effect::Release
        ]
    );
    assert_eq!(world.hosts[SOURCE].last().saved_bytes, Some(4096));
    assert!(closed(None)(&world));

    let mut next = World::new();
    next.hosts[SOURCE].saved = world.hosts[SOURCE].saved.clone();
    next.order(SOURCE, resume_from(N.0));
    next.settle(5_000_000);
    assert_eq!(
        log(&next),
        [
            Effect::Prepare { as_target: false },
            Effect::Journal(Mark::Launched),
            Effect::Spawn { incoming: true },
            Effect::LoadSaved {
                incarnation: N,
                saved_in: SavedIn::Host,
            },
            Effect::Journal(Mark::UsedSaved),
            Effect::Journal(Mark::Ran),
            Effect::OpenPorts,
            Effect::Continue,
            Effect::Announce,
            Effect::RemoveSaved {
                incarnation: N,
                saved_in: SavedIn::Host,
            },
        ]
    );
    assert_eq!(next.hosts[SOURCE].state(), Some(RunState::Running));
}

#[test]
fn a_saved_state_that_cannot_be_loaded_never_becomes_a_boot_from_disk() {
    let mut world = World::new();
    world.order(SOURCE, resume_from(N.0));
    world.settle(5_000_000);
    assert!(closed(Some("saved-state-not-loaded"))(&world));
    assert!(!log(&world).contains(&Effect::Continue));
    assert!(!world.hosts[SOURCE].last().ran);
}

#[test]
fn a_save_that_fails_lets_the_guest_go_on_until_it_is_ordered_anew() {
    let mut world = running();
    world.hosts[SOURCE].broken.insert("save", true);
    world.order(SOURCE, stop(Stop::Suspend));
    world.settle(10_000_000);
    assert!(world.hosts[SOURCE].executes());
    assert_eq!(
        world.hosts[SOURCE].last().reason.as_ref().unwrap().code,
        "suspend-failed"
    );
    assert_eq!(
        log(&world),
        [
            Effect::Journal(Mark::Saving),
            Effect::Save {
                saved_in: SavedIn::Host
            }
        ],
        "not tried again by itself"
    );
    world.hosts[SOURCE].broken.clear();
    world.order(SOURCE, run(false));
    world.settle(1_000_000);
    assert_eq!(world.hosts[SOURCE].last().reason, None);
    world.order(SOURCE, stop(Stop::Suspend));
    world.settle(10_000_000);
    assert_eq!(world.hosts[SOURCE].last().saved_bytes, Some(4096));
}

#[test]
fn a_suspend_taken_back_after_the_save_lets_the_guest_go_on() {
    let mut world = running();
    world.order(SOURCE, stop(Stop::Suspend));
    let mut taken_back = false;
    world.run(
        &mut |world| {
            let is_saved = world.hosts[SOURCE].saved.contains_key(&N);
            let now = is_saved && !taken_back && world.order(SOURCE, run(false));
            taken_back |= now;
            now
        },
        5_000_000,
    );
    assert!(taken_back && world.hosts[SOURCE].executes());
    // What was saved then is not what the guest is now.
    world.hosts[SOURCE].broken.insert("save", true);
    world.order(SOURCE, stop(Stop::Suspend));
    world.settle(5_000_000);
    assert!(world.hosts[SOURCE].executes());
    assert_eq!(world.hosts[SOURCE].last().saved_bytes, None);
}

#[test]
fn a_guest_that_ends_by_itself_closes_with_its_reason() {
    for (run, code) in [
        (RunStatusWord::Shutdown, "guest-shutdown"),
        (RunStatusWord::GuestPanicked, "guest-panic"),
    ] {
        let mut world = running();
        world.hosts[SOURCE].process.as_mut().unwrap().run = run;
        world.feed(SOURCE, Input::LookAgain);
        world.settle(5_000_000);
        assert!(closed(Some(code))(&world), "{:?}", world.hosts[SOURCE].last());
    }
}

#[test]
fn a_process_that_is_gone_closes_with_its_reason() {
    let mut world = running();
    world.kill_qemu(SOURCE);
    world.feed(SOURCE, Input::Ended("by signal 9".to_owned()));
    world.settle(5_000_000);
    assert!(closed(Some("qemu-exited"))(&world));
    let reason = world.hosts[SOURCE].last().reason.clone().unwrap();
    assert!(
        reason.message.contains("while its guest ran: by signal 9"),
        "{reason:?}"
    );
}

#[test]
fn a_disk_error_is_reported_and_tried_again_ever_more_slowly() {
    let mut world = running();
    let mut tries = 0;
    world.hosts[SOURCE].process.as_mut().unwrap().run = RunStatusWord::IoError;
    world.feed(SOURCE, Input::LookAgain);
    world.run(
        &mut |world| {
            let process = world.hosts[SOURCE].process.as_mut().unwrap();
            let is_tried = process.run == RunStatusWord::Running && tries < 3;
            if is_tried {
                process.run = RunStatusWord::IoError;
                tries += 1;
            }
            is_tried
        },
        20_000_000,
    );
    assert_eq!(tries, 3);
    assert!(world.hosts[SOURCE].executes());
    let codes: Vec<_> = world.hosts[SOURCE]
        .reports
        .iter()
        .filter_map(|status| status.reason.clone())
        .collect();
    assert!(codes.iter().any(|reason| reason.code == "disk-error"));
    assert_eq!(world.hosts[SOURCE].last().reason, None);
}

#[test]
fn a_process_that_does_not_answer_is_left_alone_until_it_shall_end() {
    let mut world = running();
    world.hosts[SOURCE].process.as_mut().unwrap().is_silent = true;
    world.feed(SOURCE, Input::LookAgain);
    world.settle(2_000_000);
    assert_eq!(log(&world), []);
    let last = world.hosts[SOURCE].last();
    assert_eq!(
        (last.state, last.reason.as_ref().unwrap().code.as_str()),
        (RunState::Running, "qemu-silent")
    );
    world.order(SOURCE, stop(Stop::Kill));
    world.settle(2_000_000);
    assert!(closed(None)(&world));
}

#[test]
fn a_document_of_an_older_revision_is_ignored_and_makes_nothing_fresh() {
    let mut world = World::new();
    world.order(SOURCE, run(true));
    world.settle(1_000_000);
    world.order(SOURCE, None);
    let mut core = world.hosts[SOURCE].core.clone().unwrap();
    let before = core.clone();
    let (_, document) = world.hosts[SOURCE].document.clone().unwrap();
    core.step(
        world.now(),
        Input::Desired {
            revision: 1,
            document: document.map(Box::new),
        },
    );
    assert_eq!(core.status(), before.status());
    assert_eq!(core.marks(), before.marks());
}

#[test]
fn a_new_revision_that_says_the_same_is_no_news() {
    let mut world = running();
    let (revision, document) = world.hosts[SOURCE].document.clone().unwrap();
    let reports = world.hosts[SOURCE].reports.len();
    world.feed(
        SOURCE,
        Input::Desired {
            revision: revision + 7,
            document: document.map(Box::new),
        },
    );
    world.settle(5_000_000);
    assert_eq!(world.hosts[SOURCE].reports.len(), reports);
}

#[test]
fn an_unreadable_document_changes_nothing_and_is_reported() {
    let mut world = running();
    let reason = model::Reason::new("document-unreadable", "the document could not be read");
    world.feed(SOURCE, Input::Unreadable(reason.clone()));
    world.feed(SOURCE, Input::LookAgain);
    world.settle(5_000_000);
    assert_eq!(log(&world), []);
    assert_eq!(world.hosts[SOURCE].last().reason, Some(reason));
}

/// A reboot that is asked for beside the order to run.
fn reboot(world: &mut World, request: u64, within_ms: u64) {
    let force_at = world.wall_in_ms(within_ms);
    world.hosts[SOURCE].reboot = Some(Reboot { request, force_at });
    world.order(SOURCE, run(false));
}

#[test]
fn a_guest_reboots_within_its_incarnation_when_it_is_asked() {
    let mut world = running();
    world.hosts[SOURCE].process.as_mut().unwrap().is_ready = true;
    world.settle(1_000_000);
    reboot(&mut world, 1, 60_000);
    world.settle(5_000_000);
    let rebooted = Rebooted {
        request: 1,
        forced: false,
    };
    assert_eq!(
        log(&world),
        [
            begun(1, None),
            Effect::AskReboot,
            Effect::Journal(Mark::Rebooted(rebooted))
        ]
    );
    assert_eq!(world.hosts[SOURCE].last().rebooted, Some(rebooted));
    assert_eq!(
        (world.hosts[SOURCE].spawns, world.hosts[SOURCE].state()),
        (1, Some(RunState::Running))
    );
    // Once it is made it is not made again, also by an agent that was restarted.
    world.restart_agent(SOURCE);
    world.settle(70_000_000);
    assert_eq!(world.hosts[SOURCE].process.as_ref().unwrap().resets, 1);
}

fn begun(request: u64, up_ms: Option<u64>) -> Effect {
    Effect::Journal(Mark::Rebooting(Rebooting { request, up_ms }))
}

/// The agent is restarted in the middle of a reboot. What the next one hears of the guest decides.
fn after_a_restart(up_ms: Option<u64>) -> World {
    let mut world = running();
    let process = world.hosts[SOURCE].process.as_mut().unwrap();
    (process.is_ready, process.up_ms) = (true, Some(20_000));
    world.settle(1_000_000);
    world.hosts[SOURCE].listens = false;
    reboot(&mut world, 1, 90_000);
    world.settle(1_000_000);
    assert_eq!(log(&world), [begun(1, Some(20_000)), Effect::AskReboot]);
    world.restart_agent(SOURCE);
    world.hosts[SOURCE].process.as_mut().unwrap().up_ms = up_ms;
    world.order(SOURCE, run(false));
    world.settle(50_000_000);
    world
}

#[test]
fn a_guest_that_rebooted_while_no_agent_listened_is_not_rebooted_again() {
    let world = after_a_restart(Some(4_000));
    let rebooted = Rebooted {
        request: 1,
        forced: false,
    };
    assert_eq!(world.hosts[SOURCE].last().rebooted, Some(rebooted));
    assert_eq!(asked(&world), 1);
}

#[test]
fn a_guest_that_did_not_reboot_is_asked_again_after_a_restart() {
    assert!(asked(&after_a_restart(Some(21_000))) > 1);
    // One that does not answer is given time to.
    let mut world = after_a_restart(None);
    assert_eq!(asked(&world), 1);
    world.settle(20_000_000);
    assert!(asked(&world) > 1);
}

fn asked(world: &World) -> usize {
    let log = log(world);
    log.iter().filter(|effect| **effect == Effect::AskReboot).count()
}

#[test]
fn a_guest_that_does_not_reboot_by_itself_is_reset_at_the_deadline() {
    for is_ready in [true, false] {
        let mut world = running();
        world.hosts[SOURCE].listens = false;
        world.hosts[SOURCE].process.as_mut().unwrap().is_ready = is_ready;
        world.settle(1_000_000);
        reboot(&mut world, 7, 20_000);
        world.settle(30_000_000);
        let rebooted = Rebooted {
            request: 7,
            forced: true,
        };
        let asked = if is_ready { 2 } else { 0 };
        let mut expected = vec![begun(7, None)];
        expected.extend(vec![Effect::AskReboot; asked]);
        expected.extend([Effect::Reset, Effect::Journal(Mark::Rebooted(rebooted))]);
        assert_eq!(log(&world), expected);
        assert_eq!(world.hosts[SOURCE].last().rebooted, Some(rebooted));
    }
}

#[test]
fn a_vm_that_is_only_prepared_is_never_started() {
    let mut world = World::new();
    world.order(SOURCE, stop(Stop::Prepare));
    world.settle(1_000_000);
    let mark = Mark::Closed {
        reason: None,
        saved_bytes: None,
        saved_in: SavedIn::Host,
    };
    let prepare = Effect::Prepare { as_target: false };
    assert_eq!(log(&world), [prepare, Effect::Journal(mark), Effect::Release]);
    assert!(closed(None)(&world));

    let mut world = World::new();
    world.hosts[SOURCE].broken.insert("prepare", false);
    world.order(SOURCE, stop(Stop::Prepare));
    world.settle(1_000_000);
    assert!(closed(Some("broken"))(&world));
}
