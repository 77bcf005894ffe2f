//! Every fault at every effect, and pairs of faults: never launched twice, never two running, and it comes to an end.

use model::document::{Order, Stop};
use model::report::RunState;

use crate::controller::{Controller, Phase};
use crate::life;
use crate::world::{FAULTS, Fault, Link, SOURCE, TARGET, World};

/// A story on one host, and whether its end is a good one.
struct Life {
    name: &'static str,
    begin: fn() -> World,
    order: fn(&World) -> Option<Order>,
    is_good: fn(&World) -> bool,
}

fn is_closed(world: &World) -> bool {
    world.hosts[SOURCE].state() == Some(RunState::Closed)
}

fn fresh_with_saved() -> World {
    let mut world = World::new();
    world.hosts[SOURCE].saved.insert(crate::world::N, 4096);
    world
}

const LIVES: [Life; 6] = [
    Life {
        name: "boot",
        begin: World::new,
        order: |_| life::run(false),
        is_good: |world| world.hosts[SOURCE].executes() || is_closed(world),
    },
    Life {
        name: "shutdown",
        begin: life::running,
        order: |world| {
            life::stop(Stop::Shutdown {
                force_at: world.wall_in_ms(3_000),
            })
        },
        is_good: is_closed,
    },
    Life {
        name: "kill",
        begin: life::running,
        order: |_| life::stop(Stop::Kill),
        is_good: is_closed,
    },
    Life {
        name: "suspend",
        begin: life::running,
        order: |_| life::stop(Stop::Suspend),
        is_good: |world| {
            let host = &world.hosts[SOURCE];
            // Saved and closed; or the save failed and the guest goes on; or its QEMU died first, and that is said.
            let is_saved = host.last().saved_bytes.is_some() || host.last().reason.is_some();
            is_closed(world) && is_saved || host.executes() && host.last().reason.is_some()
        },
    },
    Life {
        name: "resume",
        begin: fresh_with_saved,
        order: |_| life::resume_from(1),
        is_good: |world| world.hosts[SOURCE].executes() || is_closed(world),
    },
    Life {
        name: "remove",
        begin: life::running,
        order: |_| life::stop(Stop::Remove),
        is_good: |world| world.hosts[SOURCE].state() == Some(RunState::Removed),
    },
];

/// Runs a story with the faults. Answers how many effects it began.
fn live(story: &Life, faults: &[(usize, Fault)]) -> usize {
    let mut world = (story.begin)();
    world.effects = 0;
    world.faults = faults.iter().map(|(at, fault)| (*at, (SOURCE, *fault))).collect();
    let order = (story.order)(&world);
    world.order(SOURCE, order);
    world.settle(30_000_000);
    assert!(
        (story.is_good)(&world),
        "{} with {faults:?}: {:?}",
        story.name,
        world.hosts[SOURCE].last()
    );
    world.effects
}

#[test]
fn every_pair_of_faults_in_every_story_on_one_host() {
    for story in &LIVES {
        let count = live(story, &[]).min(20);
        for first in 1..=count {
            for fault in FAULTS {
                live(story, &[(first, fault)]);
                for second in first + 1..=first + 7 {
                    for next in FAULTS {
                        live(story, &[(first, fault), (second, next)]);
                    }
                }
            }
        }
    }
}

/// Where a migration may come to rest, and who has the guest then.
fn is_settled(world: &World, controller: &Controller) -> bool {
    let runs = (world.hosts[SOURCE].executes(), world.hosts[TARGET].executes());
    let closed = |at: usize| world.hosts[at].is_forgotten || world.hosts[at].last().state.is_closed();
    match controller.phase {
        Phase::Done => !runs.0 && (runs.1 || closed(TARGET)),
        Phase::Aborted => !runs.1 && (runs.0 || closed(SOURCE)),
        Phase::Restart => runs == (false, false) && closed(SOURCE) && closed(TARGET),
        _ => false,
    }
}

/// Runs a migration with the faults. Answers how many effects it began until it was over.
fn migrate(link: Link, cancel_at: Option<usize>, seed: u64, faults: &[(usize, usize, Fault)]) -> usize {
    let mut world = life::running();
    world.effects = 0;
    world.link = link;
    world.seed = seed;
    world.faults = faults
        .iter()
        .map(|(at, on, fault)| (*at, (*on, *fault)))
        .collect();
    let mut controller = Controller::new();
    let mut effects = 0;
    world.run(
        &mut |world| {
            controller.cancel |= cancel_at.is_some_and(|at| world.effects >= at);
            let is_over = matches!(controller.phase, Phase::Done | Phase::Aborted | Phase::Restart);
            if is_over {
                world.end_us.get_or_insert(world.now_us + 20_000_000);
            } else {
                effects = world.effects;
            }
            controller.step(world)
        },
        200_000_000,
    );
    assert!(
        is_settled(&world, &controller),
        "{link:?}, cancelled at {cancel_at:?}, seed {seed}, {faults:?}: {:?}\n{:?}\n{:?}",
        controller.phase,
        world.hosts[SOURCE].reports.last(),
        world.hosts[TARGET].reports.last(),
    );
    effects
}

const LINKS: [Link; 5] = [
    Link::Good,
    Link::Stalls,
    Link::AckLostRunsOn,
    Link::AckLostStands,
    Link::AckSwallowed,
];

#[test]
fn every_fault_at_every_effect_of_a_migration() {
    for link in LINKS {
        for seed in 0..3 {
            let count = migrate(link, None, seed, &[]).min(60);
            for at in 1..=count + 2 {
                for on in [SOURCE, TARGET] {
                    for fault in FAULTS {
                        migrate(link, None, seed, &[(at, on, fault)]);
                    }
                }
            }
        }
    }
}

#[test]
fn a_cancel_at_every_effect_with_every_fault_after_it() {
    for link in LINKS {
        let count = migrate(link, None, 1, &[]).min(60);
        for cancel_at in 1..=count {
            migrate(link, Some(cancel_at), 1, &[]);
            for at in (cancel_at..=cancel_at + 12).step_by(3) {
                for on in [SOURCE, TARGET] {
                    for fault in FAULTS {
                        migrate(link, Some(cancel_at), 1, &[(at, on, fault)]);
                    }
                }
            }
        }
    }
}

#[test]
fn pairs_of_faults_in_a_migration() {
    let count = migrate(Link::Good, None, 0, &[]);
    for first in 1..=count {
        for second in first + 1..=count + 8 {
            // Every pair of kinds is met at many places, though not each at every place.
            let pick = first * 31 + second * 17;
            for shift in 0..4 {
                let (one, two) = (FAULTS[(pick + shift) % 6], FAULTS[(pick / 6 + shift * 5) % 6]);
                let faults = [(first, pick % 2, one), (second, (pick / 2) % 2, two)];
                migrate(Link::Good, None, (pick % 5) as u64, &faults);
            }
        }
    }
}
