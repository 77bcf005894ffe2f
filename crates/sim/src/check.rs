//! What must hold, whatever happens.
//!
//! **Owns:** the checks, each a function of the store, the hosts and their journals; and what they need to remember.
//!
//! **Does not know:** how it came to what it sees.
//!
//! **Start here:** [`World::look_over`], which runs after every event.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use model::audit::AuditRecord;
use model::key::Part;
use model::lifecycle::Phase;
use model::report::{OutgoingState, RunStatus};
use model::vm::{Power, VmIntent};
use model::{HostId, Kind, NetworkId, VmId, key, record};
use planner::View;
use planner::admission::leave_texts_out;
use planner::view::Change;
use server::kinds::render;
use server::shared::Heard;
use store::{Event, EventKind, MemoryStore, RangeRequest, Store, WatchItem, WatchRequest, WatchStream};

use crate::host::Key;
use crate::script::{Rule, Script};
use crate::templates::Forms;
use crate::world::World;

/// What the checks see and remember.
pub(crate) struct Checks {
    /// What was wrong first.
    pub(crate) wrong: Option<String>,
    /// The store as it is, without delay.
    pub(crate) view: View,
    changes: Option<WatchStream>,
    /// The names of VMs whose making was acknowledged, and of those whose end was asked for.
    pub(crate) created: BTreeSet<String>,
    pub(crate) deleted: BTreeSet<String>,
    /// The highest incarnation of each VM.
    granted: BTreeMap<VmId, u64>,
    /// Who has each address.
    addresses: BTreeMap<(NetworkId, IpAddr), VmId>,
    /// The rule that each VM was asked for with, by its name; and where each has a place.
    rules: BTreeMap<String, Rule>,
    places: BTreeSet<(VmId, HostId)>,
    /// Nothing breaks any more, and nobody asks for anything.
    is_settled: bool,
    /// What executes, where; kept for its memory only.
    executing: Vec<(Key, usize)>,
    heard: Heard,
    /// How often a template's warm form was begun.
    pub(crate) forms: Forms,
}

impl Checks {
    pub(crate) fn new(memory: &MemoryStore, script: &Script) -> Self {
        let changes = memory.watch(WatchRequest::prefix("/").from(1)).now_or_never();
        Self {
            wrong: None,
            view: View::default(),
            changes: changes.and_then(Result::ok),
            created: BTreeSet::new(),
            deleted: BTreeSet::new(),
            granted: BTreeMap::new(),
            addresses: BTreeMap::new(),
            rules: script.rules(),
            places: BTreeSet::new(),
            is_settled: false,
            executing: Vec::new(),
            heard: Heard::default(),
            forms: Forms::default(),
        }
    }

    /// The first thing that does not hold is kept.
    pub(crate) fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(what());
        }
    }

    fn next(&mut self) -> Option<(u64, Vec<Event>)> {
        match self.changes.as_mut()?.next().now_or_never()?? {
            Ok(WatchItem::Batch { revision, events }) => Some((revision, events)),
            _ => None,
        }
    }

    /// Every write has an audit record, which says what was there before: so nothing was written over unseen.
    fn check_audit(&mut self, revision: u64, events: &[Event]) {
        // That a server is there is said by its lease, and is nobody's doing.
        if events
            .iter()
            .all(|event| event.kv.key.starts_with(key::SERVER_PREFIX))
        {
            return;
        }
        let is_record = |event: &&Event| event.kv.key.starts_with(key::AUDIT_PREFIX);
        let found = events.iter().find(is_record);
        let record = found.and_then(|event| record::decode::<AuditRecord>(&event.kv.value).ok());
        let Some(record) = record else {
            return self.must(false, || format!("revision {revision} has no audit record"));
        };
        let changes: BTreeMap<&str, _> = record
            .changes
            .iter()
            .map(|change| (change.key.as_str(), &change.before))
            .collect();
        for event in events.iter().filter(|event| key::parse(&event.kv.key).is_some()) {
            let key = &event.kv.key;
            let mut was: Option<serde_json::Value> = event
                .prev
                .as_ref()
                .map(|kv| serde_json::from_slice(&kv.value).unwrap_or_default());
            leave_texts_out(&mut was, &mut None);
            let said = changes.get(key.as_ref());
            // Events and operations are the admission's own, and made once.
            let is_own = said.is_none() && event.prev.is_none();
            self.must(is_own || said.is_some_and(|said| **said == was), || {
                format!("revision {revision} ({}) wrote over {key} unseen", record.action)
            });
        }
    }

    /// Where nothing happens, servers do not change their minds about who is heard.
    fn check_calm(&mut self, events: &[Event]) {
        let is_contact =
            |event: &&Event| matches!(key::parse(&event.kv.key), Some((Kind::Host, _, Part::Contact)));
        let found = events.iter().find(is_contact).filter(|_| self.is_settled);
        self.must(found.is_none(), || {
            let event = found.map(|event| String::from_utf8_lossy(&event.kv.value).into_owned());
            format!("nothing happens, and a host's contact is written: {event:?}")
        });
    }

    fn check_object(&mut self, kind: Kind, id: uuid::Uuid) {
        match kind {
            Kind::Vm => self.check_vm(id.into()),
            Kind::Host => self.check_host(HostId(id)),
            _ => {}
        }
    }

    /// Every state has a way on, and incarnations only grow.
    fn check_vm(&mut self, id: VmId) {
        self.check_addresses(id);
        let object = self.view.vms.get(&id).and_then(|vm| vm.object.as_ref());
        if let Some(template) = object.and_then(|at| at.value.spec.warms) {
            self.forms.note(template, id);
        }
        let Some((phase, _)) = self.view.phase(id) else {
            return;
        };
        let shown = render::<api::kinds::Vm>(&self.heard, &self.view, id.0);
        let leads_on = shown.is_some_and(|vm| !vm.status.next_commands.is_empty());
        self.must(leads_on || phase == Phase::Done, || {
            format!("{id:?} is {phase}, and nothing leads on")
        });
        let intent = self.view.vms.get(&id).and_then(|vm| vm.intent.as_ref());
        let granted = intent.map_or(0, |at| at.value.last_incarnation.0);
        let before = self.granted.insert(id, granted).unwrap_or_default();
        self.must(granted >= before, || {
            format!("{id:?} had incarnation {before}, and now {granted}")
        });
    }

    /// No address is given twice, and each that a VM has is held.
    fn check_addresses(&mut self, id: VmId) {
        let object = self.view.vms.get(&id).and_then(|vm| vm.object.as_ref());
        let nics = object.map(|at| at.value.spec.nics.clone()).unwrap_or_default();
        let has: BTreeSet<_> = nics
            .iter()
            .filter_map(|nic| Some((nic.network, nic.address?)))
            .collect();
        self.addresses.retain(|key, vm| *vm != id || has.contains(key));
        for (network, address) in has {
            let other = self.addresses.insert((network, address), id);
            self.must(other.is_none_or(|other| other == id), || {
                format!("{address} is given to {id:?} and to {other:?}")
            });
            let held = self.view.addresses.get(&network.0);
            let is_held = held.is_some_and(|held| held.contains(&address));
            self.must(is_held, || format!("{id:?} has {address}, and nobody holds it"));
        }
    }

    /// Hard rules are kept wherever a VM comes to: one that keeps apart meets no other, and one that belongs with others is
    /// with one of them, if any has a place.
    fn check_rules(&mut self) {
        let reserved = |(id, host): (&HostId, &Arc<planner::view::Host>)| {
            let all = host.reservations.as_ref().map(|at| at.value.vms.clone());
            let id = *id;
            // One that only copies its disk has no place there.
            let runs = all
                .unwrap_or_default()
                .into_iter()
                .filter(|(_, held)| held.has_guest());
            runs.map(move |(vm, _)| (vm, id))
        };
        let places: BTreeSet<(VmId, HostId)> = self.view.hosts.iter().flat_map(reserved).collect();
        let rule = |vm: VmId| {
            let name = self.view.meta(Kind::Vm, vm.0).map(|meta| meta.name.as_str());
            name.and_then(|name| self.rules.get(name)).copied()
        };
        let ruled: BTreeMap<VmId, Rule> = places
            .iter()
            .filter_map(|(vm, _)| Some((*vm, rule(*vm)?)))
            .collect();
        let others = |vm: VmId, rule: Rule| -> Vec<HostId> {
            let same = places.iter().filter(|(other, _)| *other != vm);
            let same = same.filter(|(other, _)| ruled.get(other) == Some(&rule));
            same.map(|(_, host)| *host).collect()
        };
        let breaks = |(vm, host): &&(VmId, HostId)| match ruled.get(vm) {
            Some(Rule::Apart) => others(*vm, Rule::Apart).contains(host),
            Some(Rule::Together) => {
                let all = others(*vm, Rule::Together);
                !all.is_empty() && !all.contains(host)
            }
            _ => false,
        };
        let broken = places.difference(&self.places).find(breaks).copied();
        self.places = places;
        self.must(broken.is_none(), || {
            format!("{broken:?} has a place against its rule")
        });
    }

    /// Nothing is promised that is not there.
    fn check_host(&mut self, id: HostId) {
        let Some(host) = self.view.hosts.get(&id) else {
            return;
        };
        let reserved = host.reservations.as_ref().map(|at| &at.value);
        let (memory_mib, vcpus) = reserved.map_or((0, 0), |all| (all.memory_mib(), all.vcpus()));
        let has = planner::hardware::capacity(host);
        let is_known = host.status.is_some();
        let name = host.name().to_owned();
        self.must(
            !is_known || memory_mib <= has.memory_mib && vcpus <= has.vcpus,
            || format!("{name} is oversold: {memory_mib} MiB and {vcpus} vCPUs are reserved"),
        );
    }
}

impl World {
    /// Looks at what has changed since the last time.
    pub(crate) fn look_over(&mut self) {
        while let Some((revision, events)) = self.checks.next() {
            self.note_revision(revision, &events);
            self.checks.check_audit(revision, &events);
            let mut touched = BTreeSet::new();
            for event in &events {
                let change = Change {
                    key: &event.kv.key,
                    value: (event.kind == EventKind::Put).then_some(event.kv.value.as_ref()),
                    revision,
                };
                touched.extend(self.checks.view.apply(change));
            }
            if touched.iter().any(|(kind, _)| *kind == Kind::Host) {
                self.checks.check_rules();
            }
            let is_image = touched.iter().any(|(kind, _)| *kind == Kind::Image);
            for (kind, id) in touched {
                self.checks.check_object(kind, id);
            }
            if is_image {
                self.check_bases();
            }
            self.checks.check_calm(&events);
            self.fence_wrongly();
        }
        self.check_executing();
    }

    /// No VM executes twice, and none without its mark.
    fn check_executing(&mut self) {
        let mut executing = std::mem::take(&mut self.checks.executing);
        executing.clear();
        for (n, host) in self.hosts.iter().enumerate() {
            let processes = host.qemus.iter().chain(&host.ghosts);
            let processes = processes.filter(|(_, process)| process.executes());
            executing.extend(processes.map(|(key, _)| (*key, n)));
        }
        executing.sort_unstable();
        let twice = executing.windows(2).find(|pair| pair[0].0.0 == pair[1].0.0);
        self.checks.must(twice.is_none(), || {
            format!("these execute, each with the number of its host: {twice:?}")
        });
        self.checks.executing = executing;
    }

    /// What is reported is so.
    pub(crate) fn check_report(&mut self, n: usize, key: Key, status: &RunStatus) {
        let host = &self.hosts[n];
        let process = host.qemus.get(&key);
        let marks = host.journal.marks_of(key.0, key.1);
        let is_closed = status.state.is_closed();
        let code = status.reason.as_ref().map(|reason| reason.code.as_str());
        let promise = status
            .outgoing
            .as_ref()
            .filter(|outgoing| outgoing.state == OutgoingState::Promised);
        let keeps = promise.is_none_or(|outgoing| {
            let is_idle =
                process.is_none_or(|process| !process.is_transferring() && !process.has_completed());
            is_idle && marks.no_switch.contains(&outgoing.to)
        });
        let closed_well = !is_closed || process.is_none() && marks.closed;
        let text = || format!("{key:?} on h{}: {status:?}, {process:?}, {marks:?}", n + 1);
        let wrong = if code == Some("unforeseen") {
            Some(format!("no row of the table fits {}", text()))
        } else if !closed_well {
            Some(format!("it is reported closed and is not: {}", text()))
        } else if !keeps {
            Some(format!("a promise is given and not kept: {}", text()))
        } else {
            None
        };
        if let Some(wrong) = wrong {
            self.checks.must(false, || wrong);
        }
    }

    /// Some time after the last fault every VM that should run does.
    pub(crate) fn check_settled(&mut self) {
        let view = &self.checks.view;
        let mut wrong = Vec::new();
        for (id, vm) in &view.vms {
            let Some(object) = vm.object.as_ref().map(|at| &at.value) else {
                continue;
            };
            let Some((phase, _)) = view.phase(*id) else {
                continue;
            };
            let fits = phase != Phase::Pending
                || vm.intent.as_ref().is_none_or(|at| {
                    at.value
                        .placement
                        .as_ref()
                        .is_none_or(|record| record.chosen.is_some())
                });
            // Of these it is looked at the end what has become of them.
            let is_ordinary = object.spec.warms.is_none() && object.spec.builds.is_none();
            let should = is_ordinary
                && object.spec.power == Power::Running
                && object.meta.deleted_at.is_none()
                && !matches!(phase, Phase::Failed | Phase::Suspended | Phase::Stopped)
                && fits;
            let executes = self.hosts.iter().any(|host| {
                host.qemus
                    .iter()
                    .any(|(key, process)| key.0 == *id && process.executes())
            });
            if should && !executes {
                wrong.push(format!("{} should run and is {phase}", object.meta.name));
            }
            let is_made = vm.intent.as_ref().is_some_and(|at| at.value.copied.is_some());
            let source = object
                .spec
                .clone_of
                .filter(|_| !is_made && phase == Phase::Pending);
            let source_executes = source.is_some_and(|source| {
                let hosts = self.hosts.iter();
                let mut processes = hosts.flat_map(|host| &host.qemus);
                processes.any(|(key, process)| key.0 == source && process.executes())
            });
            let intent = vm.intent.as_ref().map(|at| &at.value);
            let answered = intent.map_or(0, |intent| intent.flattening.answered_request);
            // A copy of a whole disk is whole before it was asked for.
            let is_whole = intent.is_some_and(VmIntent::is_whole);
            if executes && should && !is_whole && object.spec.flatten_request > answered {
                wrong.push(format!("the disk of {} is not made whole", object.meta.name));
            }
            if source_executes {
                wrong.push(format!("{} waits for a copy of what runs", object.meta.name));
            }
        }
        wrong.extend(self.lost_writes());
        wrong.extend(self.silent_members());
        wrong.extend(self.disagreements());
        self.checks.is_settled = true;
        if let Some(first) = wrong.into_iter().next() {
            self.checks.must(false, || first);
        }
    }

    /// Hosts that are there and are not known to be.
    fn silent_members(&self) -> Option<String> {
        let hosts = self.hosts.iter();
        let silent = hosts.filter(|host| {
            let parts = self.checks.view.hosts.get(&host.id);
            parts.is_none_or(|parts| parts.is_silent() || parts.is_dead() || parts.status.is_none())
        });
        let first = { silent }.next();
        first.map(|host| format!("{} is there, and is not heard", host.name()))
    }

    /// What of the store does not agree with itself.
    fn disagreements(&self) -> Option<String> {
        let all = self
            .memory
            .range(RangeRequest::prefix("/"))
            .now_or_never()?
            .ok()?;
        let stored = all.items.iter().map(|kv| (kv.key.as_ref(), kv.value.as_ref()));
        let first = planner::integrity::faults(stored).into_iter().next();
        first.map(|(key, why)| format!("{key}: {why}"))
    }

    /// What was acknowledged and is not there.
    fn lost_writes(&self) -> Option<String> {
        let project = Some(server::auth::PROJECT);
        let is_there = |name: &&String| self.checks.view.find(Kind::Vm, project, name).is_some();
        let kept = self.checks.created.difference(&self.checks.deleted);
        let lost = kept.into_iter().find(|name| !is_there(name));
        lost.map(|name| format!("the making of {name} was acknowledged, and it is gone"))
    }

    /// Nothing is left over.
    pub(crate) fn check_tidy(&mut self) {
        let mut wrong = Vec::new();
        let view = &self.checks.view;
        for (id, _) in view.all_active_migrations() {
            wrong.push(format!("migration {id:?} is not over"));
        }
        for (n, host) in self.hosts.iter().enumerate() {
            let reservations = view
                .hosts
                .get(&host.id)
                .and_then(|host| host.reservations.as_ref());
            let reserved: BTreeSet<Key> = reservations
                .iter()
                .flat_map(|at| {
                    at.value
                        .vms
                        .iter()
                        .map(|(vm, reserved)| (*vm, reserved.incarnation))
                })
                .collect();
            let open: BTreeSet<Key> = view
                .vms
                .iter()
                .filter_map(|(vm, parts)| {
                    let intent = &parts.intent.as_ref()?.value;
                    (intent.host == Some(host.id)).then_some((*vm, intent.open.as_ref()?.incarnation))
                })
                .collect();
            if reserved != open {
                wrong.push(format!("h{} has {reserved:?} reserved and {open:?} open", n + 1));
            }
            let processes = host.qemus.keys().filter(|key| !open.contains(key));
            let processes = processes.chain(host.ghosts.keys());
            wrong.extend(processes.map(|key| format!("h{} has a process of {key:?} left", n + 1)));
            let ports = host.ports.iter().filter(|key| !open.contains(key));
            wrong.extend(ports.map(|key| format!("h{} has ports of {key:?} left", n + 1)));
        }
        let overlays = self.overlays.iter().filter(|vm| !view.vms.contains_key(vm));
        wrong.extend(overlays.map(|vm| format!("the disk of {vm:?} is left")));
        wrong.extend(self.left_of_templates());
        wrong.extend(self.lost_writes());
        wrong.extend(self.disagreements());
        if let Some(first) = wrong.into_iter().next() {
            self.checks.must(false, || first);
        }
    }
}
