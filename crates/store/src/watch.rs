//! Owns: the words for following changes.
//! Does not know: how a backend keeps and delivers them; see [`crate::backend::Hub`].
//! Start here: [`WatchRequest`].

use crate::{KeyRange, KeyValue, Revision, StoreError};

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It was created or written.
    Put,
    /// It was deleted, by a txn or because its lease ended.
    Delete,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key after it. In a deletion only `key` and `mod_revision` (the deletion's revision) say something.
    pub kv: KeyValue,
    /// The key before it. None if it did not exist, and for events of the very revision that history was compacted to,
    /// whose past is gone.
    pub prev: Option<KeyValue>,
}

/// Follows the changes of a range, from a revision on.
///
/// Everything from `from` on comes exactly once and in order, all events of a revision in one batch and in key order. To
/// follow a list without a gap, watch from the list's revision plus one. A revision that is still to come may be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchRequest {
    /// Which keys.
    pub range: KeyRange,
    /// The first revision wanted; none is the one after the current.
    pub from: Option<Revision>,
    /// Also say how far the watch has come when there is nothing else to say.
    pub progress: bool,
}

impl WatchRequest {
    /// Follows `range` from now on.
    pub fn new(range: KeyRange) -> Self {
        Self {
            range,
            from: None,
            progress: false,
        }
    }

    /// Follows one key from now on.
    pub fn key(key: impl Into<String>) -> Self {
        Self::new(KeyRange::Key(key.into()))
    }

    /// Follows every key that starts with `prefix` from now on.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self::new(KeyRange::Prefix(prefix.into()))
    }

    /// Follows from `revision` on, including it.
    pub fn from(mut self, revision: Revision) -> Self {
        self.from = Some(revision);
        self
    }

    /// Asks for [`WatchItem::Progress`].
    pub fn with_progress(mut self) -> Self {
        self.progress = true;
        self
    }

    /// Refuses what the contract does not allow; every backend calls it first.
    pub fn check(&self) -> Result<(), StoreError> {
        self.range.check("watch")
    }
}

/// What a watch says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchItem {
    /// All changes of one revision in the watched range, in key order; never empty.
    Batch {
        /// The revision.
        revision: Revision,
        /// Its events.
        events: Vec<Event>,
    },
    /// Everything up to `revision` has been delivered. Comes, if asked for, once the watch has caught up with the store,
    /// and again from time to time when only keys outside of the range change.
    Progress {
        /// The revision.
        revision: Revision,
    },
    /// History from the wanted revision on is gone: list again. The last item of the watch.
    Compacted {
        /// The oldest revision that can still be watched from.
        compacted: Revision,
    },
}
