//! Rows of *run N*: the boot, the steady state, a guest that stands still or has ended.

use model::Reason;
use model::document::{Order, StartFrom};
use model::vm::SavedIn;

use super::memory::Announcement;
use super::{Core, Desired, Plan, STEADY_MS};
use crate::column::is_loaded;
use crate::types::{Effect, GuestEnd, Mark, MigrationWord, Now, QemuState, RunStatusWord};

/// How long a guest whose agent has not answered yet goes without a look.
const AGENT_MS: u64 = 500;

/// How long something that QEMU is doing to start a guest goes without a look.
const BOOT_MS: u64 = 30;

/// Close first, then kill: the guest executes no more, and so the reason cannot be lost in between.
pub(super) fn end(state: &QemuState) -> Plan {
    let is_panic = state.run == RunStatusWord::GuestPanicked || state.ended == Some(GuestEnd::Panic);
    let reason = if is_panic {
        Reason::new(
            "guest-panic",
            "the guest's kernel panicked: see its console, then start it again",
        )
    } else {
        Reason::new(
            "guest-shutdown",
            "the guest powered itself off: start it to have it again",
        )
    };
    Plan::mark(Mark::Closed {
        reason: Some(reason),
        saved_bytes: None,
        saved_in: SavedIn::Host,
    })
}

impl Core {
    /// Make what it needs, mark it launched, and start its process.
    pub(super) fn plan_launch(&self, as_target: bool) -> Plan {
        if let Some(fault) = self.memory.fault.clone() {
            return self.wind_up(Some(fault));
        }
        if !self.memory.is_prepared {
            return Plan::act(Effect::Prepare { as_target });
        }
        let incoming = as_target || self.saved_start().is_some() || self.warm_start().is_some();
        Plan::bind(Mark::Launched, Effect::Spawn { incoming })
    }

    /// From the process to the guest's first instruction.
    pub(super) fn plan_booting(&mut self, state: &QemuState) -> Plan {
        if let Some(fault) = self.memory.fault.clone() {
            return Plan::mark(Mark::Closed {
                reason: Some(fault),
                saved_bytes: None,
                saved_in: SavedIn::Host,
            });
        }
        if state.is_incoming && !is_loaded(state) {
            return self.plan_load(state);
        }
        if self.is_paused_by_spec() {
            return Plan::wait_ms(STEADY_MS);
        }
        if state.is_incoming && self.saved_start().is_some() && !self.marks.used_saved {
            return Plan::mark(Mark::UsedSaved);
        }
        if state.is_incoming && self.saved_start().is_some() {
            // The network may know it from where it was saved.
            self.memory.arrive();
        }
        self.continue_guest()
    }

    fn plan_load(&self, state: &QemuState) -> Plan {
        if let Some(plan) = self.plan_load_warm(state) {
            return plan;
        }
        let Some(StartFrom::Saved {
            incarnation,
            saved_in,
        }) = self.saved_start()
        else {
            return Plan::wait_ms(STEADY_MS);
        };
        match state.migration {
            MigrationWord::None => Plan::act(Effect::LoadSaved {
                incarnation: *incarnation,
                saved_in: *saved_in,
            }),
            MigrationWord::Failed | MigrationWord::Cancelled => {
                let cause = state.migration_error.as_deref().unwrap_or("QEMU gave no reason");
                Plan::mark(Mark::Closed {
                    reason: Some(not_loaded(cause)),
                    saved_bytes: None,
                    saved_in: SavedIn::Host,
                })
            }
            _ => Plan::wait_ms(BOOT_MS),
        }
    }

    /// Mark it as run, open its ports, let it run. A guest that may send finds its ports open; one that is nobody of its own
    /// yet may not.
    pub(super) fn continue_guest(&self) -> Plan {
        if !self.marks.ran {
            Plan::mark(Mark::Ran)
        } else if !self.memory.ports_are_open && !self.lacks_identity() {
            Plan::act(Effect::OpenPorts)
        } else {
            Plan::act(Effect::Continue)
        }
    }

    /// `cont`, unless the spec says that the guest shall stand still.
    pub(super) fn continue_as_specified(&self) -> Plan {
        if self.is_paused_by_spec() {
            Plan::wait_ms(STEADY_MS)
        } else {
            self.continue_guest()
        }
    }

    /// As any other here, it stands still if it shall, and what is made beside it is made: its migration is no more.
    pub(super) fn go_on_after_failure(&self, state: &QemuState) -> Plan {
        let beside = self.plan_beside_guest(state).filter(|_| self.is_paused_by_spec());
        beside.unwrap_or_else(|| self.continue_as_specified())
    }

    /// N is here, and stays: see that it is as the spec says and that the network reaches it.
    pub(super) fn keep(&self, state: &QemuState) -> Plan {
        let is_running = state.run == RunStatusWord::Running;
        if is_running && !self.marks.ran {
            Plan::mark(Mark::Ran)
        } else if is_running && self.is_paused_by_spec() {
            Plan::act(Effect::Pause)
        } else if let Some(plan) = self.plan_identity().filter(|_| is_running) {
            plan
        } else if is_running && !self.memory.ports_are_open {
            Plan::act(Effect::OpenPorts)
        } else if is_running && self.memory.announcement == Announcement::Due {
            Plan::act(Effect::Announce)
        } else if let Some(effect) = self.remove_used(is_running) {
            Plan::act(effect)
        } else if let Some(plan) = self.plan_beside_guest(state) {
            plan
        } else if is_running && self.is_to_be_built() {
            Plan::act(Effect::Build)
        } else if self.memory.guest.ready {
            Plan::wait_ms(STEADY_MS)
        } else {
            Plan::wait_ms(AGENT_MS)
        }
    }

    /// Whether something is still to be done in a guest of whose disk a template is made.
    fn is_to_be_built(&self) -> bool {
        let is_asked =
            matches!(&self.desired, Desired::Ordered(document) if document.machine.build.is_some());
        is_asked && self.memory.guest.ready && self.memory.built.is_none()
    }

    /// A state that was used is of no more use, and is large.
    fn remove_used(&self, is_running: bool) -> Option<Effect> {
        let is_due = is_running && self.marks.used_saved && !self.memory.saved_is_removed;
        match self.saved_start().filter(|_| is_due)? {
            StartFrom::Saved {
                incarnation,
                saved_in,
            } => Some(Effect::RemoveSaved {
                incarnation: *incarnation,
                saved_in: *saved_in,
            }),
            StartFrom::Disk | StartFrom::Never | StartFrom::Warm { .. } => None,
        }
    }

    pub(super) fn plan_paused(&mut self, now: Now, state: &QemuState) -> Plan {
        match state.run {
            // Only a reset helps, and that is not ours to decide.
            RunStatusWord::InternalError => Plan::wait_ms(STEADY_MS),
            // What a failed copy took may be the room that the guest lacks.
            RunStatusWord::IoError if self.ends_copy().is_some() => {
                self.ends_copy().unwrap_or_else(Plan::rest)
            }
            RunStatusWord::IoError if !self.is_paused_by_spec() => {
                let at_us = self.memory.disk_retry.due_us(now.monotonic_us);
                let wait_ms = at_us.saturating_sub(now.monotonic_us).div_ceil(1000);
                if wait_ms > 0 {
                    Plan::wait_ms(wait_ms)
                } else {
                    Plan::act(Effect::Continue)
                }
            }
            _ if self.is_paused_by_spec() => self
                .plan_beside_guest(state)
                .unwrap_or_else(|| Plan::wait_ms(STEADY_MS)),
            _ => self.continue_guest(),
        }
    }

    /// Why there is no process where there should be one.
    pub(super) fn exit_reason(&self) -> Option<Reason> {
        let fault = self.memory.fault.clone();
        Some(fault.unwrap_or_else(|| {
            let when = if self.marks.ran {
                "while its guest ran"
            } else {
                "before its guest ran"
            };
            let how = self.memory.ended.as_deref();
            let how = how.unwrap_or("how is not known; see its log on the host");
            let message = format!("the VM's QEMU ended {when}: {how}; start it again");
            Reason::new("qemu-exited", message)
        }))
    }

    /// The saved state that it starts from.
    pub(super) fn saved_start(&self) -> Option<&StartFrom> {
        match self.order() {
            Some(Order::Run { start, .. }) => {
                Some(start).filter(|start| matches!(start, StartFrom::Saved { .. }))
            }
            _ => None,
        }
    }
}

/// Never a silent boot from disk instead: that is for the user to choose.
pub(super) fn not_loaded(cause: &str) -> Reason {
    let message = format!(
        "the saved state could not be loaded, so the guest was not started: {cause}; switch the VM off to give the \
         saved state up and boot it from its disk"
    );
    Reason::new("saved-state-not-loaded", message)
}
