//! The status that is reported: a pure projection of marks, QEMU's state, the row and the plan.

use model::Reason;
use model::document::{Order, Stop};
use model::report::{Outgoing, OutgoingState, RunState, RunStatus};

use super::memory::{Release, Save};
use super::{Core, Desired, Plan};
use crate::column::{Column, has_ended, is_loaded};
use crate::table::Row;
use crate::types::{Qemu, QemuState, RunStatusWord};

impl Core {
    /// `None` where nothing can be said yet: no document came, or what is about to be done will tell.
    pub(super) fn status_of(&self, row: Row, qemu: &Qemu, plan: &Plan) -> Option<RunStatus> {
        if self.desired == Desired::Unknown {
            return None;
        }
        let last = self.status().map(|status| status.state);
        let state = self.state_of(row, qemu).or(last).or_else(|| seen_state(qemu))?;
        let is_target = matches!(state, RunState::Incoming | RunState::Loaded);
        Some(RunStatus {
            incarnation: self.id.incarnation,
            host: self.id.host,
            document_revision: self.revision,
            state,
            ran: self.marks.ran,
            ready: self.memory.guest.ready && !state.is_closed() && !self.lacks_identity(),
            addresses: if state.is_closed() {
                Vec::new()
            } else {
                self.memory.guest.addresses.clone()
            },
            stream: self.memory.stream.clone().filter(|_| is_target),
            outgoing: self.outgoing(row, qemu),
            saved_bytes: self.marks.saved_bytes,
            saved_in: self.marks.saved_in,
            reason: self.reason(row, qemu, plan),
            steps: self.memory.start.steps().to_vec(),
            rebooted: self.marks.rebooted,
            cdrom: self
                .memory
                .cdrom
                .as_deref()
                .filter(|_| !state.is_closed())
                .cloned(),
            copies: self.copies_told(),
            has_identity: self.marks.identified,
            built: self.memory.built.clone(),
        })
    }

    fn state_of(&self, row: Row, qemu: &Qemu) -> Option<RunState> {
        if self.marks.closed {
            return self.closed_state(qemu);
        }
        match (row, qemu) {
            (Row::Nothing, _) => Some(RunState::Stopping),
            (Row::Stop, Qemu::None) if self.is_only_prepared() => Some(RunState::Preparing),
            (Row::Stop, _) => Some(self.stopping_state(qemu)),
            (_, Qemu::Silent) => None,
            (_, Qemu::None) if self.marks.launched => None,
            (_, Qemu::None) => Some(RunState::Preparing),
            (_, Qemu::Answers(state)) => self.open_state(row, qemu, state),
        }
    }

    /// Closed is reported when nothing is left that could execute, and what could be unplugged is.
    fn closed_state(&self, qemu: &Qemu) -> Option<RunState> {
        if *qemu != Qemu::None {
            Some(RunState::Stopping)
        } else if self.marks.removed {
            Some(RunState::Removed)
        } else if self.memory.release == Release::No {
            None
        } else {
            Some(RunState::Closed)
        }
    }

    fn stopping_state(&self, qemu: &Qemu) -> RunState {
        let is_suspend = matches!(
            self.order(),
            Some(Order::Stop(Stop::Suspend | Stop::Store | Stop::Warm))
        );
        match (&self.memory.save, qemu) {
            (Save::Failed(_), Qemu::Answers(state)) if state.run == RunStatusWord::Running => {
                RunState::Running
            }
            (Save::Failed(_), Qemu::Answers(_)) => RunState::Paused,
            _ if is_suspend => RunState::Saving,
            _ => RunState::Stopping,
        }
    }

    fn open_state(&self, row: Row, qemu: &Qemu, state: &QemuState) -> Option<RunState> {
        let is_paused = self.is_paused_by_spec();
        match row {
            Row::Ended => None,
            Row::Incoming => Some(RunState::Incoming),
            Row::Loaded | Row::Go => Some(RunState::Loaded),
            // It is here for good, and stands still as the spec says.
            Row::TargetRan => Some(if is_paused {
                RunState::Paused
            } else {
                RunState::Loaded
            }),
            Row::Revoked if self.column(qemu) == Column::Loaded => Some(RunState::Loaded),
            Row::Revoked => Some(RunState::Incoming),
            Row::Booting | Row::BootingStale => {
                let is_ready = !state.is_incoming || is_loaded(state);
                Some(if is_paused && is_ready {
                    RunState::Paused
                } else {
                    RunState::Booting
                })
            }
            Row::Unreadable | Row::Unforeseen => None,
            // It executes, and nobody has to do with it yet.
            Row::Keep if self.lacks_identity() => Some(RunState::Booting),
            // The last round stops the processors: that is told by `outgoing`.
            Row::Switch
            | Row::SwitchOffline
            | Row::Device
            | Row::Completed
            | Row::CancelAgain
            | Row::Cancel => Some(if is_paused {
                RunState::Paused
            } else {
                RunState::Running
            }),
            _ if matches!(state.run, RunStatusWord::Running | RunStatusWord::Other) => {
                Some(RunState::Running)
            }
            _ if has_ended(state) => None,
            _ => Some(RunState::Paused),
        }
    }

    fn outgoing(&self, row: Row, qemu: &Qemu) -> Option<Outgoing> {
        let transfer = self.memory.transfer.as_ref();
        let (to, state) = match self.migration() {
            Some(order) => (order.to, self.outgoing_state(row, qemu)?),
            // The order went on before the figures were all told.
            None => {
                let transfer = transfer.filter(|transfer| transfer.is_completed)?;
                (transfer.to, OutgoingState::Completed)
            }
        };
        let transfer = transfer.filter(|transfer| transfer.to == to);
        Some(Outgoing {
            to,
            state,
            downtime_us: transfer.and_then(|transfer| transfer.downtime_us),
            transfer_ms: transfer.and_then(|transfer| transfer.transfer_ms),
            bytes: transfer
                .and_then(|transfer| transfer.bytes)
                .filter(|_| state == OutgoingState::Completed),
            error: transfer.and_then(|transfer| transfer.error.clone()),
        })
    }

    /// The promise is given only here, and only from what QEMU said in the look that this status is made from: the mark is
    /// written, and either nothing was ever sent, or nothing of it is under way.
    fn outgoing_state(&self, row: Row, qemu: &Qemu) -> Option<OutgoingState> {
        let has_promised = self.has_promised();
        let stands_still = row == Row::Failed && self.is_paused_by_spec();
        match row {
            Row::Promise | Row::PromiseUnsent if has_promised => Some(OutgoingState::Promised),
            Row::Failed if has_promised && stands_still => Some(OutgoingState::Promised),
            Row::Completed => Some(OutgoingState::Completed),
            Row::Switch | Row::SwitchOffline | Row::Device => Some(OutgoingState::SwitchingOver),
            Row::PreCopy
            | Row::CancelAgain
            | Row::Cancel
            | Row::Promise
            | Row::Failed
            | Row::FailedOffline => Some(self.transferring(qemu)),
            _ => None,
        }
    }

    fn transferring(&self, qemu: &Qemu) -> OutgoingState {
        match self.column(qemu) {
            Column::PreSwitchover => OutgoingState::SwitchingOver,
            _ => OutgoingState::Transferring,
        }
    }

    fn reason(&self, row: Row, qemu: &Qemu, plan: &Plan) -> Option<Reason> {
        if self.marks.closed {
            return self.marks.reason.clone();
        }
        let trouble = || {
            plan.effect
                .as_ref()
                .and_then(|effect| self.pace.trouble(effect))
                .cloned()
        };
        match (&self.desired, row, qemu) {
            (Desired::Unreadable(reason), ..) => Some(reason.clone()),
            (_, Row::Unforeseen, _) => Some(Reason::new(
                "unforeseen",
                "what QEMU says does not go together with what is ordered and what the host has written down, so the \
                 VM is left as it is: switch it off by force and start it again",
            )),
            (_, Row::Silent, _) => Some(Reason::new(
                "qemu-silent",
                "the VM's QEMU does not answer its monitor: the host looks again; if it stays so, switch the VM off by \
                 force",
            )),
            (_, _, Qemu::Answers(state)) => stood_still(state)
                .or_else(|| self.save_failure())
                .or_else(trouble),
            _ => trouble(),
        }
    }

    fn save_failure(&self) -> Option<Reason> {
        match &self.memory.save {
            Save::Failed(reason) => Some(reason.clone()),
            _ => None,
        }
    }
}

/// The state where no row says it and none was reported before.
fn seen_state(qemu: &Qemu) -> Option<RunState> {
    match qemu {
        Qemu::Answers(state) if state.run == RunStatusWord::Running => Some(RunState::Running),
        Qemu::Answers(state) if state.run == RunStatusWord::InMigrate => Some(RunState::Incoming),
        Qemu::Answers(_) => Some(RunState::Paused),
        Qemu::Silent | Qemu::None => None,
    }
}

/// An error that stopped the guest.
fn stood_still(state: &QemuState) -> Option<Reason> {
    match state.run {
        RunStatusWord::IoError => Some(Reason::new(
            "disk-error",
            "the guest is stopped because its disk could not be read or written; the host tries again by itself: look \
             at the datastore's free space and at the host's log",
        )),
        RunStatusWord::InternalError => Some(Reason::new(
            "internal-error",
            "the guest is stopped because QEMU met an error that it cannot go on from: switch the VM off by force and \
             start it again",
        )),
        _ => None,
    }
}
