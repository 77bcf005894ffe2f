//! Rules between VMs, batches, and hosts that fail starts, as the planner keeps them.

use std::collections::BTreeMap;

use model::lifecycle::Phase;
use model::migration::MigrationPhase as M;
use model::placement::{Affinity, Batch, Peers};
use model::report::RunState;
use model::vm::Power;
use model::{MigrationId, Reason, VmId};
use planner::placement::{AVOIDED_S, FAILED_STARTS_MAX};
use uuid::Uuid;

use super::copies::{clone, off};
use super::world::{World, taken_mib};

fn web() -> Vec<Affinity> {
    let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    vec![Affinity {
        to: Peers::Vms(labels),
        soft: false,
    }]
}

impl World {
    /// Labels a held VM, gives it rules, and lets it start.
    fn release_with(&mut self, id: VmId, change: impl FnOnce(&mut model::placement::PlacementRule)) {
        self.change_vm(id, |object| {
            object.meta.labels.insert("app".to_owned(), "web".to_owned());
            change(&mut object.spec.placement);
            object.spec.power = Power::Running;
            object.spec.power_request += 1;
        });
    }

    /// A move is asked for and begins, and nothing else is decided.
    fn begin_move(&mut self, vm: VmId) -> MigrationId {
        let id = MigrationId(self.create(
            model::Kind::Migration,
            "away",
            model::migration::MigrationSpec {
                vm,
                to: None,
                cancel: false,
                drain: None,
                request_id: None,
            },
        ));
        let plan = planner::migration::plan(&self.view, id, self.now).plan.unwrap();
        self.commit(plan).unwrap();
        id
    }

    fn why(&self, id: VmId) -> Vec<Reason> {
        let record = self.intent(id).placement.unwrap();
        record.refused.into_iter().map(|group| group.reason).collect()
    }
}

#[test]
fn rules_hold_for_starts_and_for_moves() {
    let mut world = World::new(3);
    let vms: Vec<VmId> = (0..3)
        .map(|n| world.vm(&format!("web{n}"), Power::Hold))
        .collect();
    for vm in &vms {
        world.release_with(*vm, |rule| rule.anti_affinity = web());
        world.run(*vm, |run| run.state = RunState::Running);
    }
    let mut hosts: Vec<String> = vms.iter().map(|vm| world.host_of(*vm)).collect();
    hosts.sort();
    assert_eq!(hosts, ["h1", "h2", "h3"]);
    let other = world.host_of(vms[1]);
    let id = world.migrate(vms[0], Some(&other));
    assert_eq!(world.stage(id), M::Aborted);
    let reason = world.moves(id).reason.unwrap();
    assert!(reason.message.contains("web1 is there"), "{reason:?}");
    let fourth = world.vm("web3", Power::Hold);
    world.release_with(fourth, |rule| rule.anti_affinity = web());
    assert_eq!(world.phase(fourth), Phase::Pending);
    let found = planner::explain::explain(&world.view, fourth, world.now).unwrap();
    assert!(found.hosts.iter().all(|host| host.obstacles.len() == 1));
    assert_eq!(
        found.smallest_change.as_deref(),
        Some("move web0 off h1, or drop the anti-affinity to app=web")
    );
    // It comes when one of them goes.
    world.delete(vms[2]);
    let (host, incarnation) = (world.host_of(vms[2]), world.open(vms[2]));
    world.report(&host, vms[2], incarnation, |run| run.state = RunState::Removed);
    assert_eq!(world.host_of(fourth), host);
}

#[test]
fn two_first_ones_of_a_group_exclude_each_other() {
    let mut world = World::new(2);
    let (a, b) = (world.vm("a", Power::Hold), world.vm("b", Power::Hold));
    for host in ["h1", "h2"] {
        world.host_spec(host, |spec| spec.cordoned = true);
    }
    for vm in [a, b] {
        world.release_with(vm, |rule| rule.affinity = web());
    }
    // Both decide before either has a place, each with a host of its own.
    world.host_spec("h1", |spec| spec.cordoned = false);
    let home = world.host_of(a);
    assert_eq!((home.as_str(), world.host_of(b)), ("h1", "h1".to_owned()));
    let mut world = World::new(2);
    let (a, b) = (world.vm("a", Power::Hold), world.vm("b", Power::Hold));
    let release = |world: &mut World, vm: VmId, rather: &str| {
        let rather = world.host_id(rather);
        let mut object = world.object(vm).value;
        object.meta.labels.insert("app".to_owned(), "web".to_owned());
        object.spec.placement.affinity = web();
        object.spec.placement.affinity.push(Affinity {
            to: Peers::Hosts([rather].into()),
            soft: true,
        });
        object.spec.power = Power::Running;
        object.spec.power_request += 1;
        world.write(model::key::object(model::Kind::Vm, vm.0), &object);
    };
    release(&mut world, a, "h1");
    release(&mut world, b, "h2");
    let plans = [a, b].map(|vm| planner::vm::plan(&world.view, vm, world.now).plan.unwrap());
    let [first, second] = plans;
    world.commit(first).unwrap();
    world.commit(second).unwrap_err();
    world.settle();
    assert_eq!(world.host_of(a), world.host_of(b));
}

#[test]
fn a_batch_is_placed_whole_or_not_at_all() {
    let mut world = World::new(2);
    for host in ["h1", "h2"] {
        let id = world.host_id(host);
        world.host_status(id, 2 * taken_mib(), "qemu64");
    }
    let batch = Batch {
        id: Uuid::from_u128(7),
        size: 5,
    };
    let vms: Vec<VmId> = (0..5).map(|n| world.vm(&format!("w{n}"), Power::Hold)).collect();
    for (n, vm) in vms.iter().enumerate() {
        assert!(vms.iter().all(|vm| world.host_of(*vm).is_empty()));
        if n == 4 {
            let reasons = world.why(vms[0]);
            assert_eq!(reasons[0].code, "batch-incomplete", "{reasons:?}");
        }
        world.release_with(*vm, |rule| rule.batch = Some(batch));
    }
    for vm in &vms {
        let reasons = world.why(*vm);
        assert_eq!(
            (world.phase(*vm), reasons[0].code.as_str()),
            (Phase::Pending, "batch-does-not-fit")
        );
        assert!(
            reasons[0].message.contains("room for 4 of them, and none for w4"),
            "{reasons:?}"
        );
        assert_eq!(reasons[1].code, "memory-short");
    }
    world.host("h3", 4096);
    world.settle();
    assert!(vms.iter().all(|vm| !world.host_of(*vm).is_empty()));
    // After its first start each of them is for itself.
    let host = world.host_of(vms[0]);
    world.ask(vms[0], Power::Off);
    world.close(&host, vms[0], world.open(vms[0]), None);
    world.ask(vms[0], Power::Running);
    assert_eq!(world.phase(vms[0]), Phase::Prolog);
}

#[test]
fn a_batch_that_is_only_prepared_is_placed_too() {
    let mut world = World::new(2);
    let batch = Batch {
        id: Uuid::from_u128(7),
        size: 2,
    };
    let vms = ["a", "b"].map(|name| world.vm(name, Power::Hold));
    for vm in vms {
        world.change_vm(vm, |object| {
            object.spec.placement.batch = Some(batch);
            object.spec.power = Power::Prepared;
            object.spec.power_request += 1;
        });
    }
    world.settle();
    assert_eq!(vms.map(|vm| world.phase(vm)), [Phase::Prolog, Phase::Prolog]);
}

#[test]
fn a_host_on_which_starts_fail_is_avoided_for_a_while() {
    let mut world = World::new(1);
    let vm = world.vm("web", Power::Running);
    for _ in 0..FAILED_STARTS_MAX {
        assert_eq!(world.host_of(vm), "h1");
        world.close("h1", vm, world.open(vm), Some("no-qemu"));
        assert_eq!(world.phase(vm), Phase::Failed);
        world.ask(vm, Power::Running);
    }
    assert_eq!(world.phase(vm), Phase::Pending);
    assert_eq!(world.why(vm)[0].code, "host-fails-starts");
    let decision = planner::vm::plan(&world.view, vm, world.now);
    assert!(decision.look_again_at.is_some(), "time alone lets it in");
    // A clock that is set back does not make it wait for a day.
    let mut earlier = world.now;
    earlier -= jiff::SignedDuration::from_hours(24);
    assert_eq!(planner::vm::plan(&world.view, vm, earlier).look_again_at, None);
    world.pass(AVOIDED_S);
    world.settle();
    assert_eq!(
        (world.phase(vm), world.host_of(vm)),
        (Phase::Prolog, "h1".to_owned())
    );
    // One that runs ends the row.
    world.pass(1);
    world.run(vm, |run| run.state = RunState::Running);
    let h1 = world.host_id("h1");
    assert_eq!(planner::placement::failed_starts(&world.view, h1), None);
}

#[test]
fn a_host_may_promise_more_than_it_has() {
    let mut world = World::new(1);
    let h1 = world.host_id("h1");
    world.host_status(h1, taken_mib(), "qemu64");
    let vms = [world.vm("a", Power::Running), world.vm("b", Power::Running)];
    assert_eq!(world.phase(vms[1]), Phase::Pending);
    world.host_spec("h1", |spec| {
        spec.overcommit = Some(model::host::Overcommit {
            memory_percent: 200,
            vcpus_per_cpu: 1,
        });
    });
    assert_eq!(world.phase(vms[1]), Phase::Prolog);
}

#[test]
fn company_that_leaves_at_the_same_time_is_no_company() {
    let mut world = World::new(2);
    let a = world.running("a", "h1");
    world.change_vm(a, |object| {
        object.meta.labels.insert("app".to_owned(), "web".to_owned());
    });
    let c = world.vm("c", Power::Hold);
    let mut object = world.object(c).value;
    object.spec.placement.affinity = web();
    object.spec.power = Power::Running;
    object.spec.power_request += 1;
    world.write(model::key::object(model::Kind::Vm, c.0), &object);
    let follows = planner::vm::plan(&world.view, c, world.now).plan.unwrap();
    // The reservations of the host that is left do not change when a move begins.
    let id = world.begin_move(a);
    assert_eq!(world.stage(id), M::Preparing);
    world.commit(follows).unwrap_err();
    world.settle();
    assert_eq!(world.host_of(c), "h2", "it follows to where the other will be");
}

#[test]
fn a_vm_whose_disk_is_only_copied_somewhere_is_no_company_and_in_nobodys_way() {
    let mut world = World::new(2);
    let copied = off(&mut world, "copied", "h1");
    let runs = world.running("runs", "h2");
    for id in [copied, runs] {
        world.change_vm(id, |object| {
            object.meta.labels.insert("app".to_owned(), "web".to_owned());
        });
    }
    clone(&mut world, "copy", copied);
    assert_eq!(world.host_of(copied), "h1");
    let follows = world.vm("follows", Power::Hold);
    world.release_with(follows, |rule| rule.affinity = web());
    assert_eq!(world.host_of(follows), "h2");
    let alone = world.vm("alone", Power::Hold);
    world.release_with(alone, |rule| rule.anti_affinity = web());
    assert_eq!(world.host_of(alone), "h1");
}
