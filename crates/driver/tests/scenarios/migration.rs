//! Two hosts: the way through, every way out, and what is lost on the way.

use driver::types::{Effect, Input, Mark, MigrationWord};
use model::document::{Order, Stop};
use model::report::{OutgoingState, RunState, RunStatus};

use crate::controller::{Controller, Phase};
use crate::life;
use crate::world::{Link, M, SOURCE, TARGET, World};

/// Where a story is broken into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Preparing,
    PreCopy,
    PreSwitchover,
    Completed,
}

impl At {
    fn is_reached(self, world: &World, controller: &Controller) -> bool {
        let word = world.hosts[SOURCE]
            .process
            .as_ref()
            .map(|process| process.migration);
        match self {
            Self::Preparing => controller.phase == Phase::Preparing,
            Self::PreCopy => word == Some(MigrationWord::Active),
            Self::PreSwitchover => word == Some(MigrationWord::PreSwitchover),
            Self::Completed => word == Some(MigrationWord::Completed),
        }
    }
}

/// Runs the migration, and once does something when a point is reached.
fn run(
    world: &mut World,
    controller: &mut Controller,
    at: Option<At>,
    mut once: impl FnMut(&mut World, &mut Controller),
    for_us: u64,
) {
    let mut is_done = false;
    world.run(
        &mut |world| {
            if !is_done && at.is_some_and(|at| at.is_reached(world, controller)) {
                is_done = true;
                once(world, controller);
                return true;
            }
            controller.step(world)
        },
        for_us,
    );
    assert!(at.is_none() || is_done, "{at:?} was not reached");
}

fn carried_out(world: &World, at: usize, wanted: &Effect) -> bool {
    world.hosts[at].log.contains(wanted)
}

/// Whether the guest executes at the source, at the target.
fn where_it_runs(world: &World) -> (bool, bool) {
    (world.hosts[SOURCE].executes(), world.hosts[TARGET].executes())
}

#[test]
fn a_migration_ends_with_the_guest_at_the_target() {
    for seed in 0..50 {
        let mut world = life::running();
        world.seed = seed;
        let mut controller = Controller::new();
        run(&mut world, &mut controller, None, |_, _| {}, 20_000_000);
        assert_eq!(controller.phase, Phase::Done, "seed {seed}");
        assert_eq!(where_it_runs(&world), (false, true));
        assert_eq!(world.hosts[SOURCE].state(), Some(RunState::Closed));
    }
}

#[test]
fn the_figures_are_reported() {
    let mut world = life::running();
    run(&mut world, &mut Controller::new(), None, |_, _| {}, 20_000_000);
    let outgoing = world.hosts[SOURCE].last().outgoing.clone().unwrap();
    assert_eq!(outgoing.state, OutgoingState::Completed);
    assert_eq!((outgoing.downtime_us, outgoing.bytes), (Some(11_000), Some(200)));
    assert!(outgoing.transfer_ms.is_some());
}

#[test]
fn nothing_but_the_mark_and_cont_stands_between_go_and_the_guest() {
    let mut world = life::running();
    let mut controller = Controller::new();
    run(&mut world, &mut controller, None, |_, _| {}, 20_000_000);
    let log: Vec<_> = world.hosts[TARGET]
        .log
        .iter()
        .filter(|effect| **effect != Effect::Look)
        .cloned()
        .collect();
    assert_eq!(
        log,
        [
            Effect::Prepare { as_target: true },
            Effect::Journal(Mark::Launched),
            Effect::Spawn { incoming: true },
            Effect::Listen,
            Effect::Journal(Mark::Ran),
            Effect::Continue,
            Effect::OpenPorts,
            Effect::Announce,
        ]
    );
    let ran = world.hosts[TARGET]
        .log
        .iter()
        .position(|effect| *effect == Effect::Journal(Mark::Ran))
        .unwrap();
    assert_eq!(
        world.hosts[TARGET].log[ran + 1],
        Effect::Continue,
        "no look in between"
    );
}

#[test]
fn go_comes_before_the_report_and_before_the_target_knows_that_it_has_loaded() {
    let mut world = life::running();
    let mut controller = Controller::new();
    controller.is_deaf = true;
    run(&mut world, &mut controller, None, |_, _| {}, 20_000_000);
    assert_eq!(controller.phase, Phase::Done, "without the record");
}

#[test]
fn without_go_the_record_makes_the_target_run() {
    let mut world = life::running();
    world.go_is_lost = true;
    let mut controller = Controller::new();
    run(&mut world, &mut controller, None, |_, _| {}, 20_000_000);
    assert_eq!(controller.phase, Phase::Done);
}

#[test]
fn without_go_and_without_the_record_nobody_runs() {
    let mut world = life::running();
    world.go_is_lost = true;
    let mut controller = Controller::new();
    controller.is_deaf = true;
    run(&mut world, &mut controller, None, |_, _| {}, 60_000_000);
    assert_eq!(where_it_runs(&world), (false, false));
    assert_eq!(world.hosts[TARGET].state(), Some(RunState::Loaded));
}

#[test]
fn a_paused_guest_moves_and_stays_paused() {
    let mut world = life::running();
    world.order(SOURCE, life::run(true));
    world.settle(1_000_000);
    let mut controller = Controller::new();
    controller.paused = true;
    run(&mut world, &mut controller, None, |_, _| {}, 20_000_000);
    assert_eq!(controller.phase, Phase::Done);
    assert_eq!(where_it_runs(&world), (false, false));
    assert_eq!(
        (world.hosts[TARGET].last().state, world.hosts[TARGET].last().ran),
        (RunState::Paused, true)
    );
}

#[test]
fn a_cancel_before_the_switch_keeps_the_guest_at_the_source() {
    for at in [At::Preparing, At::PreCopy, At::PreSwitchover] {
        for seed in 0..20 {
            let mut world = life::running();
            world.seed = seed;
            if at == At::PreCopy {
                world.link = Link::Stalls;
            }
            let mut controller = Controller::new();
            run(
                &mut world,
                &mut controller,
                Some(at),
                |_, controller| controller.cancel = true,
                30_000_000,
            );
            assert_eq!(controller.phase, Phase::Aborted, "{at:?}, seed {seed}");
            assert_eq!(where_it_runs(&world), (true, false));
            assert_eq!(world.hosts[SOURCE].state(), Some(RunState::Running));
            assert_eq!(world.hosts[TARGET].state(), Some(RunState::Closed));
        }
    }
}

#[test]
fn a_cancel_after_completion_changes_nothing() {
    let mut world = life::running();
    let mut controller = Controller::new();
    run(
        &mut world,
        &mut controller,
        Some(At::Completed),
        |_, controller| controller.cancel = true,
        30_000_000,
    );
    assert_eq!(controller.phase, Phase::Done);
    assert_eq!(where_it_runs(&world), (false, true));
}

#[test]
fn a_lost_acknowledgement_never_lets_the_target_run() {
    for link in [Link::AckLostRunsOn, Link::AckLostStands] {
        for seed in 0..20 {
            let mut world = life::running();
            world.seed = seed;
            world.link = link;
            let mut controller = Controller::new();
            run(&mut world, &mut controller, None, |_, _| {}, 30_000_000);
            assert_eq!(controller.phase, Phase::Aborted, "{link:?}");
            assert_eq!(where_it_runs(&world), (true, false));
            assert!(!world.hosts[TARGET].marks.ran);
        }
    }
}

#[test]
fn a_source_that_never_hears_of_the_last_part_takes_the_guest_back() {
    for seed in 0..20 {
        let mut world = life::running();
        world.seed = seed;
        world.link = Link::AckSwallowed;
        let mut controller = Controller::new();
        run(&mut world, &mut controller, None, |_, _| {}, 30_000_000);
        assert_eq!(controller.phase, Phase::Aborted, "seed {seed}");
        assert_eq!(where_it_runs(&world), (true, false));
        assert!(!world.hosts[TARGET].marks.ran);
        assert!(carried_out(
            &world,
            SOURCE,
            &Effect::Journal(Mark::NoSwitch { to: M })
        ));
        let error = world.hosts[SOURCE].reports.iter().find_map(promise);
        assert!(
            error
                .unwrap()
                .starts_with("the target did not acknowledge the last part")
        );
    }
}

/// The cause that a promise is reported with.
fn promise(status: &RunStatus) -> Option<String> {
    let outgoing = status.outgoing.as_ref()?;
    outgoing
        .error
        .clone()
        .filter(|_| outgoing.state == OutgoingState::Promised)
}

#[test]
fn a_transfer_that_stalls_is_given_up_at_its_deadline() {
    let mut world = life::running();
    world.link = Link::Stalls;
    let mut controller = Controller::new();
    run(&mut world, &mut controller, None, |_, _| {}, 90_000_000);
    assert_eq!(controller.phase, Phase::Aborted);
    assert_eq!(where_it_runs(&world), (true, false));
    let error = world.hosts[SOURCE].reports.iter().find_map(promise);
    assert_eq!(error.unwrap(), "the transfer did not end within 5000 ms");
}

#[test]
fn a_source_without_a_connection_at_the_switch_takes_the_guest_back() {
    let mut world = life::running();
    let mut controller = Controller::new();
    run(
        &mut world,
        &mut controller,
        Some(At::PreSwitchover),
        |world, _| world.disconnect(SOURCE, 5_000_000),
        30_000_000,
    );
    assert_eq!(controller.phase, Phase::Aborted);
    assert_eq!(where_it_runs(&world), (true, false));
}

#[test]
fn the_guest_runs_on_though_all_servers_are_away_once_the_source_completed() {
    let mut world = life::running();
    let mut controller = Controller::new();
    let away = |world: &mut World, _: &mut Controller| {
        world.disconnect(SOURCE, 60_000_000);
        world.disconnect(TARGET, 60_000_000);
    };
    run(&mut world, &mut controller, Some(At::Completed), away, 5_000_000);
    assert_eq!(where_it_runs(&world), (false, true));
    assert_eq!(controller.phase, Phase::Transferring);
    run(&mut world, &mut controller, None, |_, _| {}, 80_000_000);
    assert_eq!(controller.phase, Phase::Done);
}

#[test]
fn if_the_source_dies_the_target_never_starts_from_what_it_has() {
    for at in [At::PreCopy, At::PreSwitchover] {
        let mut world = life::running();
        let mut controller = Controller::new();
        run(
            &mut world,
            &mut controller,
            Some(at),
            |world, _| world.kill_qemu(SOURCE),
            30_000_000,
        );
        assert_eq!(controller.phase, Phase::Restart, "{at:?}");
        assert_eq!(where_it_runs(&world), (false, false));
    }
}

#[test]
fn if_the_target_dies_the_source_keeps_the_guest_or_gets_it_back() {
    for at in [At::Preparing, At::PreCopy, At::PreSwitchover, At::Completed] {
        let mut world = life::running();
        let mut controller = Controller::new();
        run(
            &mut world,
            &mut controller,
            Some(at),
            |world, _| world.kill_qemu(TARGET),
            30_000_000,
        );
        let is_started = at != At::Preparing;
        assert!(
            matches!(controller.phase, Phase::Aborted | Phase::Done),
            "{at:?}: {:?}",
            controller.phase
        );
        assert_eq!(
            where_it_runs(&world),
            if is_started { (true, false) } else { (false, true) },
            "{at:?}"
        );
    }
}

#[test]
fn if_the_target_dies_after_it_ran_the_source_does_not_resume() {
    let mut world = life::running();
    let mut controller = Controller::new();
    let mut is_killed = false;
    world.run(
        &mut |world| {
            if world.hosts[TARGET].executes() && !is_killed {
                is_killed = true;
                world.kill_qemu(TARGET);
                return true;
            }
            controller.step(world)
        },
        30_000_000,
    );
    assert_eq!(where_it_runs(&world), (false, false));
    assert!(
        matches!(controller.phase, Phase::Restart | Phase::Done),
        "{:?}",
        controller.phase
    );
    assert!(!carried_out(&world, SOURCE, &Effect::Continue));
}

#[test]
fn a_guest_that_powers_off_during_the_transfer_ends_wherever_it_then_is() {
    let mut world = life::running();
    world.link = Link::Stalls;
    let off = |world: &mut World, controller: &mut Controller| {
        let process = world.hosts[SOURCE].process.as_mut().unwrap();
        process.run = driver::types::RunStatusWord::Shutdown;
        world.feed(SOURCE, Input::LookAgain);
        controller.cancel = true;
    };
    let mut controller = Controller::new();
    run(&mut world, &mut controller, Some(At::PreCopy), off, 30_000_000);
    assert!(!where_it_runs(&world).1);
}

#[test]
fn a_stop_at_any_point_ends_the_source_and_the_target_never_runs_beside_it() {
    for at in [At::PreCopy, At::PreSwitchover] {
        let mut world = life::running();
        let mut controller = Controller::new();
        let mut is_stopped = false;
        world.run(
            &mut |world| {
                is_stopped |= at.is_reached(world, &controller);
                if is_stopped {
                    return world.order(SOURCE, Some(Order::Stop(Stop::Kill)));
                }
                controller.step(world)
            },
            30_000_000,
        );
        assert_eq!(world.hosts[SOURCE].state(), Some(RunState::Closed));
        assert_eq!(world.hosts[SOURCE].last().outgoing, None, "it did not complete");
        assert_eq!(where_it_runs(&world), (false, false));
    }
}

#[test]
fn a_go_from_or_for_another_incarnation_is_not_taken() {
    let mut world = life::running();
    world.go_is_lost = true;
    let mut controller = Controller::new();
    controller.is_deaf = true;
    let stranger = |world: &mut World, _: &mut Controller| {
        world.feed(TARGET, Input::Go { from: M, to: M });
        world.feed(
            TARGET,
            Input::Go {
                from: crate::world::N,
                to: crate::world::N,
            },
        );
    };
    run(
        &mut world,
        &mut controller,
        Some(At::Completed),
        stranger,
        10_000_000,
    );
    assert_eq!(where_it_runs(&world), (false, false));
}

/// A guest whose migration was cancelled while its memory was sent, and that shall be saved then.
fn suspended_after_giving_up() -> World {
    let mut world = life::running();
    world.link = Link::Stalls;
    let mut controller = Controller::new();
    run(
        &mut world,
        &mut controller,
        Some(At::PreCopy),
        |_, controller| controller.cancel = true,
        30_000_000,
    );
    assert_eq!(controller.phase, Phase::Aborted);
    world.order(SOURCE, life::stop(Stop::Suspend));
    world
}

#[test]
fn a_suspend_taken_back_is_not_mistaken_for_a_migration_that_completed() {
    let mut world = suspended_after_giving_up();
    world.run(
        &mut |world| {
            let is_saved = !world.hosts[SOURCE].saved.is_empty();
            is_saved && world.order(SOURCE, life::run(false))
        },
        5_000_000,
    );
    assert_eq!(where_it_runs(&world), (true, false));
}

#[test]
fn a_guest_that_was_saved_after_a_migration_was_given_up_is_known_to_be_saved_by_the_next_agent() {
    let mut world = suspended_after_giving_up();
    let mut is_restarted = false;
    world.run(
        &mut |world| {
            let now = !world.hosts[SOURCE].saved.is_empty() && !is_restarted;
            if now {
                is_restarted = true;
                world.restart_agent(SOURCE);
            }
            now
        },
        30_000_000,
    );
    assert!(is_restarted);
    assert_eq!(world.hosts[SOURCE].last().saved_bytes, Some(4096));
}

#[test]
fn a_guest_that_a_save_stopped_goes_on_before_it_is_sent() {
    let mut world = life::running();
    world.order(SOURCE, life::stop(Stop::Suspend));
    world.run(
        &mut |world| !world.hosts[SOURCE].saved.is_empty() && world.order(SOURCE, life::run(true)),
        5_000_000,
    );
    assert_eq!(where_it_runs(&world), (false, false));
    let mut controller = Controller::new();
    controller.paused = true;
    run(&mut world, &mut controller, None, |_, _| {}, 30_000_000);
    assert_eq!(controller.phase, Phase::Done);
    assert_eq!(where_it_runs(&world), (false, false));
    assert_eq!(world.hosts[TARGET].last().state, RunState::Paused);
}

#[test]
fn a_migration_after_a_suspend_that_failed_or_was_taken_back_is_not_mistaken_for_a_save() {
    for is_broken in [true, false] {
        let mut world = life::running();
        if is_broken {
            world.hosts[SOURCE].broken.insert("save", true);
        }
        world.order(SOURCE, life::stop(Stop::Suspend));
        world.run(
            &mut |world| {
                let is_tried = world.hosts[SOURCE].log.contains(&Effect::Save {
                    saved_in: model::vm::SavedIn::Host,
                });
                is_tried && world.order(SOURCE, life::run(false))
            },
            5_000_000,
        );
        assert_eq!(where_it_runs(&world), (true, false));
        let mut controller = Controller::new();
        run(&mut world, &mut controller, None, |_, _| {}, 30_000_000);
        assert_eq!(controller.phase, Phase::Done, "{is_broken}");
        assert_eq!(where_it_runs(&world), (false, true));
    }
}
