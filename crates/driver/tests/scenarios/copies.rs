//! Copies of the disk for other VMs: made beside a guest and at rest, ended when they are not wanted any more, over before the
//! guest is saved or moved.

use std::collections::BTreeSet;

use driver::types::{CopyJobState, Effect};
use model::copy::{CopyShape, CopyTo};
use model::document::{MigrateTo, Order, Stop};
use model::report::{CopyState, RunState};
use model::vm::SavedIn;
use model::{Reason, VmId};
use uuid::Uuid;

use crate::life::{run, stop};
use crate::world::{M, SOURCE, TARGET, World};

const A: VmId = VmId(Uuid::from_u128(0xa));
const B: VmId = VmId(Uuid::from_u128(0xb));

fn running() -> World {
    let mut world = World::new();
    world.order(SOURCE, run(false));
    world.settle(1_000_000);
    world.hosts[SOURCE].log.clear();
    world
}

fn wants(world: &mut World, copies: &[VmId], order: Option<Order>) {
    let shaped = |to: &VmId| (CopyTo::Vm(*to), CopyShape::default());
    world.hosts[SOURCE].copies = copies.iter().map(shaped).collect();
    world.order(SOURCE, order);
    world.settle(3_000_000);
}

fn log(world: &World) -> Vec<Effect> {
    let log = world.hosts[SOURCE].log.iter();
    log.filter(|effect| **effect != Effect::Look).cloned().collect()
}

fn told(world: &World, to: VmId) -> Option<CopyState> {
    world.hosts[SOURCE].last().copies.get(&to.into()).cloned()
}

/// QEMU's part of a copy has ended.
fn ends(world: &mut World, to: VmId, state: CopyJobState) {
    let process = world.hosts[SOURCE].process.as_mut().unwrap();
    assert!(
        process.copies.insert(to.into(), state).is_some(),
        "it was not begun"
    );
    world.settle(3_000_000);
}

fn migration(world: &World) -> Option<Order> {
    Some(Order::MigrateTo(MigrateTo {
        to: M,
        host: world.hosts[TARGET].id.host,
        host_name: "h2".to_owned(),
        stream: Some("tcp:192.0.2.2:4000".to_owned()),
        peer: None,
        granted: true,
        cancel: false,
        paused: false,
        timeout_ms: 60_000,
    }))
}

#[test]
fn copies_are_made_beside_the_guest_and_forgotten_when_they_are_known() {
    for paused in [false, true] {
        let mut world = running();
        wants(&mut world, &[A, B], run(paused));
        assert_eq!(told(&world, A), Some(CopyState::UnderWay));
        assert_eq!(told(&world, B), Some(CopyState::UnderWay));
        ends(&mut world, A, CopyJobState::Done);
        assert_eq!(told(&world, A), Some(CopyState::Made { is_frozen: true }));
        assert_eq!(told(&world, B), Some(CopyState::UnderWay));
        wants(&mut world, &[B], run(paused));
        assert_eq!(told(&world, A), None);
        let process = world.hosts[SOURCE].process.as_ref().unwrap();
        assert_eq!(process.copies.keys().collect::<Vec<_>>(), [&CopyTo::Vm(B)]);
        // An agent that starts meanwhile finds what QEMU knows.
        ends(&mut world, B, CopyJobState::Done);
        world.restart_agent(SOURCE);
        world.settle(3_000_000);
        assert_eq!(told(&world, B), Some(CopyState::Made { is_frozen: true }));
    }
}

#[test]
fn a_copy_that_fails_is_told_and_leaves_nothing() {
    let mut world = running();
    wants(&mut world, &[A], run(false));
    ends(&mut world, A, CopyJobState::Failed("no space".to_owned()));
    let Some(CopyState::Failed { reason }) = told(&world, A) else {
        panic!("{:?}", told(&world, A));
    };
    assert!(reason.message.contains("no space"), "{}", reason.message);
    assert!(world.hosts[SOURCE].process.as_ref().unwrap().copies.is_empty());
    let begun = log(&world)
        .iter()
        .filter(|effect| **effect == Effect::Copy { to: A.into() })
        .count();
    assert_eq!(begun, 1, "it is tried again unasked");
}

type Is = fn(&Effect) -> bool;

#[test]
fn a_guest_is_saved_and_moved_when_nothing_of_a_copy_is_left() {
    let begins: [(Option<Order>, Is); 3] = [
        (stop(Stop::Suspend), |effect| {
            matches!(effect, Effect::Save { .. })
        }),
        (stop(Stop::Store), |effect| {
            matches!(
                effect,
                Effect::Save {
                    saved_in: SavedIn::Datastore
                }
            )
        }),
        (migration(&World::new()), |effect| {
            matches!(effect, Effect::Migrate { .. })
        }),
    ];
    for (order, is_begin) in begins {
        let mut world = running();
        wants(&mut world, &[A], run(false));
        wants(&mut world, &[], order);
        let log = log(&world);
        let dropped = log
            .iter()
            .position(|effect| *effect == Effect::DropCopy { to: A.into() });
        let begun = log.iter().position(is_begin);
        assert!(dropped.is_some() && dropped < begun, "{log:?}");
    }
}

#[test]
fn a_disk_at_rest_is_copied_and_the_incarnation_ends() {
    let mut world = World::new();
    wants(&mut world, &[A, B], stop(Stop::Prepare));
    let copies: Vec<Effect> = log(&world)
        .into_iter()
        .filter(|effect| matches!(effect, Effect::CopyAtRest { .. }))
        .collect();
    assert_eq!(
        copies,
        [
            Effect::CopyAtRest { to: A.into() },
            Effect::CopyAtRest { to: B.into() }
        ]
    );
    let last = world.hosts[SOURCE].last();
    assert_eq!(last.state, RunState::Closed);
    assert!(!last.ran);
    let made = CopyState::Made { is_frozen: false };
    assert_eq!(
        (told(&world, A), told(&world, B)),
        (Some(made.clone()), Some(made))
    );
    assert_eq!(world.hosts[SOURCE].spawns, 0);
}

#[test]
fn a_disk_that_cannot_be_copied_at_rest_is_told_before_the_end() {
    let mut world = World::new();
    world.hosts[SOURCE].broken.insert("copy-at-rest", false);
    wants(&mut world, &[A], stop(Stop::Prepare));
    assert_eq!(world.hosts[SOURCE].last().state, RunState::Closed);
    let told = told(&world, A);
    assert!(
        matches!(&told, Some(CopyState::Failed { reason: Reason { code, .. } }) if code == "broken"),
        "{told:?}"
    );
}

#[test]
fn what_is_not_wanted_any_more_is_dropped() {
    let mut world = running();
    wants(&mut world, &[A, B], run(false));
    wants(&mut world, &[], run(false));
    let copies: BTreeSet<CopyTo> = world.hosts[SOURCE]
        .process
        .as_ref()
        .unwrap()
        .copies
        .keys()
        .copied()
        .collect();
    assert!(copies.is_empty(), "{copies:?}");
    assert!(world.hosts[SOURCE].last().copies.is_empty());
}

#[test]
fn a_disk_is_made_whole_and_that_is_broken_off_before_the_guest_moves() {
    let itself = |request| CopyTo::Itself { request };
    let mut world = running();
    let wants = |world: &mut World, to: Option<CopyTo>, order| {
        world.hosts[SOURCE].copies = to.into_iter().map(|to| (to, CopyShape::default())).collect();
        world.order(SOURCE, order);
        world.settle(3_000_000);
    };
    wants(&mut world, Some(itself(1)), run(false));
    assert_eq!(log(&world), [Effect::Copy { to: itself(1) }]);
    let told = |world: &World, to| world.hosts[SOURCE].last().copies.get(&to).cloned();
    assert_eq!(told(&world, itself(1)), Some(CopyState::UnderWay));
    // It gives way, and is begun again under the same number.
    world.hosts[SOURCE].log.clear();
    let order = migration(&world);
    wants(&mut world, None, order);
    assert_eq!(log(&world)[0], Effect::DropCopy { to: itself(1) });
    assert_eq!(told(&world, itself(1)), None);
    let mut world = running();
    wants(&mut world, Some(itself(1)), run(false));
    let process = world.hosts[SOURCE].process.as_mut().unwrap();
    process
        .copies
        .insert(itself(1), CopyJobState::Failed("no space".to_owned()));
    world.settle(3_000_000);
    assert!(
        matches!(told(&world, itself(1)), Some(CopyState::Failed { reason }) if reason.code == "flatten-failed")
    );
    // What is said of one request is not said of the next.
    wants(&mut world, Some(itself(2)), run(false));
    assert_eq!(told(&world, itself(1)), None);
    assert_eq!(told(&world, itself(2)), Some(CopyState::UnderWay));
    let process = world.hosts[SOURCE].process.as_mut().unwrap();
    process.copies.insert(itself(2), CopyJobState::Done);
    world.settle(3_000_000);
    assert_eq!(told(&world, itself(2)), Some(CopyState::Made { is_frozen: true }));
}
