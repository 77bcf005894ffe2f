//! A finite model of a QEMU process: as much of it as the protocol's page measured.
//!
//! **Owns:** what each command does to the run state and to the last migration's state.
//!
//! **Does not know:** time, links, and who commands.
//!
//! **Start here:** [`Process`].

use driver::types::{Guest, GuestEnd, MigrationWord, Qemu, QemuState, RunStatusWord};
use model::migration::Progress;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    /// Which process it is: another start is another one.
    pub(crate) serial: u64,
    pub(crate) run: RunStatusWord,
    pub(crate) migration: MigrationWord,
    pub(crate) error: Option<String>,
    pub(crate) is_incoming: bool,
    pub(crate) is_listening: bool,
    /// The guest's agent has answered.
    pub(crate) is_ready: bool,
    /// It does not answer.
    pub(crate) is_silent: bool,
    pub(crate) limit_ms: Option<u64>,
    pub(crate) resets: u64,
    /// What the guest returns to when a migration ends badly.
    before: RunStatusWord,
}

impl Process {
    pub(crate) fn spawn(serial: u64, is_incoming: bool) -> Self {
        let run = if is_incoming {
            RunStatusWord::InMigrate
        } else {
            RunStatusWord::Prelaunch
        };
        Self {
            serial,
            run,
            migration: MigrationWord::None,
            error: None,
            is_incoming,
            is_listening: false,
            is_ready: false,
            is_silent: false,
            limit_ms: None,
            resets: 0,
            before: run,
        }
    }

    pub(crate) fn look(&self) -> Qemu {
        if self.is_silent {
            return Qemu::Silent;
        }
        let ended = match self.run {
            RunStatusWord::Shutdown => Some(GuestEnd::PowerOff),
            RunStatusWord::GuestPanicked => Some(GuestEnd::Panic),
            RunStatusWord::IoError => Some(GuestEnd::IoError),
            RunStatusWord::InternalError => Some(GuestEnd::InternalError),
            _ => None,
        };
        Qemu::Answers(QemuState {
            run: self.run,
            migration: self.migration,
            migration_error: self.error.clone(),
            progress: (self.migration != MigrationWord::None).then_some(Progress {
                round: 1,
                remaining_bytes: 0,
                total_bytes: 256,
                sent_bytes: 200,
                dirty_pages_per_s: 0,
                bytes_per_s: 1000,
            }),
            downtime_limit_ms: self.limit_ms,
            is_incoming: self.is_incoming,
            guest: Guest {
                ready: self.is_ready,
                addresses: Vec::new(),
                up_ms: None,
            },
            ended,
            resets: self.resets,
        })
    }

    pub(crate) fn executes(&self) -> bool {
        self.run == RunStatusWord::Running
    }

    pub(crate) fn has_completed(&self) -> bool {
        self.run == RunStatusWord::PostMigrate && self.migration == MigrationWord::Completed
    }

    /// QEMU accepts it wherever the guest stands still and is whole, also after a migration completed.
    pub(crate) fn cont(&mut self) -> Result<(), &'static str> {
        match self.run {
            RunStatusWord::InMigrate | RunStatusWord::FinishMigrate => Err("migration is not finalized yet"),
            RunStatusWord::Shutdown | RunStatusWord::GuestPanicked | RunStatusWord::InternalError => {
                Err("resetting the virtual machine is required")
            }
            _ => {
                self.run = RunStatusWord::Running;
                Ok(())
            }
        }
    }

    pub(crate) fn stop(&mut self) {
        if self.run == RunStatusWord::Running {
            self.run = RunStatusWord::Paused;
        }
    }

    /// Begins to send, to another host or into a file.
    pub(crate) fn migrate(&mut self) {
        self.migration = MigrationWord::Active;
        self.error = None;
        self.before = self.run;
    }

    pub(crate) fn is_loading(&self) -> bool {
        self.run == RunStatusWord::InMigrate
    }

    pub(crate) fn is_transferring(&self) -> bool {
        let is_under_way = matches!(
            self.migration,
            MigrationWord::Active | MigrationWord::PreSwitchover | MigrationWord::Device
        );
        is_under_way && !self.is_loading()
    }

    pub(crate) fn pre_switchover(&mut self) {
        self.migration = MigrationWord::PreSwitchover;
        self.run = RunStatusWord::FinishMigrate;
    }

    pub(crate) fn complete(&mut self) {
        self.migration = MigrationWord::Completed;
        self.run = RunStatusWord::PostMigrate;
    }

    /// The transfer ends badly. QEMU lets the guest go on by itself, unless it could not get its disks back.
    pub(crate) fn fail(&mut self, status: MigrationWord, goes_on: bool) {
        self.migration = status;
        self.error = (status == MigrationWord::Failed).then(|| "the link was cut".to_owned());
        self.run = match self.before {
            RunStatusWord::Running if goes_on => RunStatusWord::Running,
            // The last thing that QEMU does is to leave `finish-migrate`.
            RunStatusWord::Running | RunStatusWord::FinishMigrate => RunStatusWord::Paused,
            other => other,
        };
    }

    /// The stream has come.
    pub(crate) fn load(&mut self) {
        self.migration = MigrationWord::Completed;
        self.run = RunStatusWord::Paused;
    }

    /// The stream ended before it was whole.
    pub(crate) fn break_off(&mut self) {
        self.migration = MigrationWord::Failed;
        self.error = Some("the stream ended".to_owned());
    }
}
