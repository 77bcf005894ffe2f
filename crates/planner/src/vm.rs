//! The next step of a VM: grant an incarnation, change what its host shall do, take note of its end, forget it.
//!
//! A new incarnation is granted only when every earlier one is closed or fenced: none is open, and no migration of the VM
//! that might still have a target is under way.

mod deletion;

use std::collections::BTreeSet;

use model::host::{FailedStarts, HostIntent, Reservations, Reserved};
use model::migration::MigrationPhase;
use model::report::{RunState, RunStatus};
use model::vm::{
    Ended, Goal, Open, Outcome, PlacementRecord, Power, Reboot, RefusedGroup, SavedIn, SavedState, Start,
    VmIntent, VmSpec,
};
use model::{HostId, Incarnation, Kind, Object, Reason, Timestamp, VmId, key, record};
use scheduler::{Fleet, Placed, Request};

use crate::batch::{Together, together};
use crate::copies::Awaited;
use crate::flatten;
use crate::operation;
use crate::placement::{Sees, avoided_until, failed_starts, host_views, rest_on, start_request};
use crate::plan::{Decision, Plan};
use crate::view::{At, View, Vm};
use crate::warm;

/// How long a guest has to shut down before the plug is pulled.
pub const SHUTDOWN_GRACE_MS: i64 = 60_000;

/// How long a guest has to reboot before it is reset.
pub const REBOOT_GRACE_MS: i64 = 60_000;

/// The most that a plan relies on before it takes no further VM in: the store takes 128 compares, and the admission adds
/// some.
const RELIES_MAX: usize = 64;

/// What is to be done about a VM now.
pub fn plan(view: &View, id: VmId, now: Timestamp) -> Decision {
    plan_beside(view, id, &[], now)
}

/// The same; if that is to give it a place, these others get theirs by the same plan as far as they wait for one, each as
/// if it were decided alone after the ones before it. Those that get none are left out.
pub fn plan_beside(view: &View, id: VmId, others: &[VmId], now: Timestamp) -> Decision {
    if !view.vms.contains_key(&id) {
        return operation::plan_former(view, id, now);
    }
    let Some(step) = Step::of(view, id, now).filter(Step::is_readable) else {
        return Decision::nothing();
    };
    // How an operation ended is written down before the step that would efface it.
    if let Some(plan) = operation::plan(view, id, now) {
        return plan.into();
    }
    if let Some(plan) = step.build() {
        return plan.into();
    }
    let intent = step.intent();
    let decision = match &intent.open {
        Some(open) => step.open(open),
        None if step.object.value.meta.deleted_at.is_some() => step.deleted(),
        None if step.starts() => step.place(others),
        None => step.closed(),
    };
    decision
        .and_at(operation::look_again_at(view, id))
        .and_at(step.build_is_late_at())
}

/// Everything that one step is decided on.
pub(crate) struct Step<'a> {
    pub(crate) view: &'a View,
    pub(crate) id: VmId,
    pub(crate) vm: &'a Vm,
    pub(crate) object: &'a At<Object<VmSpec>>,
    pub(crate) now: Timestamp,
}

impl<'a> Step<'a> {
    pub(crate) fn of(view: &'a View, id: VmId, now: Timestamp) -> Option<Self> {
        let vm = view.vms.get(&id)?;
        let object = vm.object.as_ref()?;
        Some(Self {
            view,
            id,
            vm,
            object,
            now,
        })
    }

    /// Nothing is decided for a VM of which something cannot be read: it may run.
    fn is_readable(&self) -> bool {
        !self.view.unreadable_vms().contains(&self.id)
    }

    pub(crate) fn intent(&self) -> VmIntent {
        self.vm
            .intent
            .as_ref()
            .map(|intent| intent.value.clone())
            .unwrap_or_default()
    }

    pub(crate) fn spec(&self) -> &VmSpec {
        &self.object.value.spec
    }

    /// A plan that holds only while the VM is as it was read.
    pub(crate) fn begin(&self, what: &str) -> Plan {
        let mut plan = Plan::new(format!("{what} {}", self.object.value.meta.name));
        self.rely_on_object(&mut plan);
        plan
    }

    /// The same for all of a batch, each of whose histories will show it.
    fn begin_together(&self, steps: &[Self]) -> Plan {
        let is_prepared = self.spec().power == Power::Prepared;
        let names: Vec<&str> = steps
            .iter()
            .map(|step| step.object.value.meta.name.as_str())
            .collect();
        let what = if is_prepared { "prepare" } else { "start" };
        let mut plan = Plan::new(format!("{what} {}", names.join(", ")));
        self.rely_on_object(&mut plan);
        plan
    }

    pub(crate) fn rely_on_object(&self, plan: &mut Plan) {
        plan.rely(key::object(Kind::Vm, self.id.0), self.object.revision);
    }

    pub(crate) fn set_intent(&self, plan: &mut Plan, intent: &VmIntent) {
        let revision = self.vm.intent.as_ref().map_or(0, |intent| intent.revision);
        plan.replace(key::vm_intent(self.id), revision, intent);
    }

    /// An incarnation is open: note its end, or tell its host what is wanted now.
    fn open(&self, open: &Open) -> Decision {
        let intent = self.intent();
        let run = self.vm.runs.get(&open.incarnation);
        let host = intent.host.and_then(|host| self.view.hosts.get(&host));
        let is_fenced = host.is_none_or(|host| host.is_dead());
        let is_moving = self.migration_is_undecided();
        match run {
            Some(run) if run.state == RunState::Removed => self.forget(),
            Some(run)
                if run.state.is_closed() && !is_moving && self.object.value.meta.deleted_at.is_none() =>
            {
                let copies = self.note_copies(open, run);
                copies.unwrap_or_else(|| self.note_end(open, Some(run))).into()
            }
            _ if is_fenced && !is_moving => self.note_end(open, None).into(),
            _ if is_moving || self.object.value.meta.deleted_at.is_some() => Decision::nothing(),
            _ => match run.and_then(|run| self.note_copies(open, run)) {
                Some(plan) => plan.into(),
                None => self.change_goal(open),
            },
        }
    }

    /// Whether a migration of the VM has not yet said where it runs.
    fn migration_is_undecided(&self) -> bool {
        let id = self.vm.intent.as_ref().and_then(|intent| intent.value.migration);
        let phase = id
            .and_then(|id| self.view.migrations.get(&id))
            .map(crate::view::Migration::phase);
        phase.is_some_and(|phase| !phase.is_final() && phase != MigrationPhase::Activated)
    }

    /// The user asked for something else than the host was told.
    fn change_goal(&self, open: &Open) -> Decision {
        let mut intent = self.intent();
        let request = self.spec().power_request;
        let present = self.goal_after_failure(open);
        let present = self.warming_goal(open, present);
        let present = self.building_goal(open, present, &mut intent);
        let goal = if request > intent.answered_request {
            self.goal_in_turn(open, wanted_goal(self.spec(), present, self.now))
        } else {
            present
        };
        if goal_answers(goal, self.spec().power) {
            intent.answered_request = intent.answered_request.max(request);
        }
        let (reboot, answered_reboot) = self.reboot(open, goal, intent.answered_reboot);
        intent.answered_reboot = answered_reboot;
        let copies = self.copies(open, goal);
        intent.open = Some(Open {
            goal,
            reboot,
            copies: copies.clone(),
            // A guest that has gone on after its last migration stands still from now on because it is told to.
            resume: if goal == open.goal {
                open.resume
            } else {
                open.has_to_go_on(self.vm.runs.get(&open.incarnation))
            },
            ..open.clone()
        });
        if self.vm.intent.as_ref().is_some_and(|at| at.value == intent) {
            return Decision::nothing();
        }
        let mut plan = self.begin("change what is wanted of");
        for to in copies.difference(&open.copies).filter_map(|to| to.vm()) {
            self.own_files(&mut plan, to);
        }
        self.set_intent(&mut plan, &intent);
        plan.into()
    }

    /// What is wanted, or what has to be before it: a guest that has still to go on after its last migration can neither
    /// be saved nor hear that it shall shut down, so it goes on first.
    fn goal_in_turn(&self, open: &Open, wanted: Goal) -> Goal {
        // What would end a copy that is under way waits for it; switching off does not, and the copy begins anew.
        if matches!(wanted, Goal::Suspend | Goal::Stop) && self.copies_are_under_way(open) {
            return open.goal;
        }
        let needs_guest = matches!(wanted, Goal::Suspend | Goal::Stop | Goal::Shutdown { .. });
        if needs_guest && open.has_to_go_on(self.vm.runs.get(&open.incarnation)) {
            Goal::Run { paused: false }
        } else {
            wanted
        }
    }

    /// The reboot that is to be made, and the last request for one that needs no further step. A guest that is to stand
    /// still or to end is not rebooted any more.
    fn reboot(&self, open: &Open, goal: Goal, answered: u64) -> (Option<Reboot>, u64) {
        let Some(asked) = self.spec().reboot.filter(|asked| asked.request > answered) else {
            return (None, answered);
        };
        let run = self.vm.runs.get(&open.incarnation);
        let made = run
            .and_then(|run| run.rebooted)
            .map_or(0, |rebooted| rebooted.request);
        if made >= asked.request || goal != (Goal::Run { paused: false }) {
            return (None, asked.request);
        }
        let told = open.reboot.filter(|told| told.request == asked.request);
        let grace_ms = if asked.force { 0 } else { REBOOT_GRACE_MS };
        let reboot = told.unwrap_or_else(|| Reboot {
            request: asked.request,
            force_at: later(self.now, grace_ms),
        });
        (Some(reboot), answered)
    }

    /// A state that could not be saved: the guest went on, and the order is taken back.
    fn goal_after_failure(&self, open: &Open) -> Goal {
        let run = self.vm.runs.get(&open.incarnation);
        let failed = run
            .and_then(|run| run.reason.as_ref())
            .is_some_and(|reason| reason.code == "suspend-failed");
        match open.goal {
            Goal::Suspend | Goal::Stop if failed => Goal::Run { paused: false },
            goal => goal,
        }
    }

    /// An incarnation is closed or fenced: free what it held.
    fn note_end(&self, open: &Open, run: Option<&RunStatus>) -> Plan {
        let mut plan = self.begin("note the end of");
        let mut intent = self.intent();
        let is_copy = open.goal == Goal::Copy;
        let ended = Ended {
            incarnation: open.incarnation,
            at: self.now,
            outcome: run.map_or(Outcome::Fenced, |run| outcome(open.goal, run)),
            reason: run.map_or_else(|| Some(fenced_reason()), |run| run.reason.clone()),
        };
        let saved_bytes = run.and_then(|run| run.saved_bytes);
        let saved = intent.host.zip(saved_bytes).map(|(host, bytes)| SavedState {
            host,
            incarnation: open.incarnation,
            bytes,
            memory_mib: open.memory_mib,
            vcpus: open.vcpus,
            saved_in: run.map_or(SavedIn::Host, |run| run.saved_in),
            cpu_model: self.cpu_model(host),
            build: self.build_that_keeps(open, host),
            refused_by: BTreeSet::new(),
        });
        intent.saved = match &open.start {
            // It was not started, whatever became of its host.
            Start::Saved(saved) if is_copy => Some(saved.clone()),
            _ => saved.or_else(|| unused_state(open, run)),
        };
        // What a migration's target left behind says more than the plug that was pulled at the source after it.
        let keeps_former = intent
            .ended
            .as_ref()
            .is_some_and(|former| former.incarnation > open.incarnation);
        if !keeps_former && !is_copy {
            intent.ended = Some(ended);
        }
        self.give_up_instant(open, run, &mut intent);
        warm::note_refusal(self.view, &mut plan, open, run, intent.host);
        intent.open = None;
        intent.answered_reboot = self.spec().reboot.map_or(0, |asked| asked.request);
        if let Some(host) = intent.host {
            release(self.view, &mut plan, host, self.id, open.incarnation);
            if is_failed_start(open, run) {
                count_failed_start(self.view, &mut plan, host, self.now);
            }
        }
        // What is saved in the datastore holds no host.
        let is_stopped = intent
            .ended
            .as_ref()
            .is_some_and(|ended| ended.outcome == Outcome::Stopped);
        intent.host = intent.host.filter(|_| !is_stopped);
        if let Some(revision) = self.vm.run_revisions.get(&open.incarnation) {
            plan.remove(key::vm_run(self.id, open.incarnation), *revision);
        }
        self.set_intent(&mut plan, &intent);
        plan
    }

    /// The processor that guests of a host see.
    fn cpu_model(&self, host: HostId) -> Option<String> {
        let status = self.view.hosts.get(&host)?.status.as_ref()?;
        Some(status.value.cpu_model.clone())
    }

    /// What a warm form's memory can be used with.
    fn build_that_keeps(&self, open: &Open, host: HostId) -> Option<String> {
        let status = self.view.hosts.get(&host)?.status.as_ref()?;
        (open.goal == Goal::Warm).then(|| status.value.build())
    }

    /// Whether it was asked for something since the last time.
    pub(crate) fn is_asked(&self, intent: &VmIntent) -> bool {
        self.spec().power_request > intent.answered_request
    }

    /// Nothing runs, and it shall be started.
    pub(crate) fn starts(&self) -> bool {
        let intent = self.intent();
        let ended = intent.ended.as_ref().map(|ended| ended.outcome);
        let is_wanted = self.is_asked(&intent) || matches!(ended, None | Some(Outcome::Fenced));
        let is_there = self.object.value.meta.deleted_at.is_none() && intent.open.is_none();
        // A migration that is not over may still have a target that is not closed.
        let is_clear = || {
            let mut migrations = self.view.active_migrations(self.id);
            migrations.all(|(_, migration)| migration.intent.is_none())
        };
        is_there
            && self.is_readable()
            && is_wanted
            && !self.is_kept_warm()
            && !self.has_been_built()
            && self.spec().power.needs_host()
            && is_clear()
    }

    /// Nothing runs, and it is not to be started.
    fn closed(&self) -> Decision {
        let intent = self.intent();
        let ended = intent.ended.as_ref().map(|ended| ended.outcome);
        let is_off = self.is_asked(&intent) && self.spec().power == Power::Off;
        if is_off && ended.is_some_and(|ended| ended != Outcome::Off) {
            return self.give_up().into();
        }
        self.copy_at_rest()
    }

    /// Nothing runs, and it shall be off: what was saved or went wrong is given up.
    fn give_up(&self) -> Plan {
        let mut intent = self.intent();
        intent.saved = None;
        intent.answered_request = self.spec().power_request;
        intent.ended = intent.ended.map(|ended| Ended {
            outcome: Outcome::Off,
            reason: None,
            ..ended
        });
        let mut plan = self.begin("switch off");
        self.set_intent(&mut plan, &intent);
        plan
    }

    /// Chooses a host and grants the next incarnation on it; for its whole batch, if it is one of a batch, or else for
    /// these others too.
    fn place(&self, others: &[VmId]) -> Decision {
        match self.awaited_copy() {
            None => {}
            Some(Awaited::Comes(reason)) => {
                return self.keep_refusal(&[self.starting()], &refused_for(reason, self.now));
            }
            Some(Awaited::NeverComes(reason)) => return self.fail_copy(reason).into(),
        }
        let members = match together(self.view, self.id, self.vm, self.spec()) {
            Together::With(members) => members,
            Together::Incomplete(reason) => {
                return self.keep_refusal(&[self.starting()], &refused_for(reason, self.now));
            }
        };
        let steps: Vec<Self> = members
            .iter()
            .filter_map(|id| Step::of(self.view, *id, self.now))
            .collect();
        let all: Vec<Starting<'_>> = steps.iter().map(Step::starting).collect();
        let requests: Vec<Request<'_>> = all.iter().map(|starting| starting.request).collect();
        let others: Vec<Self> = match members[..] {
            [_] => others.iter().filter_map(|id| self.lone(*id)).collect(),
            _ => Vec::new(),
        };
        let rules = steps.iter().chain(&others).map(|step| &step.spec().placement);
        let sees = Sees::for_rules(rules);
        let mut fleet = Fleet::new(host_views(self.view, sees, self.now));
        match fleet.place_all(&requests, self.now) {
            Err((at, record)) => self.keep_refusal(&all, &of_batch(&all, at, record)),
            Ok(_) if !steps.iter().all(Step::images_are_ready) => Decision::wait_for_room(),
            Ok(placed) => {
                let mut plan = self.begin_together(&steps);
                for (starting, placed) in all.into_iter().zip(placed) {
                    starting.grant(&mut plan, placed);
                }
                grant_beside(&mut plan, &mut fleet, &others);
                plan.into()
            }
        }
    }

    /// Another VM that waits for a place, and for no other VM's.
    fn lone(&self, id: VmId) -> Option<Self> {
        let step = Step::of(self.view, id, self.now).filter(|step| step.id != self.id && step.starts())?;
        let is_lone = step.spec().placement.batch.is_none();
        let is_next = operation::plan(self.view, id, self.now).is_none();
        let has_disk = step.awaited_copy().is_none();
        (is_lone && is_next && has_disk && step.images_are_ready()).then_some(step)
    }

    /// What it is started with.
    fn starting(&self) -> Starting<'_> {
        let mut intent = self.intent();
        // A state on the disk of a dead host is lost: what is left is the VM's own disk.
        let is_lost = |saved: &SavedState| {
            saved.saved_in.is_host() && self.view.hosts.get(&saved.host).is_none_or(|host| host.is_dead())
        };
        intent.saved = intent.saved.filter(|saved| !is_lost(saved));
        let saved = self.vm.intent.as_ref().and_then(|at| at.value.saved.as_ref());
        let saved = saved.filter(|saved| !is_lost(saved));
        let request = start_request(&self.object.value, saved);
        Starting {
            step: self,
            intent,
            request,
        }
    }

    fn images_are_ready(&self) -> bool {
        let is_ready = |image| self.view.image_content(image).is_some();
        flatten::images(self.vm).all(is_ready)
    }

    /// Keeps why no host fits, once: the same refusal is not written again.
    fn keep_refusal(&self, all: &[Starting<'_>], record: &PlacementRecord) -> Decision {
        let same = |kept: &PlacementRecord| kept.chosen.is_none() && kept.refused == record.refused;
        let mut plan = self.begin("find no host for");
        for starting in all {
            let intent = &starting.intent;
            if !intent.placement.as_ref().is_some_and(same) {
                starting.step.rely_on_object(&mut plan);
                starting.step.set_intent(
                    &mut plan,
                    &VmIntent {
                        placement: Some(record.clone()),
                        ..intent.clone()
                    },
                );
            }
        }
        if !plan.writes.is_empty() {
            return plan.into();
        }
        if all.first().is_some_and(|first| first.step.id != self.id) {
            return Decision::nothing();
        }
        Decision {
            look_again_at: avoided_until(self.view, self.now),
            ..Decision::wait_for_room()
        }
    }
}

/// Gives those a place for which there is one.
fn grant_beside<'s>(plan: &mut Plan, fleet: &mut Fleet<'s>, others: &'s [Step<'s>]) {
    let mut granted = 1;
    for step in others {
        if plan.relies_on.len() >= RELIES_MAX {
            break;
        }
        let starting = step.starting();
        if let Ok(placed) = fleet.place(&starting.request, step.now) {
            starting.grant(plan, placed);
            granted += 1;
        }
    }
    if granted > 1 {
        // Their users have nothing to do with each other.
        plan.action = format!("start {granted} VMs");
    }
}

/// The saved state that an incarnation was to start from, if its guest never executed: it can be tried again.
fn unused_state(open: &Open, run: Option<&RunStatus>) -> Option<SavedState> {
    match &open.start {
        Start::Saved(saved) if run.is_some_and(|run| !run.ran) => Some(saved.clone()),
        _ => None,
    }
}

/// What a host shall do with a new incarnation.
fn first_goal(power: Power) -> Goal {
    match power {
        Power::Prepared => Goal::Prepare,
        power => Goal::Run {
            paused: power == Power::Paused,
        },
    }
}

/// A VM that shall start.
struct Starting<'s> {
    step: &'s Step<'s>,
    /// The controller's part before, without a saved state that is lost.
    intent: VmIntent,
    request: Request<'s>,
}

impl Starting<'_> {
    /// Grants the next incarnation on the chosen host.
    fn grant(self, plan: &mut Plan, placed: Placed) {
        let Self {
            step,
            mut intent,
            request,
        } = self;
        let spec = step.spec();
        let memory_mib = intent
            .saved
            .as_ref()
            .map_or(spec.memory_mib, |saved| saved.memory_mib);
        let incarnation = intent.last_incarnation.next();
        let intent_before = intent.clone();
        step.rely_on_object(plan);
        rest_on(step.view, plan, step.id, &placed);
        intent.last_incarnation = incarnation;
        intent.host = Some(placed.host);
        intent.has_volumes = true;
        intent.answered_request = spec.power_request;
        intent.placement = Some(placed.record);
        intent.ended = None;
        let (first, layer, booted_instead) = step.first_start(&intent_before);
        intent.layer = layer;
        intent.booted_instead = booted_instead;
        if let (Start::Warm { .. }, Some(warm)) =
            (&first, layer.and_then(|id| Step::of(step.view, id, step.now)))
        {
            // It is not deleted meanwhile.
            warm.rely_on_object(plan);
        }
        intent.open = Some(Open {
            incarnation,
            granted_at: step.now,
            goal: first_goal(spec.power),
            start: intent.saved.take().map_or(first, Start::Saved),
            memory_mib,
            vcpus: request.vcpus,
            resume: false,
            reboot: None,
            copies: BTreeSet::new(),
        });
        let reserved = Reserved {
            incarnation,
            memory_mib: request.memory_mib,
            vcpus: request.vcpus,
        };
        reserve(step.view, plan, placed.host, step.id, reserved);
        step.set_intent(plan, &intent);
    }
}

/// A record of a VM that is not placed whatever the hosts are.
fn refused_for(reason: Reason, now: Timestamp) -> PlacementRecord {
    PlacementRecord {
        decided_at: now,
        chosen: None,
        considered: 0,
        refused: vec![RefusedGroup {
            count: 0,
            hosts: Vec::new(),
            reason,
        }],
    }
}

/// The record of a batch for one of which there is no host.
fn of_batch(all: &[Starting<'_>], at: usize, mut record: PlacementRecord) -> PlacementRecord {
    if let (2.., Some(starting)) = (all.len(), all.get(at)) {
        let name = &starting.step.object.value.meta.name;
        let message = format!(
            "{} VMs are placed together or not at all: there is room for {at} of them, and none for {name}",
            all.len()
        );
        let group = RefusedGroup {
            count: 0,
            hosts: Vec::new(),
            reason: Reason::new("batch-does-not-fit", message),
        };
        record.refused.insert(0, group);
    }
    record
}

/// What a host shall do, for what the user wants. A guest that was told to end is not told otherwise.
fn wanted_goal(spec: &VmSpec, present: Goal, now: Timestamp) -> Goal {
    match (spec.power, present) {
        (Power::Off | Power::Hold, present) if spec.force && present != Goal::Copy => Goal::Kill,
        (_, Goal::Kill) => Goal::Kill,
        // It ends by itself.
        (_, Goal::Prepare) => Goal::Prepare,
        (_, Goal::Copy) => Goal::Copy,
        (_, Goal::Warm) => Goal::Warm,
        (_, Goal::Shutdown { force_at }) => Goal::Shutdown { force_at },
        (Power::Off | Power::Hold, _) => Goal::Shutdown {
            force_at: later(now, SHUTDOWN_GRACE_MS),
        },
        (_, Goal::Suspend) => Goal::Suspend,
        (_, Goal::Stop) => Goal::Stop,
        (Power::Suspended, _) => Goal::Suspend,
        (Power::Stopped, _) => Goal::Stop,
        (Power::Running | Power::Prepared, Goal::Run { .. }) => Goal::Run { paused: false },
        (Power::Paused, Goal::Run { .. }) => Goal::Run { paused: true },
    }
}

/// Whether a goal is what was asked for, so that the request needs no further step.
fn goal_answers(goal: Goal, power: Power) -> bool {
    match goal {
        Goal::Run { .. } => matches!(power, Power::Running | Power::Paused),
        Goal::Shutdown { .. } | Goal::Kill => matches!(power, Power::Off | Power::Hold),
        Goal::Suspend => power == Power::Suspended,
        Goal::Stop => power == Power::Stopped,
        Goal::Prepare => power == Power::Prepared,
        // What is asked of it is done when it has ended.
        Goal::Copy | Goal::Warm => false,
    }
}

/// What an ended incarnation leaves behind.
pub(crate) fn outcome(goal: Goal, run: &RunStatus) -> Outcome {
    let by_itself = run
        .reason
        .as_ref()
        .is_some_and(|reason| reason.code == "guest-shutdown");
    match goal {
        _ if run.saved_bytes.is_some() => match run.saved_in {
            SavedIn::Host => Outcome::Suspended,
            SavedIn::Datastore => Outcome::Stopped,
        },
        Goal::Shutdown { .. } | Goal::Kill => Outcome::Off,
        Goal::Prepare if run.reason.is_none() => Outcome::Off,
        Goal::Run { .. } | Goal::Suspend | Goal::Stop if by_itself => Outcome::Off,
        Goal::Run { .. } | Goal::Suspend | Goal::Stop | Goal::Prepare | Goal::Copy | Goal::Warm => {
            Outcome::Failed
        }
    }
}

/// Whether an incarnation ended before its guest executed, and nobody had asked for that.
fn is_failed_start(open: &Open, run: Option<&RunStatus>) -> bool {
    let failed = |run: &RunStatus| !run.ran && outcome(open.goal, run) == Outcome::Failed;
    let is_fresh = !matches!(open.start, Start::Stream | Start::Warm { .. });
    is_fresh && open.goal != Goal::Copy && run.is_some_and(failed)
}

/// Counts a start that failed on a host.
fn count_failed_start(view: &View, plan: &mut Plan, host: HostId, now: Timestamp) {
    let before = failed_starts(view, host).map_or(0, |(in_row, _)| in_row);
    let at = view.hosts.get(&host).and_then(|host| host.intent.as_ref());
    let intent = HostIntent {
        failed_starts: Some(FailedStarts {
            in_row: before.saturating_add(1),
            last_at: now,
        }),
        ..at.map(|at| at.value.clone()).unwrap_or_default()
    };
    plan.replace(key::host_intent(host), at.map_or(0, |at| at.revision), &intent);
}

fn fenced_reason() -> Reason {
    Reason::new("host-dead", "its host was declared dead while it held the VM")
}

/// A time so many milliseconds later.
pub(crate) fn later(now: Timestamp, ms: i64) -> Timestamp {
    now.checked_add(jiff::SignedDuration::from_millis(ms))
        .unwrap_or(now)
}

/// Takes room on a host. The plan then holds only while the host, its operator's wishes and its reservations are as they
/// were read: whatever else comes to the host, or makes it unfit, is decided before or after, not at the same time.
pub(crate) fn reserve(view: &View, plan: &mut Plan, host: HostId, vm: VmId, reserved: Reserved) {
    let object = view.hosts.get(&host).and_then(|host| host.object.as_ref());
    plan.rely(
        key::object(Kind::Host, host.0),
        object.map_or(0, |at| at.revision),
    );
    change_reservations(view, plan, host, |all| {
        all.vms.insert(vm, reserved);
    });
}

/// Gives room on a host back, if this incarnation holds it.
pub(crate) fn release(view: &View, plan: &mut Plan, host: HostId, vm: VmId, incarnation: Incarnation) {
    let reservations = view.hosts.get(&host).and_then(|host| host.reservations.as_ref());
    let held = reservations.and_then(|at| at.value.vms.get(&vm));
    if held.is_some_and(|held| held.incarnation == incarnation) {
        change_reservations(view, plan, host, |all| {
            all.vms.remove(&vm);
        });
    }
}

fn change_reservations(view: &View, plan: &mut Plan, host: HostId, change: impl FnOnce(&mut Reservations)) {
    let at = view.hosts.get(&host).and_then(|host| host.reservations.as_ref());
    let key = key::host_reservations(host);
    // Another VM of the same plan may have come to the host.
    let planned = plan
        .writes
        .get(&key)
        .and_then(|bytes| record::decode(bytes.as_ref()?).ok());
    let mut all: Reservations = planned
        .or_else(|| at.map(|at| at.value.clone()))
        .unwrap_or_default();
    change(&mut all);
    plan.replace(key, at.map_or(0, |at| at.revision), &all);
}
