//! What the controller has decided and what waits for it, counted for whoever watches the server. Nothing is decided by
//! these numbers.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::queue::Item;

/// What came of looking at an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was nothing to do.
    Nothing,
    /// A plan was committed.
    Committed,
    /// Another write was faster: it is looked at again.
    Overtaken,
    /// The store could not: it is tried again.
    Failed,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Nothing, Self::Committed, Self::Overtaken, Self::Failed];

    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Committed => "committed",
            Self::Overtaken => "overtaken",
            Self::Failed => "failed",
        }
    }
}

/// The kinds of items, in the order in which they are counted.
pub const ITEMS: [&str; 4] = ["vm", "migration", "host", "template"];

const fn place(item: Item) -> usize {
    match item {
        Item::Vm(_) => 0,
        Item::Migration(_) => 1,
        Item::Host(_) => 2,
        Item::Template(_) => 3,
    }
}

/// The counts since the server's start.
#[derive(Debug, Default)]
pub struct Figures {
    queued: AtomicUsize,
    decisions: [[AtomicU64; Outcome::ALL.len()]; ITEMS.len()],
}

impl Figures {
    /// So many items wait.
    pub(crate) fn queued(&self, items: usize) {
        self.queued.store(items, Ordering::Relaxed);
    }

    /// An item was looked at.
    pub(crate) fn decided(&self, item: Item, outcome: Outcome) {
        self.decisions[place(item)][outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many items wait.
    pub fn queue_length(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// How often what came of looking at which kind of item.
    pub fn decisions(&self) -> impl Iterator<Item = (&'static str, Outcome, u64)> {
        let kinds = ITEMS.iter().zip(&self.decisions);
        kinds.flat_map(|(kind, counts)| {
            let outcomes = Outcome::ALL.into_iter().zip(counts);
            outcomes.map(|(outcome, count)| (*kind, outcome, count.load(Ordering::Relaxed)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_decision_is_counted_at_its_place() {
        let figures = Figures::default();
        let (vm, host) = (
            Item::Vm(uuid::Uuid::nil().into()),
            Item::Host(uuid::Uuid::nil().into()),
        );
        figures.decided(vm, Outcome::Committed);
        figures.decided(vm, Outcome::Committed);
        figures.decided(host, Outcome::Failed);
        figures.queued(7);
        let counted: Vec<_> = figures.decisions().filter(|(.., count)| *count > 0).collect();
        assert_eq!(
            counted,
            [("vm", Outcome::Committed, 2), ("host", Outcome::Failed, 1)]
        );
        assert_eq!(figures.queue_length(), 7);
    }
}
