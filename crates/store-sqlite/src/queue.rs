//! Owns: the line of those who wait for the writer, and its bound.
//! Does not know: what the jobs do.
//! Start here: [`Queue::txn`] and [`Queue::take`].
//!
//! The bound is on bytes: whoever comes when the line is full waits for room before joining it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use store::backend::lock;
use store::{Lease, LeaseId, Revision, StoreError, Txn, TxnResponse};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// The most that waits: 32 MiB, in units of 16 KiB; each job takes at least one.
const UNITS: usize = 2_048;
const UNIT_BYTES: usize = 16 * 1_024;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked for.
pub(crate) enum Job {
    Txn {
        txn: Txn,
        reply: Reply<TxnResponse>,
        room: OwnedSemaphorePermit,
    },
    Compact {
        revision: Revision,
        reply: Reply<()>,
    },
    Grant {
        ttl: Duration,
        reply: Reply<Lease>,
    },
    Revoke {
        lease: LeaseId,
        reply: Reply<Revision>,
    },
    Tick {
        reply: Reply<()>,
    },
}

pub(crate) struct Queue {
    line: Mutex<Line>,
    wake: Condvar,
    room: std::sync::Arc<Semaphore>,
}

#[derive(Default)]
struct Line {
    jobs: VecDeque<Job>,
    /// The writer sleeps until so many wait.
    wanted: usize,
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
        self.ask(attempt, |reply| Job::Txn { txn, reply, room }).await
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
        let enough = line.jobs.len() >= line.wanted;
        drop(line);
        if enough {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Takes all that waits; waits for the first at most `patience`. None once the queue is closed and empty.
    ///
    /// Those who were answered last are likely to come back at once. So if only a part of `last` has come, the rest gets
    /// `moment`: otherwise the first to come back would be committed alone, and the others would wait for that.
    pub(crate) fn take(&self, patience: Duration, last: usize, moment: Duration) -> Option<VecDeque<Job>> {
        let mut line = self.wait(lock(&self.line), 1, patience);
        if line.jobs.is_empty() {
            return (!line.closed).then(VecDeque::new);
        }
        if line.jobs.len() < last {
            line = self.wait(line, last, moment);
        }
        Some(std::mem::take(&mut line.jobs))
    }

    fn wait<'l>(
        &self,
        mut line: MutexGuard<'l, Line>,
        wanted: usize,
        patience: Duration,
    ) -> MutexGuard<'l, Line> {
        line.wanted = wanted;
        let idle = |line: &mut Line| line.jobs.len() < wanted && !line.closed;
        let waited = self.wake.wait_timeout_while(line, patience, idle);
        waited.unwrap_or_else(PoisonError::into_inner).0
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
