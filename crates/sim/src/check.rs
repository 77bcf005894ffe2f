//! What must hold, whatever happens.
//!
//! **Owns:** the checks, each a function of the store, the hosts and their journals; and what they need to remember.
//!
//! **Does not know:** how it came to what it sees.
//!
//! **Start here:** [`World::look_over`], which runs after every event.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{FutureExt, StreamExt};
use model::audit::AuditRecord;
use model::lifecycle::Phase;
use model::report::{OutgoingState, RunStatus};
use model::vm::Power;
use model::{HostId, Kind, VmId, key, record};
use planner::View;
use planner::view::Change;
use server::kinds::render;
use server::shared::Heard;
use store::{Event, EventKind, MemoryStore, Store, WatchItem, WatchRequest, WatchStream};

use crate::host::Key;
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
    heard: Heard,
}

impl Checks {
    pub(crate) fn new(memory: &MemoryStore) -> Self {
        let changes = memory.watch(WatchRequest::prefix("/").from(1)).now_or_never();
        Self {
            wrong: None,
            view: View::default(),
            changes: changes.and_then(Result::ok),
            created: BTreeSet::new(),
            deleted: BTreeSet::new(),
            granted: BTreeMap::new(),
            heard: Heard::default(),
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
            let was: Option<serde_json::Value> = event
                .prev
                .as_ref()
                .map(|kv| serde_json::from_slice(&kv.value).unwrap_or_default());
            let said = changes.get(key.as_ref());
            // Events and operations are the admission's own, and made once.
            let is_own = said.is_none() && event.prev.is_none();
            self.must(is_own || said.is_some_and(|said| **said == was), || {
                format!("revision {revision} ({}) wrote over {key} unseen", record.action)
            });
        }
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
            for (kind, id) in touched {
                self.checks.check_object(kind, id);
            }
            self.fence_wrongly();
        }
        self.check_executing();
    }

    /// No VM executes twice, and none without its mark.
    fn check_executing(&mut self) {
        let mut seen: BTreeMap<VmId, (usize, Key)> = BTreeMap::new();
        for (n, host) in self.hosts.iter().enumerate() {
            let processes = host.qemus.iter().chain(&host.ghosts);
            for (key, _) in processes.filter(|(_, process)| process.executes()) {
                if let Some(other) = seen.insert(key.0, (n, *key)) {
                    let text = format!(
                        "{key:?} executes on h{}, and {:?} on h{}",
                        n + 1,
                        other.1,
                        other.0 + 1
                    );
                    self.checks.must(false, || text);
                }
            }
        }
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
            let should = object.spec.power == Power::Running
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
        }
        let lost = self.lost_writes();
        wrong.extend(lost);
        if let Some(first) = wrong.into_iter().next() {
            self.checks.must(false, || first);
        }
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
        wrong.extend(self.lost_writes());
        if let Some(first) = wrong.into_iter().next() {
            self.checks.must(false, || first);
        }
    }
}
