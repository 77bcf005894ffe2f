//! The store as its users see it: how long it takes, how it ends, and how many wait.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use store::{
    Backup, BoxFuture, Lease, LeaseId, RangeRequest, RangeResponse, Revision, Status, Store, StoreError, Txn,
    TxnResponse, WatchRequest, WatchStream,
};

use super::{Label, Maker, Present, latencies};

/// The figures of a store. Clones share them.
#[derive(Clone)]
pub(crate) struct StoreMetrics {
    txns: Family<Label, Counter>,
    txn_times: Histogram,
    range_times: Histogram,
    waiting: Gauge,
}

impl StoreMetrics {
    pub(super) fn new(all: &mut Maker) -> Self {
        let txns: Family<Label, Counter> = all.make(
            Family::default(),
            "sterna_store_transactions",
            "Transactions, by how they ended",
        );
        for outcome in ["committed", "conflict", "failed"] {
            drop(txns.get_or_create(&[("outcome", outcome.to_owned())]));
        }
        Self {
            txns,
            txn_times: all.make(
                latencies(),
                "sterna_store_transaction_duration_seconds",
                "From the beginning of a transaction to its being durable",
            ),
            range_times: all.make(
                latencies(),
                "sterna_store_read_duration_seconds",
                "How long reads of the store take",
            ),
            waiting: all.make(
                Gauge::default(),
                "sterna_store_transactions_waiting",
                "Transactions that are not answered yet",
            ),
        }
    }
}

/// A store that counts what is asked of it, and is the other one in all else.
pub struct Metered {
    inner: Arc<dyn Store>,
    metrics: StoreMetrics,
}

impl Metered {
    /// Counts what is asked of a store.
    pub(crate) fn new(inner: Arc<dyn Store>, metrics: StoreMetrics) -> Self {
        Self { inner, metrics }
    }
}

impl Store for Metered {
    fn range(&self, request: RangeRequest) -> BoxFuture<'_, Result<RangeResponse, StoreError>> {
        Box::pin(async move {
            let began = Instant::now();
            let answer = self.inner.range(request).await;
            self.metrics.range_times.observe(began.elapsed().as_secs_f64());
            answer
        })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, StoreError>> {
        Box::pin(async move {
            let _waits = Present::new(self.metrics.waiting.clone());
            let began = Instant::now();
            let answer = self.inner.txn(txn).await;
            self.metrics.txn_times.observe(began.elapsed().as_secs_f64());
            let outcome = match &answer {
                Ok(answer) if answer.succeeded => "committed",
                Ok(_) => "conflict",
                Err(_) => "failed",
            };
            let txns = &self.metrics.txns;
            txns.get_or_create(&[("outcome", outcome.to_owned())]).inc();
            answer
        })
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, StoreError>> {
        self.inner.watch(request)
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.compact(revision)
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease, StoreError>> {
        self.inner.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Lease, StoreError>> {
        self.inner.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.inner.revoke_lease(lease)
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, StoreError>> {
        self.inner.status()
    }

    fn backup<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, Result<Backup, StoreError>> {
        self.inner.backup(target)
    }
}
