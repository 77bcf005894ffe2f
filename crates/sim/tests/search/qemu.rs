//! A QEMU process, as much of it as the protocol's page measured, with the age of its guest's memory.

use driver::types::{Guest, GuestEnd, MigrationWord, Qemu, QemuState, RunStatusWord};

/// `query-status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Run {
    Prelaunch,
    Running,
    Paused,
    InMigrate,
    FinishMigrate,
    PostMigrate,
    Shutdown,
}

/// `query-migrate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transfer {
    None,
    Active,
    PreSwitchover,
    Device,
    Completed,
    Failed,
    Cancelled,
}

/// What QEMU says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Said {
    pub(crate) run: Run,
    pub(crate) transfer: Transfer,
    pub(crate) is_incoming: bool,
}

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) said: Said,
    pub(crate) is_listening: bool,
    /// Nothing comes through to the other side any more, and neither notices.
    pub(crate) is_cut: bool,
    /// How the guest was when the transfer began, or what it came to since by itself.
    before: Run,
    /// Another copy has written to the disk since this memory was current.
    pub(crate) is_old: bool,
    /// The slot that its transfer goes to.
    pub(crate) to: u8,
    /// What it sent last went to a disk.
    is_saved: bool,
}

impl Process {
    pub(crate) fn spawn(is_incoming: bool) -> Self {
        let run = if is_incoming {
            Run::InMigrate
        } else {
            Run::Prelaunch
        };
        Self {
            said: Said {
                run,
                transfer: Transfer::None,
                is_incoming,
            },
            is_listening: false,
            is_cut: false,
            before: run,
            is_old: false,
            to: 0,
            is_saved: false,
        }
    }

    pub(crate) fn executes(&self) -> bool {
        self.said.run == Run::Running
    }

    /// Whether it has a guest's memory that another copy's writes make old.
    pub(crate) fn has_memory(&self) -> bool {
        !matches!(self.said.run, Run::Prelaunch | Run::InMigrate)
    }

    pub(crate) fn is_sending(&self) -> bool {
        use Transfer::{Active, Device, PreSwitchover};
        self.said.run != Run::InMigrate && matches!(self.said.transfer, Active | PreSwitchover | Device)
    }

    pub(crate) fn awaits_stream(&self) -> bool {
        self.said.run == Run::InMigrate && self.is_listening && self.said.transfer == Transfer::None
    }

    pub(crate) fn has_loaded(&self) -> bool {
        self.said.is_incoming && self.said.run != Run::InMigrate
    }

    pub(crate) fn has_completed(&self) -> bool {
        self.said.run == Run::PostMigrate && !self.is_saved
    }

    /// Its state goes to a disk, and it stands still.
    pub(crate) fn save(&mut self) {
        self.is_saved = true;
        self.complete();
    }

    pub(crate) fn can_be_saved(&self) -> bool {
        matches!(self.said.run, Run::Running | Run::Paused) && !self.is_sending()
    }

    pub(crate) fn migrate(&mut self, to: u8) {
        self.before = self.said.run;
        self.said.transfer = Transfer::Active;
        (self.is_cut, self.is_saved) = (false, false);
        self.to = to;
    }

    pub(crate) fn stop_for_last_round(&mut self) {
        self.said.transfer = Transfer::PreSwitchover;
        self.said.run = Run::FinishMigrate;
    }

    /// The transfer ends badly; QEMU lets the guest go on by itself, if it can.
    pub(crate) fn give_up(&mut self, word: Transfer, goes_on: bool) {
        self.said.transfer = word;
        self.is_cut = false;
        self.said.run = match self.said.run {
            Run::FinishMigrate if goes_on || self.before != Run::Running => self.before,
            Run::FinishMigrate => Run::Paused,
            run => run,
        };
    }

    pub(crate) fn complete(&mut self) {
        self.said.transfer = Transfer::Completed;
        self.said.run = Run::PostMigrate;
    }

    pub(crate) fn load(&mut self) {
        self.said.transfer = Transfer::Completed;
        self.said.run = Run::Paused;
    }

    /// `cont`: accepted wherever the guest stands still and is whole, also after its transfer completed.
    pub(crate) fn cont(&mut self) -> bool {
        let may = !matches!(self.said.run, Run::InMigrate | Run::FinishMigrate | Run::Shutdown);
        if may {
            self.said.run = Run::Running;
            self.is_saved = false;
        }
        may
    }
}

impl Said {
    pub(crate) fn to_driver(self) -> Qemu {
        Qemu::Answers(QemuState {
            run: self.run.word(),
            migration: self.transfer.word(),
            migration_error: None,
            progress: None,
            downtime_limit_ms: None,
            is_incoming: self.is_incoming,
            guest: Guest::default(),
            ended: (self.run == Run::Shutdown).then_some(GuestEnd::PowerOff),
            resets: 0,
        })
    }
}

impl Run {
    fn word(self) -> RunStatusWord {
        match self {
            Self::Prelaunch => RunStatusWord::Prelaunch,
            Self::Running => RunStatusWord::Running,
            Self::Paused => RunStatusWord::Paused,
            Self::InMigrate => RunStatusWord::InMigrate,
            Self::FinishMigrate => RunStatusWord::FinishMigrate,
            Self::PostMigrate => RunStatusWord::PostMigrate,
            Self::Shutdown => RunStatusWord::Shutdown,
        }
    }
}

impl Transfer {
    fn word(self) -> MigrationWord {
        match self {
            Self::None => MigrationWord::None,
            Self::Active => MigrationWord::Active,
            Self::PreSwitchover => MigrationWord::PreSwitchover,
            Self::Device => MigrationWord::Device,
            Self::Completed => MigrationWord::Completed,
            Self::Failed => MigrationWord::Failed,
            Self::Cancelled => MigrationWord::Cancelled,
        }
    }
}
