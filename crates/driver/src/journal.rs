//! What a host's journal says: the promises that are on its disk, as entries and as what they add up to.
//!
//! **Owns:** the entries, and what is known of an incarnation after them.
//!
//! **Does not know:** how entries are kept on a disk, nor what a mark permits or forbids: that is [`crate::table`].
//!
//! **Start here:** [`State`].

use std::collections::BTreeMap;

use model::{Incarnation, VmId};
use serde::{Deserialize, Serialize};

use crate::types::{Mark, Marks};

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "kebab-case")]
pub enum Entry {
    /// A document of this revision was accepted.
    Document {
        /// The revision.
        revision: u64,
    },
    /// Something is about to be done, or was.
    Mark {
        /// The VM.
        vm: VmId,
        /// Of which incarnation.
        incarnation: Incarnation,
        /// What.
        #[serde(rename = "what")]
        mark: Mark,
    },
    /// Nothing is left of the incarnation. It still counts as closed.
    Forget {
        /// The VM.
        vm: VmId,
        /// Which one.
        incarnation: Incarnation,
    },
    /// All marks of an incarnation, when the journal was rewritten.
    Marks {
        /// The VM.
        vm: VmId,
        /// Of which incarnation.
        incarnation: Incarnation,
        /// The marks.
        marks: Marks,
    },
}

/// What the journal says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The last document that was accepted.
    pub document_revision: u64,
    /// Incarnations of which something may be left.
    pub marks: BTreeMap<(VmId, Incarnation), Marks>,
    /// The highest forgotten incarnation of each VM.
    pub forgotten: BTreeMap<VmId, Incarnation>,
}

impl State {
    /// What is known of an incarnation. One that was forgotten, or is older than one that was, is closed.
    pub fn marks_of(&self, vm: VmId, incarnation: Incarnation) -> Marks {
        if let Some(marks) = self.marks.get(&(vm, incarnation)) {
            return marks.clone();
        }
        let is_forgotten = self.forgotten.get(&vm).is_some_and(|last| *last >= incarnation);
        Marks {
            launched: is_forgotten,
            closed: is_forgotten,
            ..Marks::default()
        }
    }

    /// Nothing is left of an incarnation.
    pub fn forget(&mut self, vm: VmId, incarnation: Incarnation) {
        self.apply(Entry::Forget { vm, incarnation });
    }

    /// An entry more.
    pub fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Document { revision } => self.document_revision = revision,
            Entry::Mark {
                vm,
                incarnation,
                mark,
            } => {
                // What was forgotten stays closed, whatever is marked after that.
                let mut marks = self.marks_of(vm, incarnation);
                marks.set(&mark);
                self.marks.insert((vm, incarnation), marks);
            }
            Entry::Marks {
                vm,
                incarnation,
                marks,
            } => {
                self.marks.insert((vm, incarnation), marks);
            }
            Entry::Forget { vm, incarnation } => {
                self.marks.remove(&(vm, incarnation));
                let last = self.forgotten.entry(vm).or_default();
                *last = incarnation.max(*last);
            }
        }
    }

    /// The fewest entries that say the same.
    pub fn entries(&self) -> Vec<Entry> {
        let document = Entry::Document {
            revision: self.document_revision,
        };
        let forgotten = self.forgotten.iter().map(|(vm, last)| Entry::Forget {
            vm: *vm,
            incarnation: *last,
        });
        let marks = self.marks.iter().map(|((vm, incarnation), marks)| Entry::Marks {
            vm: *vm,
            incarnation: *incarnation,
            marks: marks.clone(),
        });
        std::iter::once(document).chain(forgotten).chain(marks).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forgotten_incarnation_stays_closed_when_it_is_marked_again() {
        let vm: VmId = "01900000-0000-7000-8000-000000000001".parse().unwrap();
        let mut state = State::default();
        state.forget(vm, Incarnation(3));
        for incarnation in [Incarnation(2), Incarnation(3)] {
            let mark = Mark::Removed;
            state.apply(Entry::Mark {
                vm,
                incarnation,
                mark,
            });
            let marks = state.marks_of(vm, incarnation);
            assert!(marks.launched && marks.closed && marks.removed, "{marks:?}");
        }
        assert_eq!(state.marks_of(vm, Incarnation(4)), Marks::default());
    }
}
