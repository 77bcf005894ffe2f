//! A QEMU process: the same model that the simulator runs, with the age of its guest's memory and where its stream goes.

use driver::qemu_model::Machine;
use driver::types::{MigrationWord, Qemu, RunStatusWord};

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) machine: Machine,
    /// Nothing comes through to the other side any more, and neither notices.
    pub(crate) is_cut: bool,
    /// Another copy has written to the disk since this memory was current.
    pub(crate) is_old: bool,
    /// The slot that its transfer goes to.
    pub(crate) to: u8,
    /// What it sent last went to a disk, and its guest has not gone on since.
    is_saved: bool,
}

impl Process {
    pub(crate) fn spawn(is_incoming: bool) -> Self {
        Self {
            machine: Machine::spawn(is_incoming),
            is_cut: false,
            is_old: false,
            to: 0,
            is_saved: false,
        }
    }

    pub(crate) fn executes(&self) -> bool {
        self.machine.executes()
    }

    /// Whether it has a guest's memory that another copy's writes make old.
    pub(crate) fn has_memory(&self) -> bool {
        !matches!(
            self.machine.run,
            RunStatusWord::Prelaunch | RunStatusWord::InMigrate
        )
    }

    pub(crate) fn is_sending(&self) -> bool {
        self.machine.is_transferring()
    }

    pub(crate) fn has_loaded(&self) -> bool {
        self.machine.is_incoming && !self.machine.is_loading()
    }

    /// Whether its guest is elsewhere.
    pub(crate) fn has_completed(&self) -> bool {
        self.machine.has_completed() && !self.is_saved
    }

    /// Whether its guest is on a disk, as it is here.
    pub(crate) fn is_saved(&self) -> bool {
        self.machine.has_completed() && self.is_saved
    }

    /// Its state goes to a disk, and it stands still. Asked again, it is there.
    pub(crate) fn save(&mut self) -> bool {
        if self.is_saved() {
            return true;
        }
        self.machine.stop();
        let may = self.machine.migrate().is_ok();
        if may {
            self.machine.complete();
            self.is_saved = true;
        }
        may
    }

    pub(crate) fn migrate(&mut self, to: u8) -> bool {
        let may = self.machine.migrate().is_ok();
        if may {
            (self.is_cut, self.is_saved) = (false, false);
            self.to = to;
        }
        may
    }

    /// The transfer ends badly; QEMU lets the guest go on by itself, if it can.
    pub(crate) fn give_up(&mut self, word: MigrationWord, goes_on: bool) {
        self.is_cut = false;
        self.machine.fail(word, goes_on);
    }

    /// `cont`: accepted wherever the guest stands still and is whole, also after its transfer completed.
    pub(crate) fn cont(&mut self) -> bool {
        let may = self.machine.cont().is_ok();
        self.is_saved &= !may;
        may
    }
}

/// What an agent that looks is told.
pub(crate) fn seen(machine: Option<Machine>) -> Qemu {
    machine.map_or(Qemu::None, |machine| Qemu::Answers(machine.look()))
}
