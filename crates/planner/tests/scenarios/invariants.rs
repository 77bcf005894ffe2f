//! What must hold after every write, whatever the scenario.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::event::{EventSpec, What};
use model::host::Reserved;
use model::key::{self, Part};
use model::lifecycle::Phase;
use model::migration::MigrationPhase as M;
use model::operation::{Action, OperationPhase, OperationStatus};
use model::vm::Start;
use model::{HostId, Incarnation, Kind, MigrationId, Object, VmId, record};
use planner::Plan;
use planner::view::{Change, View};
use uuid::Uuid;

use super::world::World;

/// What a write is compared with.
pub(crate) struct Former {
    phases: BTreeMap<VmId, Phase>,
    stages: BTreeMap<MigrationId, M>,
    open: BTreeMap<VmId, Incarnation>,
    last: BTreeMap<VmId, Incarnation>,
    closed: Vec<(VmId, Incarnation)>,
    /// How operations ended.
    ended: BTreeMap<Uuid, OperationStatus>,
}

impl World {
    pub(crate) fn snapshot(&self) -> Former {
        let vms = &self.view.vms;
        let intents = || {
            vms.iter()
                .filter_map(|(id, vm)| Some((*id, &vm.intent.as_ref()?.value)))
        };
        let closed = |(id, vm): (&VmId, &Arc<planner::view::Vm>)| {
            let closed = vm.runs.values().filter(|run| run.state.is_closed());
            closed.map(|run| (*id, run.incarnation)).collect::<Vec<_>>()
        };
        Former {
            phases: vms
                .keys()
                .filter_map(|id| Some((*id, self.view.phase(*id)?.0)))
                .collect(),
            stages: self
                .view
                .migrations
                .iter()
                .map(|(id, migration)| (*id, migration.phase()))
                .collect(),
            open: intents()
                .filter_map(|(id, intent)| Some((id, intent.open.as_ref()?.incarnation)))
                .collect(),
            last: intents()
                .map(|(id, intent)| (id, intent.last_incarnation))
                .collect(),
            closed: vms.iter().flat_map(closed).collect(),
            ended: self.ended_operations(),
        }
    }

    fn ended_operations(&self) -> BTreeMap<Uuid, OperationStatus> {
        let statuses = self
            .view
            .operations
            .iter()
            .map(|(id, operation)| (*id, planner::operation::status(operation)));
        statuses.filter(|(_, status)| status.ended_at.is_some()).collect()
    }

    /// A plan relies on every key that it writes over, and carries one audit record.
    pub(crate) fn check_plan(&self, plan: &Plan) {
        for (key, value) in &plan.writes {
            let is_blind =
                !plan.relies_on.contains_key(key) && (value.is_some() || self.store.contains_key(key));
            assert!(!is_blind, "{} writes {key} and does not rely on it", plan.action);
        }
        let audits = plan
            .writes
            .keys()
            .filter(|key| key.starts_with(key::AUDIT_PREFIX))
            .count();
        assert_eq!(audits, 1, "{}", plan.action);
        assert!(
            plan.relies_on.len() <= 128 && plan.writes.len() <= 128,
            "{}",
            plan.action
        );
    }

    pub(crate) fn check(&mut self, former: &Former, plan: &Plan) {
        self.note(plan);
        self.check_index();
        self.check_phases(former, plan);
        self.check_stages(former);
        self.check_grants(former);
        self.check_reservations();
        let ended = self.ended_operations();
        for (id, status) in &former.ended {
            let now = ended.get(id);
            let is_kept = now == Some(status) || !self.view.operations.contains_key(id);
            assert!(
                is_kept,
                "{}: an ended operation changed: {status:?} → {now:?}",
                plan.action
            );
        }
        for (vm, incarnation) in &former.closed {
            let now = self.view.vms.get(vm).and_then(|vm| vm.runs.get(incarnation));
            assert!(
                now.is_none_or(|run| run.state.is_closed()),
                "{}: {vm} {incarnation} reopened",
                plan.action
            );
        }
    }

    /// Keeps what agents promised and which incarnation is bound to which host.
    fn note(&mut self, plan: &Plan) {
        for key in plan.writes.keys() {
            if let Some((Kind::Vm, id, Part::Run(incarnation))) = key::parse(key) {
                let run = self
                    .view
                    .vms
                    .get(&VmId(id))
                    .and_then(|vm| vm.runs.get(&incarnation));
                if run.is_some_and(|run| run.state.is_closed()) {
                    self.closed.insert((VmId(id), incarnation));
                }
            }
        }
        for (id, vm) in &self.view.vms {
            let Some(intent) = vm.intent.as_ref().map(|at| &at.value) else {
                continue;
            };
            if let (Some(host), Some(open)) = (intent.host, &intent.open) {
                self.bound.insert((*id, open.incarnation), host);
            }
            for (_, migration) in self.view.active_migrations(*id) {
                if let Some(route) = migration.intent.as_ref().and_then(|at| at.value.route.as_ref()) {
                    self.bound.insert((*id, route.to), route.target);
                }
            }
        }
    }

    /// The view that changes made is the view that reading everything makes.
    fn check_index(&self) {
        let mut fresh = View::default();
        for (key, (value, revision)) in &self.store {
            fresh.apply(Change {
                key,
                value: Some(value),
                revision: *revision,
            });
        }
        fresh.revision = self.view.revision;
        assert_eq!(format!("{fresh:?}"), format!("{:?}", self.view));
    }

    /// Every change of a VM's phase is legal, has an event, and leads on.
    fn check_phases(&self, former: &Former, plan: &Plan) {
        let events: Vec<(VmId, Option<Phase>, Phase)> = plan.writes.iter().filter_map(event).collect();
        for id in former.phases.keys().chain(self.view.vms.keys()) {
            let from = former.phases.get(id).copied();
            let to = self.phase(*id);
            let is_legal = from.is_none_or(|from| from.may_become(to));
            assert!(
                is_legal,
                "{}: {from:?} → {to} is not in the chart\n{:#?}",
                plan.action, self.log
            );
            let is_written = plan
                .writes
                .keys()
                .any(|key| key.starts_with(&key::object(Kind::Vm, id.0)));
            let expected = (is_written && from != Some(to)).then_some((from, to));
            let found: Vec<_> = events
                .iter()
                .filter(|(vm, ..)| vm == id)
                .map(|(_, from, to)| (*from, *to))
                .collect();
            assert_eq!(
                found,
                expected.into_iter().collect::<Vec<_>>(),
                "{}: events of {id}",
                plan.action
            );
            assert!(to == Phase::Done || !to.next_commands().is_empty());
        }
    }

    /// With nothing left to do: what is under way is what was asked for last, what has ended says so, and little is kept.
    pub(crate) fn check_operations(&self) {
        for (id, operation) in &self.view.operations {
            let object = &operation.object.as_ref().unwrap().value;
            let status = planner::operation::status(operation);
            assert_eq!(status.ended_at.is_none(), status.phase == OperationPhase::Running);
            assert!(status.phase != OperationPhase::Failed || status.reason.is_some());
            let found = self
                .view
                .find(Kind::Operation, Some("default"), &object.meta.name);
            assert_eq!(found, Some(*id), "two operations of one name");
            let vm = self
                .view
                .vms
                .get(&VmId(object.spec.object))
                .and_then(|vm| vm.object.as_ref());
            let Some(vm) = vm.map(|at| &at.value) else {
                // A build's VM goes with its end, which is told of for a while.
                let is_build = object.spec.action == Action::Build && status.ended_at.is_some();
                let is_deletion =
                    (object.spec.action, status.phase) == (Action::Delete, OperationPhase::Done);
                assert!(is_build || is_deletion, "{object:?} is {:?}", status.phase);
                continue;
            };
            let is_last = match vm.meta.deleted_at {
                Some(_) => object.spec.action == Action::Delete,
                // Who does it says when it has ended; the planner only when nobody does.
                None if object.spec.action == Action::Apply => status
                    .deadline
                    .is_some_and(|at| self.now <= planner::operation::apply_lost_at(at)),
                None if object.spec.action == Action::Reboot => vm
                    .spec
                    .reboot
                    .is_some_and(|asked| asked.request == object.spec.request),
                None if object.spec.action == Action::Flatten => {
                    object.spec.request == vm.spec.flatten_request
                }
                None => object.spec.request == vm.spec.power_request,
            };
            assert!(
                status.ended_at.is_some() || is_last,
                "{object:?} is still under way"
            );
        }
        for vm in self.view.vms.keys() {
            assert!(self.view.operations_on(*vm).count() <= planner::operation::KEPT_PER_VM + 1);
        }
    }

    fn check_stages(&self, former: &Former) {
        for (id, migration) in &self.view.migrations {
            let from = former.stages.get(id).copied().unwrap_or(M::Planned);
            let to = migration.phase();
            let next: &[M] = match from {
                M::Planned => &[M::Preparing, M::Aborted],
                M::Preparing => &[M::Transferring, M::Aborting],
                M::Transferring => &[M::Decided, M::Activated, M::Aborting, M::Revoking],
                M::Decided => &[M::Activated, M::Aborting, M::Revoking],
                M::Revoking => &[M::Activated, M::Aborting, M::Aborted],
                M::Aborting => &[M::Aborted],
                M::Activated => &[M::Done],
                M::SwitchingOver | M::Done | M::Aborted => &[],
            };
            assert!(
                from == to || next.contains(&to),
                "{from:?} → {to:?}\n{:#?}",
                self.log
            );
            let intent = migration.intent.as_ref().map(|at| &at.value);
            let is_unexplained = to == M::Aborted && intent.is_none_or(|intent| intent.reason.is_none());
            assert!(!is_unexplained, "an aborted migration without a reason");
        }
    }

    /// Rule 4: a new incarnation starts only when every one before is closed or fenced.
    fn check_grants(&self, former: &Former) {
        for (id, vm) in &self.view.vms {
            let Some(intent) = vm.intent.as_ref().map(|at| &at.value) else {
                continue;
            };
            let last = former.last.get(id).copied().unwrap_or_default();
            assert!(
                intent.last_incarnation >= last,
                "the incarnation of {id} went back"
            );
            let Some(open) = &intent.open else { continue };
            if former.open.get(id) == Some(&open.incarnation) || open.start == Start::Stream {
                continue;
            }
            for n in 1..open.incarnation.0 {
                let before = (*id, Incarnation(n));
                let host = self.bound.get(&before).and_then(|host| self.view.hosts.get(host));
                let is_over = self.closed.contains(&before) || host.is_none_or(|host| host.is_dead());
                assert!(
                    is_over,
                    "{} was granted while {n} is open\n{:#?}",
                    open.incarnation, self.log
                );
            }
        }
    }

    /// What is reserved is what open incarnations and migrations' other sides hold.
    fn check_reservations(&self) {
        let mut expected: BTreeMap<(HostId, VmId), Incarnation> = BTreeMap::new();
        for (id, vm) in &self.view.vms {
            let intent = vm.intent.as_ref().map(|at| &at.value);
            if let Some((host, open)) = intent.and_then(|intent| intent.host.zip(intent.open.as_ref())) {
                expected.insert((host, *id), open.incarnation);
            }
            for (_, migration) in self.view.active_migrations(*id) {
                let Some(moves) = migration.intent.as_ref().map(|at| &at.value) else {
                    continue;
                };
                let Some(route) = &moves.route else { continue };
                let side = if moves.phase == M::Activated {
                    ((route.source, *id), route.from)
                } else {
                    ((route.target, *id), route.to)
                };
                expected.insert(side.0, side.1);
            }
        }
        let mut found: BTreeMap<(HostId, VmId), Incarnation> = BTreeMap::new();
        for (host, parts) in &self.view.hosts {
            let all = parts.reservations.iter().flat_map(|at| &at.value.vms);
            found.extend(all.map(|(vm, Reserved { incarnation, .. })| ((*host, *vm), *incarnation)));
        }
        assert_eq!(found, expected, "{:#?}", self.log);
    }
}

fn event((key, value): (&String, &Option<Vec<u8>>)) -> Option<(VmId, Option<Phase>, Phase)> {
    let (Kind::Event, _, _) = key::parse(key)? else {
        return None;
    };
    let event: Object<EventSpec> = record::decode(value.as_ref()?).unwrap();
    match event.spec.what {
        What::Lifecycle(life) => Some((VmId(event.spec.object), life.from, life.to)),
        _ => None,
    }
}
