//! What QEMU's answers mean: the protocol's column *QEMU*.
//!
//! **Owns:** the translation of run state and migration status, together with marks and order, into one word.
//!
//! **Does not know:** what follows from the word: that is [`crate::table`]'s.
//!
//! `query-migrate` keeps the status of the *last* migration, in either direction, so it counts only together with the
//! run state and our marks.

use model::document::{MigrateTo, Order, StartFrom};

use crate::types::{Marks, MigrationWord, Qemu, QemuState, RunStatusWord};

#[cfg(test)]
mod tests;

/// The column *QEMU*. Each excludes the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Column {
    /// No process.
    None,
    /// A process that does not answer.
    Silent,
    /// A process of a closed incarnation.
    Leftover,
    /// Launched for *run N* and never continued: fresh from the disk, or a saved state that is being loaded.
    Booting,
    /// The guest powered off or panicked, and nothing is under way.
    Ended,
    /// N runs, or stands still as the spec says, and nothing is under way.
    Running,
    /// Stopped, and nothing that failed stopped it; or stopped by a disk's or QEMU's error.
    Paused,
    /// `setup`, `active`, or on its way out of one of them.
    PreCopy,
    /// The processors are stopped, and QEMU asks whether to go on.
    PreSwitchover,
    /// The last part is being sent.
    Device,
    /// Pre-copy or pre-switchover of something that is not the document's M.
    Stray,
    /// sent(M), failed or cancelled, the processors stopped and not by the user.
    Failed,
    /// sent(M), completed, `postmigrate`.
    Completed,
    /// Waits for a stream, takes it, or failed to.
    Incoming,
    /// The stream is loaded, the guest stands still.
    Loaded,
    /// Anything else.
    Odd,
}

impl Column {
    /// The word for what QEMU said, under this order.
    pub fn of(qemu: &Qemu, marks: &Marks, order: Option<&Order>) -> Self {
        let state = match qemu {
            Qemu::None => return Self::None,
            _ if marks.closed => return Self::Leftover,
            Qemu::Silent => return Self::Silent,
            Qemu::Answers(state) => state,
        };
        match order {
            Some(Order::Target(_)) => as_target(state, marks),
            Some(Order::MigrateTo(order)) => as_source(state, marks, order),
            Some(Order::Run { start, .. }) => as_run(
                state,
                marks,
                matches!(start, StartFrom::Saved { .. } | StartFrom::Warm { .. }),
            ),
            Some(Order::Stop(_)) | None => as_run(state, marks, false),
        }
    }
}

/// Whether the whole stream is loaded. QEMU says so before it has left `inmigrate`.
pub(crate) fn is_loaded(state: &QemuState) -> bool {
    state.is_incoming
        && state.migration == MigrationWord::Completed
        && !matches!(state.run, RunStatusWord::InMigrate | RunStatusWord::Running)
}

/// Whether the last migration ended without success.
pub(crate) fn has_failed(state: &QemuState) -> bool {
    matches!(state.migration, MigrationWord::Failed | MigrationWord::Cancelled)
}

/// Whether the guest is at its end, and only a reset would bring it back.
pub(crate) fn has_ended(state: &QemuState) -> bool {
    matches!(state.run, RunStatusWord::Shutdown | RunStatusWord::GuestPanicked)
}

/// An outgoing migration that is neither over nor about to be.
fn under_way(state: &QemuState) -> Option<Column> {
    match state.migration {
        MigrationWord::Setup | MigrationWord::Active | MigrationWord::Cancelling => Some(Column::PreCopy),
        MigrationWord::PreSwitchover => Some(Column::PreSwitchover),
        MigrationWord::Device => Some(Column::Device),
        // The run state follows the status: until it has, QEMU is not through.
        MigrationWord::None | MigrationWord::Completed if state.run == RunStatusWord::FinishMigrate => {
            Some(Column::Device)
        }
        _ => None,
    }
}

fn as_run(state: &QemuState, marks: &Marks, starts_saved: bool) -> Column {
    if state.run == RunStatusWord::InMigrate || is_loaded(state) && !marks.ran {
        return if starts_saved {
            Column::Booting
        } else {
            Column::Incoming
        };
    }
    if let Some(column) = under_way(state) {
        return column;
    }
    match state.run {
        RunStatusWord::Running | RunStatusWord::Other => Column::Running,
        RunStatusWord::Prelaunch => Column::Booting,
        _ if has_ended(state) => Column::Ended,
        _ if has_failed(state) && !marks.sent.is_empty() => Column::Failed,
        RunStatusWord::PostMigrate if state.migration != MigrationWord::Completed => Column::Odd,
        // With nothing ever sent it was a save that stopped it.
        RunStatusWord::PostMigrate if !marks.sent.is_empty() => Column::Completed,
        _ => Column::Paused,
    }
}

fn as_source(state: &QemuState, marks: &Marks, order: &MigrateTo) -> Column {
    let is_sent = marks.sent.contains(&order.to);
    let is_handing_over = order.granted || order.cancel;
    if !is_handing_over || state.run == RunStatusWord::InMigrate {
        return match as_run(state, marks, false) {
            Column::PreCopy | Column::PreSwitchover => Column::Stray,
            column => column,
        };
    }
    match under_way(state) {
        Some(Column::Device) => return Column::Device,
        Some(_) if !is_sent => return Column::Stray,
        Some(column) => return column,
        None => {}
    }
    let is_paused_by_user = order.paused && state.run == RunStatusWord::Paused;
    match state.run {
        RunStatusWord::Running | RunStatusWord::Other => Column::Running,
        _ if has_ended(state) => Column::Ended,
        _ if has_failed(state) && is_sent && !is_paused_by_user => Column::Failed,
        RunStatusWord::PostMigrate if is_sent && state.migration == MigrationWord::Completed => {
            Column::Completed
        }
        RunStatusWord::PostMigrate => Column::Odd,
        _ => Column::Running,
    }
}

fn as_target(state: &QemuState, marks: &Marks) -> Column {
    match state.run {
        RunStatusWord::Running => Column::Running,
        _ if marks.ran && has_ended(state) => Column::Ended,
        _ if is_loaded(state) => Column::Loaded,
        _ => Column::Incoming,
    }
}
