//! What is done in guests: its records are ended by who did it, and lost when nobody says so in time.

use jiff::SignedDuration;
use model::audit::Actor;
use model::operation::{Applied, Apply, OperationPhase, OperationStatus};
use model::vm::Power;
use model::{Kind, OperationId, Reason, VmId, key};
use planner::admission::Stamp;
use planner::{Plan, operation};
use uuid::Uuid;

use super::world::World;

/// How long each may take, in seconds.
const TIMEOUT_S: i64 = 60;

/// Asks for one, as a server does.
fn ask(world: &mut World, vm: VmId, id: u128) -> OperationId {
    let apply = Apply {
        steps: vec!["script".to_owned()],
        deadline: world
            .now
            .checked_add(SignedDuration::from_secs(TIMEOUT_S))
            .unwrap(),
    };
    let meta = world.object(vm).value.meta;
    let asked = operation::asked_to_apply(&world.view, &meta, apply);
    let actor = Actor::controller();
    let mut next_id = || Uuid::from_u128(id);
    let mut stamp = Stamp {
        actor: &actor,
        now: world.now,
        next_id: &mut next_id,
    };
    let mut plan = Plan::new("apply");
    operation::create(&mut plan, &world.view, &asked, &mut stamp);
    world.commit(plan).unwrap();
    world.settle();
    OperationId(Uuid::from_u128(id))
}

fn status(world: &World, id: OperationId) -> OperationStatus {
    operation::status(&world.view.operations[&id.0])
}

fn ends(world: &mut World, id: OperationId, ended: Result<Applied, (Reason, Applied)>) -> bool {
    let plan = operation::end_apply(&world.view, id, ended, world.now);
    let is_written = plan.is_some_and(|plan| world.commit(plan).is_ok());
    world.settle();
    is_written
}

#[test]
fn how_it_ended_says_who_did_it() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    let id = ask(&mut world, vm, 1 << 80);
    assert_eq!(operation::applies_under_way(&world.view, vm), 1);
    let deadline = world
        .now
        .checked_add(SignedDuration::from_secs(TIMEOUT_S))
        .unwrap();
    assert_eq!(status(&world, id).phase, OperationPhase::Running);
    assert_eq!(status(&world, id).deadline, Some(deadline));
    let applied = Applied {
        steps_done: 1,
        exit_status: Some(0),
        output: "planted".to_owned(),
        output_bytes: 7,
    };
    assert!(ends(&mut world, id, Ok(applied.clone())));
    let ended = status(&world, id);
    assert_eq!(
        (ended.phase, ended.applied),
        (OperationPhase::Done, Some(applied))
    );
    assert_eq!(operation::applies_under_way(&world.view, vm), 0);
    // What was printed is in the record, and not in what is kept for good.
    let kept = |prefix: &str| -> String {
        let of = |(key, (value, _)): (&String, &(Vec<u8>, u64))| {
            key.starts_with(prefix)
                .then(|| String::from_utf8_lossy(value).into_owned())
        };
        world.store.iter().filter_map(of).collect()
    };
    assert!(kept("/operation/").contains("planted"));
    assert!(kept(key::AUDIT_PREFIX).contains("[not shown]"));
    assert!(!kept(key::AUDIT_PREFIX).contains("planted"));
}

#[test]
fn one_of_which_nobody_says_anything_is_lost_and_stays_so() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    let id = ask(&mut world, vm, 1 << 80);
    let deadline = status(&world, id).deadline.unwrap();
    let at = operation::apply_lost_at(deadline);
    let lost_after = at.duration_since(world.now).as_secs();
    assert_eq!(
        planner::vm::plan(&world.view, vm, world.now).look_again_at,
        Some(at)
    );
    world.pass(lost_after - 1);
    world.settle();
    assert_eq!(status(&world, id).phase, OperationPhase::Running);
    world.pass(1);
    world.settle();
    let ended = status(&world, id);
    let code = ended.reason.map(|reason| reason.code);
    assert_eq!(
        (ended.phase, code.as_deref()),
        (OperationPhase::Failed, Some("apply-lost"))
    );
    assert!(!ends(&mut world, id, Ok(Applied::default())), "it comes too late");
    // Other requests do not end it, and are not ended by it.
    let id = ask(&mut world, vm, 2 << 80);
    world.ask(vm, Power::Paused);
    assert_eq!(status(&world, id).phase, OperationPhase::Running);
    world.delete(vm);
    assert_eq!(status(&world, id).phase, OperationPhase::Superseded);
}

#[test]
fn records_are_counted_by_what_is_kept_of_them() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    for n in 1..=3 {
        ask(&mut world, vm, n << 80);
        let name = format!("web-apply-{n}");
        assert!(
            world.view.find(Kind::Operation, Some("default"), &name).is_some(),
            "{name}"
        );
    }
}
