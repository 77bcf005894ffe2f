//! The store, and what is decided on it: by the real planner, once for each state that the store can be in.
//!
//! Revisions are no part of a state: what is decided on the present state holds, and what was decided on an earlier one
//! holds as long as nothing that it relies on has changed since.

use std::collections::BTreeMap;

use model::document::VmDocument;
use model::host::{HostContact, HostSpec};
use model::image::ImageSpec;
use model::lifecycle::Phase;
use model::migration::{MigrationIntent, MigrationPhase, MigrationSpec};
use model::report::{Report, RunStatus, Samples, VmRun};
use model::vm::{Goal, Power, VmIntent, VmSpec};
use model::{
    DatastoreId, HostId, ImageId, Incarnation, Kind, MigrationId, Object, Timestamp, VmId, key, record,
    samples,
};
use planner::Plan;
use planner::view::{Change, View};
use uuid::Uuid;

use super::intern::{Interner, Map};
use super::rules::{self, Rules};

/// How many hosts there are: two to move between, and a third to restart on.
pub(crate) const HOSTS: usize = 3;
/// How many migrations may be asked for.
pub(crate) const MIGRATIONS: usize = 2;

/// All keys with their values.
pub(crate) type Keys = BTreeMap<String, Vec<u8>>;

/// What a host's document says of the VM.
pub(crate) type About = Option<VmDocument>;

/// What a controller takes a step for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    Vm,
    Migration(usize),
}

/// What a person does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Act {
    Migrate,
    Cancel,
    Shutdown,
    Suspend,
    SwitchOff,
    Delete,
    Start,
    Pause,
    Resume,
    ConfirmDead(usize),
}

/// What the search has to know of a state of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// As people see it; `None` when nothing is left of the VM.
    pub(crate) phase: Option<Phase>,
    pub(crate) last: u64,
    /// The host that `last` is bound to.
    pub(crate) last_host: u8,
    pub(crate) open: Option<u64>,
    /// A migration is not over.
    pub(crate) is_moving: bool,
    pub(crate) has_answered: bool,
    pub(crate) power: Power,
    /// It could not be saved, so it was decided that its guest goes on.
    pub(crate) is_taken_back: bool,
}

struct Entry {
    keys: Keys,
    view: View,
    facts: Facts,
}

/// Every state of the store that was met, and what follows from each.
pub(crate) struct Stores {
    rules: Rules,
    entries: Vec<Entry>,
    ids: Map<Keys, u32>,
    pub(crate) documents: Interner<About>,
    pub(crate) statuses: Interner<RunStatus>,
    plans: Interner<Plan>,
    decided: Map<(u32, Item, bool), u32>,
    committed: Map<(u32, u32), u32>,
    ordered: Map<(u32, usize), u32>,
    reported: Map<(u32, usize, u32), u32>,
    asked: Map<(u32, Act), Option<u32>>,
    overtaken: Map<(u32, u32, u32), bool>,
}

pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

/// When every deadline is over.
pub(crate) fn late() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

pub(crate) fn vm() -> VmId {
    VmId(Uuid::from_u128(0x100))
}

pub(crate) fn host(at: usize) -> HostId {
    HostId(Uuid::from_u128(0x10 + at as u128))
}

fn migration(at: usize) -> MigrationId {
    MigrationId(Uuid::from_u128(0x200 + at as u128))
}

fn object<S>(kind: Kind, id: Uuid, name: &str, spec: S) -> Object<S> {
    samples::object(kind, id, name, now(), spec)
}

/// Three hosts, an image, a datastore, and a VM that shall run.
fn first_keys() -> Keys {
    let mut keys = Keys::new();
    let (image, datastore) = (Uuid::from_u128(1), Uuid::from_u128(2));
    for at in 0..HOSTS {
        let id = host(at);
        let spec = object(Kind::Host, id.0, &format!("h{}", at + 1), HostSpec::default());
        keys.insert(key::object(Kind::Host, id.0), record::encode(&spec));
        keys.insert(
            key::host_status(id),
            record::encode(&samples::host_status(at + 1, 4096)),
        );
    }
    let status = samples::image_status();
    let spec = object(Kind::Image, image, "image", ImageSpec::default());
    keys.insert(key::object(Kind::Image, image), record::encode(&spec));
    keys.insert(key::image_status(ImageId(image)), record::encode(&status));
    let spec = object(Kind::Datastore, datastore, "default", samples::datastore_spec());
    keys.insert(key::object(Kind::Datastore, datastore), record::encode(&spec));
    let spec = object(
        Kind::Vm,
        vm().0,
        "web",
        samples::vm_spec(ImageId(image), DatastoreId(datastore)),
    );
    keys.insert(key::object(Kind::Vm, vm().0), record::encode(&spec));
    keys
}

fn view_of(keys: &Keys) -> View {
    let mut view = View::default();
    for (key, value) in keys {
        view.apply(Change {
            key,
            value: Some(value),
            revision: 1,
        });
    }
    view
}

/// What is written only to be read by people is no part of a state.
fn forget_words(keys: &mut Keys) {
    rules::change(keys, &key::vm_intent(vm()), |intent: &mut VmIntent| {
        intent.placement = None;
        if let Some(ended) = &mut intent.ended {
            (ended.reason, ended.at) = (None, now());
        }
    });
    for at in 0..MIGRATIONS {
        let key = key::migration_intent(migration(at));
        rules::change(keys, &key, |intent: &mut MigrationIntent| {
            (intent.reason, intent.measured, intent.predicted) = (None, None, None);
            intent.entered_at = now();
        });
    }
    for at in 0..HOSTS {
        keys.remove(&key::host_intent(host(at)));
    }
    keys.retain(|key, _| key.starts_with("/vm/") || key::parse(key).is_some());
}

impl Facts {
    fn of(view: &View) -> Self {
        let parts = view.vms.get(&vm());
        let object = parts.and_then(|parts| parts.object.as_ref());
        let intent = parts
            .and_then(|parts| parts.intent.as_ref())
            .map(|at| at.value.clone())
            .unwrap_or_default();
        let routes = view
            .active_migrations(vm())
            .filter_map(|(_, migration)| migration.intent.as_ref()?.value.route.as_ref());
        let target = { routes }.find(|route| route.to == intent.last_incarnation);
        let last_host = target.map(|route| route.target).or(intent.host);
        let last_host = (0..HOSTS).find(|at| Some(host(*at)) == last_host).unwrap_or(0);
        Self {
            last_host: last_host as u8,
            phase: object.and_then(|_| view.phase(vm())).map(|(phase, _)| phase),
            last: intent.last_incarnation.0,
            open: intent.open.as_ref().map(|open| open.incarnation.0),
            is_moving: view.active_migrations(vm()).next().is_some(),
            power: object.map_or(Power::Off, |at| at.value.spec.power),
            is_taken_back: object.is_some_and(|at| at.value.spec.power == Power::Suspended)
                && intent
                    .open
                    .is_some_and(|open| matches!(open.goal, Goal::Run { .. })),
            has_answered: object.is_none_or(|at| at.value.spec.power_request <= intent.answered_request),
        }
    }
}

impl Stores {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            entries: Vec::new(),
            ids: Map::default(),
            documents: Interner::default(),
            statuses: Interner::default(),
            plans: Interner::default(),
            decided: Map::default(),
            committed: Map::default(),
            ordered: Map::default(),
            reported: Map::default(),
            asked: Map::default(),
            overtaken: Map::default(),
        }
    }

    pub(crate) fn first(&mut self) -> u32 {
        self.id(first_keys())
    }

    fn id(&mut self, mut keys: Keys) -> u32 {
        forget_words(&mut keys);
        if let Some(id) = self.ids.get(&keys) {
            return *id;
        }
        let view = view_of(&keys);
        assert!(view.unreadable.is_empty(), "{:?}", view.unreadable.keys());
        let id = u32::try_from(self.entries.len() + 1).unwrap();
        self.ids.insert(keys.clone(), id);
        let facts = Facts::of(&view);
        self.entries.push(Entry { keys, view, facts });
        id
    }

    fn entry(&self, store: u32) -> &Entry {
        &self.entries[store as usize - 1]
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn facts(&self, store: u32) -> Facts {
        self.entry(store).facts
    }

    /// What people would see, for a trace.
    pub(crate) fn words(&self, store: u32) -> String {
        let entry = self.entry(store);
        let phases: Vec<MigrationPhase> = entry.view.migrations.values().map(|m| m.phase()).collect();
        format!("{:?} {phases:?}", entry.facts.phase)
    }

    /// The plan for an item, 0 if there is nothing to do.
    pub(crate) fn decide(&mut self, store: u32, item: Item, is_late: bool) -> u32 {
        if let Some(plan) = self.decided.get(&(store, item, is_late)) {
            return *plan;
        }
        let shown = self.rules.shown.map(|shown| {
            let mut keys = self.entry(store).keys.clone();
            shown(&mut keys);
            view_of(&keys)
        });
        let view = shown.as_ref().unwrap_or(&self.entry(store).view);
        let at = if is_late { late() } else { now() };
        let decision = match item {
            Item::Vm => planner::vm::plan(view, vm(), at),
            Item::Migration(n) => planner::migration::plan(view, migration(n), at),
        };
        let plan = decision.plan.map_or(0, |plan| self.plans.id(plan));
        self.decided.insert((store, item, is_late), plan);
        plan
    }

    pub(crate) fn commit(&mut self, store: u32, plan: u32) -> u32 {
        if let Some(next) = self.committed.get(&(store, plan)) {
            return *next;
        }
        let mut keys = self.entry(store).keys.clone();
        write(&mut keys, self.plans.get(plan));
        let next = self.id(keys);
        self.committed.insert((store, plan), next);
        next
    }

    /// Whether a plan relies on something that differs between two states.
    pub(crate) fn overtakes(&mut self, plan: u32, before: u32, after: u32) -> bool {
        if before == after {
            return false;
        }
        if let Some(is) = self.overtaken.get(&(plan, before, after)) {
            return *is;
        }
        let (one, two) = (&self.entry(before).keys, &self.entry(after).keys);
        let mut relied = self.plans.get(plan).relies_on.keys();
        let is = relied.any(|key| one.get(key) != two.get(key));
        self.overtaken.insert((plan, before, after), is);
        is
    }

    pub(crate) fn action(&self, plan: u32) -> &str {
        &self.plans.get(plan).action
    }

    /// What the servers tell a host about the VM.
    pub(crate) fn document(&mut self, store: u32, at: usize) -> u32 {
        if let Some(document) = self.ordered.get(&(store, at)) {
            return *document;
        }
        let mut document = planner::document::build(&self.entry(store).view, host(at));
        let id = self.documents.id(document.vms.remove(&vm()));
        self.ordered.insert((store, at), id);
        id
    }

    /// The store after a host's report.
    pub(crate) fn report(&mut self, store: u32, at: usize, status: u32) -> u32 {
        if let Some(next) = self.reported.get(&(store, at, status)) {
            return *next;
        }
        let report = Report {
            session: Uuid::from_u128(1),
            sequence: 1,
            host: None,
            runs: vec![VmRun {
                vm: vm(),
                run: self.statuses.get(status).clone(),
            }],
            is_complete: true,
            samples: Samples::default(),
        };
        let entry = self.entry(store);
        let mut keys = entry.keys.clone();
        for plan in planner::reports::plans(&entry.view, host(at), &report) {
            write(&mut keys, &plan);
        }
        let next = self.id(keys);
        self.reported.insert((store, at, status), next);
        next
    }

    /// The store after a person's wish; `None` if there is nothing to wish for.
    pub(crate) fn ask(&mut self, store: u32, act: Act) -> Option<u32> {
        if let Some(next) = self.asked.get(&(store, act)) {
            return *next;
        }
        let entry = self.entry(store);
        let mut keys = entry.keys.clone();
        wish(&mut keys, &entry.view, act);
        let next = self.id(keys);
        let next = (next != store).then_some(next);
        self.asked.insert((store, act), next);
        next
    }
}

fn write(keys: &mut Keys, plan: &Plan) {
    for (key, value) in &plan.writes {
        match value {
            Some(value) => drop(keys.insert(key.clone(), value.clone())),
            None => drop(keys.remove(key)),
        }
    }
}

/// As the API would write it.
fn wish(keys: &mut Keys, view: &View, act: Act) {
    match act {
        Act::Migrate => ask_to_migrate(keys, view),
        Act::Cancel => {
            for (id, _) in view.active_migrations(vm()) {
                let key = key::object(Kind::Migration, id.0);
                rules::change(keys, &key, |object: &mut Object<MigrationSpec>| {
                    object.spec.cancel = true;
                });
            }
        }
        Act::ConfirmDead(at) => {
            let key = key::object(Kind::Host, host(at).0);
            rules::change(keys, &key, |object: &mut Object<HostSpec>| {
                object.spec.confirmed_dead_at = Some(now());
            });
            let silent = HostContact {
                silent_since: Some(now()),
                ..HostContact::default()
            };
            keys.insert(key::host_contact(host(at)), record::encode(&silent));
        }
        Act::Delete => change_vm(keys, |object| object.meta.deleted_at = Some(now())),
        Act::Shutdown => ask_for(keys, Power::Off, false),
        Act::Suspend => ask_for(keys, Power::Suspended, false),
        Act::SwitchOff => ask_for(keys, Power::Off, true),
        Act::Pause => ask_for(keys, Power::Paused, false),
        Act::Resume => {
            if Facts::of(view).power == Power::Paused {
                ask_for(keys, Power::Running, false);
            }
        }
        Act::Start => {
            let facts = Facts::of(view);
            if facts.open.is_none() && matches!(facts.phase, Some(Phase::Off | Phase::Failed)) {
                ask_for(keys, Power::Running, false);
            }
        }
    }
}

fn change_vm(keys: &mut Keys, change: impl FnOnce(&mut Object<VmSpec>)) {
    rules::change(keys, &key::object(Kind::Vm, vm().0), change);
}

fn ask_for(keys: &mut Keys, power: Power, force: bool) {
    change_vm(keys, |object| {
        object.spec.power = power;
        object.spec.force = force;
        object.spec.power_request += 1;
    });
}

/// To the first host that does not hold the VM, one migration after the other.
fn ask_to_migrate(keys: &mut Keys, view: &View) {
    let next = (0..MIGRATIONS).find(|at| !view.migrations.contains_key(&migration(*at)));
    let facts = Facts::of(view);
    let (Some(next), Some(Phase::Running), false) = (next, facts.phase, facts.is_moving) else {
        return;
    };
    let holds = view.vms.get(&vm()).and_then(|vm| vm.intent.as_ref()?.value.host);
    let spec = MigrationSpec {
        vm: vm(),
        to: (0..HOSTS).map(host).find(|id| Some(*id) != holds),
        cancel: false,
        drain: None,
        request_id: None,
    };
    let id = migration(next).0;
    let object = object(Kind::Migration, id, &format!("web-m{next}"), spec);
    keys.insert(key::object(Kind::Migration, id), record::encode(&object));
}

/// The slot of an incarnation.
pub(crate) fn slot_of(incarnation: Incarnation) -> usize {
    usize::try_from(incarnation.0).unwrap() - 1
}
