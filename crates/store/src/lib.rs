//! The store: the only meeting place of API, controllers and agents.
//!
//! Owns: the contract ([`Store`]), the in-memory backend ([`MemoryStore`]), the parts that backends share ([`backend`]),
//! and the suite that every backend must pass (`conformance`, behind the feature of that name).
//!
//! Does not know: what the values mean, which keys there are, and any backend but the in-memory one.
//!
//! Start here: [`Store`], then [`Txn`], [`RangeRequest`] and [`WatchRequest`].
//!
//! The contract is etcd's, as far as it is used: one counter of revisions for the whole store, reads at any revision that
//! was not compacted, txns under conditions, watches from a revision. Its limits are etcd's too, and every backend
//! enforces them, so that what runs on one runs on all.

pub mod backend;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod error;
mod lease;
mod memory;
mod range;
mod txn;
mod watch;

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
pub use futures_util::future::BoxFuture;

pub use bytes::Bytes;
pub use error::StoreError;
pub use lease::{Clock, Lease, LeaseId, LeaseTable, system_clock};
pub use memory::MemoryStore;
pub use range::{KeyRange, KeyValue, RangeRequest, RangeResponse};
pub use txn::{
    Compare, CompareNumber, Condition, FailedCompare, Field, Op, OpResult, Relation, Txn, TxnResponse,
};
pub use watch::{Event, EventKind, WatchItem, WatchRequest};

/// The number of a state of the whole store. Each txn that changes something makes the next one. 0 is "never": the
/// `mod_revision` of a key that does not exist. Which number the first change of a new store has is the backend's.
pub type Revision = u64;

/// The most steps in a branch of a txn, and the most compares.
pub const MAX_TXN_OPS: usize = 128;

/// The most keys that one txn changes; only the deletion of a prefix can reach it.
pub const MAX_TXN_EVENTS: usize = 1 << 20;

/// The most bytes in a request.
pub const MAX_REQUEST_BYTES: usize = 1_536 * 1_024;

/// The most bytes in a key.
pub const MAX_KEY_BYTES: usize = 1_024;

/// Changes as they happen. Ends after an error, after [`WatchItem::Compacted`], and never by itself.
pub type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchItem, StoreError>> + Send>>;

/// How the store stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The backend's name.
    pub backend: &'static str,
    /// The current revision.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub compacted: Revision,
    /// The number of keys at the current revision.
    pub keys: usize,
    /// The bytes that the store takes on its medium; none if it has none.
    pub size_bytes: Option<u64>,
    /// What of that is free for what will be written; none if it has no medium.
    pub free_bytes: Option<u64>,
}

/// A backup that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// The revision that it holds.
    pub revision: Revision,
    /// Its size.
    pub size_bytes: u64,
}

/// What every backend does. Used as `Arc<dyn Store>`.
///
/// An answered txn is durable and seen by every later range of the same handle. Whatever is not durable yet is seen by
/// nobody, no watch either.
pub trait Store: Send + Sync + 'static {
    /// Reads the keys of a range at one revision.
    fn range(&self, request: RangeRequest) -> BoxFuture<'_, Result<RangeResponse, StoreError>>;

    /// Changes keys under conditions, all or nothing. A condition that does not hold is an answer, not an error.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, StoreError>>;

    /// Follows the changes of a range. That history is gone is said by the stream, not by this call.
    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, StoreError>>;

    /// Forgets what was before `revision`, which itself stays readable. Refused for what is compacted already, and for
    /// a revision that is still to come.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Grants a lease that lives for `ttl`, or a little longer, after this and each keep-alive.
    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease, StoreError>>;

    /// Begins a lease's time again.
    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Lease, StoreError>>;

    /// Ends a lease now, which deletes its keys in one revision. Answers the store's revision after it.
    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// The current revision: every change that anybody was told of before this was asked is in it.
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        let nothing = self.range(RangeRequest::key("/"));
        Box::pin(async move { Ok(nothing.await?.revision) })
    }

    /// How the store stands.
    fn status(&self) -> BoxFuture<'_, Result<Status, StoreError>>;

    /// Writes a consistent copy to `target`, a file that must not exist, while reads and writes go on.
    fn backup<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, Result<Backup, StoreError>>;
}
