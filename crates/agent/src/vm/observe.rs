//! What QEMU says, in the driver's words.
//!
//! **Owns:** the translation of `query-status` and `query-migrate`.
//!
//! **Does not know:** what follows from it: that is the driver's column *QEMU*.
//!
//! **Start here:** [`state`].

use driver::types::{CopyJob, CopyJobState, Guest, GuestEnd, MigrationWord, QemuState, RunStatusWord};
use model::migration::Progress;
use model::report::CdromState;
use qemu::qmp::commands::RunState;
use qemu::qmp::copies::{DiskCopy, DiskCopyState};
use qemu::qmp::migration::{MigrationInfo, MigrationStatus};

/// What is known besides QEMU's two answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// What the guest's agent said.
    pub guest: Guest,
    /// Whether QEMU was started to take a stream.
    pub is_incoming: bool,
    /// The downtime limit that was set last.
    pub downtime_limit_ms: Option<u64>,
    /// How often the guest was reset.
    pub resets: u64,
    /// Its drive for media, if that was asked for.
    pub cdrom: Option<CdromState>,
    /// The copies of its disk, if they were asked for.
    pub copies: Option<Vec<DiskCopy>>,
}

/// Whether the guest is here and is not being moved or saved, as [`is_at_rest`], or stands still because of an error of its
/// disk.
pub fn is_here(run: &RunState, migration: &MigrationStatus) -> bool {
    is_at_rest(run, migration) || *run == RunState::IoError
}

/// Whether the guest is here and is not being moved or saved. Only then something is changed about its drive, and while a
/// guest stands still for a switch-over nothing is asked that is not needed.
pub fn is_at_rest(run: &RunState, migration: &MigrationStatus) -> bool {
    let is_here = matches!(run, RunState::Running | RunState::Paused);
    is_here && (migration.is_final() || *migration == MigrationStatus::None)
}

/// QEMU's state from its two answers.
pub fn state(run: &RunState, migration: MigrationInfo, aside: Aside) -> QemuState {
    QemuState {
        run: run_word(run),
        migration: migration_word(&migration.status),
        progress: progress(&migration),
        migration_error: migration.error_desc,
        downtime_limit_ms: aside.downtime_limit_ms,
        is_incoming: aside.is_incoming,
        guest: aside.guest,
        ended: ended(run),
        resets: aside.resets,
        cdrom: aside.cdrom.map(Box::new),
        copies: aside
            .copies
            .map(|copies| copies.into_iter().map(copy_job).collect()),
    }
}

fn copy_job(copy: DiskCopy) -> CopyJob {
    CopyJob {
        to: copy.to,
        state: match copy.state {
            DiskCopyState::Copies => CopyJobState::Copies,
            DiskCopyState::Done => CopyJobState::Done,
            DiskCopyState::Failed(why) => CopyJobState::Failed(why),
        },
    }
}

fn run_word(run: &RunState) -> RunStatusWord {
    match run {
        RunState::Prelaunch => RunStatusWord::Prelaunch,
        RunState::InMigrate => RunStatusWord::InMigrate,
        RunState::Running => RunStatusWord::Running,
        RunState::Paused => RunStatusWord::Paused,
        RunState::FinishMigrate => RunStatusWord::FinishMigrate,
        RunState::PostMigrate => RunStatusWord::PostMigrate,
        RunState::Shutdown => RunStatusWord::Shutdown,
        RunState::GuestPanicked => RunStatusWord::GuestPanicked,
        RunState::IoError => RunStatusWord::IoError,
        RunState::InternalError => RunStatusWord::InternalError,
        RunState::Other(_) => RunStatusWord::Other,
    }
}

fn migration_word(status: &MigrationStatus) -> MigrationWord {
    match status {
        MigrationStatus::None => MigrationWord::None,
        MigrationStatus::Setup => MigrationWord::Setup,
        MigrationStatus::PreSwitchover => MigrationWord::PreSwitchover,
        MigrationStatus::Device => MigrationWord::Device,
        MigrationStatus::Completed => MigrationWord::Completed,
        MigrationStatus::Failed => MigrationWord::Failed,
        MigrationStatus::Cancelling => MigrationWord::Cancelling,
        MigrationStatus::Cancelled => MigrationWord::Cancelled,
        // Also what is unknown here is something under way.
        _ => MigrationWord::Active,
    }
}

fn ended(run: &RunState) -> Option<GuestEnd> {
    match run {
        RunState::Shutdown => Some(GuestEnd::PowerOff),
        RunState::GuestPanicked => Some(GuestEnd::Panic),
        RunState::InternalError => Some(GuestEnd::InternalError),
        RunState::IoError => Some(GuestEnd::IoError),
        _ => None,
    }
}

fn progress(migration: &MigrationInfo) -> Option<Progress> {
    migration.ram.as_ref().map(|ram| Progress {
        round: ram.dirty_sync_count,
        remaining_bytes: ram.remaining_bytes,
        total_bytes: ram.total_bytes,
        sent_bytes: ram.transferred_bytes,
        dirty_pages_per_s: ram.dirty_pages_rate,
        // QEMU counts in megabits.
        bytes_per_s: (ram.mbps.max(0.0) * 125_000.0) as u64,
    })
}
