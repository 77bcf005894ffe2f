//! Owns: the parts that backends of this project are made of: the current state and how a txn changes it, and the
//! delivery of changes to watches.
//! Does not know: where history is kept.
//! Start here: [`Draft::apply`] for txns, [`Hub`] for watches.

mod hub;
mod state;

pub use hub::{History, HistoryPage, Hub, PROGRESS_EVERY};
pub use state::{Commit, Draft, Loading, State};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a panic elsewhere: everything under these locks is changed by whole steps.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
