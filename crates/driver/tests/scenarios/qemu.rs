//! A small model of a QEMU process: as much of it as the protocol's page measured.

use driver::types::{Guest, GuestEnd, MigrationWord, Qemu, QemuState, RunStatusWord};
use model::migration::Progress;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) run: RunStatusWord,
    pub(crate) migration: MigrationWord,
    pub(crate) error: Option<String>,
    pub(crate) is_incoming: bool,
    pub(crate) is_listening: bool,
    pub(crate) is_ready: bool,
    pub(crate) is_silent: bool,
    pub(crate) limit_ms: u64,
    pub(crate) resets: u64,
    /// What the guest says of itself.
    pub(crate) up_ms: Option<u64>,
    /// What the guest returns to when a migration ends badly.
    before: RunStatusWord,
}

impl Process {
    pub(crate) fn spawn(is_incoming: bool) -> Self {
        let run = if is_incoming {
            RunStatusWord::InMigrate
        } else {
            RunStatusWord::Prelaunch
        };
        Self {
            run,
            migration: MigrationWord::None,
            error: None,
            is_incoming,
            is_listening: false,
            is_ready: false,
            is_silent: false,
            limit_ms: 20,
            resets: 0,
            up_ms: None,
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
            downtime_limit_ms: Some(self.limit_ms),
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

    pub(crate) fn migrate(&mut self) {
        self.migration = MigrationWord::Active;
        self.error = None;
        self.before = self.run;
    }

    pub(crate) fn is_transferring(&self) -> bool {
        !self.is_loading()
            && matches!(
                self.migration,
                MigrationWord::Active | MigrationWord::PreSwitchover | MigrationWord::Device
            )
    }

    fn is_loading(&self) -> bool {
        self.run == RunStatusWord::InMigrate
    }

    pub(crate) fn pre_switchover(&mut self) {
        assert_eq!(self.migration, MigrationWord::Active);
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
            RunStatusWord::Running => RunStatusWord::FinishMigrate,
            other => other,
        };
        if self.run == RunStatusWord::FinishMigrate {
            // The last thing that QEMU does is to leave `finish-migrate`.
            self.run = RunStatusWord::Paused;
        }
    }

    pub(crate) fn load(&mut self) {
        self.migration = MigrationWord::Completed;
        self.run = RunStatusWord::Paused;
    }
}
