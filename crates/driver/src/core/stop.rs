//! *stop N* in its ways, and the end of what no document names.

use model::document::{Order, Stop};
use model::vm::SavedIn;
use model::{Reason, Timestamp};

use super::memory::{Release, Save};
use super::{Core, Plan, STEADY_MS};
use crate::column::{Column, has_ended};
use crate::types::{Effect, Mark, MigrationWord, Now, Qemu, QemuState, RunStatusWord};

/// How long a shutdown goes without a look.
const SHUTDOWN_MS: u64 = 1_000;

/// How long a closed incarnation that no document names stays, so that its last report is surely taken.
const FORGET_US: u64 = 10_000_000;

impl Core {
    /// *nothing, or another incarnation*: whatever there is of it goes, except its volumes.
    pub(super) fn plan_nothing(&mut self, now: Now, qemu: &Qemu) -> Plan {
        if *qemu != Qemu::None {
            return Plan::act(Effect::Kill);
        }
        if !self.marks.closed || self.memory.release != Release::Done {
            return self.wind_up(None);
        }
        let is_reported = self
            .reported
            .as_ref()
            .is_some_and(|reported| !reported.is_overtaken && reported.status.state.is_closed());
        if !is_reported || !self.lease.live {
            return Plan::wait_ms(STEADY_MS);
        }
        let since_us = *self.memory.unnamed_since_us.get_or_insert(now.monotonic_us);
        if now.monotonic_us < since_us + FORGET_US {
            return Plan::wait_ms(STEADY_MS);
        }
        Plan::act(Effect::Forget)
    }

    /// With no process left: close, unplug.
    pub(super) fn wind_up(&self, reason: Option<Reason>) -> Plan {
        if !self.marks.closed {
            Plan::mark(Mark::Closed {
                reason,
                saved_bytes: None,
                saved_in: SavedIn::Host,
            })
        } else if self.memory.release != Release::Done {
            Plan::act(Effect::Release)
        } else {
            Plan::rest()
        }
    }

    pub(super) fn plan_stop(&mut self, now: Now, qemu: &Qemu) -> Plan {
        let Some(Order::Stop(how)) = self.order().cloned() else {
            return Plan::rest();
        };
        match qemu {
            Qemu::None if self.is_only_prepared() => self.plan_prepare(),
            Qemu::None => self.plan_stopped(&how),
            _ if self.marks.closed => Plan::act(Effect::Kill),
            _ => match how {
                Stop::Shutdown { force_at } => self.plan_shutdown(now, qemu, force_at),
                Stop::Suspend => self.plan_suspend(qemu, SavedIn::Host),
                Stop::Store => self.plan_suspend(qemu, SavedIn::Datastore),
                Stop::Warm => self.plan_warm(qemu),
                Stop::Kill | Stop::Release | Stop::Remove | Stop::Prepare => Plan::act(Effect::Kill),
            },
        }
    }

    /// It is to have its disk made and to end without ever being started, and has not ended yet.
    pub(super) fn is_only_prepared(&self) -> bool {
        let is_asked = matches!(self.order(), Some(Order::Stop(Stop::Prepare)));
        is_asked && !self.marks.closed && !self.marks.launched
    }

    fn plan_prepare(&self) -> Plan {
        if let Some(fault) = self.memory.fault.clone() {
            self.wind_up(Some(fault))
        } else if self.memory.is_prepared {
            self.plan_copies_at_rest().unwrap_or_else(|| self.wind_up(None))
        } else if self.lease.fresh && !self.is_outdated {
            Plan::act(Effect::Prepare { as_target: false })
        } else {
            Plan::wait_ms(STEADY_MS)
        }
    }

    fn plan_stopped(&self, how: &Stop) -> Plan {
        if !self.marks.closed || self.memory.release != Release::Done {
            return self.wind_up(self.stop_reason(how));
        }
        if *how != Stop::Remove || self.marks.removed {
            return Plan::rest();
        }
        if self.memory.volumes_are_removed {
            Plan::mark(Mark::Removed)
        } else {
            Plan::act(Effect::RemoveVolumes)
        }
    }

    /// Why it ended, if not just as asked.
    fn stop_reason(&self, how: &Stop) -> Option<Reason> {
        let was_lost = matches!(how, Stop::Suspend | Stop::Store) && self.marks.ran;
        if self.memory.is_forced {
            Some(Reason::new(
                "forced-off",
                "the guest did not power off in time when it was asked to, so its power was cut: look at its file \
                 systems after the next start",
            ))
        } else if let Save::Failed(reason) = &self.memory.save {
            Some(reason.clone())
        } else if *how == Stop::Prepare {
            self.memory.fault.clone()
        } else if let Some(reason) = self.was_not_kept(how) {
            Some(reason)
        } else if was_lost {
            Some(Reason::new(
                "suspend-lost",
                "the VM's QEMU ended before its state was saved: start the VM to boot it from its disk",
            ))
        } else {
            None
        }
    }

    fn plan_shutdown(&mut self, now: Now, qemu: &Qemu, force_at: Timestamp) -> Plan {
        let is_over = now.wall >= force_at;
        let Qemu::Answers(state) = qemu else {
            self.memory.is_forced |= is_over;
            return if is_over {
                Plan::act(Effect::Kill)
            } else {
                Plan::wait_ms(SHUTDOWN_MS)
            };
        };
        if has_ended(state) || self.cannot_hear(state) {
            return Plan::act(Effect::Kill);
        }
        if is_over {
            self.memory.is_forced = true;
            return Plan::act(Effect::Kill);
        }
        Plan::act(Effect::AskShutdown)
    }

    /// There is no guest that could answer: it never executed, or executes elsewhere.
    fn cannot_hear(&self, state: &QemuState) -> bool {
        let is_elsewhere = state.run == RunStatusWord::PostMigrate;
        let is_unborn = matches!(state.run, RunStatusWord::Prelaunch | RunStatusWord::InMigrate);
        is_elsewhere || is_unborn || !self.marks.ran
    }

    /// Close first, then kill: so the saved state is known to be whole, or the guest goes on.
    fn plan_suspend(&mut self, qemu: &Qemu, saved_in: SavedIn) -> Plan {
        let Qemu::Answers(state) = qemu else {
            return Plan::wait_ms(SHUTDOWN_MS);
        };
        match self.memory.save.clone() {
            Save::Whole { bytes } => Plan::mark(Mark::Closed {
                reason: None,
                saved_bytes: Some(bytes),
                saved_in,
            }),
            _ if has_ended(state) => super::run::end(state),
            // Nothing of it can be saved: it has not come yet, or it is elsewhere.
            _ if state.run == RunStatusWord::InMigrate => Plan::act(Effect::Kill),
            _ if self.column(qemu) == Column::Completed => Plan::act(Effect::Kill),
            Save::Failed(_) => self.plan_unsaved(state),
            // A migration's transfer, not the save of an agent before this one.
            Save::No if is_transferring(state) && !self.marks.saving => Plan::act(Effect::MigrateCancel),
            Save::No if !self.marks.saving => self
                .plan_beside_guest(state)
                .unwrap_or_else(|| Plan::mark(Mark::Saving)),
            Save::No => {
                self.memory.stood_still = state.run == RunStatusWord::Paused;
                Plan::act(Effect::Save { saved_in })
            }
        }
    }

    /// The save failed: the guest goes on, until it is ordered anew or the order is taken back.
    fn plan_unsaved(&self, state: &QemuState) -> Plan {
        let is_stopped = state.run != RunStatusWord::Running;
        if is_stopped && !self.memory.stood_still && self.lease.live {
            Plan::act(Effect::Continue)
        } else {
            Plan::wait_ms(STEADY_MS)
        }
    }
}

fn is_transferring(state: &QemuState) -> bool {
    matches!(
        state.migration,
        MigrationWord::Setup
            | MigrationWord::Active
            | MigrationWord::PreSwitchover
            | MigrationWord::Cancelling
    )
}
