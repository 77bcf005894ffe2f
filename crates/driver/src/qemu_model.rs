//! A finite model of a QEMU process: as much of it as the protocol's page measured. The simulator and the scenarios run it;
//! what was measured is tried against the real one in `crates/qemu/tests`. Behind the feature `qemu-model`, since no program
//! that runs guests needs it.
//!
//! **Owns:** what each command does to the run state and to the last migration's state.
//!
//! **Does not know:** time, links, and who commands.
//!
//! **Start here:** [`Process`].

use crate::types::{Guest, GuestEnd, MigrationWord, Qemu, QemuState, RunStatusWord};
use model::migration::Progress;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Which process it is: another start is another one.
    pub serial: u64,
    /// `query-status`.
    pub run: RunStatusWord,
    /// `query-migrate`: the status of the last migration, in either direction.
    pub migration: MigrationWord,
    /// Why it failed.
    pub error: Option<String>,
    /// It was started to take a stream or a saved state.
    pub is_incoming: bool,
    /// It waits for one.
    pub is_listening: bool,
    /// The guest's agent has answered.
    pub is_ready: bool,
    /// It does not answer.
    pub is_silent: bool,
    /// How long the last round may stop the guest.
    pub limit_ms: Option<u64>,
    /// How often it was reset.
    pub resets: u64,
    /// What the guest says of itself.
    pub up_ms: Option<u64>,
    /// What the guest returns to when a migration ends badly.
    before: RunStatusWord,
}

impl Process {
    /// One that starts.
    pub fn spawn(serial: u64, is_incoming: bool) -> Self {
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
            up_ms: None,
            before: run,
        }
    }

    /// What it says.
    pub fn look(&self) -> Qemu {
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
                up_ms: self.up_ms,
            },
            ended,
            resets: self.resets,
        })
    }

    /// Whether its guest executes.
    pub fn executes(&self) -> bool {
        self.run == RunStatusWord::Running
    }

    /// Whether its transfer is over, and its guest elsewhere.
    pub fn has_completed(&self) -> bool {
        self.run == RunStatusWord::PostMigrate && self.migration == MigrationWord::Completed
    }

    /// QEMU accepts it wherever the guest stands still and is whole, also after a migration completed.
    pub fn cont(&mut self) -> Result<(), &'static str> {
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

    /// `stop`.
    pub fn stop(&mut self) {
        if self.run == RunStatusWord::Running {
            self.run = RunStatusWord::Paused;
        }
    }

    /// Begins to send, to another host or into a file.
    pub fn migrate(&mut self) {
        self.migration = MigrationWord::Active;
        self.error = None;
        self.before = self.run;
    }

    /// Whether it waits for a stream, or takes it.
    pub fn is_loading(&self) -> bool {
        self.run == RunStatusWord::InMigrate
    }

    /// Whether it sends.
    pub fn is_transferring(&self) -> bool {
        let is_under_way = matches!(
            self.migration,
            MigrationWord::Active | MigrationWord::PreSwitchover | MigrationWord::Device
        );
        is_under_way && !self.is_loading()
    }

    /// All but the last round was sent: the guest stands still until it is told to go on.
    pub fn pre_switchover(&mut self) {
        self.migration = MigrationWord::PreSwitchover;
        self.run = RunStatusWord::FinishMigrate;
    }

    /// The other side has all of it.
    pub fn complete(&mut self) {
        self.migration = MigrationWord::Completed;
        self.run = RunStatusWord::PostMigrate;
    }

    /// The transfer ends badly. QEMU lets the guest go on by itself, unless it could not get its disks back.
    pub fn fail(&mut self, status: MigrationWord, goes_on: bool) {
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
    pub fn load(&mut self) {
        self.migration = MigrationWord::Completed;
        self.run = RunStatusWord::Paused;
    }

    /// The stream ended before it was whole.
    pub fn break_off(&mut self) {
        self.migration = MigrationWord::Failed;
        self.error = Some("the stream ended".to_owned());
    }
}
