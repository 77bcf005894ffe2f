//! A VM whose memory is kept for others, and a guest that begins as a copy of such a memory.
//!
//! Such a guest shares its random numbers, its name and its keys with its siblings until it is given its own. So from its
//! first instruction to the mark *identified* its ports stay closed; and if it cannot be given an identity it is closed,
//! without having been heard of by anybody.

use model::Reason;
use model::document::{Order, StartFrom, Stop};
use model::template::ANOTHER_BUILD;
use model::vm::SavedIn;

use super::memory::Save;
use super::{Core, Plan, STEADY_MS};
use crate::column::has_ended;
use crate::types::{Effect, Mark, MigrationWord, Qemu, QemuState, RunStatusWord};

/// How long a load goes without a look.
const LOAD_MS: u64 = 10;
/// How long the kept memory may be about to be kept without a look.
const KEEP_MS: u64 = 100;

impl Core {
    /// Whether it starts from a warm VM's memory.
    pub(super) fn warm_start(&self) -> Option<&StartFrom> {
        match self.order() {
            Some(Order::Run { start, .. }) => {
                Some(start).filter(|start| matches!(start, StartFrom::Warm { .. }))
            }
            _ => None,
        }
    }

    /// Whether its guest is not yet somebody of its own.
    pub(super) fn lacks_identity(&self) -> bool {
        self.warm_start().is_some() && !self.marks.identified
    }

    /// Load what the warm VM left.
    pub(super) fn plan_load_warm(&self, state: &QemuState) -> Option<Plan> {
        let Some(StartFrom::Warm { vm, incarnation }) = self.warm_start() else {
            return None;
        };
        Some(match state.migration {
            MigrationWord::None => Plan::act(Effect::LoadWarm {
                vm: *vm,
                incarnation: *incarnation,
            }),
            MigrationWord::Failed | MigrationWord::Cancelled => {
                let cause = state.migration_error.as_deref().unwrap_or("QEMU gave no reason");
                close(Some(not_started(cause)))
            }
            _ => Plan::wait_ms(LOAD_MS),
        })
    }

    /// Its guest executes, and is nobody of its own yet.
    pub(super) fn plan_identity(&self) -> Option<Plan> {
        if !self.lacks_identity() {
            return None;
        }
        Some(if let Some(fault) = self.memory.fault.clone() {
            close(Some(fault))
        } else if self.memory.is_identified {
            Plan::mark(Mark::Identified)
        } else {
            Plan::act(Effect::Identify)
        })
    }

    /// Its memory is to be kept. Close first, then kill, as with a saved state; unlike with that there is no way back: what
    /// cannot be kept is closed, and made anew by whoever wants it.
    pub(super) fn plan_warm(&self, qemu: &Qemu) -> Plan {
        let Qemu::Answers(state) = qemu else {
            return Plan::wait_ms(KEEP_MS);
        };
        let is_here = self.marks.ran && !matches!(state.run, RunStatusWord::InMigrate);
        match &self.memory.save {
            Save::Whole { bytes } => Plan::mark(Mark::Closed {
                reason: None,
                saved_bytes: Some(*bytes),
                saved_in: SavedIn::Datastore,
            }),
            Save::Failed(reason) => close(Some(reason.clone())),
            Save::No if has_ended(state) => super::run::end(state),
            Save::No if !is_here => Plan::act(Effect::Kill),
            Save::No if self.marks.saving => Plan::act(Effect::Warm),
            Save::No if state.run != RunStatusWord::Running => Plan::wait_ms(STEADY_MS),
            Save::No if self.memory.is_settled => Plan::mark(Mark::Saving),
            Save::No => Plan::act(Effect::Settle),
        }
    }

    /// Whether its memory is to be kept, and it was not.
    pub(super) fn was_not_kept(&self, how: &Stop) -> Option<Reason> {
        (*how == Stop::Warm).then(|| {
            self.exit_reason()
                .unwrap_or_else(|| not_kept("its QEMU ended before"))
        })
    }
}

fn close(reason: Option<Reason>) -> Plan {
    Plan::mark(Mark::Closed {
        reason,
        saved_bytes: None,
        saved_in: SavedIn::Host,
    })
}

/// Why a guest was not started from a warm VM's memory.
pub(super) fn not_started(cause: &str) -> Reason {
    let message = format!("it could not be started from its template's kept memory: {cause}");
    Reason::new("instant-start-failed", message)
}

/// The same of one that could not be loaded. That it was kept by another build keeps its code: nobody else there can load it
/// either.
pub(super) fn not_loaded_warm(failure: &Reason) -> Reason {
    let reason = not_started(&failure.message);
    let is_of_another_build = failure.code == ANOTHER_BUILD;
    let code = if is_of_another_build {
        ANOTHER_BUILD
    } else {
        &reason.code
    };
    Reason::new(code, reason.message.as_str())
}

/// Why a guest's memory was not kept.
pub(super) fn not_kept(cause: &str) -> Reason {
    let message = format!(
        "its memory could not be kept for others: {cause}; delete this VM and warm its template again"
    );
    Reason::new("warming-failed", message)
}
