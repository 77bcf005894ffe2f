//! A state of the search: numbers only, and what must hold in it.

use super::agents::BLANK;
use super::qemu::Process;
use super::store::HOSTS;

/// How many incarnations there may be.
pub(crate) const SLOTS: usize = 4;

/// The faults, by class: each has a budget of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Class {
    /// An agent dies and is started again; also between an effect and its answer.
    Agent,
    /// A host's connection to the servers is lost.
    Connection,
    /// The stream between two QEMUs breaks, or goes silent, with or without the last acknowledgement.
    Link,
    /// A QEMU dies.
    Qemu,
    /// An effect fails, or takes place and is said to have failed.
    Effect,
    /// A document is overtaken on its way, and comes all the same.
    Document,
    /// A report comes once more, at any later time.
    Report,
    /// `go` comes once more, at any later time.
    Go,
    /// A controller commits what it decided on an older state.
    Controller,
    /// A host goes off for good.
    Host,
    /// A guest powers itself off.
    Guest,
}

pub(crate) const CLASSES: [Class; 11] = [
    Class::Agent,
    Class::Connection,
    Class::Link,
    Class::Qemu,
    Class::Effect,
    Class::Document,
    Class::Report,
    Class::Go,
    Class::Controller,
    Class::Host,
    Class::Guest,
];

/// An incarnation: what is on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    pub(crate) host: u8,
    /// 0: its agent has nothing to do with it.
    pub(crate) core: u32,
    /// What is in the journal.
    pub(crate) marks: u32,
    pub(crate) process: Option<Process>,
    /// What its agent reports, again and again; 0: nothing yet.
    pub(crate) said: u32,
    pub(crate) was_spawned: bool,
    /// The slots that its agent has promised not to switch over to, a bit each.
    pub(crate) promised: u8,
    /// Closed, and forgotten by its agent.
    pub(crate) is_over: bool,
}

/// A host and its way to the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Host {
    pub(crate) is_off: bool,
    pub(crate) is_online: bool,
    pub(crate) is_fresh: bool,
    /// The last document that was accepted, which is on its disk; 0: none.
    pub(crate) document: u32,
}

/// A message that comes late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Late {
    Document { host: u8, document: u32 },
    Report { host: u8, status: u32 },
    Go { from: u8, to: u8 },
    Plan { plan: u32, decided_on: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) store: u32,
    pub(crate) hosts: [Host; HOSTS],
    pub(crate) slots: [Slot; SLOTS],
    pub(crate) late: Option<Late>,
    /// Faults that may still come, by class.
    pub(crate) budget: [u8; CLASSES.len()],
    /// Wishes that may still be made, a bit each.
    pub(crate) wishes: u8,
    /// How many of them.
    pub(crate) wishes_left: u8,
}

impl World {
    pub(crate) fn first(store: u32) -> Self {
        let slot = Slot {
            host: 0,
            core: 0,
            marks: BLANK,
            process: None,
            said: 0,
            was_spawned: false,
            promised: 0,
            is_over: false,
        };
        Self {
            store,
            hosts: [Host::default(); HOSTS],
            slots: [slot; SLOTS],
            late: None,
            budget: [0; CLASSES.len()],
            wishes: 0,
            wishes_left: 0,
        }
    }

    pub(crate) fn executing(&self) -> usize {
        let runs = |slot: &&Slot| slot.process.is_some_and(|process| process.executes());
        self.slots.iter().filter(runs).count()
    }

    /// A guest executes: what others have in memory is older than the disk from now on.
    pub(crate) fn note_writes(&mut self) {
        for at in 0..SLOTS {
            if self.slots[at].process.is_some_and(|process| process.executes()) {
                let others = self
                    .slots
                    .iter_mut()
                    .enumerate()
                    .filter(|(other, _)| *other != at);
                let memories = others.filter_map(|(_, slot)| slot.process.as_mut());
                for process in memories.filter(|process| process.has_memory()) {
                    process.is_old = true;
                }
            }
        }
    }
}

/// What must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Violation {
    TwoRun,
    /// A guest goes on with memory that is older than its disk.
    OldMemoryRuns,
    LaunchedTwice,
    /// A process is started without its mark, or in spite of its end.
    LaunchedWrongly,
    /// `cont` without ran(N), or after closed(N).
    ContinuedWrongly,
    /// A loaded target goes on while its source may.
    TargetTooEarly,
    /// A source that completed goes on although its target is not known to have never run.
    SourceAfterHandOver,
    PromiseBroken,
    /// What had to be saved is ended unsaved, and nothing else has it.
    MemoryLost,
    /// A promise is given of which QEMU knows nothing.
    PromiseUntrue,
    /// Closed is reported, and is not so.
    ClosedUntrue,
    /// An incarnation is granted beside another that may run.
    GrantedTooEarly,
    /// Nothing in the table says what to do.
    Unforeseen,
    /// Not wrong: more incarnations than there is room for.
    BeyondBound,
    /// A migration that nobody disturbs does not get to its end.
    NeverMoves,
    /// Nothing leads on, without faults, to where the VM is as it should be.
    DeadEnd,
}
