//! The store in memory, the commits, and the reports of scripted agents.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use model::audit::Actor;
use model::document::{HostDocument, Order, VmDocument};
use model::host::{HostContact, HostSpec, HostStatus};
use model::image::ImageSpec;
use model::lifecycle::Phase;
use model::migration::{MigrationIntent, MigrationPhase, MigrationSpec};
use model::record::{Spec, Stored};
use model::report::{Outgoing, OutgoingState, Report, RunState, RunStatus, Samples, VmRun};
use model::vm::{Power, RebootRequest, VmIntent, VmSpec};
use model::{
    DatastoreId, HostId, ImageId, Incarnation, Kind, MigrationId, Object, Reason, TemplateId, Timestamp,
    VmId, key, samples,
};
use planner::admission::{self, Before, Stamp};
use planner::concern::{Concerned, Concerns};
use planner::view::{At, Change, View};
use planner::{Decision, Plan};
use uuid::Uuid;

/// What a guest of these scenarios takes on its host.
pub(crate) const VM_MIB: u64 = 256;

/// The most that a store takes at once.
const STEPS_MAX: usize = 128;

/// What each takes on a host.
pub(crate) fn taken_mib() -> u64 {
    planner::placement::with_qemu_mib(VM_MIB, 1)
}

pub(crate) struct World {
    pub(crate) store: BTreeMap<String, (Vec<u8>, u64)>,
    pub(crate) view: View,
    pub(crate) now: Timestamp,
    /// What every commit did, for a failing test's reader.
    pub(crate) log: Vec<String>,
    /// What the agents have promised, also of incarnations whose reports are gone from the store.
    pub(crate) closed: BTreeSet<(VmId, Incarnation)>,
    /// Every incarnation that was bound to a host by a plan.
    pub(crate) bound: BTreeMap<(VmId, Incarnation), HostId>,
    ids: u128,
    /// What is told of whose document may have changed.
    concerns: Concerns,
    /// The last of the ids that drains were given for their migrations.
    drain_ids: Cell<u128>,
    /// What was said last of each template, when something was named that may matter to it.
    templates: BTreeMap<TemplateId, Decision>,
}

/// A commit that something overtook.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Conflict(pub(crate) String);

impl World {
    /// An image, a datastore and so many hosts of 4 GiB.
    pub(crate) fn new(hosts: usize) -> Self {
        let mut world = Self {
            store: BTreeMap::new(),
            view: View::default(),
            now: Timestamp::from_second(1_700_000_000).unwrap(),
            log: Vec::new(),
            closed: BTreeSet::new(),
            bound: BTreeMap::new(),
            ids: 0,
            concerns: Concerns::default(),
            drain_ids: Cell::new(1 << 100),
            templates: BTreeMap::new(),
        };
        let image = world.create(Kind::Image, "image", ImageSpec::default());
        world.write(key::image_status(ImageId(image)), &samples::image_status());
        world.create(Kind::Datastore, "default", samples::datastore_spec());
        for n in 1..=hosts {
            world.host(&format!("h{n}"), 4096);
        }
        world
    }

    /// Time passes.
    pub(crate) fn pass(&mut self, seconds: i64) {
        self.now = self
            .now
            .checked_add(jiff::SignedDuration::from_secs(seconds))
            .unwrap();
    }

    fn next_id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    pub(crate) fn create<S: Spec>(&mut self, kind: Kind, name: &str, spec: S) -> Uuid {
        let id = self.next_id();
        let object = samples::object(kind, id, name, self.now, spec);
        let mut plan = Plan::new(format!("create {kind} {name}"));
        plan.create(key::object(kind, id), &object);
        plan.create(key::name_index(kind, object.meta.project.as_deref(), name), &id);
        self.commit(plan).unwrap();
        id
    }

    /// Writes one key as a user or server does.
    pub(crate) fn write<T: Stored>(&mut self, key: String, value: &T) {
        let revision = self.store.get(&key).map_or(0, |(_, revision)| *revision);
        let mut plan = Plan::new(format!("write {key}"));
        plan.replace(key, revision, value);
        self.commit(plan).unwrap();
    }

    /// Removes one key as a user does.
    pub(crate) fn remove(&mut self, key: String) {
        let mut plan = Plan::new(format!("remove {key}"));
        let revision = self.store[&key].1;
        plan.remove(key, revision);
        self.commit(plan).unwrap();
        self.settle();
    }

    /// What is stored under a key is damaged; answers what was there.
    pub(crate) fn damage(&mut self, key: &str) -> Vec<u8> {
        self.overwrite(key, b"damaged".to_vec())
    }

    /// Another value of the same revision is stored under a key.
    pub(crate) fn overwrite(&mut self, key: &str, value: Vec<u8>) -> Vec<u8> {
        let (_, revision) = self.store[key];
        self.view.apply(Change {
            key,
            value: Some(&value),
            revision,
        });
        let before = self.store.insert(key.to_owned(), (value, revision));
        before.map(|(value, _)| value).unwrap()
    }

    pub(crate) fn host(&mut self, name: &str, memory_mib: u64) -> HostId {
        let id = HostId(self.create(Kind::Host, name, HostSpec::default()));
        self.host_status(id, memory_mib, "qemu64");
        self.settle();
        id
    }

    pub(crate) fn host_status(&mut self, id: HostId, memory_mib: u64, cpu_model: &str) {
        let status = HostStatus {
            cpu_model: cpu_model.to_owned(),
            peer_address: None,
            ..samples::host_status(1, memory_mib)
        };
        self.write(key::host_status(id), &status);
    }

    /// The image that is there from the beginning.
    pub(crate) fn image(&self) -> ImageId {
        ImageId(self.view.find(Kind::Image, Some("default"), "image").unwrap())
    }

    pub(crate) fn host_id(&self, name: &str) -> HostId {
        HostId(self.view.find(Kind::Host, None, name).unwrap())
    }

    pub(crate) fn host_spec(&mut self, name: &str, change: impl FnOnce(&mut HostSpec)) {
        let id = self.host_id(name);
        let mut object = self.view.hosts[&id].object.clone().unwrap().value;
        change(&mut object.spec);
        self.write(key::object(Kind::Host, id.0), &object);
        self.settle();
    }

    pub(crate) fn silent(&mut self, name: &str, silent: bool) {
        let id = self.host_id(name);
        let contact = HostContact {
            silent_since: silent.then_some(self.now),
            ..HostContact::default()
        };
        self.write(key::host_contact(id), &contact);
        self.settle();
    }

    /// A person says that the machine is off.
    pub(crate) fn confirm_dead(&mut self, name: &str) {
        self.silent(name, true);
        let now = self.now;
        self.host_spec(name, |spec| spec.confirmed_dead_at = Some(now));
    }

    /// A VM of 256 MiB.
    pub(crate) fn vm(&mut self, name: &str, power: Power) -> VmId {
        let id = self.asked_for(name, power, VM_MIB);
        self.settle();
        id
    }

    /// A VM that nothing has been decided about.
    pub(crate) fn asked_for(&mut self, name: &str, power: Power, memory_mib: u64) -> VmId {
        let image = self.image();
        let datastore = DatastoreId(self.view.find(Kind::Datastore, None, "default").unwrap());
        let spec = VmSpec {
            memory_mib,
            power,
            ..samples::vm_spec(image, datastore)
        };
        VmId(self.create(Kind::Vm, name, spec))
    }

    /// A VM that runs on this host.
    pub(crate) fn running(&mut self, name: &str, host: &str) -> VmId {
        let all: Vec<_> = self
            .view
            .hosts
            .values()
            .map(|host| host.name().to_owned())
            .collect();
        let others: Vec<_> = all.into_iter().filter(|other| other != host).collect();
        let was: Vec<_> = others
            .iter()
            .map(|other| self.view.hosts[&self.host_id(other)].is_cordoned())
            .collect();
        for other in &others {
            self.host_spec(other, |spec| spec.cordoned = true);
        }
        let id = self.vm(name, Power::Running);
        for (other, was) in others.iter().zip(was) {
            self.host_spec(other, |spec| spec.cordoned = was);
        }
        self.run(id, |run| run.state = RunState::Running);
        assert_eq!(
            (self.phase(id), self.host_of(id)),
            (Phase::Running, host.to_owned())
        );
        id
    }

    pub(crate) fn object(&self, id: VmId) -> At<Object<VmSpec>> {
        self.view.vms[&id].object.clone().unwrap()
    }

    pub(crate) fn change_vm(&mut self, id: VmId, change: impl FnOnce(&mut Object<VmSpec>)) {
        let mut object = self.object(id).value;
        change(&mut object);
        self.write(key::object(Kind::Vm, id.0), &object);
        self.settle();
    }

    /// The user asks for a power state.
    pub(crate) fn ask(&mut self, id: VmId, power: Power) {
        self.change_vm(id, |object| {
            object.spec.power = power;
            object.spec.power_request += 1;
        });
    }

    /// The user asks for a reboot.
    pub(crate) fn reboot(&mut self, id: VmId, force: bool) {
        self.change_vm(id, |object| {
            let request = object.spec.reboot.map_or(0, |asked| asked.request) + 1;
            object.spec.reboot = Some(RebootRequest { request, force });
        });
    }

    pub(crate) fn delete(&mut self, id: VmId) {
        let now = self.now;
        self.change_vm(id, |object| object.meta.deleted_at = Some(now));
    }

    pub(crate) fn migrate(&mut self, vm: VmId, to: Option<&str>) -> MigrationId {
        let to = to.map(|name| self.host_id(name));
        let n = self.ids;
        let id = self.create(
            Kind::Migration,
            &format!("m{n}"),
            MigrationSpec {
                vm,
                to,
                cancel: false,
                drain: None,
                request_id: None,
            },
        );
        self.settle();
        MigrationId(id)
    }

    pub(crate) fn cancel(&mut self, id: MigrationId) {
        let mut object = self.view.migrations[&id].object.clone().unwrap().value;
        object.spec.cancel = true;
        self.write(key::object(Kind::Migration, id.0), &object);
        self.settle();
    }

    pub(crate) fn phase(&self, id: VmId) -> Phase {
        self.view.phase(id).map_or(Phase::Done, |(phase, _)| phase)
    }

    pub(crate) fn intent(&self, id: VmId) -> VmIntent {
        self.view.vms[&id]
            .intent
            .as_ref()
            .map(|at| at.value.clone())
            .unwrap_or_default()
    }

    pub(crate) fn open(&self, id: VmId) -> Incarnation {
        self.intent(id)
            .open
            .unwrap_or_else(|| panic!("nothing is open: {:#?}", self.log))
            .incarnation
    }

    pub(crate) fn host_of(&self, id: VmId) -> String {
        self.intent(id)
            .host
            .map(|host| self.view.hosts[&host].name().to_owned())
            .unwrap_or_default()
    }

    pub(crate) fn moves(&self, id: MigrationId) -> MigrationIntent {
        self.view.migrations[&id].intent.clone().unwrap().value
    }

    pub(crate) fn stage(&self, id: MigrationId) -> MigrationPhase {
        self.view.migrations[&id].phase()
    }

    pub(crate) fn document(&self, host: &str) -> HostDocument {
        planner::document::build(&self.view, self.host_id(host))
    }

    pub(crate) fn order(&self, host: &str, vm: VmId) -> Option<VmDocument> {
        self.document(host).vms.remove(&vm)
    }

    /// The order in a few words, to compare with.
    pub(crate) fn told(&self, host: &str, vm: VmId) -> String {
        let Some(document) = self.order(host, vm) else {
            return "nothing".to_owned();
        };
        let n = document.incarnation;
        match document.order {
            Order::Run {
                paused,
                resume,
                start,
            } => {
                let start = serde_json::to_value(start).unwrap()["from"]
                    .as_str()
                    .unwrap()
                    .to_owned();
                let words = [(paused, " paused"), (resume, " resume")]
                    .into_iter()
                    .filter(|(is, _)| *is);
                format!(
                    "run {n} from {start}{}",
                    words.map(|(_, word)| word).collect::<String>()
                )
            }
            Order::Stop(stop) => format!(
                "stop {n} {}",
                serde_json::to_value(stop).unwrap()["how"].as_str().unwrap()
            ),
            Order::MigrateTo(to) => {
                let words = [(to.granted, " granted"), (to.cancel, " cancel")]
                    .into_iter()
                    .filter(|(is, _)| *is);
                let words: String = words.map(|(_, word)| word).collect();
                format!("migrate {n} to {}{words}", to.to)
            }
            Order::Target(target) => format!("target {n} from {} {:?}", target.from, target.state),
        }
    }

    /// The agent of the open incarnation reports.
    pub(crate) fn run(&mut self, id: VmId, change: impl FnOnce(&mut RunStatus)) {
        let host = self.host_of(id);
        let incarnation = self.open(id);
        self.report(&host, id, incarnation, change);
    }

    pub(crate) fn status(&self, host: &str, id: VmId, incarnation: Incarnation) -> RunStatus {
        let kept = self
            .view
            .vms
            .get(&id)
            .and_then(|vm| vm.runs.get(&incarnation))
            .cloned();
        kept.unwrap_or_else(|| RunStatus {
            document_revision: self.view.revision,
            ..samples::run_status(incarnation, self.host_id(host), RunState::Preparing)
        })
    }

    /// An agent reports what became of an incarnation since its last report.
    pub(crate) fn report(
        &mut self,
        host: &str,
        vm: VmId,
        incarnation: Incarnation,
        change: impl FnOnce(&mut RunStatus),
    ) {
        let mut run = self.status(host, vm, incarnation);
        change(&mut run);
        run.ran |= matches!(run.state, RunState::Running | RunState::Paused);
        self.post(host, vm, run);
    }

    /// A report as it stands.
    pub(crate) fn post(&mut self, host: &str, vm: VmId, run: RunStatus) {
        let report = Report {
            session: Uuid::from_u128(1),
            sequence: 1,
            host: None,
            runs: vec![VmRun { vm, run }],
            is_complete: true,
            samples: Samples::default(),
        };
        let plans = planner::reports::plans(&self.view, self.host_id(host), &report);
        for plan in plans {
            self.commit(plan).unwrap();
        }
        self.settle();
    }

    pub(crate) fn close(&mut self, host: &str, vm: VmId, incarnation: Incarnation, reason: Option<&str>) {
        self.report(host, vm, incarnation, |run| {
            run.state = RunState::Closed;
            run.reason = reason.map(|code| Reason::new(code, code));
        });
    }

    /// The source's side of a migration reports.
    pub(crate) fn outgoing(&mut self, vm: VmId, id: MigrationId, state: OutgoingState) {
        let route = self.moves(id).route.unwrap();
        let source = self.view.hosts[&route.source].name().to_owned();
        self.report(&source, vm, route.from, |run| {
            run.outgoing = Some(Outgoing {
                to: route.to,
                state,
                downtime_us: Some(10_500),
                transfer_ms: Some(80),
                bytes: Some(1 << 20),
                error: None,
            });
        });
    }

    /// Commits as the controller does: what was read is compared, the admission adds to it.
    pub(crate) fn commit(&mut self, mut plan: Plan) -> Result<(), Conflict> {
        let prefixes = admission::prefixes(&plan, &self.view);
        let wanted = |key: &String| {
            plan.writes.contains_key(key) || prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()))
        };
        let read = self.store.iter().filter(|(key, _)| wanted(key));
        let before: BTreeMap<String, Before> = read
            .map(|(key, (value, revision))| {
                (
                    key.clone(),
                    Before {
                        value: value.clone(),
                        revision: *revision,
                    },
                )
            })
            .collect();
        let actor = Actor::controller();
        let mut ids = self.ids;
        let mut next_id = || {
            ids += 1;
            Uuid::from_u128(ids)
        };
        let mut stamp = Stamp {
            actor: &actor,
            now: self.now,
            next_id: &mut next_id,
        };
        admission::admit(&mut plan, &self.view, &before, &mut stamp);
        self.ids = ids;
        for (key, revision) in &plan.relies_on {
            if self.store.get(key).map_or(0, |(_, at)| *at) != *revision {
                return Err(Conflict(key.clone()));
            }
        }
        self.check_plan(&plan);
        let steps = plan.writes.len().max(plan.relies_on.len());
        assert!(steps <= STEPS_MAX, "{}: {steps} steps", plan.action);
        let former = self.snapshot();
        let documents = self.documents();
        let changed = self.apply(&plan);
        self.log.push(plan.action.clone());
        self.check(&former, &plan);
        self.check_templates(changed.clone());
        self.check_concerns(&documents, changed);
        Ok(())
    }

    /// Nothing is to be done about a template that nobody would look at: as the controller does it, one is looked at when it is
    /// named by a change, when what it waits for changes, or when its time has come.
    fn check_templates(&mut self, mut changed: BTreeSet<(Kind, Uuid)>) {
        let affected: Vec<_> = changed
            .iter()
            .flat_map(|(kind, id)| self.view.affected(*kind, *id))
            .collect();
        changed.extend(affected);
        let has_room = |kind| matches!(kind, Kind::Host | Kind::Image);
        let may_have_room = changed.iter().any(|(kind, _)| has_room(*kind));
        for id in self.view.kept_templates() {
            let says = planner::keep_warm::plan(&self.view, id, self.now, &mut || Uuid::from_u128(1 << 99));
            let is_asleep = self.templates.get(&id).is_some_and(|before| {
                let is_awaited = |vm: &VmId| changed.contains(&(Kind::Vm, vm.0));
                let is_named = changed.contains(&(Kind::Template, id.0))
                    || before.awaits.iter().any(is_awaited)
                    || (before.is_waiting && may_have_room)
                    || before.look_again_at.is_some_and(|at| at <= self.now);
                before.plan.is_none() && !is_named
            });
            if is_asleep {
                let what = says.plan.map(|plan| plan.action);
                assert_eq!(what, None, "nobody looks after {:?}", self.log.last());
                continue;
            }
            self.templates.insert(id, says);
        }
    }

    fn documents(&self) -> BTreeMap<HostId, HostDocument> {
        let hosts = self.view.hosts.keys();
        hosts
            .map(|id| (*id, planner::document::build(&self.view, *id)))
            .collect()
    }

    /// No document has changed but of those whom it is said to concern.
    fn check_concerns(
        &mut self,
        before: &BTreeMap<HostId, HostDocument>,
        mut changed: BTreeSet<(Kind, Uuid)>,
    ) {
        let affected: Vec<_> = changed
            .iter()
            .flat_map(|(kind, id)| self.view.affected(*kind, *id))
            .collect();
        changed.extend(affected);
        let Concerned::Hosts(concerned) = self.concerns.next(&self.view, changed) else {
            return;
        };
        let now = self.documents();
        for (host, document) in now.iter().filter(|(host, _)| !concerned.contains(host)) {
            let is_same = before
                .get(host)
                .is_some_and(|before| document.asks_the_same(before));
            assert!(is_same, "{host} is not told of {:?}", self.log.last());
        }
    }

    /// Answers the objects that were touched.
    fn apply(&mut self, plan: &Plan) -> BTreeSet<(Kind, Uuid)> {
        let revision = self.view.revision + 1;
        let mut changed = BTreeSet::new();
        for (key, value) in &plan.writes {
            match value {
                Some(value) => self.store.insert(key.clone(), (value.clone(), revision)),
                None => self.store.remove(key),
            };
            changed.extend(self.view.apply(Change {
                key,
                value: value.as_deref(),
                revision,
            }));
        }
        self.view.revision = revision;
        changed
    }

    /// What the planner says of each object that it has steps for.
    fn decisions(&self) -> Vec<Decision> {
        let vms = self
            .view
            .vms_and_former()
            .map(|id| planner::vm::plan(&self.view, id, self.now));
        let migrations = self
            .view
            .all_active_migrations()
            .map(|(id, _)| planner::migration::plan(&self.view, id, self.now));
        let mut next_id = || {
            self.drain_ids.set(self.drain_ids.get() + 1);
            Uuid::from_u128(self.drain_ids.get())
        };
        let hosts = self
            .view
            .hosts
            .keys()
            .map(|id| planner::host::plan(&self.view, *id, self.now, &mut next_id));
        let mut next_id = || {
            self.drain_ids.set(self.drain_ids.get() + 1);
            Uuid::from_u128(self.drain_ids.get())
        };
        let templates = self.view.kept_templates().into_iter();
        let templates = templates.map(|id| planner::keep_warm::plan(&self.view, id, self.now, &mut next_id));
        vms.chain(migrations).chain(hosts).chain(templates).collect()
    }

    /// The next plan, if there is anything to do.
    pub(crate) fn next_plan(&self) -> Option<Plan> {
        self.decisions().into_iter().find_map(|decision| decision.plan)
    }

    /// Commits what the planner wants until it wants nothing more.
    pub(crate) fn settle(&mut self) {
        for _ in 0..200 {
            let Some(plan) = self.next_plan() else {
                return self.check_operations();
            };
            self.commit(plan).unwrap();
        }
        panic!(
            "the planner does not come to rest: {:#?}",
            self.log.iter().rev().take(12).collect::<Vec<_>>()
        );
    }
}
