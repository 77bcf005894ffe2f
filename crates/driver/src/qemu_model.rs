//! A finite model of a QEMU process: as much of it as the protocol's page measured. The simulator, the exhaustive search and
//! the scenarios run it; what was measured is tried against the real one in `crates/qemu/tests`. Behind the feature
//! `qemu-model`, since no program that runs guests needs it.
//!
//! **Owns:** what each command does to the run state and to the last migration's state.
//!
//! **Does not know:** time, links, and who commands.
//!
//! **Start here:** [`Machine`], which is all that commands change and small enough for a search to keep millions of;
//! [`Process`] is one that also has a guest who can be asked.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use crate::types::{CopyJob, CopyJobState, Guest, GuestEnd, MigrationWord, Qemu, QemuState, RunStatusWord};
use model::copy::CopyTo;
use model::document;
use model::migration::Progress;
use model::report::CdromState;

/// Why QEMU does not do what it is told to.
pub type Refused = &'static str;

/// The run state, and the last migration's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Machine {
    /// `query-status`.
    pub run: RunStatusWord,
    /// `query-migrate`: the status of the last migration, in either direction.
    pub migration: MigrationWord,
    /// It was started to take a stream or a saved state.
    pub is_incoming: bool,
    /// It waits for one.
    pub is_listening: bool,
    /// How the guest was when the last round stopped it, which it returns to if that ends badly.
    before: Option<RunStatusWord>,
}

impl Machine {
    /// One that starts.
    pub fn spawn(is_incoming: bool) -> Self {
        let run = if is_incoming {
            RunStatusWord::InMigrate
        } else {
            RunStatusWord::Prelaunch
        };
        Self {
            run,
            migration: MigrationWord::None,
            is_incoming,
            is_listening: false,
            before: None,
        }
    }

    /// What it says, of a guest whose agent says nothing.
    pub fn look(&self) -> QemuState {
        let ended = match self.run {
            RunStatusWord::Shutdown => Some(GuestEnd::PowerOff),
            RunStatusWord::GuestPanicked => Some(GuestEnd::Panic),
            RunStatusWord::IoError => Some(GuestEnd::IoError),
            RunStatusWord::InternalError => Some(GuestEnd::InternalError),
            _ => None,
        };
        QemuState {
            run: self.run,
            migration: self.migration,
            migration_error: self.error().map(str::to_owned),
            progress: None,
            downtime_limit_ms: None,
            is_incoming: self.is_incoming,
            guest: Guest::default(),
            ended,
            resets: 0,
            cdrom: None,
            copies: None,
        }
    }

    /// Why the last migration failed.
    fn error(&self) -> Option<&'static str> {
        let has_failed = self.migration == MigrationWord::Failed;
        let error = if self.is_loading() {
            "the stream ended"
        } else {
            "the link was cut"
        };
        has_failed.then_some(error)
    }

    /// Whether its guest executes.
    pub fn executes(&self) -> bool {
        self.run == RunStatusWord::Running
    }

    /// Whether what it sent last is whole, and its guest stands still since: it is elsewhere, or saved.
    pub fn has_completed(&self) -> bool {
        self.run == RunStatusWord::PostMigrate && self.migration == MigrationWord::Completed
    }

    /// Whether it waits for a stream, or takes it.
    pub fn is_loading(&self) -> bool {
        self.run == RunStatusWord::InMigrate
    }

    /// Whether it waits for a stream and would take it.
    pub fn awaits_stream(&self) -> bool {
        self.is_loading() && self.is_listening && self.migration == MigrationWord::None
    }

    /// Whether it sends.
    pub fn is_transferring(&self) -> bool {
        let is_under_way = matches!(
            self.migration,
            MigrationWord::Active | MigrationWord::PreSwitchover | MigrationWord::Device
        );
        is_under_way && !self.is_loading()
    }

    /// How the guest is that it sends, or is about to.
    pub fn guest_sent(&self) -> RunStatusWord {
        self.before.unwrap_or(self.run)
    }

    /// QEMU accepts it wherever the guest stands still and is whole, also after a migration completed.
    pub fn cont(&mut self) -> Result<(), Refused> {
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

    /// `stop`: of a guest that does not execute it changes nothing.
    pub fn stop(&mut self) {
        if self.executes() {
            self.run = RunStatusWord::Paused;
        }
    }

    /// Begins to send, to another host or into a file. QEMU refuses a guest whose last transfer completed, until it was
    /// told to go on; `stop` does not help.
    pub fn migrate(&mut self) -> Result<(), Refused> {
        if self.is_transferring() {
            return Err("there is a migration in progress");
        }
        match self.run {
            RunStatusWord::InMigrate => Err("the guest is waiting for an incoming migration"),
            RunStatusWord::PostMigrate => Err("the guest was paused by a previous migration"),
            _ => {
                self.migration = MigrationWord::Active;
                Ok(())
            }
        }
    }

    /// All but the last round was sent: the guest stands still until it is told to go on.
    pub fn pre_switchover(&mut self) {
        self.migration = MigrationWord::PreSwitchover;
        self.before = Some(self.run);
        self.run = RunStatusWord::FinishMigrate;
    }

    /// The other side has all of it.
    pub fn complete(&mut self) {
        self.migration = MigrationWord::Completed;
        self.before = None;
        self.run = RunStatusWord::PostMigrate;
    }

    /// The transfer ends badly. QEMU lets a guest that it stopped go on by itself, unless it could not get its disks back.
    pub fn fail(&mut self, status: MigrationWord, goes_on: bool) {
        self.migration = status;
        if let Some(before) = self.before.take() {
            let stays = before == RunStatusWord::Running && !goes_on;
            self.run = if stays { RunStatusWord::Paused } else { before };
        }
    }

    /// The stream has come, of a guest that was so when it was stopped. One that had powered itself off has done so here.
    pub fn load(&mut self, sent: RunStatusWord) {
        self.migration = MigrationWord::Completed;
        self.run = match sent {
            RunStatusWord::Running => RunStatusWord::Paused,
            other => other,
        };
    }

    /// The stream ended before it was whole.
    pub fn break_off(&mut self) {
        self.migration = MigrationWord::Failed;
    }
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Which process it is: another start is another one.
    pub serial: u64,
    machine: Machine,
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
    /// Its drive for media.
    pub cdrom: Option<CdromState>,
    /// The copies of its disk, by what they are for.
    pub copies: BTreeMap<CopyTo, CopyJobState>,
}

impl Process {
    /// One that starts.
    pub fn spawn(serial: u64, is_incoming: bool) -> Self {
        Self {
            serial,
            machine: Machine::spawn(is_incoming),
            is_ready: false,
            is_silent: false,
            limit_ms: None,
            resets: 0,
            up_ms: None,
            cdrom: None,
            copies: BTreeMap::new(),
        }
    }

    /// Gives it the drive that a document wants, as at its start.
    pub fn add_cdrom(&mut self, machine: &document::Machine) {
        self.cdrom = machine.cdrom.as_ref().map(|_| CdromState::default());
        self.set_medium(machine);
        self.set_boot(machine);
        if let Some(cdrom) = &mut self.cdrom {
            cdrom.is_open = false;
        }
    }

    /// Changes what is in its drive.
    pub fn set_medium(&mut self, machine: &document::Machine) {
        if let (Some(state), Some(wanted)) = (&mut self.cdrom, &machine.cdrom) {
            state.medium = wanted.medium.as_ref().map(|image| image.sha256.clone());
            state.is_open = state.medium.is_none();
        }
    }

    /// Changes what its guest boots from.
    pub fn set_boot(&mut self, machine: &document::Machine) {
        if let Some(state) = &mut self.cdrom {
            state.boot.clone_from(&machine.boot);
        }
    }

    /// What it says.
    pub fn look(&self) -> Qemu {
        if self.is_silent {
            return Qemu::Silent;
        }
        Qemu::Answers(QemuState {
            progress: (self.migration != MigrationWord::None).then_some(Progress {
                round: 1,
                remaining_bytes: 0,
                total_bytes: 256,
                sent_bytes: 200,
                dirty_pages_per_s: 0,
                bytes_per_s: 1000,
            }),
            downtime_limit_ms: self.limit_ms,
            guest: Guest {
                ready: self.is_ready,
                addresses: Vec::new(),
                up_ms: self.up_ms,
            },
            resets: self.resets,
            cdrom: self.cdrom.clone().map(Box::new),
            copies: Some(self.copies.iter().map(job).collect()),
            ..self.machine.look()
        })
    }
}

fn job((to, state): (&CopyTo, &CopyJobState)) -> CopyJob {
    CopyJob {
        to: *to,
        state: state.clone(),
    }
}

impl Deref for Process {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }
}
