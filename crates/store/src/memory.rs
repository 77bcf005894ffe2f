//! Owns: the backend that keeps everything in memory, for tests and simulations.
//! Does not know: files, threads, time (its clock comes by argument).
//! Start here: [`MemoryStore`].

use std::collections::BTreeMap;
use std::future::ready;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::backend::{Commit, Draft, History, HistoryPage, Hub, State, lock};
use crate::{
    Backup, BoxFuture, Clock, Event, EventKind, KeyRange, KeyValue, Lease, LeaseId, RangeRequest,
    RangeResponse, Revision, Status, Store, StoreError, Txn, TxnResponse, WatchRequest, WatchStream,
    system_clock,
};

const PAGE_EVENTS: usize = 1_024;

/// A store that ends with its process. Its answers are ready at once, so it needs no runtime.
///
/// Leases end when an operation or [`MemoryStore::tick`] finds that their time has run out.
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
    hub: Arc<Hub>,
    clock: Clock,
}

#[derive(Default)]
struct Inner {
    state: State,
    /// What each key was from which revision on; none while it was deleted.
    versions: BTreeMap<Arc<str>, BTreeMap<Revision, Option<KeyValue>>>,
    log: BTreeMap<Revision, Arc<[Event]>>,
    next_lease: u64,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(system_clock())
    }
}

impl MemoryStore {
    /// An empty store whose leases go by `clock`.
    pub fn new(clock: Clock) -> Self {
        Self {
            inner: Arc::default(),
            hub: Arc::new(Hub::new(0)),
            clock,
        }
    }

    /// Ends the leases whose time has run out.
    pub fn tick(&self) {
        let now = (self.clock)();
        let mut inner = lock(&self.inner);
        for lease in inner.state.leases().due(now) {
            // A lease that is due is alive, so ending it cannot be refused.
            let _ = self.end_lease(&mut inner, lease);
        }
    }

    fn read(&self, request: &RangeRequest) -> Result<RangeResponse, StoreError> {
        request.check()?;
        self.tick();
        let inner = lock(&self.inner);
        let state = &inner.state;
        let revision = request.resolve(state.compacted(), state.revision())?;
        if revision == state.revision() {
            return Ok(state.range(request));
        }
        let found = inner
            .versions
            .range::<str, _>((request.lower_bound(), Bound::Unbounded))
            .take_while(|(key, _)| request.range.contains(key))
            .filter_map(|(_, versions)| versions.range(..=revision).next_back()?.1.as_ref());
        Ok(request.answer(found, state.revision()))
    }

    fn write(&self, txn: &Txn) -> Result<TxnResponse, StoreError> {
        txn.check()?;
        self.tick();
        let mut inner = lock(&self.inner);
        let mut draft = Draft::new(&inner.state);
        let response = draft.apply(&inner.state, txn)?;
        let commits = draft.into_commits();
        self.publish(&mut inner, &commits);
        Ok(response)
    }

    fn publish(&self, inner: &mut Inner, commits: &[Commit]) {
        for commit in commits {
            inner.record(commit);
        }
        self.hub.publish(commits);
    }

    fn end_lease(&self, inner: &mut Inner, lease: LeaseId) -> Result<Revision, StoreError> {
        inner.state.leases_mut().begin_end(lease)?;
        let mut draft = Draft::new(&inner.state);
        let revision = draft.end_lease(&inner.state, lease);
        let commits = draft.into_commits();
        self.publish(inner, &commits);
        inner.state.forget_lease(lease)?;
        Ok(revision)
    }

    fn forget_before(&self, revision: Revision) -> Result<(), StoreError> {
        self.tick();
        let mut inner = lock(&self.inner);
        inner.state.check_compaction(revision)?;
        inner.compact(revision);
        Ok(())
    }

    fn grant(&self, ttl: Duration) -> Lease {
        let mut inner = lock(&self.inner);
        inner.next_lease += 1;
        let id = LeaseId(inner.next_lease);
        let lease = Lease { id, ttl };
        inner.state.leases_mut().insert(lease, (self.clock)());
        lease
    }

    fn report(&self) -> Status {
        self.tick();
        let inner = lock(&self.inner);
        Status {
            backend: "memory",
            revision: inner.state.revision(),
            compacted: inner.state.compacted(),
            keys: inner.state.len(),
            size_bytes: None,
            free_bytes: None,
        }
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.hub.close();
    }
}

impl Inner {
    fn record(&mut self, commit: &Commit) {
        self.state.absorb(commit);
        self.log.insert(commit.revision, commit.events.clone());
        for event in commit.events.iter() {
            let now = (event.kind == EventKind::Put).then(|| event.kv.clone());
            let versions = self.versions.entry(event.kv.key.clone()).or_default();
            versions.insert(commit.revision, now);
        }
    }

    fn compact(&mut self, revision: Revision) {
        self.state.compact(revision);
        self.log = self.log.split_off(&revision);
        self.versions.retain(|_, versions| {
            let last = versions.range(..=revision).next_back();
            let keep = last.map(|(at, kv)| (*at, kv.is_some()));
            if let Some((at, alive)) = keep {
                *versions = versions.split_off(&at);
                if !alive {
                    versions.remove(&at);
                }
            }
            !versions.is_empty()
        });
    }

    fn page(&self, range: &KeyRange, from: Revision, to: Revision) -> Result<HistoryPage, StoreError> {
        let compacted = self.state.compacted();
        if from < compacted {
            return Err(StoreError::Compacted {
                requested: from,
                compacted,
            });
        }
        let (mut commits, mut events, mut through) = (Vec::new(), 0, to);
        for (revision, all) in self.log.range(from..=to) {
            let matching = all.iter().filter(|event| range.contains(&event.kv.key));
            let matching: Arc<[Event]> = matching
                .map(|event| forget_prev(event, *revision == compacted))
                .collect();
            if matching.is_empty() {
                continue;
            }
            events += matching.len();
            commits.push(Commit {
                revision: *revision,
                events: matching,
            });
            if events >= PAGE_EVENTS {
                through = *revision;
                break;
            }
        }
        Ok(HistoryPage { commits, through })
    }
}

fn forget_prev(event: &Event, forget: bool) -> Event {
    let mut event = event.clone();
    if forget {
        event.prev = None;
    }
    event
}

impl History for Mutex<Inner> {
    fn page<'a>(
        &'a self,
        range: &'a KeyRange,
        from: Revision,
        to: Revision,
    ) -> BoxFuture<'a, Result<HistoryPage, StoreError>> {
        Box::pin(ready(lock(self).page(range, from, to)))
    }
}

impl Store for MemoryStore {
    fn range(&self, request: RangeRequest) -> BoxFuture<'_, Result<RangeResponse, StoreError>> {
        Box::pin(async move { self.read(&request) })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, StoreError>> {
        Box::pin(async move { self.write(&txn) })
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, StoreError>> {
        Box::pin(async move { Hub::watch(&self.hub, self.inner.clone(), request) })
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.forget_before(revision) })
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease, StoreError>> {
        Box::pin(async move { Ok(self.grant(ttl)) })
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Lease, StoreError>> {
        Box::pin(async move {
            self.tick();
            let mut inner = lock(&self.inner);
            inner.state.leases_mut().keep_alive(lease, (self.clock)())
        })
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            self.tick();
            self.end_lease(&mut lock(&self.inner), lease)
        })
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, StoreError>> {
        Box::pin(async move { Ok(self.report()) })
    }

    fn backup<'a>(&'a self, _target: &'a Path) -> BoxFuture<'a, Result<Backup, StoreError>> {
        Box::pin(async move {
            Err(StoreError::Unsupported {
                operation: "backup",
                backend: "memory",
            })
        })
    }
}
