//! Hosts that change: closed during a migration, removed, come back as something else.

use model::host::{HostSpec, HostStatus};
use model::migration::MigrationPhase as M;
use model::report::{OutgoingState, RunState};
use model::vm::Power;
use model::{HostId, Kind, key};
use uuid::Uuid;

use super::world::World;

impl World {
    fn status_of(&mut self, name: &str, change: impl FnOnce(&mut HostStatus)) {
        let id = self.host_id(name);
        let mut status = self.view.hosts[&id].status.clone().unwrap().value;
        change(&mut status);
        self.write(key::host_status(id), &status);
        self.settle();
    }

    fn attention(&self, name: &str) -> Vec<String> {
        let reasons = planner::hardware::attention(&self.view.hosts[&self.host_id(name)]);
        reasons.into_iter().map(|reason| reason.code).collect()
    }
}

#[test]
fn a_cordon_during_a_migration_lets_it_arrive() {
    for (side, other) in [("h1", "h2"), ("h2", "h1")] {
        let mut world = World::new(2);
        let vm = world.running("web", "h1");
        let id = world.migrate(vm, Some("h2"));
        world.host_spec(side, |spec| spec.cordoned = true);
        assert_eq!(world.stage(id), M::Preparing, "{side}");
        let route = world.moves(id).route.unwrap();
        world.report("h2", vm, route.to, |run| {
            run.state = RunState::Incoming;
            run.stream = Some("10.0.0.2:4444".to_owned());
        });
        world.host_spec(side, |spec| spec.cordoned = true);
        world.outgoing(vm, id, OutgoingState::Completed);
        world.report("h2", vm, route.to, |run| run.state = RunState::Running);
        world.close("h1", vm, route.from, None);
        assert_eq!((world.stage(id), world.host_of(vm)), (M::Done, "h2".to_owned()));
        let new = world.vm("new", Power::Running);
        assert_eq!(world.host_of(new), other);
    }
}

#[test]
fn a_host_that_comes_back_as_less_is_named_until_nothing_depends_on_it() {
    let mut world = World::new(2);
    let vm = world.running("web", "h1");
    assert_eq!(world.attention("h1"), [""; 0]);
    world.status_of("h1", |status| status.memory_mib = 300);
    assert_eq!(world.attention("h1"), ["host-shrunk"]);
    let new = world.vm("new", Power::Running);
    assert_eq!(world.host_of(new), "h2", "nothing more comes to it");
    world.status_of("h1", |status| {
        status.memory_mib = 4096;
        status.cpu_model = "other".to_owned();
        status.agent_version = "0.9".to_owned();
    });
    assert_eq!(world.attention("h1"), ["cpu-model-changed", "agent-older"]);
    for (release, said) in [
        ("1.9.2", &["cpu-model-changed"][..]),
        ("1.10.0", &["cpu-model-changed"]),
        ("1.10.0", &["cpu-model-changed"]),
        ("1.9.3", &["cpu-model-changed", "agent-older"]),
    ] {
        world.status_of("h1", |status| status.agent_version = release.to_owned());
        assert_eq!(world.attention("h1"), said, "{release}");
    }
    world.ask(vm, Power::Off);
    world.close("h1", vm, world.open(vm), None);
    assert_eq!(world.attention("h1"), [""; 0], "nothing depends on what it was");
}

#[test]
fn a_vm_does_not_come_to_a_host_that_is_removed_at_the_same_time() {
    let mut world = World::new(1);
    let h1 = world.host_id("h1");
    world.host_spec("h1", |spec| spec.cordoned = true);
    let vm = world.vm("web", Power::Running);
    // One that has never held anything has no reservations to compare.
    assert!(world.view.hosts[&h1].reservations.is_none());
    let mut object = world.view.hosts[&h1].object.clone().unwrap();
    object.value.spec.cordoned = false;
    world.write(key::object(model::Kind::Host, h1.0), &object.value);
    let placement = planner::vm::plan(&world.view, vm, world.now).plan.unwrap();
    let revision = world.view.hosts[&h1].object.as_ref().unwrap().revision;
    let mut removal = planner::Plan::new("remove the host");
    removal.remove(key::object(model::Kind::Host, h1.0), revision);
    world.commit(removal).unwrap();
    world.commit(placement).unwrap_err();
}

#[test]
fn what_hosts_that_come_together_are_made_of_is_kept_by_one_plan() {
    let mut world = World::new(0);
    let hosts = ["a", "b", "c"].map(|name| HostId(world.create(Kind::Host, name, HostSpec::default())));
    for host in hosts {
        world.host_status(host, 4096, "qemu64");
    }
    let mut no_id = || Uuid::nil();
    let plan = planner::host::plan_beside(&world.view, hosts[0], &hosts, world.now, &mut no_id).plan;
    let plan = plan.unwrap();
    assert_eq!(plan.action, "note what 3 hosts are made of");
    world.commit(plan).unwrap();
    assert_eq!(world.next_plan(), None);
}
