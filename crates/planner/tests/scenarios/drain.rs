//! Hosts that shall be empty: what leaves, what cannot, how often it is tried, and what ends it.

use model::host::Drain;
use model::lifecycle::Phase;
use model::migration::MigrationPhase as M;
use model::report::{OutgoingState, RunState};
use model::vm::Power;
use model::{HostId, MigrationId, VmId};
use planner::drain::{ATTEMPTS_MAX, Held, Outlook, Progress, Standing, progress};
use uuid::Uuid;

use super::world::{World, taken_mib};

impl World {
    fn drain(&mut self, name: &str, parallel: u32) {
        let drain = Drain {
            id: Uuid::from_u128(u128::from(self.view.revision)),
            asked_at: self.now,
            asked_by: "ann".to_owned(),
            parallel,
        };
        self.host_spec(name, |spec| spec.drain = Some(drain));
    }

    fn undrain(&mut self, name: &str) {
        self.host_spec(name, |spec| spec.drain = None);
    }

    fn drained(&self, name: &str) -> Progress {
        let id = self.host_id(name);
        progress(&self.view, id, self.view.hosts[&id].drain().unwrap())
    }

    fn held(&self, name: &str, vm: VmId) -> Held {
        let all = self.drained(name).held;
        all.into_iter().find(|held| held.vm == vm).unwrap()
    }

    /// How a VM stands, in a word.
    fn stands(&self, name: &str, vm: VmId) -> String {
        match self.held(name, vm).standing {
            Standing::Moves(_) => "moves".to_owned(),
            Standing::Ready(_) => "ready".to_owned(),
            Standing::Waits(reason) | Standing::Stays(reason) | Standing::Rests(reason) => reason.code,
        }
    }

    /// The migrations that have not ended.
    fn active(&self) -> Vec<MigrationId> {
        self.view.all_active_migrations().map(|(id, _)| id).collect()
    }

    fn vm_of(&self, id: MigrationId) -> VmId {
        self.view.migrations[&id].object.as_ref().unwrap().value.spec.vm
    }

    fn name_of(&self, id: HostId) -> String {
        self.view.hosts[&id].name().to_owned()
    }

    /// A migration runs to its good end.
    fn arrives(&mut self, id: MigrationId) {
        let vm = self.vm_of(id);
        let route = self.moves(id).route.unwrap();
        let (source, target) = (self.name_of(route.source), self.name_of(route.target));
        self.report(&target, vm, route.to, |run| {
            run.state = RunState::Incoming;
            run.stream = Some("10.0.0.2:4444".to_owned());
        });
        self.outgoing(vm, id, OutgoingState::Completed);
        self.report(&target, vm, route.to, |run| run.state = RunState::Running);
        self.close(&source, vm, route.from, None);
        assert_eq!(self.stage(id), M::Done);
    }

    /// A migration's target never listens.
    fn fails(&mut self, id: MigrationId) {
        let vm = self.vm_of(id);
        let route = self.moves(id).route.unwrap();
        let target = self.name_of(route.target);
        self.close(&target, vm, route.to, Some("no-luck"));
        assert_eq!(self.stage(id), M::Aborted);
    }
}

/// So many VMs on `h1`.
fn world(hosts: usize, vms: usize) -> (World, Vec<VmId>) {
    let mut world = World::new(hosts);
    let vms = (0..vms).map(|n| world.running(&format!("vm{n}"), "h1")).collect();
    (world, vms)
}

#[test]
fn every_vm_leaves_and_no_more_at_a_time_than_was_asked() {
    for parallel in [1, 2, 4] {
        let (mut world, vms) = world(3, 5);
        world.drain("h1", parallel);
        for moved in 0..5 {
            let active = world.active();
            let most = (5 - moved).min(parallel as usize);
            assert_eq!(active.len(), most, "{moved} moved, {parallel} at a time");
            assert_eq!(world.drained("h1").outlook(), Outlook::Draining);
            assert_eq!(world.drained("h1").moved as usize, moved);
            let begun = active
                .iter()
                .find(|id| world.view.migrations[id].intent.is_some())
                .copied();
            world.arrives(begun.unwrap());
        }
        let end = world.drained("h1");
        assert_eq!(
            (end.outlook(), end.moved, end.held.len()),
            (Outlook::Drained, 5, 0)
        );
        assert!(vms.iter().all(|vm| world.host_of(*vm) != "h1"));
        assert!(
            world.view.hosts[&world.host_id("h1")]
                .reservations
                .as_ref()
                .unwrap()
                .value
                .vms
                .is_empty()
        );
    }
}

#[test]
fn a_drain_with_nowhere_to_go_says_so_with_numbers_and_goes_on_when_there_is_room() {
    let (mut world, vms) = world(2, 2);
    let h2 = world.host_id("h2");
    world.host_status(h2, 256, "qemu64");
    let writes = world.log.len();
    world.drain("h1", 2);
    assert_eq!(
        world.log.len(),
        writes + 1,
        "only the wish is written: {:#?}",
        world.log
    );
    assert_eq!(world.drained("h1").outlook(), Outlook::Stuck);
    let Standing::Stays(reason) = world.held("h1", vms[0]).standing else {
        panic!("it cannot go")
    };
    assert_eq!(
        reason.message,
        format!(
            "no host can take it: h2: short by {} MiB: 256 MiB of 256 MiB are free",
            taken_mib() - 256
        )
    );
    world.pass(3600);
    world.settle();
    assert_eq!(world.active(), [], "time alone changes nothing");
    // Room for one of them.
    world.host_status(h2, taken_mib(), "qemu64");
    world.settle();
    let active = world.active();
    assert_eq!(active.len(), 1);
    let stays = vms.iter().filter(|vm| world.stands("h1", **vm) == "no-host-fits");
    assert_eq!(stays.count(), 1);
    world.arrives(active[0]);
    assert_eq!(
        (world.drained("h1").outlook(), world.drained("h1").moved),
        (Outlook::Stuck, 1)
    );
}

#[test]
fn a_vm_is_tried_so_often_and_no_more() {
    let (mut world, vms) = world(2, 1);
    world.drain("h1", 2);
    for attempt in 1..=ATTEMPTS_MAX {
        let [id] = world.active()[..] else {
            panic!("one move")
        };
        assert_eq!(world.held("h1", vms[0]).attempts, attempt);
        world.fails(id);
        assert_eq!(world.active(), [], "there is a pause after a failure");
        world.pass(60);
        world.settle();
    }
    assert_eq!(world.stands("h1", vms[0]), "attempts-failed");
    assert_eq!(world.drained("h1").outlook(), Outlook::Stuck);
    let Standing::Stays(reason) = world.held("h1", vms[0]).standing else {
        panic!()
    };
    assert!(reason.message.contains("no-luck"), "{reason:?}");
    world.pass(3600);
    world.settle();
    assert_eq!(world.active(), []);
    // Asked again, it begins anew.
    world.undrain("h1");
    world.drain("h1", 2);
    assert_eq!((world.active().len(), world.held("h1", vms[0]).attempts), (1, 1));
}

#[test]
fn the_end_of_a_drain_drops_what_has_not_begun_and_lets_the_rest_arrive() {
    // Every target is busy with two moves, so that the third and fourth wait.
    let (mut world, _) = world(2, 4);
    world.drain("h1", 4);
    let begun = |world: &World| {
        let all = world.active().into_iter();
        all.filter(|id| world.view.migrations[id].intent.is_some())
            .collect::<Vec<_>>()
    };
    let (first, all) = (begun(&world), world.active());
    assert_eq!((first.len(), all.len()), (2, 4));
    world.undrain("h1");
    assert_eq!(world.active(), first, "those that had begun go on");
    for id in all.iter().filter(|id| !first.contains(id)) {
        assert_eq!(world.moves(*id).reason.unwrap().code, "drain-over");
    }
    assert!(
        world.view.hosts[&world.host_id("h1")]
            .intent
            .as_ref()
            .unwrap()
            .value
            .drain
            .is_none()
    );
    world.arrives(first[0]);
    world.arrives(first[1]);
    assert_eq!(world.active(), []);
}

#[test]
fn a_move_that_its_user_cancels_is_not_made_again() {
    let (mut world, vms) = world(2, 1);
    world.drain("h1", 2);
    let id = world.active()[0];
    world.cancel(id);
    let route = world.moves(id).route.unwrap();
    world.close("h2", vms[0], route.to, None);
    world.pass(60);
    world.settle();
    assert_eq!(
        (world.stands("h1", vms[0]).as_str(), world.active()),
        ("move-cancelled", vec![])
    );
}

#[test]
fn what_does_not_run_is_dealt_with_as_it_is() {
    let (mut world, vms) = world(2, 2);
    let (off, suspended) = (vms[0], vms[1]);
    world.ask(off, Power::Off);
    world.close("h1", off, world.open(off), None);
    world.ask(suspended, Power::Suspended);
    let saved = world.open(suspended);
    world.report("h1", suspended, saved, |run| {
        run.state = RunState::Closed;
        run.saved_bytes = Some(1 << 20);
    });
    let late = world.vm("late", Power::Running);
    let home = world.host_of(late);
    let other = if home == "h1" { "h2" } else { "h1" };
    world.drain(&home, 2);
    assert_eq!(world.stands(&home, late), "starting");
    assert_eq!(world.active(), []);
    world.run(late, |run| run.state = RunState::Running);
    let id = world.active()[0];
    world.arrives(id);
    assert_eq!(world.host_of(late), other);
    world.drain("h1", 2);
    assert_eq!(world.stands("h1", suspended), "suspended");
    assert!(!world.drained("h1").held.iter().any(|held| held.vm == off));
    // What is suspended there does not go on there while the host is drained, and says why.
    world.undrain(&home);
    world.drain("h1", 2);
    world.ask(suspended, Power::Running);
    assert_eq!(world.phase(suspended), Phase::Pending);
    let refused = world.intent(suspended).placement.unwrap().refused;
    assert!(
        refused.iter().any(|group| group.reason.code == "host-draining"),
        "{refused:?}"
    );
}

#[test]
fn nothing_new_comes_to_a_draining_host_and_what_was_on_its_way_leaves_again() {
    let mut world = World::new(2);
    let vm = world.running("web", "h2");
    let id = world.migrate(vm, Some("h1"));
    world.drain("h1", 2);
    assert_eq!(world.stands("h1", vm), "arriving");
    let new = world.vm("new", Power::Running);
    assert_eq!(world.host_of(new), "h2");
    world.arrives(id);
    let [back] = world.active()[..] else {
        panic!("it leaves again")
    };
    assert_eq!(world.moves(back).route.unwrap().target, world.host_id("h2"));
}
