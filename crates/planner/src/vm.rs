//! The next step of a VM: grant an incarnation, change what its host shall do, take note of its end, forget it.
//!
//! A new incarnation is granted only when every earlier one is closed or fenced: none is open, and no migration of the VM
//! that might still have a target is under way.

use model::host::{HostStatus, Reservations, Reserved};
use model::migration::MigrationPhase;
use model::report::{RunState, RunStatus};
use model::vm::{Ended, Goal, Open, Outcome, PlacementRecord, Power, SavedState, Start, VmIntent, VmSpec};
use model::{HostId, Incarnation, Kind, Object, Reason, Timestamp, VmId, key};
use scheduler::{Closed, HostView, Request};

pub use scheduler::QEMU_OVERHEAD_MIB;

use crate::plan::{Decision, Plan};
use crate::view::{At, Host, View, Vm};

/// How long a guest has to shut down before the plug is pulled.
pub const SHUTDOWN_GRACE_MS: i64 = 60_000;

/// What is to be done about a VM now.
pub fn plan(view: &View, id: VmId, now: Timestamp) -> Decision {
    let Some(vm) = view.vms.get(&id) else {
        return Decision::nothing();
    };
    let Some(object) = &vm.object else {
        return Decision::nothing();
    };
    let step = Step {
        view,
        id,
        vm,
        object,
        now,
    };
    let intent = step.intent();
    match &intent.open {
        Some(open) => step.open(open),
        None if object.value.meta.deleted_at.is_some() => step.deleted(),
        None => step.closed(),
    }
}

/// Everything that one step is decided on.
struct Step<'a> {
    view: &'a View,
    id: VmId,
    vm: &'a Vm,
    object: &'a At<Object<VmSpec>>,
    now: Timestamp,
}

impl Step<'_> {
    fn intent(&self) -> VmIntent {
        self.vm
            .intent
            .as_ref()
            .map(|intent| intent.value.clone())
            .unwrap_or_default()
    }

    fn spec(&self) -> &VmSpec {
        &self.object.value.spec
    }

    /// A plan that holds only while the VM is as it was read.
    fn begin(&self, what: &str) -> Plan {
        let mut plan = Plan::new(format!("{what} {}", self.object.value.meta.name));
        plan.rely(key::object(Kind::Vm, self.id.0), self.object.revision);
        plan
    }

    fn set_intent(&self, plan: &mut Plan, intent: &VmIntent) {
        let revision = self.vm.intent.as_ref().map_or(0, |intent| intent.revision);
        plan.replace(key::vm_intent(self.id), revision, intent);
    }

    /// An incarnation is open: note its end, or tell its host what is wanted now.
    fn open(&self, open: &Open) -> Decision {
        let intent = self.intent();
        let run = self.vm.runs.get(&open.incarnation);
        let host = intent.host.and_then(|host| self.view.hosts.get(&host));
        let is_fenced = host.is_none_or(Host::is_dead);
        let is_moving = self.migration_is_undecided();
        match run {
            Some(run) if run.state == RunState::Removed => self.forget(),
            Some(run)
                if run.state.is_closed() && !is_moving && self.object.value.meta.deleted_at.is_none() =>
            {
                self.note_end(open, Some(run)).into()
            }
            _ if is_fenced && !is_moving => self.note_end(open, None).into(),
            _ if is_moving || self.object.value.meta.deleted_at.is_some() => Decision::nothing(),
            _ => self.change_goal(open),
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
        let goal = if request > intent.answered_request {
            wanted_goal(self.spec(), present, self.now)
        } else {
            present
        };
        let answered = goal_answers(goal, self.spec().power);
        if goal == open.goal && !(answered && request > intent.answered_request) {
            return Decision::nothing();
        }
        if answered {
            intent.answered_request = request;
        }
        intent.open = Some(Open { goal, ..open.clone() });
        let mut plan = self.begin("change what is wanted of");
        self.set_intent(&mut plan, &intent);
        plan.into()
    }

    /// A state that could not be saved: the guest went on, and the order is taken back.
    fn goal_after_failure(&self, open: &Open) -> Goal {
        let run = self.vm.runs.get(&open.incarnation);
        let failed = run
            .and_then(|run| run.reason.as_ref())
            .is_some_and(|reason| reason.code == "suspend-failed");
        match open.goal {
            Goal::Suspend if failed => Goal::Run { paused: false },
            goal => goal,
        }
    }

    /// An incarnation is closed or fenced: free what it held.
    fn note_end(&self, open: &Open, run: Option<&RunStatus>) -> Plan {
        let mut plan = self.begin("note the end of");
        let mut intent = self.intent();
        let ended = Ended {
            incarnation: open.incarnation,
            at: self.now,
            outcome: run.map_or(Outcome::Fenced, |run| outcome(open.goal, run)),
            reason: run.map_or_else(|| Some(fenced_reason()), |run| run.reason.clone()),
        };
        let saved_bytes = run.and_then(|run| run.saved_bytes);
        intent.saved = intent.host.zip(saved_bytes).map(|(host, bytes)| SavedState {
            host,
            incarnation: open.incarnation,
            bytes,
            memory_mib: open.memory_mib,
            vcpus: open.vcpus,
        });
        // What a migration's target left behind says more than the plug that was pulled at the source after it.
        let keeps_former = intent
            .ended
            .as_ref()
            .is_some_and(|former| former.incarnation > open.incarnation);
        if !keeps_former {
            intent.ended = Some(ended);
        }
        intent.open = None;
        if let Some(host) = intent.host {
            release(self.view, &mut plan, host, self.id, open.incarnation);
        }
        if let Some(revision) = self.vm.run_revisions.get(&open.incarnation) {
            plan.remove(key::vm_run(self.id, open.incarnation), *revision);
        }
        self.set_intent(&mut plan, &intent);
        plan
    }

    /// Nothing runs: start it if that is wanted.
    fn closed(&self) -> Decision {
        let intent = self.intent();
        let spec = self.spec();
        let asked = spec.power_request > intent.answered_request;
        let ended = intent.ended.as_ref().map(|ended| ended.outcome);
        let starts = matches!(spec.power, Power::Running | Power::Paused)
            && (asked || matches!(ended, None | Some(Outcome::Fenced)));
        // A migration that is not over may still have a target that is not closed.
        let is_clear = self
            .view
            .active_migrations(self.id)
            .all(|(_, migration)| migration.intent.is_none());
        if starts && is_clear {
            self.place()
        } else {
            Decision::nothing()
        }
    }

    /// Chooses a host and grants the next incarnation on it.
    fn place(&self) -> Decision {
        let mut intent = self.intent();
        let spec = self.spec();
        // A state on the disk of a dead host is lost: what is left is the VM's own disk.
        let is_lost = |saved: &SavedState| self.view.hosts.get(&saved.host).is_none_or(Host::is_dead);
        intent.saved = intent.saved.filter(|saved| !is_lost(saved));
        let saved = intent.saved.clone();
        let (memory_mib, vcpus) = saved.as_ref().map_or((spec.memory_mib, spec.vcpus), |saved| {
            (saved.memory_mib, saved.vcpus)
        });
        let request = Request {
            memory_mib: memory_mib.saturating_add(QEMU_OVERHEAD_MIB),
            vcpus,
            only: saved.as_ref().map(|saved| saved.host).or(spec.placement.host),
            except: None,
            labels: &spec.placement.host_labels,
            cpu_model: None,
        };
        let (chosen, record) = scheduler::place(&request, host_views(self.view), self.now);
        let Some(host) = chosen.filter(|_| self.image_is_ready()) else {
            return self.keep_refusal(intent, record);
        };
        let incarnation = intent.last_incarnation.next();
        intent.last_incarnation = incarnation;
        intent.host = Some(host);
        intent.has_volumes = true;
        intent.answered_request = spec.power_request;
        intent.placement = Some(record);
        intent.ended = None;
        intent.open = Some(Open {
            incarnation,
            granted_at: self.now,
            goal: Goal::Run {
                paused: spec.power == Power::Paused,
            },
            start: intent.saved.take().map_or(Start::Disk, Start::Saved),
            memory_mib,
            vcpus,
            resume: false,
        });
        let mut plan = self.begin("start");
        reserve(
            self.view,
            &mut plan,
            host,
            self.id,
            Reserved {
                incarnation,
                memory_mib: request.memory_mib,
                vcpus,
            },
        );
        self.set_intent(&mut plan, &intent);
        plan.into()
    }

    fn image_is_ready(&self) -> bool {
        let image = self
            .view
            .images
            .get(&self.spec().image.0)
            .and_then(|image| image.status.as_ref());
        image.is_some_and(|status| status.value.content.is_some())
    }

    /// Keeps why no host fits, once: the same refusal is not written again.
    fn keep_refusal(&self, mut intent: VmIntent, record: PlacementRecord) -> Decision {
        let same = |kept: &PlacementRecord| kept.chosen.is_none() && kept.refused == record.refused;
        if record.chosen.is_some() || intent.placement.as_ref().is_some_and(same) {
            return Decision::wait_for_room();
        }
        intent.placement = Some(record);
        let mut plan = self.begin("find no host for");
        self.set_intent(&mut plan, &intent);
        plan.into()
    }

    /// Nothing runs and the VM is to go: its volumes first, then its records.
    fn deleted(&self) -> Decision {
        let intent = self.intent();
        let removed = self.vm.runs.values().any(|run| run.state == RunState::Removed);
        if !intent.has_volumes || removed {
            return self.forget();
        }
        let lost = |host: HostId| self.view.hosts.get(&host).is_none_or(Host::is_dead);
        if intent.host.is_some_and(|host| !lost(host)) {
            return Decision::nothing();
        }
        // Any other host that sees the datastore can remove them.
        let Some(other) = self.view.hosts.keys().copied().find(|id| !lost(*id)) else {
            return Decision::nothing();
        };
        let mut plan = self.begin("find another host to remove");
        self.set_intent(
            &mut plan,
            &VmIntent {
                host: Some(other),
                ..intent
            },
        );
        plan.into()
    }

    /// All that the VM owned is gone: its records go too.
    fn forget(&self) -> Decision {
        let intent = self.intent();
        let meta = &self.object.value.meta;
        let is_clear = self
            .view
            .active_migrations(self.id)
            .all(|(_, migration)| migration.intent.is_none());
        if !is_clear {
            return Decision::nothing();
        }
        let mut plan = self.begin("remove");
        plan.remove(key::object(Kind::Vm, self.id.0), self.object.revision);
        if let Some(at) = &self.vm.intent {
            plan.remove(key::vm_intent(self.id), at.revision);
        }
        for (incarnation, revision) in &self.vm.run_revisions {
            plan.remove(key::vm_run(self.id, *incarnation), *revision);
        }
        plan.writes.insert(
            key::name_index(Kind::Vm, meta.project.as_deref(), &meta.name),
            None,
        );
        for nic in &self.spec().nics {
            if let Some(address) = nic.address {
                plan.writes
                    .insert(key::network_address(nic.network, address), None);
            }
        }
        if let (Some(host), Some(open)) = (intent.host, &intent.open) {
            release(self.view, &mut plan, host, self.id, open.incarnation);
        }
        plan.into()
    }
}

/// What a host shall do, for what the user wants. A guest that was told to end is not told otherwise.
fn wanted_goal(spec: &VmSpec, present: Goal, now: Timestamp) -> Goal {
    match (spec.power, present) {
        (Power::Off | Power::Hold, _) if spec.force => Goal::Kill,
        (_, Goal::Kill) => Goal::Kill,
        (_, Goal::Shutdown { force_at }) => Goal::Shutdown { force_at },
        (Power::Off | Power::Hold, _) => Goal::Shutdown {
            force_at: later(now, SHUTDOWN_GRACE_MS),
        },
        (Power::Suspended, _) => Goal::Suspend,
        (Power::Running | Power::Paused, Goal::Suspend) => Goal::Suspend,
        (Power::Running, Goal::Run { .. }) => Goal::Run { paused: false },
        (Power::Paused, Goal::Run { .. }) => Goal::Run { paused: true },
    }
}

/// Whether a goal is what was asked for, so that the request needs no further step.
fn goal_answers(goal: Goal, power: Power) -> bool {
    match goal {
        Goal::Run { .. } => matches!(power, Power::Running | Power::Paused),
        Goal::Shutdown { .. } | Goal::Kill => matches!(power, Power::Off | Power::Hold),
        Goal::Suspend => power == Power::Suspended,
    }
}

/// What an ended incarnation leaves behind.
pub(crate) fn outcome(goal: Goal, run: &RunStatus) -> Outcome {
    let by_itself = run
        .reason
        .as_ref()
        .is_some_and(|reason| reason.code == "guest-shutdown");
    match goal {
        _ if run.saved_bytes.is_some() => Outcome::Suspended,
        Goal::Shutdown { .. } | Goal::Kill => Outcome::Off,
        Goal::Run { .. } | Goal::Suspend if by_itself => Outcome::Off,
        Goal::Run { .. } | Goal::Suspend => Outcome::Failed,
    }
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
    plan.rely(key::object(Kind::Host, host.0), object.map_or(0, |at| at.revision));
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
    let mut all = at.map(|at| at.value.clone()).unwrap_or_default();
    change(&mut all);
    plan.replace(key::host_reservations(host), at.map_or(0, |at| at.revision), &all);
}

/// The hosts as placement sees them.
pub fn host_views(view: &View) -> impl Iterator<Item = HostView<'_>> {
    view.hosts.iter().filter_map(|(id, host)| {
        let object = &host.object.as_ref()?.value;
        let status = host.status.as_ref().map(|status| &status.value);
        let reservations = host.reservations.as_ref().map(|at| &at.value);
        Some(HostView {
            id: *id,
            name: &object.meta.name,
            labels: &object.meta.labels,
            closed: closed(host, status),
            memory_mib: status.map_or(0, |status| status.memory_mib.saturating_sub(status.reserved_mib)),
            reserved_mib: reservations.map_or(0, Reservations::memory_mib),
            cpus: status.map_or(0, |status| status.cpus),
            reserved_vcpus: reservations.map_or(0, Reservations::vcpus),
            cpu_model: status.map_or("", |status| status.cpu_model.as_str()),
        })
    })
}

fn closed(host: &Host, status: Option<&HostStatus>) -> Option<Closed> {
    let spec = &host.object.as_ref()?.value.spec;
    if host.is_dead() {
        return Some(Closed::Dead);
    }
    if status.is_none() {
        return Some(Closed::NotReported);
    }
    if host.is_silent() {
        return Some(Closed::Silent);
    }
    if spec.drain.is_some() {
        return Some(Closed::Draining);
    }
    spec.cordoned.then_some(Closed::Cordoned)
}
