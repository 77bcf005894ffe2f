//! Memory that is kept for others, and a guest that starts from such a memory.

use driver::types::{Effect, Mark};
use model::document::{Order, StartFrom, Stop};
use model::report::RunState;
use model::template::ANOTHER_BUILD;
use model::vm::SavedIn;
use model::{Incarnation, VmId};

use crate::life::{running, stop};
use crate::world::{SOURCE, World};

const WARM: VmId = VmId(uuid::Uuid::from_u128(77));
const LEFT: Incarnation = Incarnation(3);

fn instant(paused: bool) -> Option<Order> {
    Some(Order::Run {
        paused,
        resume: false,
        start: StartFrom::Warm {
            vm: WARM,
            incarnation: LEFT,
        },
    })
}

fn log(world: &World) -> Vec<Effect> {
    let log = world.hosts[SOURCE].log.iter();
    log.filter(|effect| **effect != Effect::Look).cloned().collect()
}

#[test]
fn a_copy_of_a_guest_is_let_onto_the_network_when_it_is_somebody_of_its_own() {
    let mut world = World::new();
    world.order(SOURCE, instant(false));
    world.settle(1_000_000);
    assert_eq!(
        log(&world),
        [
            Effect::Prepare { as_target: false },
            Effect::Journal(Mark::Launched),
            Effect::Spawn { incoming: true },
            Effect::LoadWarm {
                vm: WARM,
                incarnation: LEFT,
            },
            Effect::Journal(Mark::Ran),
            Effect::Continue,
            Effect::Identify,
            Effect::Journal(Mark::Identified),
            Effect::OpenPorts,
        ]
    );
    let last = world.hosts[SOURCE].last();
    assert!(last.state == RunState::Running && last.has_identity);
}

#[test]
fn one_that_cannot_be_given_an_identity_is_closed_unheard_of() {
    let mut world = World::new();
    world.hosts[SOURCE].broken.insert("identify", false);
    world.order(SOURCE, instant(false));
    world.settle(120_000_000);
    let last = world.hosts[SOURCE].last();
    assert_eq!(last.state, RunState::Closed);
    assert_eq!(last.reason.as_ref().unwrap().code, "instant-start-failed");
    assert!(!last.has_identity && !last.ready);
    assert!(!log(&world).contains(&Effect::OpenPorts));
}

#[test]
fn memory_that_another_build_kept_is_named_so() {
    let mut world = World::new();
    world.hosts[SOURCE].broken.insert("load-warm", false);
    world.order(SOURCE, instant(false));
    world.settle(120_000_000);
    let last = world.hosts[SOURCE].last();
    assert_eq!(last.state, RunState::Closed);
    assert_eq!(last.reason.as_ref().unwrap().code, ANOTHER_BUILD);
}

#[test]
fn a_pause_opens_nothing_before_that() {
    let mut world = World::new();
    world.hosts[SOURCE].broken.insert("identify", false);
    world.order(SOURCE, instant(false));
    world.settle(300_000);
    world.order(SOURCE, instant(true));
    world.settle(300_000);
    world.order(SOURCE, instant(false));
    world.settle(300_000);
    assert!(!log(&world).contains(&Effect::OpenPorts));
}

#[test]
fn memory_is_kept_when_the_guest_has_settled() {
    let mut world = running();
    world.order(SOURCE, stop(Stop::Warm));
    world.settle(1_000_000);
    let mark = Mark::Closed {
        reason: None,
        saved_bytes: Some(4096),
        saved_in: SavedIn::Datastore,
    };
    assert_eq!(
        log(&world),
        [
            Effect::Settle,
            Effect::Journal(Mark::Saving),
            Effect::Warm,
            Effect::Journal(mark),
            Effect::Kill,
            Effect::Release,
        ]
    );
    assert_eq!(world.hosts[SOURCE].last().saved_bytes, Some(4096));
}
