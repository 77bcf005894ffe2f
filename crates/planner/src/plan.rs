//! A plan: what to write, and what it relies on.

use std::collections::BTreeMap;

use model::record::{self, Stored};
use model::{Timestamp, VmId};

/// Writes that are made together, or not at all if anything they rely on has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What it does, in a few words, for the audit trail.
    pub action: String,
    /// The revision at which each key was read; 0 if it was not there.
    pub relies_on: BTreeMap<String, u64>,
    /// The new values; `None` deletes.
    pub writes: BTreeMap<String, Option<Vec<u8>>>,
}

impl Plan {
    /// A plan that does nothing yet.
    pub fn new(action: impl Into<String>) -> Self {
        Self {
            action: action.into(),
            ..Self::default()
        }
    }

    /// Takes what another one relies on and writes into this one.
    pub(crate) fn join(&mut self, other: Self) {
        self.relies_on.extend(other.relies_on);
        self.writes.extend(other.writes);
    }

    /// The plan holds only while this key has this revision.
    pub fn rely(&mut self, key: String, revision: u64) {
        self.relies_on.insert(key, revision);
    }

    /// Writes a key that is relied on at the revision where it was read.
    pub fn replace<T: Stored>(&mut self, key: String, revision: u64, value: &T) {
        self.rely(key.clone(), revision);
        self.writes.insert(key, Some(record::encode(value)));
    }

    /// Writes a key that must not be there yet.
    pub fn create<T: Stored>(&mut self, key: String, value: &T) {
        self.replace(key, 0, value);
    }

    /// Deletes a key that is relied on at the revision where it was read.
    pub fn remove(&mut self, key: String, revision: u64) {
        self.rely(key.clone(), revision);
        self.writes.insert(key, None);
    }
}

/// What a planner says of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// What to do now.
    pub plan: Option<Plan>,
    /// When to look again even if nothing changes.
    pub look_again_at: Option<Timestamp>,
    /// Whether there is something to do that a change of any host or image may make possible.
    pub is_waiting: bool,
    /// The VMs whose next change, or end, may make something possible.
    pub awaits: Vec<VmId>,
}

impl Decision {
    /// Nothing to do until something changes.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Nothing to do until this time.
    pub fn wait_until(at: Timestamp) -> Self {
        Self {
            look_again_at: Some(at),
            ..Self::default()
        }
    }

    /// Nothing to do until one of these VMs changes, or is no more.
    pub(crate) fn wait_for(awaits: Vec<VmId>) -> Self {
        Self {
            awaits,
            ..Self::default()
        }
    }

    /// The same, and look again when one of these VMs changes, or is no more.
    #[must_use]
    pub(crate) fn and_after(mut self, awaits: Vec<VmId>) -> Self {
        self.awaits.extend(awaits);
        self
    }

    /// The same, and look again at this time at the latest.
    #[must_use]
    pub(crate) fn and_at(mut self, at: Option<Timestamp>) -> Self {
        self.look_again_at = self.look_again_at.into_iter().chain(at).min();
        self
    }

    /// Nothing can be done until there is room somewhere.
    pub fn wait_for_room() -> Self {
        Self {
            is_waiting: true,
            ..Self::default()
        }
    }
}

impl From<Plan> for Decision {
    fn from(plan: Plan) -> Self {
        Self {
            plan: Some(plan),
            ..Self::default()
        }
    }
}
