//! The next step of a migration. The rules are the protocol's; their numbers stand beside the code that keeps them.

use model::host::Reserved;
use model::migration::{Figures, Method, MigrationIntent, MigrationPhase, MigrationSpec, Route};
use model::report::{Outgoing, OutgoingState, RunState, RunStatus};
use model::vm::{Ended, Goal, Open, Outcome, Start, VmIntent};
use model::{Incarnation, Kind, MigrationId, Object, Reason, Timestamp, VmId, key};
use scheduler::{Request, with_qemu_mib};

use crate::placement::{Sees, host_views, move_request, no_host_fits, rest_on};
use crate::plan::{Decision, Plan};
use crate::view::{At, Migration, View, Vm};
use crate::vm::{later, outcome, release, reserve};

/// Migrations under way at once on one host, in or out.
pub const MAX_PER_HOST: usize = 2;
/// How long a target may take to start and listen.
const PREPARE_MS: i64 = 30_000;

/// What is to be done about a migration now.
pub fn plan(view: &View, id: MigrationId, now: Timestamp) -> Decision {
    let Some(migration) = view.migrations.get(&id) else {
        return Decision::nothing();
    };
    let Some(object) = &migration.object else {
        return Decision::nothing();
    };
    if view.unreadable_vms().contains(&object.value.spec.vm) {
        return Decision::nothing();
    }
    let step = Step {
        view,
        id,
        migration,
        object,
        now,
    };
    let Some(intent) = &migration.intent else {
        return step.begin_or_refuse();
    };
    let Some(route) = &intent.value.route else {
        return Decision::nothing();
    };
    let sides = Sides::of(view, object.value.spec.vm, route);
    match intent.value.phase {
        MigrationPhase::Planned => Decision::nothing(),
        MigrationPhase::Preparing => step.preparing(intent, route, &sides),
        MigrationPhase::Transferring | MigrationPhase::SwitchingOver | MigrationPhase::Decided => {
            step.granted(intent, route, &sides)
        }
        MigrationPhase::Revoking => step.revoking(intent, route, &sides),
        MigrationPhase::Aborting => step.aborting(intent, route, &sides),
        MigrationPhase::Activated => step.activated(intent, route, &sides),
        MigrationPhase::Done | MigrationPhase::Aborted => Decision::nothing(),
    }
}

/// What both sides have reported, and whether they are fenced.
struct Sides<'a> {
    vm: Option<&'a Vm>,
    source: Option<&'a RunStatus>,
    target: Option<&'a RunStatus>,
    source_is_dead: bool,
    target_is_dead: bool,
}

impl<'a> Sides<'a> {
    fn of(view: &'a View, vm: VmId, route: &Route) -> Self {
        let vm = view.vms.get(&vm).map(AsRef::as_ref);
        let is_dead = |host| view.hosts.get(&host).is_none_or(|host| host.is_dead());
        Self {
            vm,
            source: vm.and_then(|vm| vm.runs.get(&route.from)),
            target: vm.and_then(|vm| vm.runs.get(&route.to)),
            source_is_dead: is_dead(route.source),
            target_is_dead: is_dead(route.target),
        }
    }

    fn source_is_closed(&self) -> bool {
        self.source_is_dead || self.source.is_some_and(|run| run.state.is_closed())
    }

    fn target_is_closed(&self) -> bool {
        self.target_is_dead || self.target.is_some_and(|run| run.state.is_closed())
    }

    /// The target's host is dead, and the target did not close before.
    fn target_is_fenced(&self) -> bool {
        self.target_is_dead && !self.target.is_some_and(|run| run.state.is_closed())
    }

    fn target_runs(&self) -> bool {
        let runs = |run: &RunStatus| run.ran && matches!(run.state, RunState::Running | RunState::Paused);
        !self.target_is_dead && self.target.is_some_and(runs)
    }

    /// The target's guest executed, and then it ended or its host did.
    fn target_ran_and_ended(&self) -> bool {
        self.target_is_closed() && self.target.is_some_and(|run| run.ran)
    }

    fn outgoing(&self, to: Incarnation) -> Option<&'a Outgoing> {
        self.source
            .and_then(|run| run.outgoing.as_ref())
            .filter(|outgoing| outgoing.to == to)
    }

    fn outgoing_is(&self, to: Incarnation, state: OutgoingState) -> bool {
        self.outgoing(to).is_some_and(|outgoing| outgoing.state == state)
    }
}

struct Step<'a> {
    view: &'a View,
    id: MigrationId,
    migration: &'a Migration,
    object: &'a At<Object<MigrationSpec>>,
    now: Timestamp,
}

impl Step<'_> {
    fn spec(&self) -> &MigrationSpec {
        &self.object.value.spec
    }

    /// A plan that holds only while the request is as it was read.
    fn begin(&self, what: &str) -> Plan {
        let mut plan = Plan::new(format!("{what} migration {}", self.object.value.meta.name));
        plan.rely(key::object(Kind::Migration, self.id.0), self.object.revision);
        plan
    }

    fn set_intent(&self, plan: &mut Plan, intent: &MigrationIntent) {
        let revision = self.migration.intent.as_ref().map_or(0, |at| at.revision);
        plan.replace(key::migration_intent(self.id), revision, intent);
    }

    /// The plan relies on what a side has reported, so that a later report overtakes it (rule 8).
    fn rely_on_run(&self, plan: &mut Plan, vm: &Vm, incarnation: Incarnation) {
        let revision = vm.run_revisions.get(&incarnation).copied().unwrap_or(0);
        plan.rely(key::vm_run(self.spec().vm, incarnation), revision);
    }

    fn set_vm(&self, plan: &mut Plan, vm: &Vm, intent: &VmIntent) {
        plan.replace(
            key::vm_intent(self.spec().vm),
            vm.intent.as_ref().map_or(0, |at| at.revision),
            intent,
        );
    }

    fn enter(
        &self,
        intent: &MigrationIntent,
        phase: MigrationPhase,
        reason: Option<Reason>,
    ) -> MigrationIntent {
        MigrationIntent {
            phase,
            entered_at: self.now,
            deadline: None,
            reason: reason.or_else(|| intent.reason.clone()),
            ..intent.clone()
        }
    }

    /// Nothing is decided yet: reserve the target, or refuse with reasons.
    fn begin_or_refuse(&self) -> Decision {
        let vm_id = self.spec().vm;
        let Some(vm) = self.view.vms.get(&vm_id) else {
            return self.refuse(Reason::new("vm-gone", "the VM does not exist any more"));
        };
        let (Some(object), Some(intent)) = (&vm.object, &vm.intent) else {
            return self.refuse(Reason::new("not-running", "the VM is not placed yet"));
        };
        let open = match self.check(vm_id, vm, &intent.value) {
            Ok(open) => open.clone(),
            Err(reason) => return self.refuse(reason),
        };
        let Some(source) = intent.value.host else {
            return self.refuse(Reason::new("not-running", "the VM is on no host"));
        };
        // The copies of its disk that are under way are made first; no more are begun.
        if !open.copies.is_empty() {
            return Decision::nothing();
        }
        if self.is_busy(source) || self.spec().to.is_some_and(|to| self.is_busy(to)) {
            return Decision::wait_for_room();
        }
        let request = Request {
            only: self.spec().to,
            ..move_request(self.view, &object.value, &open, source)
        };
        let sees = Sees::for_rules([request.guest.rule].into_iter());
        let hosts: Vec<_> = host_views(self.view, sees, self.now).collect();
        let placed = match scheduler::place(&request, hosts.iter(), self.now) {
            Ok(placed) => placed,
            Err(record) => return self.refuse(no_host_fits(&record.refused)),
        };
        let placed = if self.is_busy(placed.host) {
            let free = hosts.iter().filter(|host| !self.is_busy(host.id));
            scheduler::place(&request, free, self.now)
        } else {
            Ok(placed)
        };
        // Those that would take it have enough to do.
        let Ok(placed) = placed else {
            return Decision::wait_for_room();
        };
        let target = placed.host;
        let to = intent.value.last_incarnation.next();
        let from = open.incarnation;
        let mut plan = self.prepare(
            vm,
            &intent.value,
            open,
            Route {
                source,
                from,
                target,
                to,
            },
        );
        plan.rely(key::object(Kind::Vm, vm_id.0), object.revision);
        rest_on(self.view, &mut plan, vm_id, &placed);
        plan.into()
    }

    /// Reserves the target and names its incarnation.
    fn prepare(&self, vm: &Vm, intent: &VmIntent, open: Open, route: Route) -> Plan {
        let mut plan = self.begin("prepare");
        let (target, to) = (route.target, route.to);
        let moves = MigrationIntent {
            phase: MigrationPhase::Preparing,
            entered_at: self.now,
            deadline: Some(later(self.now, PREPARE_MS)),
            method: Method::PreCopy,
            route: Some(route),
            predicted: Some(predict(open.memory_mib)),
            measured: None,
            reason: None,
        };
        self.set_intent(&mut plan, &moves);
        let reserved = Reserved {
            incarnation: to,
            memory_mib: with_qemu_mib(open.memory_mib, open.vcpus),
            vcpus: open.vcpus,
        };
        let next = VmIntent {
            migration: Some(self.id),
            last_incarnation: to,
            open: Some(Open {
                resume: false,
                ..open
            }),
            ..intent.clone()
        };
        self.set_vm(&mut plan, vm, &next);
        reserve(self.view, &mut plan, target, self.spec().vm, reserved);
        plan
    }

    /// Whether the VM can be moved while it runs.
    fn check<'v>(&self, id: VmId, vm: &'v Vm, intent: &'v VmIntent) -> Result<&'v Open, Reason> {
        let name = vm
            .object
            .as_ref()
            .map_or("-", |object| object.value.meta.name.as_str());
        if self.spec().cancel {
            return Err(Reason::new("cancelled", "cancelled before it began"));
        }
        if self.drain_is_over(intent) {
            return Err(Reason::new("drain-over", "its drain was ended before it began"));
        }
        if self
            .view
            .active_migrations(id)
            .any(|(other, m)| other != self.id && m.intent.is_some())
        {
            return Err(Reason::new(
                "already-migrating",
                format!("{name} is being migrated already"),
            ));
        }
        let open = intent
            .open
            .as_ref()
            .filter(|open| matches!(open.goal, Goal::Run { .. }));
        let runs = |open: &&Open| {
            let run = vm.runs.get(&open.incarnation);
            run.is_some_and(|run| matches!(run.state, RunState::Running | RunState::Paused))
        };
        let open = open.filter(runs).ok_or_else(|| {
            let phase = self
                .view
                .phase(id)
                .map_or("unknown".to_owned(), |(phase, _)| phase.to_string());
            Reason::new(
                "not-running",
                format!("{name} is {phase}: only a running or paused VM is migrated live"),
            )
        })?;
        // Its next migration would take the order to go on away from it.
        if open.has_to_go_on(vm.runs.get(&open.incarnation)) {
            return Err(Reason::new(
                "resuming",
                format!("{name} has not gone on yet after its last migration: migrate it again when it runs"),
            ));
        }
        if crate::document::changes_medium(self.view, vm, open.incarnation) {
            return Err(Reason::new(
                "medium-changing",
                format!(
                    "the medium in {name}'s drive is still being changed: migrate it again when that is done, which \
                     `sterna vm get {name}` shows"
                ),
            ));
        }
        Ok(open)
    }

    /// Whether it was made for a drain that its host does not have any more.
    fn drain_is_over(&self, intent: &VmIntent) -> bool {
        let host = intent.host.and_then(|host| self.view.hosts.get(&host));
        let present = host.and_then(|host| host.drain()).map(|drain| drain.id);
        self.spec().drain.is_some() && self.spec().drain != present
    }

    /// Whether as many migrations as may be are under way there, in or out. A drain may allow more of them.
    fn is_busy(&self, host: model::HostId) -> bool {
        let routes = self
            .view
            .all_active_migrations()
            .filter_map(|(_, m)| m.intent.as_ref()?.value.route.as_ref());
        let drain = self.view.hosts.get(&host).and_then(|host| host.drain());
        let most = drain.map_or(0, |drain| usize::try_from(drain.parallel).unwrap_or(0));
        routes
            .filter(|route| route.source == host || route.target == host)
            .count()
            >= most.max(MAX_PER_HOST)
    }

    fn refuse(&self, reason: Reason) -> Decision {
        let mut plan = self.begin("refuse");
        self.set_intent(
            &mut plan,
            &MigrationIntent {
                phase: MigrationPhase::Aborted,
                entered_at: self.now,
                deadline: None,
                method: Method::PreCopy,
                route: None,
                predicted: None,
                measured: None,
                reason: Some(reason),
            },
        );
        plan.into()
    }

    /// The target starts. Nothing is granted, so anything may still end it.
    fn preparing(&self, intent: &At<MigrationIntent>, route: &Route, sides: &Sides<'_>) -> Decision {
        let Some(vm) = sides.vm else {
            return Decision::nothing();
        };
        let deadline = intent.value.deadline.unwrap_or(self.now);
        let stop = if let Some(reason) = self.unwanted(vm) {
            Some(reason)
        } else if sides.target_is_closed() {
            let why = sides.target.and_then(|run| run.reason.clone());
            Some(why.unwrap_or_else(|| Reason::new("target-lost", "the target did not start")))
        } else if sides.source_is_closed() {
            Some(Reason::new(
                "source-lost",
                "the VM ended before the migration began",
            ))
        } else if self.now >= deadline {
            Some(Reason::new(
                "target-late",
                "the target did not listen in time: see its host",
            ))
        } else {
            None
        };
        if let Some(reason) = stop {
            return self.abort(intent, route, vm, reason).into();
        }
        let listens = sides
            .target
            .is_some_and(|run| run.state == RunState::Incoming && run.stream.is_some());
        if !listens {
            return Decision::wait_until(deadline);
        }
        // The grant and the entry into Transferring are one transaction (rule 18).
        let mut plan = self.begin("grant");
        self.rely_on_vm(&mut plan, vm);
        self.rely_on_run(&mut plan, vm, route.to);
        self.set_intent(
            &mut plan,
            &self.enter(&intent.value, MigrationPhase::Transferring, None),
        );
        plan.into()
    }

    fn rely_on_vm(&self, plan: &mut Plan, vm: &Vm) {
        let id = self.spec().vm;
        plan.rely(
            key::object(Kind::Vm, id.0),
            vm.object.as_ref().map_or(0, |at| at.revision),
        );
        plan.rely(key::vm_intent(id), vm.intent.as_ref().map_or(0, |at| at.revision));
    }

    /// Why the user does not want the migration any more.
    fn unwanted(&self, vm: &Vm) -> Option<Reason> {
        unwanted(self.spec(), vm)
    }

    /// The grant is stored: only the source's promise, or the end of both, aborts (rule 3).
    fn granted(&self, intent: &At<MigrationIntent>, route: &Route, sides: &Sides<'_>) -> Decision {
        let Some(vm) = sides.vm else {
            return Decision::nothing();
        };
        if sides.target_runs() {
            return self.commit(intent, route, vm).into();
        }
        let completed = sides.outgoing_is(route.to, OutgoingState::Completed);
        // A target that is fenced may have run and written, whatever was heard of it last.
        if sides.target_ran_and_ended() || completed && sides.target_is_fenced() {
            return self.end_both(intent, route, sides, vm).into();
        }
        if sides.outgoing_is(route.to, OutgoingState::Promised) {
            let reason = self.promise_reason(sides.outgoing(route.to), vm);
            return self.abort(intent, route, vm, reason).into();
        }
        if completed && sides.target_is_closed() {
            return self.resume_source(intent, route, sides, vm).into();
        }
        if sides.source_is_closed() {
            let mut plan = self.begin("revoke");
            self.rely_on_run(&mut plan, vm, route.from);
            let reason = Reason::new("source-lost", "the source ended during the migration");
            self.set_intent(
                &mut plan,
                &self.enter(&intent.value, MigrationPhase::Revoking, Some(reason)),
            );
            return plan.into();
        }
        if completed && intent.value.phase != MigrationPhase::Decided {
            let mut plan = self.begin("decide");
            self.rely_on_run(&mut plan, vm, route.from);
            self.set_intent(
                &mut plan,
                &self.enter(&intent.value, MigrationPhase::Decided, None),
            );
            return plan.into();
        }
        Decision::nothing()
    }

    fn promise_reason(&self, outgoing: Option<&Outgoing>, vm: &Vm) -> Reason {
        let error = outgoing.and_then(|outgoing| outgoing.error.clone());
        let failed =
            error.map(|error| Reason::new("transfer-failed", format!("the transfer failed: {error}")));
        failed.or_else(|| self.unwanted(vm)).unwrap_or_else(|| {
            Reason::new(
                "transfer-stopped",
                "the source stopped the transfer: the target was lost, or time ran out",
            )
        })
    }

    /// The source goes on; the target has still to close. Nothing waits for that but its resources and the next start.
    fn abort(&self, intent: &At<MigrationIntent>, route: &Route, vm: &Vm, reason: Reason) -> Plan {
        let mut plan = self.begin("abort");
        self.rely_on_run(&mut plan, vm, route.from);
        self.set_intent(
            &mut plan,
            &self.enter(&intent.value, MigrationPhase::Aborting, Some(reason)),
        );
        if let Some(at) = &vm.intent {
            self.set_vm(
                &mut plan,
                vm,
                &VmIntent {
                    migration: None,
                    ..at.value.clone()
                },
            );
        }
        plan
    }

    /// The source completed and the target closed without running: RESUME (rule 6).
    fn resume_source(&self, intent: &At<MigrationIntent>, route: &Route, sides: &Sides<'_>, vm: &Vm) -> Plan {
        let why = sides
            .target
            .and_then(|run| run.reason.as_ref())
            .map_or("its host is dead", |r| r.message.as_str());
        let reason = Reason::new("target-lost", format!("the target ended before it ran: {why}"));
        let mut plan = self.abort(intent, route, vm, reason);
        self.rely_on_run(&mut plan, vm, route.to);
        if let Some(at) = &vm.intent {
            let open = at.value.open.clone().map(|open| Open { resume: true, ..open });
            self.set_vm(
                &mut plan,
                vm,
                &VmIntent {
                    migration: None,
                    open,
                    ..at.value.clone()
                },
            );
        }
        plan
    }

    /// The target ran and ended, so the source's memory is old: it is stopped, and the VM has ended as the target did.
    fn end_both(&self, intent: &At<MigrationIntent>, route: &Route, sides: &Sides<'_>, vm: &Vm) -> Plan {
        let reason = Reason::new("target-ended", "the VM had moved and then ended at the target");
        let mut plan = self.abort(intent, route, vm, reason);
        self.rely_on_run(&mut plan, vm, route.to);
        let Some(at) = &vm.intent else { return plan };
        let goal = at.value.open.as_ref().map_or(Goal::Kill, |open| open.goal);
        let ended = Ended {
            incarnation: route.to,
            at: self.now,
            outcome: sides
                .target
                .filter(|_| !sides.target_is_dead)
                .map_or(Outcome::Fenced, |run| outcome(goal, run)),
            reason: sides.target.and_then(|run| run.reason.clone()),
        };
        let open = at.value.open.clone().map(|open| Open {
            goal: Goal::Kill,
            ..open
        });
        self.set_vm(
            &mut plan,
            vm,
            &VmIntent {
                migration: None,
                open,
                ended: Some(ended),
                ..at.value.clone()
            },
        );
        plan
    }

    /// The target runs: the VM is bound to it.
    fn commit(&self, intent: &At<MigrationIntent>, route: &Route, vm: &Vm) -> Plan {
        let mut plan = self.begin("commit");
        self.rely_on_run(&mut plan, vm, route.to);
        self.set_intent(
            &mut plan,
            &MigrationIntent {
                deadline: None,
                ..self.enter(&intent.value, MigrationPhase::Activated, None)
            },
        );
        if let Some(at) = &vm.intent {
            let open = at.value.open.clone().map(|open| Open {
                incarnation: route.to,
                granted_at: self.now,
                start: Start::Stream,
                ..open
            });
            self.set_vm(
                &mut plan,
                vm,
                &VmIntent {
                    host: Some(route.target),
                    open,
                    ..at.value.clone()
                },
            );
        }
        plan
    }

    /// The VM runs at the target; the source has still to close.
    fn activated(&self, intent: &At<MigrationIntent>, route: &Route, sides: &Sides<'_>) -> Decision {
        if !sides.source_is_closed() {
            return Decision::nothing();
        }
        let mut plan = self.begin("finish");
        let measured = self.measure(&intent.value, sides.outgoing(route.to));
        let done = MigrationIntent {
            measured: Some(measured),
            reason: None,
            ..intent.value.clone()
        };
        self.set_intent(&mut plan, &self.enter(&done, MigrationPhase::Done, None));
        self.clean_up(&mut plan, route.source, route.from, sides.vm);
        plan.into()
    }

    fn measure(&self, intent: &MigrationIntent, outgoing: Option<&Outgoing>) -> Figures {
        let total = intent
            .entered_at
            .duration_since(self.object.value.meta.created_at)
            .as_millis();
        Figures {
            downtime_ms: outgoing
                .and_then(|o| o.downtime_us)
                .map_or(0, |us| us.div_ceil(1000)),
            total_ms: u64::try_from(total).unwrap_or(0),
            bytes: outgoing.and_then(|o| o.bytes).unwrap_or(0),
        }
    }

    /// One side has closed: its room is free, its report has been read, and the VM is not moving any more.
    fn clean_up(&self, plan: &mut Plan, host: model::HostId, incarnation: Incarnation, vm: Option<&Vm>) {
        let id = self.spec().vm;
        release(self.view, plan, host, id, incarnation);
        let Some(vm) = vm else { return };
        let Some(at) = &vm.intent else { return };
        let is_open = at
            .value
            .open
            .as_ref()
            .is_some_and(|open| open.incarnation == incarnation);
        if let Some(revision) = vm.run_revisions.get(&incarnation).filter(|_| !is_open) {
            plan.remove(key::vm_run(id, incarnation), *revision);
        }
        if at.value.migration == Some(self.id) {
            self.set_vm(
                plan,
                vm,
                &VmIntent {
                    migration: None,
                    ..at.value.clone()
                },
            );
        }
    }

    /// The source is lost after the grant: the target answers *running*, which commits, or *closed*.
    fn revoking(&self, intent: &At<MigrationIntent>, route: &Route, sides: &Sides<'_>) -> Decision {
        let Some(vm) = sides.vm else {
            return Decision::nothing();
        };
        if sides.target_runs() {
            return self.commit(intent, route, vm).into();
        }
        if sides.target_ran_and_ended() || sides.target_is_fenced() {
            return self.end_both(intent, route, sides, vm).into();
        }
        if sides.target_is_closed() {
            self.finish_abort(intent, route, sides)
        } else {
            Decision::nothing()
        }
    }

    fn aborting(&self, intent: &At<MigrationIntent>, route: &Route, sides: &Sides<'_>) -> Decision {
        if sides.target_is_closed() {
            self.finish_abort(intent, route, sides)
        } else {
            Decision::nothing()
        }
    }

    fn finish_abort(&self, intent: &At<MigrationIntent>, route: &Route, sides: &Sides<'_>) -> Decision {
        let mut plan = self.begin("end");
        self.set_intent(
            &mut plan,
            &self.enter(&intent.value, MigrationPhase::Aborted, None),
        );
        self.clean_up(&mut plan, route.target, route.to, sides.vm);
        plan.into()
    }
}

/// The name of a VM's next migration: after the VM and the incarnation at the target.
pub fn name(view: &View, vm: VmId) -> String {
    let parts = view.vms.get(&vm);
    let next = parts
        .and_then(|vm| vm.intent.as_ref())
        .map_or(1, |at| at.value.last_incarnation.next().0);
    let Some(meta) = view.meta(Kind::Vm, vm.0) else {
        return format!("{vm}-m{next}");
    };
    let base = format!("{}-m{next}", meta.name);
    // A refused request leaves a record under the name that it would have had.
    let is_free = |name: &String| {
        let entry = (Kind::Migration, meta.project.clone(), name.clone());
        !view.names.contains_key(&entry)
    };
    let numbered = (2..1000).map(|n| format!("{base}.{n}"));
    std::iter::once(base.clone())
        .chain(numbered)
        .find(is_free)
        .unwrap_or(base)
}

/// Why a migration should end: its user cancelled it, or wants something else of the VM.
pub(crate) fn unwanted(spec: &MigrationSpec, vm: &Vm) -> Option<Reason> {
    let object = &vm.object.as_ref()?.value;
    let answered = vm
        .intent
        .as_ref()
        .map_or(0, |intent| intent.value.answered_request);
    if spec.cancel {
        return Some(Reason::new("cancelled", "cancelled by its user"));
    }
    if object.meta.deleted_at.is_some() {
        return Some(Reason::new("vm-deleted", "the VM is being deleted"));
    }
    let asked = object.spec.power_request > answered;
    asked.then(|| Reason::new("vm-wanted", "the VM's user asked for something else of it"))
}

/// What a migration will take, from the size alone until measurements are kept: an idle guest's memory is mostly zero
/// pages, and the stop is bounded by the limits that the source starts with.
pub(crate) fn predict(memory_mib: u64) -> Figures {
    let bytes = memory_mib.saturating_mul(1 << 20) / 4;
    Figures {
        downtime_ms: 20,
        total_ms: 200u64.saturating_add(memory_mib / 2),
        bytes,
    }
}
