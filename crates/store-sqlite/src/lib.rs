//! The store's embedded backend: one SQLite database, used by one process.
//!
//! Owns: the files `store.db` (with SQLite's `-wal` and `-shm`) and `store.lock` in the store's directory.
//!
//! Does not know: what the values mean, and how a txn is decided; `store::backend` does.
//!
//! Start here: [`SqliteStore::open`]; the way of a write is `writer.rs`, that of a read `range.rs` and, where the file is
//! needed, `reader.rs`; the tables are in `schema.rs`. What is done to files that no process uses: `check.rs`, `restore.rs`.
//!
//! ```text
//!  txn ──▶ queue (bounded) ──▶ writer thread: decide all that wait ──▶ one SQLite commit ──▶ state in memory ──▶ watches
//!                                                                                                         └────▶ answers
//!  range, current revision ◀── state in memory          range, old revision; watch that is behind ◀── read connections
//! ```
//! All keys of the current revision are in memory, and their values but for those that are left in the file
//! ([`Options::left_in_file`]); older revisions are only in the file. Nothing is seen before it is durable.

mod check;
mod errors;
mod leases;
mod open;
mod purge;
mod queue;
mod range;
mod reader;
mod restore;
mod schema;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use store::backend::{Hub, State, lock};
use store::{
    Backup, BoxFuture, Clock, Lease, LeaseId, RangeRequest, RangeResponse, Revision, Status, Store,
    StoreError, Txn, TxnResponse, WatchRequest, WatchStream, system_clock,
};

pub use check::{Checked, Fault, check};
pub use open::{OpenError, stored};
pub use restore::Restore;

use queue::{Job, Queue};
use reader::Readers;

/// The name of the database in the store's directory.
pub const DATABASE: &str = "store.db";

/// The name of the file whose lock says that a process uses the store.
pub const LOCK: &str = "store.lock";

/// To look through the rows of so many takes a few milliseconds.
const NEAR_REVISIONS: Revision = 4_096;

pub(crate) const BACKEND: &str = "sqlite";

/// How to open a store.
#[derive(Clone)]
pub struct Options {
    /// The directory; it is made if it does not exist.
    pub dir: PathBuf,
    /// The clock that leases go by.
    pub clock: Clock,
    /// The most bytes of the database; a write that needs more is refused as if the disk were full.
    pub max_bytes: Option<u64>,
    /// The prefixes of keys whose values are not kept in memory, but read from the file when somebody asks for them: for
    /// what grows without end and is seldom read. What a lease keeps stays in memory.
    pub left_in_file: Vec<String>,
    /// How many revisions back what has changed since is looked for, and the rest is taken from memory; what is older is
    /// read from the file, key by key.
    pub near_revisions: Revision,
}

impl Options {
    /// The store in `dir`, by the machine's clock, as large as the disk allows.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            clock: system_clock(),
            max_bytes: None,
            left_in_file: Vec::new(),
            near_revisions: NEAR_REVISIONS,
        }
    }
}

/// The embedded store. Needs a tokio runtime; dropping it waits for writes that were queued.
pub struct SqliteStore {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    readers: Arc<Readers>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What the writer changes and everybody reads.
pub(crate) struct Shared {
    path: PathBuf,
    near_revisions: Revision,
    state: RwLock<State>,
    /// How many commits were made durable since the start.
    commits: AtomicU64,
    hub: Arc<Hub>,
    clock: Clock,
}

impl Shared {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SqliteStore {
    /// Opens the store of a directory, or makes it. Blocks while it reads the current keys.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let opened = open::open(&options)?;
        let revision = opened.state.revision();
        let shared = Arc::new(Shared {
            path: opened.path.clone(),
            near_revisions: options.near_revisions,
            state: RwLock::new(opened.state),
            commits: AtomicU64::new(0),
            hub: Arc::new(Hub::new(revision)),
            clock: options.clock,
        });
        let queue = Arc::new(Queue::default());
        let readers = Arc::new(Readers::new(opened.path));
        let writer = writer::start(opened.writer, opened.lock, shared.clone(), queue.clone())?;
        Ok(Self {
            shared,
            queue,
            readers,
            writer: Mutex::new(Some(writer)),
        })
    }

    /// Ends the leases whose time has run out. The store does so by itself a few times a second; this is for clocks that
    /// jump.
    pub async fn tick(&self) -> Result<(), StoreError> {
        self.queue.ask("tick", |reply| Job::Tick { reply }).await
    }

    /// How many commits were made since the start: so often the log was synced.
    pub fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    /// Closes the store, once what is queued is written; blocks until then. Later calls answer [`StoreError::Closed`].
    pub fn close(&self) {
        self.queue.close();
        let writer = lock(&self.writer).take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!(path = %self.shared.path.display(), "the store's writer thread panicked");
        }
    }

    fn check_open(&self, attempt: &'static str) -> Result<(), StoreError> {
        if self.queue.is_closed() {
            return Err(StoreError::Closed { attempt });
        }
        Ok(())
    }

    async fn write(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        txn.check()?;
        self.queue.txn(txn).await
    }

    async fn report(&self) -> Result<Status, StoreError> {
        let free_bytes = self.readers.free_bytes().await?;
        let state = self.shared.read();
        Ok(Status {
            backend: BACKEND,
            revision: state.revision(),
            compacted: state.compacted(),
            keys: state.len(),
            size_bytes: Some(schema::size_bytes(&self.shared.path)),
            free_bytes: Some(free_bytes),
        })
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for SqliteStore {
    fn range(&self, request: RangeRequest) -> BoxFuture<'_, Result<RangeResponse, StoreError>> {
        Box::pin(self.read(request))
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, StoreError>> {
        Box::pin(self.write(txn))
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, StoreError>> {
        Box::pin(async move { Hub::watch(&self.shared.hub, self.readers.clone(), request) })
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(
            self.queue
                .ask("compact", move |reply| Job::Compact { revision, reply }),
        )
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease, StoreError>> {
        Box::pin(
            self.queue
                .ask("grant lease", move |reply| Job::Grant { ttl, reply }),
        )
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Lease, StoreError>> {
        Box::pin(async move {
            self.check_open("keep alive")?;
            leases::keep_alive(&self.shared, lease)
        })
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(
            self.queue
                .ask("revoke lease", move |reply| Job::Revoke { lease, reply }),
        )
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, StoreError>> {
        Box::pin(async move {
            self.check_open("status")?;
            self.report().await
        })
    }

    fn backup<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, Result<Backup, StoreError>> {
        Box::pin(async move {
            self.check_open("backup")?;
            self.readers.backup(target.to_owned()).await
        })
    }
}
