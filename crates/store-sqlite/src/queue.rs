//! Owns: the line of those who wait for the writer, and its bound.
//! Does not know: what the jobs do.
//! Start here: [`Queue::txn`] and [`Queue::take`].
//!
//! The bound is on bytes: whoever comes when the line is full waits for room before joining it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use store::backend::lock;
use store::{Lease, LeaseId, Revision, StoreError, Txn, TxnResponse};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// The most that waits: 32 MiB, in units of 16 KiB; each job takes at least one.
const UNITS: usize = 2_048;
const UNIT_BYTES: usize = 16 * 1_024;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// A txn, and who waits for its answer.
pub(crate) struct Waiting {
    pub(crate) txn: Txn,
    pub(crate) reply: Reply<TxnResponse>,
    /// Its place in the line, which it keeps until it is answered.
    pub(crate) room: OwnedSemaphorePermit,
}

/// What the writer is asked for.
pub(crate) enum Job {
    Txn(Waiting),
    Compact { revision: Revision, reply: Reply<()> },
    Grant { ttl: Duration, reply: Reply<Lease> },
    Revoke { lease: LeaseId, reply: Reply<Revision> },
    Tick { reply: Reply<()> },
}

pub(crate) struct Queue {
    line: Mutex<Line>,
    wake: Condvar,
    room: std::sync::Arc<Semaphore>,
}

#[derive(Default)]
struct Line {
    jobs: VecDeque<Job>,
    /// The writer sleeps until somebody comes.
    sleeps: bool,
    closed: bool,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            line: Mutex::default(),
            wake: Condvar::new(),
            room: std::sync::Arc::new(Semaphore::new(UNITS)),
        }
    }
}

impl Queue {
    /// Waits for room, queues a txn, waits for its answer.
    pub(crate) async fn txn(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        let attempt = "txn";
        let units = 1 + txn.size_bytes() / UNIT_BYTES;
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(units).await;
        let room = room.map_err(|_| StoreError::Closed { attempt })?;
        self.ask(attempt, |reply| Job::Txn(Waiting { txn, reply, room }))
            .await
    }

    /// Queues a job and waits for its answer.
    pub(crate) async fn ask<T>(
        &self,
        attempt: &'static str,
        job: impl FnOnce(Reply<T>) -> Job,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.push(job(reply), attempt)?;
        match answer.await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::Closed { attempt }),
        }
    }

    fn push(&self, job: Job, attempt: &'static str) -> Result<(), StoreError> {
        let mut line = lock(&self.line);
        if line.closed {
            return Err(StoreError::Closed { attempt });
        }
        line.jobs.push_back(job);
        let sleeps = std::mem::take(&mut line.sleeps);
        drop(line);
        if sleeps {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Takes all that waits; waits for the first at most `patience`. None once the queue is closed and empty.
    pub(crate) fn take(&self, patience: Duration) -> Option<VecDeque<Job>> {
        let mut line = lock(&self.line);
        let until = Instant::now() + patience;
        while line.jobs.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if line.closed || left.is_zero() {
                return (!line.closed).then(VecDeque::new);
            }
            line.sleeps = true;
            let woken = self.wake.wait_timeout(line, left);
            line = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        line.sleeps = false;
        Some(std::mem::take(&mut line.jobs))
    }

    /// Lets nobody join the line any more.
    pub(crate) fn close(&self) {
        lock(&self.line).closed = true;
        self.room.close();
        self.wake.notify_all();
    }

    /// Closes the line and sends those in it away.
    pub(crate) fn abandon(&self) {
        self.close();
        let left = std::mem::take(&mut lock(&self.line).jobs);
        drop(left);
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.line).closed
    }
}
