//! Owns: leases: who is alive until when, by a clock that comes by argument.
//! Does not know: keys; what a lease's end deletes is [`crate::backend::State`]'s.
//! Start here: [`Lease`]; a backend keeps its leases in a [`LeaseTable`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::StoreError;

/// The name of a lease; given by the store, never given twice by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A promise of the store to delete certain keys unless it hears again within `ttl`.
///
/// The end of a lease deletes all its keys in one revision. It comes at `ttl` at the earliest and may come later; after
/// a start of the store every lease has its full time again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// How long it lives after a grant or a keep-alive; a backend may grant more than was asked for.
    pub ttl: Duration,
}

/// Monotonic time since any fixed moment.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The machine's monotonic clock.
pub fn system_clock() -> Clock {
    let start = Instant::now();
    Arc::new(move || start.elapsed())
}

/// The leases that are alive.
#[derive(Debug, Clone, Default)]
pub struct LeaseTable {
    alive: BTreeMap<LeaseId, Alive>,
}

#[derive(Debug, Clone, Copy)]
struct Alive {
    ttl: Duration,
    deadline: Duration,
    /// Its end was decided but may not be durable yet; it can no longer be kept alive.
    ending: bool,
}

impl LeaseTable {
    /// Adds a lease whose time begins at `now`.
    pub fn insert(&mut self, lease: Lease, now: Duration) {
        let deadline = now.saturating_add(lease.ttl);
        let alive = Alive {
            ttl: lease.ttl,
            deadline,
            ending: false,
        };
        self.alive.insert(lease.id, alive);
    }

    /// Begins the lease's time again.
    pub fn keep_alive(&mut self, id: LeaseId, now: Duration) -> Result<Lease, StoreError> {
        let alive = self.alive.get_mut(&id).filter(|alive| !alive.ending);
        let alive = alive.ok_or(StoreError::LeaseNotFound { lease: id })?;
        alive.deadline = now.saturating_add(alive.ttl);
        Ok(Lease { id, ttl: alive.ttl })
    }

    /// Decides the lease's end: from here on it is not alive, and [`LeaseTable::due`] names it until it is removed.
    pub fn begin_end(&mut self, id: LeaseId) -> Result<(), StoreError> {
        let alive = self
            .alive
            .get_mut(&id)
            .ok_or(StoreError::LeaseNotFound { lease: id })?;
        alive.ending = true;
        Ok(())
    }

    /// Forgets a lease.
    pub fn remove(&mut self, id: LeaseId) -> Result<(), StoreError> {
        let gone = self.alive.remove(&id);
        gone.map(|_| ()).ok_or(StoreError::LeaseNotFound { lease: id })
    }

    /// Whether the lease is alive.
    pub fn contains(&self, id: LeaseId) -> bool {
        self.alive.get(&id).is_some_and(|alive| !alive.ending)
    }

    /// Whether there is no lease.
    pub fn is_empty(&self) -> bool {
        self.alive.is_empty()
    }

    /// The leases whose time has run out.
    pub fn due(&self, now: Duration) -> Vec<LeaseId> {
        let over = |alive: &Alive| alive.ending || alive.deadline <= now;
        let due = self.alive.iter().filter(|(_, alive)| over(alive));
        due.map(|(id, _)| *id).collect()
    }
}
