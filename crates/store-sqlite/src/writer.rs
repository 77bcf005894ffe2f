//! Owns: the thread that alone writes to the database.
//! Does not know: how a txn is decided (`store::backend::Draft`), how old rows go (`purge.rs`).
//! Start here: [`Writer::run`], then [`Writer::commit`]: all txns that wait are decided one after the other, become
//! durable together, and only then are seen and answered. Whoever comes while rows are being written joins their commit.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use store::backend::{Commit, Draft, State};
use store::{KeyValue, Revision, StoreError, Txn, TxnResponse};
use tokio::sync::OwnedSemaphorePermit;

use crate::Shared;
use crate::errors::{translate, translate_io};
use crate::purge::Purge;
use crate::queue::{Job, Queue, Reply, Waiting};
use crate::schema;

/// How often leases are looked at, if there is one.
const LEASE_LOOK: Duration = Duration::from_millis(200);
/// The longest that is waited for those who are likely to come.
const MOMENT_MAX: Duration = Duration::from_millis(2);
const LONG: Duration = Duration::from_secs(3_600);

/// What one commit to the database holds at most, so that no answer waits for too much.
const GROUP_TXNS: usize = 512;
const GROUP_BYTES: usize = 8 << 20;

pub(crate) struct Writer {
    pub(crate) connection: Connection,
    pub(crate) shared: Arc<Shared>,
    queue: Arc<Queue>,
    pub(crate) purge: Purge,
    /// How long the last commit took, and how many txns were in it.
    took: Duration,
    last: usize,
    /// Why nothing can be written any more: whether the last commit is in the file is not known.
    broken: Option<StoreError>,
    _lock: File,
}

pub(crate) fn start(
    connection: Connection,
    lock: File,
    shared: Arc<Shared>,
    queue: Arc<Queue>,
) -> Result<JoinHandle<()>, StoreError> {
    let path = shared.path.clone();
    let purge = Purge::resume(&connection).map_err(|error| translate("open", &path, &error))?;
    let writer = Writer {
        connection,
        shared,
        queue,
        purge,
        took: Duration::ZERO,
        last: 0,
        broken: None,
        _lock: lock,
    };
    std::thread::Builder::new()
        .name("store-writer".to_owned())
        .spawn(move || writer.run())
        .map_err(|error| translate_io("open", &path, &error))
}

impl Writer {
    fn run(mut self) {
        while let Some(mut line) = self.queue.clone().take(self.patience()) {
            while let Some(job) = line.pop_front() {
                self.work(job, &mut line);
            }
            self.end_due_leases();
            self.purge_some();
        }
    }

    fn patience(&self) -> Duration {
        if self.purge.is_due() {
            Duration::ZERO
        } else if !self.shared.read().leases().is_empty() {
            LEASE_LOOK
        } else {
            LONG
        }
    }

    /// How long those are waited for who are likely to come, because they were answered last: whoever comes just too late
    /// waits for a whole commit, so a part of one is well spent.
    fn moment(&self) -> Duration {
        (self.took / 4).min(MOMENT_MAX)
    }

    fn work(&mut self, job: Job, line: &mut VecDeque<Job>) {
        // Whoever asked may have gone; then the answer goes nowhere.
        match job {
            Job::Txn(first) => self.commit(first, line),
            Job::Compact { revision, reply } => drop(reply.send(self.compact(revision))),
            Job::Grant { ttl, reply } => drop(reply.send(self.grant(ttl))),
            Job::Revoke { lease, reply } => drop(reply.send(self.end_lease(lease))),
            Job::Tick { reply } => {
                self.end_due_leases();
                drop(reply.send(Ok(())));
            }
        }
    }

    /// Commits a txn, those behind it in the line, and those who come while rows are written.
    fn commit(&mut self, first: Waiting, line: &mut VecDeque<Job>) {
        let (shared, queue) = (self.shared.clone(), self.queue.clone());
        let mut group = Group::new(&shared.read());
        group.decide(first, &shared, &self.connection);
        group.decide_all(line, &shared, &self.connection);
        let stored = if group.draft.commits().is_empty() {
            Ok(())
        } else {
            let (expected, moment) = (self.last, self.moment());
            let mut over_at = None;
            self.write("txn", |tx| {
                loop {
                    group.insert(tx)?;
                    // What is left of the line does not fit, or is no txn.
                    if !line.is_empty() || group.is_full() {
                        return Ok(());
                    }
                    let now = Instant::now();
                    let patience = match group.decided.len() < expected {
                        true => over_at.get_or_insert(now + moment).duration_since(now),
                        false => Duration::ZERO,
                    };
                    *line = queue.take(patience).unwrap_or_default();
                    group.decide_all(line, &shared, tx);
                    if group.is_inserted() {
                        return Ok(());
                    }
                }
            })
        };
        if stored.is_ok() {
            self.show(group.draft.commits());
        }
        self.last = group.decided.len();
        group.answer(&stored);
    }

    /// Makes revisions durable, together with what `also` writes, and then visible.
    pub(crate) fn store(
        &mut self,
        attempt: &'static str,
        commits: &[Commit],
        also: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        self.write(attempt, |tx| {
            schema::insert(tx, commits)?;
            also(tx)
        })?;
        self.show(commits);
        Ok(())
    }

    /// Lets everybody see what is durable.
    fn show(&self, commits: &[Commit]) {
        let mut state = self.shared.write();
        for commit in commits {
            state.absorb(commit);
        }
        drop(state);
        self.shared.hub.publish(commits);
    }

    /// One durable change of the database.
    pub(crate) fn write<T>(
        &mut self,
        attempt: &'static str,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        let path = &self.shared.path;
        let begun = Instant::now();
        let result = (|| {
            let tx = self
                .connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(Failed::Before)?;
            let value = change(&tx).map_err(Failed::Before)?;
            tx.commit().map_err(Failed::AtCommit)?;
            Ok(value)
        })();
        self.took = begun.elapsed();
        if result.is_ok() {
            self.shared.commits.fetch_add(1, Ordering::Relaxed);
        }
        result.map_err(|failed| match failed {
            Failed::Before(error) => translate(attempt, path, &error),
            Failed::AtCommit(error) => {
                let error = translate(attempt, path, &error);
                if !matches!(error, StoreError::Full { .. }) {
                    self.broken = Some(unknown_outcome(attempt, &error));
                }
                error
            }
        })
    }

    fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        self.shared.read().check_compaction(revision)?;
        self.write("compact", |tx| schema::set_meta(tx, "compacted", revision))?;
        self.shared.write().compact(revision);
        self.purge.begin(revision);
        Ok(())
    }
}

/// Also after a panic: nobody may wait for a writer that is gone.
impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.abandon();
        self.shared.hub.close();
    }
}

enum Failed {
    Before(rusqlite::Error),
    AtCommit(rusqlite::Error),
}

/// The error of every write after a commit that may or may not have reached the disk.
fn unknown_outcome(attempt: &'static str, error: &StoreError) -> StoreError {
    tracing::error!(%error, "a commit failed and may or may not be on the disk; the store takes no more writes");
    StoreError::Unavailable {
        attempt,
        detail: format!("an earlier commit failed: {error}"),
        retryable: false,
    }
}

/// Txns that become durable together.
struct Group {
    draft: Draft,
    /// How many of the draft's revisions have their rows.
    inserted: usize,
    decided: Vec<Decided>,
    bytes: usize,
}

struct Decided {
    outcome: Result<TxnResponse, StoreError>,
    reply: Reply<TxnResponse>,
    _room: OwnedSemaphorePermit,
}

impl Group {
    fn new(base: &State) -> Self {
        Self {
            draft: Draft::new(base),
            inserted: 0,
            decided: Vec::new(),
            bytes: 0,
        }
    }

    fn is_full(&self) -> bool {
        self.decided.len() >= GROUP_TXNS || self.bytes >= GROUP_BYTES
    }

    fn decide(&mut self, waiting: Waiting, shared: &Shared, connection: &Connection) {
        let Waiting { txn, reply, room } = waiting;
        self.bytes += txn.size_bytes();
        let base = shared.read();
        let fetched = self.fetch(&base, &txn, connection);
        let fetched = fetched.map_err(|error| translate("txn", &shared.path, &error));
        self.decided.push(Decided {
            outcome: fetched.and_then(|()| self.draft.apply(&base, &txn)),
            reply,
            _room: room,
        });
    }

    /// Fetches the values that a txn needs and that are left in the file. What the draft has not changed is there as the
    /// state says.
    fn fetch(&mut self, base: &State, txn: &Txn, connection: &Connection) -> rusqlite::Result<()> {
        for kv in self.draft.to_fetch(base, txn) {
            let value = schema::value(connection, &kv)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            self.draft.know(KeyValue { value, ..kv });
        }
        Ok(())
    }

    /// Decides the txns at the head of the line, as many as fit.
    fn decide_all(&mut self, line: &mut VecDeque<Job>, shared: &Shared, connection: &Connection) {
        while !self.is_full() {
            match line.pop_front() {
                Some(Job::Txn(waiting)) => self.decide(waiting, shared, connection),
                Some(other) => return line.push_front(other),
                None => return,
            }
        }
    }

    fn is_inserted(&self) -> bool {
        self.inserted == self.draft.commits().len()
    }

    fn insert(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        schema::insert(tx, &self.draft.commits()[self.inserted..])?;
        self.inserted = self.draft.commits().len();
        Ok(())
    }

    fn answer(self, stored: &Result<(), StoreError>) {
        for one in self.decided {
            let answer = match stored {
                Ok(()) => one.outcome,
                Err(error) => one.outcome.and_then(|_| Err(error.clone())),
            };
            drop(one.reply.send(answer));
        }
    }
}
