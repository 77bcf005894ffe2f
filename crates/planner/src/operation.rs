//! The records of long actions on VMs: made with the request, ended when the view says that they have, removed after a
//! while.
//!
//! **Owns:** which requests take long ([`asked`]), the name of their record ([`create`]), how far each is ([`plan`]), and
//! how long it is kept.
//!
//! **Does not know:** how the action is carried out: that follows from the VM, never from its operation. A record that is
//! lost changes nothing but what people can read.
//!
//! How far an operation is follows from the VM alone, whenever it is looked at: nobody has to be awake when it ends. An apply
//! is the exception: the server that has its content writes how it ended ([`end_apply`]), and one of which nothing is
//! heard until its deadline is lost.

use model::document::Cause;
use model::operation::{Action, Applied, Apply, OperationPhase, OperationSpec, OperationStatus};
use model::report::{RunState, RunStatus};
use model::vm::{Flattening, Goal, Outcome, Power, VmIntent};
use model::{Kind, Meta, Object, OperationId, Reason, Timestamp, VmId, key};
use uuid::Uuid;

use crate::admission::Stamp;
use crate::build;
use crate::plan::{Decision, Plan};
use crate::view::{Operation, View, Vm};
use crate::vm::later;

/// How many that have ended are kept for each VM, the newest.
pub const KEPT_PER_VM: usize = 10;
/// How long the record of a deletion is kept after it.
pub const KEPT_AFTER_DELETION_MS: i64 = 600_000;
/// How long after its deadline an apply counts as lost of which nobody has said how it ended.
const APPLY_LOST_AFTER_MS: i64 = 30_000;
/// How many records one transaction changes: the store takes 128 operations.
const RECORDS_PER_PLAN: usize = 16;

/// A request that takes long.
pub struct Asked {
    action: Action,
    request: u64,
    vm: Uuid,
    vm_name: String,
    project: Option<String>,
    apply: Option<Apply>,
}

/// What an apply to a VM asks for. Its requests are counted by what is kept of them.
pub fn asked_to_apply(view: &View, vm: &Meta, apply: Apply) -> Asked {
    let before = applies(view, VmId(vm.id)).map(|(_, spec, _)| spec.request);
    Asked {
        action: Action::Apply,
        request: before.max().unwrap_or(0).saturating_add(1),
        vm: vm.id,
        vm_name: vm.name.clone(),
        project: vm.project.clone(),
        apply: Some(apply),
    }
}

/// How many applies to a VM have not ended.
pub fn applies_under_way(view: &View, vm: VmId) -> usize {
    running_applies(view, vm).count()
}

/// When it is to be looked whether an apply to a VM is lost.
pub(crate) fn look_again_at(view: &View, vm: VmId) -> Option<Timestamp> {
    running_applies(view, vm)
        .map(|apply| apply_lost_at(apply.deadline))
        .min()
}

fn running_applies(view: &View, vm: VmId) -> impl Iterator<Item = &Apply> {
    let running = applies(view, vm).filter(|(_, _, operation)| status(operation).ended_at.is_none());
    running.filter_map(|(_, spec, _)| spec.apply.as_ref())
}

fn applies(view: &View, vm: VmId) -> impl Iterator<Item = (OperationId, &OperationSpec, &Operation)> {
    let all = view.operations_on(vm).filter_map(|(id, operation)| {
        let spec = &operation.object.as_ref()?.value.spec;
        Some((id, spec, operation))
    });
    all.filter(|(_, spec, _)| spec.action == Action::Apply)
}

/// When an apply with this deadline counts as lost.
pub fn apply_lost_at(deadline: Timestamp) -> Timestamp {
    later(deadline, APPLY_LOST_AFTER_MS)
}

/// The end of an apply, written down by the server that carried it out; `None` if it has ended already, or is gone.
pub fn end_apply(
    view: &View,
    id: OperationId,
    ended: Result<Applied, (Reason, Applied)>,
    now: Timestamp,
) -> Option<Plan> {
    let operation = view.operations.get(&id.0)?;
    let object = operation.object.as_ref()?;
    let before = status(operation);
    if before.ended_at.is_some() {
        return None;
    }
    let (phase, reason, applied) = match ended {
        Ok(applied) => (OperationPhase::Done, None, applied),
        Err((reason, applied)) => (OperationPhase::Failed, Some(reason), applied),
    };
    let mut plan = Plan::new(format!("note the end of {}", object.value.meta.name));
    plan.rely(key::object(Kind::Operation, id.0), object.revision);
    let status = OperationStatus {
        phase,
        ended_at: Some(now),
        reason,
        applied: Some(applied),
        ..before
    };
    set_status(&mut plan, id, operation, &status);
    Some(plan)
}

/// What a write to a VM's object asks for, if that takes long.
pub(crate) fn asked(old: &View, new: &View, id: VmId) -> Option<Asked> {
    let object = |view: &View| Some(view.vms.get(&id)?.object.as_ref()?.value.clone());
    let (before, after) = (object(old), object(new)?);
    let was_deleted = before
        .as_ref()
        .is_some_and(|object| object.meta.deleted_at.is_some());
    let before = before.map(|object| object.spec);
    let is_new = before.is_none();
    let former_request = before.as_ref().map_or(0, |spec| spec.power_request);
    let former_flatten = before.as_ref().map_or(0, |spec| spec.flatten_request);
    let power_request = after.spec.power_request;
    let reboot = after
        .spec
        .reboot
        .filter(|_| after.spec.reboot != before.and_then(|spec| spec.reboot));
    let (action, request) = if after.meta.deleted_at.is_some() {
        ((!was_deleted).then_some(Action::Delete)?, power_request)
    } else if is_new && after.spec.builds.is_some() {
        (Action::Build, power_request)
    } else if power_request > former_request {
        (
            power_action(after.spec.power, goal(new.vms.get(&id)?))?,
            power_request,
        )
    } else if let Some(reboot) = reboot {
        (Action::Reboot, reboot.request)
    } else {
        let is_new = after.spec.flatten_request > former_flatten;
        (is_new.then_some(Action::Flatten)?, after.spec.flatten_request)
    };
    Some(Asked {
        action,
        request,
        vm: id.0,
        vm_name: after.meta.name,
        project: after.meta.project,
        apply: None,
    })
}

fn goal(vm: &Vm) -> Option<Goal> {
    Some(intent(vm)?.open.as_ref()?.goal)
}

fn intent(vm: &Vm) -> Option<&VmIntent> {
    vm.intent.as_ref().map(|at| &at.value)
}

/// A guest that is in memory is paused and continued in no time.
fn power_action(power: Power, present: Option<Goal>) -> Option<Action> {
    let is_in_memory = matches!(present, Some(Goal::Run { .. }));
    match power {
        Power::Running | Power::Paused => (!is_in_memory).then_some(Action::Start),
        Power::Suspended => Some(Action::Suspend),
        Power::Stopped => Some(Action::Stop),
        Power::Off => Some(Action::Shutdown),
        Power::Prepared => Some(Action::Prepare),
        Power::Hold => None,
    }
}

/// Puts the record of a request into its plan, under a name that is free in the view.
pub fn create(plan: &mut Plan, view: &View, asked: &Asked, stamp: &mut Stamp<'_>) {
    let id = (stamp.next_id)();
    let name = free_name(view, asked);
    let owner = stamp.actor.name.clone();
    let meta = Meta {
        id,
        name: name.clone(),
        project: asked.project.clone(),
        owner: owner.strip_prefix("user:").unwrap_or(&owner).to_owned(),
        labels: std::collections::BTreeMap::new(),
        created_at: stamp.now,
        updated_at: stamp.now,
        deleted_at: None,
    };
    let spec = OperationSpec {
        action: asked.action,
        object_kind: Kind::Vm,
        object: asked.vm,
        object_name: asked.vm_name.clone(),
        request: asked.request,
        owner,
        request_id: stamp.actor.request.clone(),
        apply: asked.apply.clone(),
    };
    plan.create(
        key::name_index(Kind::Operation, meta.project.as_deref(), &name),
        &id,
    );
    plan.create(key::object(Kind::Operation, id), &Object { meta, spec });
}

/// `web-start-3`; or `web-delete-3.2` while the record of a former VM of that name is kept.
fn free_name(view: &View, asked: &Asked) -> String {
    let base = format!("{}-{}-{}", asked.vm_name, asked.action.word(), asked.request);
    let is_free = |name: &String| {
        let entry = (Kind::Operation, asked.project.clone(), name.clone());
        !view.names.contains_key(&entry)
    };
    let numbered = (2..=u32::MAX).map(|n| format!("{base}.{n}"));
    let found = std::iter::once(base.clone()).chain(numbered).find(is_free);
    found.unwrap_or(base)
}

/// Writes down how far a VM's operations are where that has changed, and removes the oldest that have ended.
pub(crate) fn plan(view: &View, id: VmId, now: Timestamp) -> Option<Plan> {
    let vm = view.vms.get(&id)?;
    let object = vm.object.as_ref()?;
    let mut plan = Plan::new(format!("note the operations of {}", object.value.meta.name));
    let mut failures = Failures::default();
    let mut changed = 0;
    for (operation_id, operation) in view.operations_on(id) {
        let Some(spec) = operation.object.as_ref().map(|at| &at.value.spec) else {
            continue;
        };
        let stored = status(operation);
        let present = if stored.ended_at.is_some() {
            stored.clone()
        } else {
            let before = OperationStatus {
                attempt: failures.attempt(spec.action),
                ..stored.clone()
            };
            present_status(view, vm, (operation_id, spec), before, now)
        };
        failures.note(spec.action, present.phase);
        if present != stored && changed < RECORDS_PER_PLAN {
            changed += 1;
            set_status(&mut plan, operation_id, operation, &present);
        }
    }
    let ended: Vec<_> = view
        .operations_on(id)
        .filter(|(_, operation)| status(operation).ended_at.is_some())
        .collect();
    let excess = ended.len().saturating_sub(KEPT_PER_VM);
    for (operation_id, operation) in ended.into_iter().take(excess.min(RECORDS_PER_PLAN)) {
        remove(&mut plan, operation_id, operation);
    }
    if plan.writes.is_empty() {
        return None;
    }
    plan.rely(key::object(Kind::Vm, id.0), object.revision);
    plan.rely(key::vm_intent(id), vm.intent.as_ref().map_or(0, |at| at.revision));
    Some(plan)
}

/// How often in a row the last action failed.
#[derive(Default)]
struct Failures {
    last: Option<Action>,
    count: u32,
}

impl Failures {
    fn attempt(&self, action: Action) -> u32 {
        1 + if self.last == Some(action) { self.count } else { 0 }
    }

    fn note(&mut self, action: Action, phase: OperationPhase) {
        let before = self.attempt(action) - 1;
        self.last = Some(action);
        self.count = if phase == OperationPhase::Failed {
            before + 1
        } else {
            0
        };
    }
}

/// What is stored, or what nothing stored means.
pub fn status(operation: &Operation) -> OperationStatus {
    let stored = operation.status.as_ref().map(|at| at.value.clone());
    stored.unwrap_or(OperationStatus::running(1))
}

/// The long action on a VM that has not ended: the newest, while there are several.
pub fn under_way(view: &View, vm: VmId) -> Option<&Meta> {
    let running = view
        .operations_on(vm)
        .filter(|(_, operation)| status(operation).ended_at.is_none());
    let objects = running.filter_map(|(_, operation)| operation.object.as_ref());
    objects.last().map(|at| &at.value.meta)
}

/// When the start was asked for that led to a grant.
pub fn start_asked_at(view: &View, vm: VmId, granted_at: Timestamp) -> Option<Timestamp> {
    let objects = view
        .operations_on(vm)
        .filter_map(|(_, operation)| operation.object.as_ref());
    let starts = objects.filter(|at| matches!(at.value.spec.action, Action::Start | Action::Prepare));
    let asked = starts
        .map(|at| at.value.meta.created_at)
        .filter(|at| *at <= granted_at);
    asked.max()
}

/// What is done for a VM now, for whoever reads logs: its migration, or the newest of its operations, ended or not, so that
/// an end alone is no news to its host. An apply is none of its host's business: what it does is not in the document.
pub fn cause(view: &View, vm: VmId) -> Option<Cause> {
    let migration = view.active_migrations(vm).next();
    let migration = migration.and_then(|(_, migration)| migration.object.as_ref());
    if let Some(at) = migration {
        return Some(Cause {
            operation: at.value.meta.id,
            request: at.value.spec.request_id.clone(),
        });
    }
    let objects = view.operations_on(vm);
    let newest = objects
        .filter_map(|(_, operation)| operation.object.as_ref())
        .filter(|at| at.value.spec.action != Action::Apply)
        .last()?;
    Some(Cause {
        operation: newest.value.meta.id,
        request: newest.value.spec.request_id.clone(),
    })
}

/// How far an operation is that had not ended.
fn present_status(
    view: &View,
    vm: &Vm,
    (id, spec): (OperationId, &OperationSpec),
    before: OperationStatus,
    now: Timestamp,
) -> OperationStatus {
    let running = OperationStatus {
        deadline: deadline(vm, spec).or(before.deadline),
        reason: match spec.action {
            Action::Build => build::stage(view, VmId(spec.object)),
            _ => before.reason.clone(),
        },
        ..before
    };
    let ended = own_end(vm, spec)
        .or_else(|| overtaken(view, vm, id, spec))
        .or_else(|| lost(vm, spec, now));
    ended.map_or(running.clone(), |(phase, reason)| OperationStatus {
        phase,
        ended_at: Some(now),
        reason,
        ..running
    })
}

/// The end of an apply of which nobody has said in time how it ended: the server that did it is gone.
fn lost(vm: &Vm, spec: &OperationSpec, now: Timestamp) -> Option<End> {
    let apply = spec
        .apply
        .as_ref()
        .filter(|apply| apply_lost_at(apply.deadline) <= now)?;
    Some(failed(Some(lost_reason(vm_name(vm), apply))))
}

fn vm_name(vm: &Vm) -> &str {
    vm.object.as_ref().map_or("it", |at| at.value.meta.name.as_str())
}

/// Nobody knows how an apply ended.
pub fn lost_reason(vm: &str, apply: &Apply) -> Reason {
    let message = format!(
        "whether this was done is not known, since the connection to it was lost: {}; look at {vm}, and apply again",
        apply.steps.join(", ")
    );
    Reason::new("apply-lost", message)
}

/// When the host stops waiting for the guest.
fn deadline(vm: &Vm, spec: &OperationSpec) -> Option<Timestamp> {
    if let Some(apply) = &spec.apply {
        return Some(apply.deadline);
    }
    let open = intent(vm)?.open.as_ref()?;
    match (spec.action, open.goal) {
        (Action::Shutdown, Goal::Shutdown { force_at }) => Some(force_at),
        (Action::Reboot, _) => {
            let reboot = open.reboot.filter(|reboot| reboot.request == spec.request);
            reboot.map(|reboot| reboot.force_at)
        }
        _ => None,
    }
}

type End = (OperationPhase, Option<Reason>);

/// How an operation ended by itself, if it has.
fn own_end(vm: &Vm, spec: &OperationSpec) -> Option<End> {
    let intent = intent(vm);
    if spec.action == Action::Flatten {
        return flatten_end(&intent?.flattening, spec.request);
    }
    let is_answered = intent.is_some_and(|intent| intent.answered_request >= spec.request);
    let Some(open) = intent.and_then(|intent| intent.open.as_ref()) else {
        return closed_end(spec.action, is_answered, intent);
    };
    let run = vm.runs.get(&open.incarnation);
    match spec.action {
        Action::Start if is_answered => run.filter(|run| is_in_memory(run)).map(|_| done(None)),
        Action::Suspend | Action::Stop => {
            let is_taken_back = is_answered && matches!(open.goal, Goal::Run { .. });
            is_taken_back.then(|| failed(run.and_then(|run| run.reason.clone())))
        }
        Action::Reboot => {
            let made = run?.rebooted.filter(|made| made.request == spec.request)?;
            Some(done(made.forced.then(reset_reason)))
        }
        // How an apply ended says who did it.
        Action::Start
        | Action::Prepare
        | Action::Shutdown
        | Action::Delete
        | Action::Apply
        | Action::Flatten
        | Action::Build => None,
    }
}

/// How the making whole of a disk has ended, if it has.
fn flatten_end(flattening: &Flattening, request: u64) -> Option<End> {
    if flattening.whole.is_some() {
        return Some(done(None));
    }
    (flattening.answered_request >= request).then(|| failed(flattening.failed.clone()))
}

fn is_in_memory(run: &RunStatus) -> bool {
    matches!(run.state, RunState::Running | RunState::Paused)
}

fn reset_reason() -> Reason {
    Reason::new(
        "reset",
        "the guest was reset: that was asked for, or it did not reboot by itself in time; look at its file systems",
    )
}

/// How an operation has ended on a VM of which nothing is open.
fn closed_end(action: Action, is_answered: bool, intent: Option<&VmIntent>) -> Option<End> {
    let ended = intent.and_then(|intent| intent.ended.as_ref());
    let reason = ended.and_then(|ended| ended.reason.clone());
    match (action, ended.map(|ended| ended.outcome)) {
        (Action::Shutdown, _) => Some(done(reason)),
        (Action::Delete | Action::Apply | Action::Flatten | Action::Build, _) => None,
        (Action::Reboot, _) => Some(failed(reason)),
        (Action::Start | Action::Prepare, _) if !is_answered => None,
        // It is placed anew, or waits for it.
        (Action::Start | Action::Prepare, None | Some(Outcome::Fenced)) => None,
        (Action::Start | Action::Prepare, Some(Outcome::Failed)) => Some(failed(reason)),
        // It started, and has ended since as it was to.
        (Action::Start | Action::Prepare, Some(_)) => Some(done(reason)),
        (Action::Suspend, Some(Outcome::Suspended)) | (Action::Stop, Some(Outcome::Stopped)) => {
            Some(done(None))
        }
        (Action::Suspend | Action::Stop, _) => Some(failed(reason)),
    }
}

fn done(reason: Option<Reason>) -> End {
    (OperationPhase::Done, reason)
}

fn failed(reason: Option<Reason>) -> End {
    let unknown = || Reason::new("ended-otherwise", "the VM ended before it was done");
    (OperationPhase::Failed, Some(reason.unwrap_or_else(unknown)))
}

/// The end of an operation that a newer request has made pointless.
fn overtaken(view: &View, vm: &Vm, id: OperationId, spec: &OperationSpec) -> Option<End> {
    let object = &vm.object.as_ref()?.value;
    let is_deleted = object.meta.deleted_at.is_some();
    if !is_deleted && has_just_closed(vm) {
        return None;
    }
    let is_overtaken = match spec.action {
        Action::Delete => false,
        _ if is_deleted => true,
        Action::Apply | Action::Flatten | Action::Build => false,
        Action::Reboot => {
            let is_kept = matches!(goal(vm), Some(Goal::Run { paused: false }));
            !is_kept
                || object
                    .spec
                    .reboot
                    .is_some_and(|asked| asked.request > spec.request)
        }
        _ => object.spec.power_request > spec.request,
    };
    let newer = view
        .operations_on(VmId(spec.object))
        .find(|(other, _)| *other > id);
    let newer = newer.and_then(|(_, operation)| operation.object.as_ref());
    let newer = newer.map_or("something else", |at| at.value.meta.name.as_str());
    is_overtaken.then(|| {
        let message = format!("{newer} was asked for before it had ended");
        (
            OperationPhase::Superseded,
            Some(Reason::new("superseded", message)),
        )
    })
}

/// The end of its incarnation is reported and not noted yet: what it was the end of is seen then.
fn has_just_closed(vm: &Vm) -> bool {
    let open = intent(vm).and_then(|intent| intent.open.as_ref());
    let run = open.and_then(|open| vm.runs.get(&open.incarnation));
    run.is_some_and(|run| run.state.is_closed())
}

pub(crate) fn set_status(plan: &mut Plan, id: OperationId, operation: &Operation, status: &OperationStatus) {
    let revision = operation.status.as_ref().map_or(0, |at| at.revision);
    plan.replace(key::operation_status(id), revision, status);
}

fn remove(plan: &mut Plan, id: OperationId, operation: &Operation) {
    if let Some(at) = &operation.status {
        plan.remove(key::operation_status(id), at.revision);
    }
    if let Some(at) = &operation.object {
        let meta = &at.value.meta;
        plan.remove(key::object(Kind::Operation, id.0), at.revision);
        let index = key::name_index(Kind::Operation, meta.project.as_deref(), &meta.name);
        plan.writes.insert(index, None);
    }
}

/// With the VM go its operations; that of its deletion is done, and stays for a while.
pub(crate) fn bury(view: &View, plan: &mut Plan, vm: VmId, now: Timestamp) {
    for (id, operation) in view.operations_on(vm) {
        bury_one(plan, id, operation, now);
    }
}

fn bury_one(plan: &mut Plan, id: OperationId, operation: &Operation, now: Timestamp) {
    let action = operation.object.as_ref().map(|at| at.value.spec.action);
    let status = status(operation);
    let is_kept = match action {
        Some(Action::Delete) => true,
        // Its VM goes with it.
        Some(Action::Build) => status.ended_at.is_some(),
        _ => false,
    };
    if !is_kept {
        remove(plan, id, operation);
    } else if status.ended_at.is_none() {
        let status = OperationStatus {
            phase: OperationPhase::Done,
            ended_at: Some(now),
            ..status
        };
        set_status(plan, id, operation, &status);
    }
}

/// What is to be done about the operations of a VM that is gone.
pub(crate) fn plan_former(view: &View, vm: VmId, now: Timestamp) -> Decision {
    let mut plan = Plan::new("remove the operations of a deleted VM");
    let mut next = None;
    for (id, operation) in view.operations_on(vm).take(RECORDS_PER_PLAN) {
        match status(operation)
            .ended_at
            .map(|at| later(at, KEPT_AFTER_DELETION_MS))
        {
            None => bury_one(&mut plan, id, operation, now),
            Some(until) if until <= now => remove(&mut plan, id, operation),
            Some(until) => next = Some(next.map_or(until, |other: Timestamp| other.min(until))),
        }
    }
    if plan.writes.is_empty() {
        return next.map_or_else(Decision::nothing, Decision::wait_until);
    }
    plan.into()
}
