//! Owns: a store that breaks the contract in one way, around one that keeps it.
//! Does not know: who finds out.
//! Start here: [`Fault`].

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use crate::{
    Backup, BoxFuture, Event, EventKind, KeyRange, Lease, LeaseId, Op, OpResult, RangeRequest, RangeResponse,
    Revision, Status, Store, StoreError, Txn, TxnResponse, WatchItem, WatchRequest, WatchStream,
};

/// One way to break the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    IgnoresTheLastCompare,
    HidesFailedCompares,
    SkipsTheOtherBranch,
    DeletesOnlyTheFirstOfAPrefix,
    ServesTheFutureForAnOldRevision,
    ServesCompactedHistory,
    CompactsOneTooFar,
    SaysMoreTooRarely,
    SortsWrongly,
    LosesAnEventOfABatch,
    LosesABatch,
    RepeatsABatch,
    SplitsABatch,
    SwapsKinds,
    ForgetsThePast,
    StartsAWatchLate,
    TellsProgressTooEarly,
    NeverTellsProgress,
    SkipsCompactedHistory,
    DropsTheLease,
    LetsNoLeaseEnd,
    AcceptsTheEmptyKey,
    AcceptsTooManySteps,
}

pub(super) struct Broken {
    good: Arc<dyn Store>,
    fault: Fault,
}

impl Broken {
    pub(super) fn new(good: Arc<dyn Store>, fault: Fault) -> Self {
        Self { good, fault }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn spoil_txn(&self, txn: &mut Txn) {
        match self.fault {
            Fault::IgnoresTheLastCompare => drop(txn.compares.pop()),
            Fault::SkipsTheOtherBranch => txn.otherwise.clear(),
            Fault::DeletesOnlyTheFirstOfAPrefix => {
                for op in txn.then.iter_mut() {
                    if let Op::DeletePrefix { prefix } = op {
                        *op = Op::delete(format!("{prefix}1"));
                    }
                }
            }
            Fault::DropsTheLease => {
                for op in txn.then.iter_mut() {
                    if let Op::Put { lease, .. } = op {
                        *lease = None;
                    }
                }
            }
            Fault::AcceptsTheEmptyKey => {
                let empty = |op: &Op| matches!(op, Op::Delete { key } if key.is_empty());
                txn.then.retain(|op| !empty(op));
            }
            Fault::AcceptsTooManySteps => txn.then.truncate(crate::MAX_TXN_OPS),
            _ => {}
        }
    }

    async fn read(&self, mut request: RangeRequest) -> Result<RangeResponse, StoreError> {
        if self.has(Fault::ServesTheFutureForAnOldRevision) {
            let current = self.good.status().await?.revision;
            request.revision = request.revision.filter(|at| *at > current);
        }
        let mut got = self.good.range(request.clone()).await;
        if let (Fault::ServesCompactedHistory, Err(StoreError::Compacted { compacted, .. })) =
            (self.fault, &got)
        {
            got = self.good.range(request.at(*compacted)).await;
        }
        let mut got = got?;
        match self.fault {
            Fault::SaysMoreTooRarely => got.more = false,
            Fault::SortsWrongly => got.items.sort_by_key(|kv| kv.key.to_lowercase().len()),
            _ => {}
        }
        Ok(got)
    }

    async fn write(&self, mut txn: Txn) -> Result<TxnResponse, StoreError> {
        self.spoil_txn(&mut txn);
        let otherwise = txn.otherwise.is_empty();
        let mut got = self.good.txn(txn).await?;
        if self.has(Fault::HidesFailedCompares) {
            got.failed.truncate(1);
        }
        if self.has(Fault::SkipsTheOtherBranch) && otherwise && !got.succeeded {
            got.results = Vec::<OpResult>::new();
        }
        Ok(got)
    }

    async fn follow(&self, mut request: WatchRequest) -> Result<WatchStream, StoreError> {
        let status = self.good.status().await?;
        match self.fault {
            Fault::StartsAWatchLate => request.from = request.from.map(|from| from + 1),
            Fault::NeverTellsProgress => request.progress = false,
            Fault::SkipsCompactedHistory => {
                request.from = request.from.map(|from| from.max(status.compacted));
            }
            _ => {}
        }
        let stream = self.good.watch(request).await?;
        let spoiler = Spoiler {
            stream,
            fault: self.fault,
            pending: VecDeque::new(),
            batches: 0,
        };
        Ok(Box::pin(stream::unfold(spoiler, |mut spoiler| async move {
            let item = spoiler.next().await?;
            Some((item, spoiler))
        })))
    }
}

struct Spoiler {
    stream: WatchStream,
    fault: Fault,
    pending: VecDeque<WatchItem>,
    batches: usize,
}

impl Spoiler {
    async fn next(&mut self) -> Option<Result<WatchItem, StoreError>> {
        loop {
            if let Some(item) = self.pending.pop_front() {
                return Some(Ok(item));
            }
            match self.stream.next().await? {
                Ok(item) => self.spoil(item),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn spoil(&mut self, item: WatchItem) {
        match item {
            WatchItem::Batch { revision, events } => self.spoil_batch(revision, events),
            WatchItem::Progress { revision } if self.fault == Fault::TellsProgressTooEarly => {
                let revision = revision + 1_000;
                self.pending.push_back(WatchItem::Progress { revision });
            }
            other => self.pending.push_back(other),
        }
    }

    fn spoil_batch(&mut self, revision: Revision, mut events: Vec<Event>) {
        self.batches += 1;
        let third = self.batches.is_multiple_of(3);
        let batch = |events| WatchItem::Batch { revision, events };
        match self.fault {
            Fault::LosesABatch if third => return,
            Fault::RepeatsABatch if third => self.pending.push_back(batch(events.clone())),
            Fault::LosesAnEventOfABatch if events.len() > 1 => drop(events.pop()),
            Fault::SplitsABatch if events.len() > 1 => {
                let rest = events.split_off(1);
                self.pending.push_back(batch(events));
                events = rest;
            }
            Fault::SwapsKinds => events.iter_mut().for_each(|e| e.kind = EventKind::Put),
            Fault::ForgetsThePast => events.iter_mut().for_each(|e| e.prev = None),
            _ => {}
        }
        self.pending.push_back(batch(events));
    }
}

impl Store for Broken {
    fn range(&self, request: RangeRequest) -> BoxFuture<'_, Result<RangeResponse, StoreError>> {
        let empty = matches!(&request.range, KeyRange::Key(key) if key.is_empty());
        if self.has(Fault::AcceptsTheEmptyKey) && empty {
            return self.good.range(RangeRequest::key("empty"));
        }
        Box::pin(self.read(request))
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, StoreError>> {
        Box::pin(self.write(txn))
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, StoreError>> {
        Box::pin(self.follow(request))
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let current = self.good.status().await?.revision;
            let further = self.has(Fault::CompactsOneTooFar) && revision < current;
            self.good.compact(revision + u64::from(further)).await
        })
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease, StoreError>> {
        self.good.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Lease, StoreError>> {
        self.good.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        if self.has(Fault::LetsNoLeaseEnd) {
            return Box::pin(async { Ok(self.good.status().await?.revision) });
        }
        self.good.revoke_lease(lease)
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, StoreError>> {
        self.good.status()
    }

    fn backup<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, Result<Backup, StoreError>> {
        self.good.backup(target)
    }
}
