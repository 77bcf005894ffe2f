//! Owns: the thread that alone writes to the database.
//! Does not know: how a txn is decided (`store::backend::Draft`), how old rows go (`purge.rs`).
//! Start here: [`Writer::run`], then [`Writer::commit`]: all txns that wait are decided one after the other, become
//! durable together, and only then are seen and answered.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use store::backend::{Commit, Draft};
use store::{Revision, StoreError, Txn, TxnResponse};

use crate::Shared;
use crate::errors::{translate, translate_io};
use crate::purge::Purge;
use crate::queue::{Job, Queue, Reply};
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
    /// How long the last commit took.
    took: Duration,
    /// Why nothing can be written any more: whether the last commit is in the file is not known.
    broken: Option<StoreError>,
    _lock: File,
}

struct Waiting {
    txn: Txn,
    reply: Reply<TxnResponse>,
    _room: tokio::sync::OwnedSemaphorePermit,
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
        let mut last = 0;
        while let Some(jobs) = self.queue.clone().take(self.patience(), last, self.moment()) {
            let mut jobs = jobs;
            last = jobs.len();
            while !jobs.is_empty() {
                let group = take_group(&mut jobs);
                if group.is_empty() {
                    if let Some(job) = jobs.pop_front() {
                        self.other(job);
                    }
                } else {
                    self.commit(group);
                }
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

    /// How long those are waited for who are likely to come: whoever comes just too late waits for a whole commit, so a
    /// part of one is well spent.
    fn moment(&self) -> Duration {
        (self.took / 4).min(MOMENT_MAX)
    }

    fn other(&mut self, job: Job) {
        // Whoever asked may have gone; then the answer goes nowhere.
        match job {
            Job::Txn { txn, reply, room } => self.commit(vec![Waiting {
                txn,
                reply,
                _room: room,
            }]),
            Job::Compact { revision, reply } => drop(reply.send(self.compact(revision))),
            Job::Grant { ttl, reply } => drop(reply.send(self.grant(ttl))),
            Job::Revoke { lease, reply } => drop(reply.send(self.end_lease(lease))),
            Job::Tick { reply } => {
                self.end_due_leases();
                drop(reply.send(Ok(())));
            }
        }
    }

    fn commit(&mut self, group: Vec<Waiting>) {
        let shared = self.shared.clone();
        let (outcomes, commits) = {
            let state = shared.read();
            let mut draft = Draft::new(&state);
            let outcomes: Vec<_> = group.iter().map(|one| draft.apply(&one.txn)).collect();
            (outcomes, draft.into_commits())
        };
        let stored = if commits.is_empty() {
            Ok(())
        } else {
            self.store("txn", &commits, |_| Ok(()))
        };
        for (one, outcome) in group.into_iter().zip(outcomes) {
            let answer = match &stored {
                Ok(()) => outcome,
                Err(error) => outcome.and_then(|_| Err(error.clone())),
            };
            drop(one.reply.send(answer));
        }
    }

    /// Makes revisions durable, together with what `also` writes, and then visible.
    pub(crate) fn store(
        &mut self,
        attempt: &'static str,
        commits: &[Commit],
        also: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        self.write(attempt, |tx| {
            commits.iter().try_for_each(|commit| schema::insert(tx, commit))?;
            also(tx)
        })?;
        let mut state = self.shared.write();
        for commit in commits {
            state.absorb(commit);
        }
        drop(state);
        self.shared.hub.publish(commits);
        Ok(())
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

/// The txns at the head of the line, as many as fit into one commit.
fn take_group(jobs: &mut VecDeque<Job>) -> Vec<Waiting> {
    let (mut group, mut bytes) = (Vec::new(), 0);
    while group.len() < GROUP_TXNS && bytes < GROUP_BYTES {
        match jobs.pop_front() {
            Some(Job::Txn { txn, reply, room }) => {
                bytes += txn.size_bytes();
                let _room = room;
                group.push(Waiting { txn, reply, _room });
            }
            Some(other) => {
                jobs.push_front(other);
                break;
            }
            None => break,
        }
    }
    group
}
