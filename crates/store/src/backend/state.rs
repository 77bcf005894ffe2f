//! Owns: the keys at the current revision, and what a txn makes of them.
//! Does not know: time, durability, watches.
//! Start here: [`Draft`], changes that are decided but not yet durable, and so not yet seen by anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::{
    Event, EventKind, FailedCompare, KeyRange, KeyValue, LeaseId, LeaseTable, MAX_TXN_EVENTS, Op, OpResult,
    RangeRequest, RangeResponse, Revision, StoreError, Txn, TxnResponse,
};

/// The changes of one revision.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The revision.
    pub revision: Revision,
    /// Its events, in key order, one for each key.
    pub events: Arc<[Event]>,
}

impl Commit {
    /// Roughly what the events take in memory.
    pub fn size_bytes(&self) -> usize {
        self.events.iter().map(event_bytes).sum()
    }
}

/// The prefixes under which a backend may leave values: a few.
fn is_elsewhere(prefixes: &[String], kv: &KeyValue) -> bool {
    kv.lease.is_none() && prefixes.iter().any(|prefix| kv.key.starts_with(prefix.as_str()))
}

fn event_bytes(event: &Event) -> usize {
    let prev = event.prev.as_ref().map_or(0, |kv| kv.value.len());
    event.kv.key.len() + event.kv.value.len() + prev + size_of::<Event>()
}

/// The keys and leases at the current revision.
///
/// The values of some keys may be kept elsewhere ([`State::is_elsewhere`]): here they are empty, and whoever needs them
/// fetches them ([`Draft::know`]).
#[derive(Debug, Clone, Default)]
pub struct State {
    revision: Revision,
    compacted: Revision,
    keys: BTreeMap<Arc<str>, KeyValue>,
    leases: LeaseTable,
    attached: BTreeMap<LeaseId, BTreeSet<Arc<str>>>,
    elsewhere: Arc<[String]>,
}

impl State {
    /// Whether the value of a key is not kept here. What a lease keeps is.
    pub fn is_elsewhere(&self, kv: &KeyValue) -> bool {
        is_elsewhere(&self.elsewhere, kv)
    }

    /// The current revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The oldest revision that can be read.
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The leases.
    pub fn leases(&self) -> &LeaseTable {
        &self.leases
    }

    /// The leases, to grant one, to keep one alive, or to begin its end, on which [`Draft::end_lease`] and
    /// [`State::forget_lease`] follow.
    pub fn leases_mut(&mut self) -> &mut LeaseTable {
        &mut self.leases
    }

    /// The key's current version.
    pub fn get(&self, key: &str) -> Option<&KeyValue> {
        self.keys.get(key)
    }

    /// Answers a request that reads at the current revision.
    pub fn range(&self, request: &RangeRequest) -> RangeResponse {
        request.answer(self.matching(request), self.revision)
    }

    /// The keys that a request asks for and that have not changed since a revision, as many as it can need.
    pub fn unchanged_since(&self, revision: Revision, request: &RangeRequest) -> Vec<KeyValue> {
        let wanted = match request.limit {
            0 => usize::MAX,
            limit => limit.saturating_add(1),
        };
        let unchanged = self.matching(request).filter(|kv| kv.mod_revision <= revision);
        unchanged.take(wanted).cloned().collect()
    }

    fn matching<'a>(&'a self, request: &'a RangeRequest) -> impl Iterator<Item = &'a KeyValue> {
        self.keys
            .range::<str, _>((request.lower_bound(), Bound::Unbounded))
            .map(|(_, kv)| kv)
            .take_while(|kv| request.range.contains(&kv.key))
    }

    /// Decides whether `revision` can be compacted to.
    pub fn check_compaction(&self, revision: Revision) -> Result<(), StoreError> {
        if revision > self.revision {
            return Err(StoreError::FutureRevision {
                requested: revision,
                current: self.revision,
            });
        }
        if revision <= self.compacted {
            return Err(StoreError::Compacted {
                requested: revision,
                compacted: self.compacted,
            });
        }
        Ok(())
    }

    /// Marks everything before `revision` as gone.
    pub fn compact(&mut self, revision: Revision) {
        self.compacted = revision;
    }

    /// Takes over what a draft decided, once it is durable.
    pub fn absorb(&mut self, commit: &Commit) {
        self.revision = commit.revision;
        for event in commit.events.iter() {
            match event.kind {
                EventKind::Put => self.put(event.kv.clone()),
                EventKind::Delete => self.remove(&event.kv.key),
            }
        }
    }

    /// Forgets a lease whose keys are gone.
    pub fn forget_lease(&mut self, id: LeaseId) -> Result<(), StoreError> {
        self.attached.remove(&id);
        self.leases.remove(id)
    }

    fn put(&mut self, mut kv: KeyValue) {
        let (key, lease) = (kv.key.clone(), kv.lease);
        if self.is_elsewhere(&kv) {
            kv.value = Bytes::new();
        }
        let old = self.keys.insert(key.clone(), kv);
        self.detach(old);
        if let Some(lease) = lease {
            self.attached.entry(lease).or_default().insert(key);
        }
    }

    fn remove(&mut self, key: &str) {
        let old = self.keys.remove(key);
        self.detach(old);
    }

    fn detach(&mut self, old: Option<KeyValue>) {
        let Some(KeyValue {
            key,
            lease: Some(lease),
            ..
        }) = old
        else {
            return;
        };
        if let Some(keys) = self.attached.get_mut(&lease) {
            keys.remove(&key);
        }
    }
}

/// A state while it is read from what a backend had stored, in the order in which it was written.
#[derive(Debug)]
pub struct Loading(State);

impl Loading {
    /// Of which nothing was read yet. The values of keys with one of the prefixes `elsewhere` stay with the backend.
    pub fn new(elsewhere: Arc<[String]>) -> Self {
        Self(State {
            elsewhere,
            ..State::default()
        })
    }

    /// A key was put.
    pub fn put(&mut self, kv: KeyValue) {
        self.0.put(kv);
    }

    /// A key was deleted.
    pub fn delete(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// That was all, up to `revision`.
    pub fn done(self, revision: Revision, compacted: Revision) -> State {
        State {
            revision,
            compacted,
            // Built anew as a whole, its nodes are full.
            keys: self.0.keys.into_iter().collect(),
            ..self.0
        }
    }
}

/// Revisions that are decided one after the other on top of a state, to be made durable together.
///
/// Its calls are given the state that it was begun on. Of that only the times of leases may have changed meanwhile.
#[derive(Debug)]
pub struct Draft {
    revision: Revision,
    /// The keys that the draft knows better than the state.
    changed: BTreeMap<Arc<str>, Option<KeyValue>>,
    commits: Vec<Commit>,
}

impl Draft {
    /// A draft that changes nothing yet.
    pub fn new(base: &State) -> Self {
        Self {
            revision: base.revision,
            changed: BTreeMap::new(),
            commits: Vec::new(),
        }
    }

    /// What a txn reads, compares or changes and the state has without its value: [`Draft::know`] takes it whole, before
    /// [`Draft::apply`].
    pub fn to_fetch(&self, base: &State, txn: &Txn) -> Vec<KeyValue> {
        if base.elsewhere.is_empty() {
            return Vec::new();
        }
        let ops = || txn.then.iter().chain(&txn.otherwise);
        let compared = txn.compares.iter().map(|compare| compare.key.as_str());
        let named = compared.chain(ops().filter_map(Op::key));
        let mut found: BTreeSet<Arc<str>> =
            named.filter_map(|key| Some(base.get(key)?.key.clone())).collect();
        for op in ops() {
            if let Op::DeletePrefix { prefix } = op {
                found.extend(self.keys_with_prefix(base, prefix));
            }
        }
        found.retain(|key| !self.changed.contains_key(key));
        let found = found.iter().filter_map(|key| base.get(key));
        found.filter(|kv| base.is_elsewhere(kv)).cloned().collect()
    }

    /// Takes the present version of a key whose value the state does not have.
    pub fn know(&mut self, kv: KeyValue) {
        self.changed.insert(kv.key.clone(), Some(kv));
    }

    /// Decides a txn; on an error the draft is as before.
    pub fn apply(&mut self, base: &State, txn: &Txn) -> Result<TxnResponse, StoreError> {
        let failed = self.failed_compares(base, txn);
        let succeeded = failed.is_empty();
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        check_leases(base, ops)?;
        let mut step = Step::new(self, base);
        let results = ops.iter().map(|op| step.run(op)).collect();
        let events = step.events;
        if events.len() > MAX_TXN_EVENTS {
            return Err(StoreError::TooLarge {
                what: "keys changed by a txn",
                limit: MAX_TXN_EVENTS,
                got: events.len(),
            });
        }
        self.commit(events);
        Ok(TxnResponse {
            succeeded,
            revision: self.revision,
            results,
            failed,
        })
    }

    /// Decides the deletion of a lease's keys, in one revision.
    pub fn end_lease(&mut self, base: &State, lease: LeaseId) -> Revision {
        let attached = base.attached.get(&lease).into_iter().flatten();
        let is_kept = |key: &&Arc<str>| self.get(base, key).is_some_and(|kv| kv.lease == Some(lease));
        let keys: Vec<Arc<str>> = attached.filter(is_kept).cloned().collect();
        let mut step = Step::new(self, base);
        for key in keys {
            step.delete(&key);
        }
        let events = step.events;
        self.commit(events);
        self.revision
    }

    /// The revisions that were decided, in order.
    pub fn into_commits(self) -> Vec<Commit> {
        self.commits
    }

    /// The revisions that were decided so far, in order.
    pub fn commits(&self) -> &[Commit] {
        &self.commits
    }

    fn get<'a>(&'a self, base: &'a State, key: &str) -> Option<&'a KeyValue> {
        match self.changed.get(key) {
            Some(changed) => changed.as_ref(),
            None => base.get(key),
        }
    }

    fn failed_compares(&self, base: &State, txn: &Txn) -> Vec<FailedCompare> {
        let compares = txn.compares.iter().enumerate();
        let stored = compares.map(|(index, compare)| (index, compare, self.get(base, &compare.key)));
        stored
            .filter(|(_, compare, stored)| !compare.holds(*stored))
            .map(|(index, _, stored)| FailedCompare {
                index,
                actual: stored.cloned(),
            })
            .collect()
    }

    fn keys_with_prefix(&self, base: &State, prefix: &str) -> BTreeSet<Arc<str>> {
        let range = KeyRange::Prefix(prefix.to_owned());
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let base = base.keys.range::<str, _>(from).map(|(key, _)| key);
        let base = base.take_while(|key| range.contains(key));
        let base = base.filter(|key| !self.changed.contains_key(*key));
        let changed = self.changed.range::<str, _>(from);
        let changed = changed.take_while(|(key, _)| range.contains(key));
        let changed = changed.filter_map(|(key, kv)| kv.as_ref().map(|_| key));
        base.chain(changed).cloned().collect()
    }

    fn commit(&mut self, events: BTreeMap<Arc<str>, Event>) {
        if events.is_empty() {
            return;
        }
        self.revision += 1;
        for (key, event) in &events {
            let now = (event.kind == EventKind::Put).then(|| event.kv.clone());
            self.changed.insert(key.clone(), now);
        }
        self.commits.push(Commit {
            revision: self.revision,
            events: events.into_values().collect(),
        });
    }
}

fn check_leases(base: &State, ops: &[Op]) -> Result<(), StoreError> {
    for op in ops {
        if let Op::Put {
            lease: Some(lease), ..
        } = op
            && !base.leases.contains(*lease)
        {
            return Err(StoreError::LeaseNotFound { lease: *lease });
        }
    }
    Ok(())
}

/// One txn while its steps run.
struct Step<'a> {
    draft: &'a Draft,
    base: &'a State,
    revision: Revision,
    events: BTreeMap<Arc<str>, Event>,
}

impl<'a> Step<'a> {
    fn new(draft: &'a Draft, base: &'a State) -> Self {
        Self {
            draft,
            base,
            revision: draft.revision + 1,
            events: BTreeMap::new(),
        }
    }

    fn run(&mut self, op: &Op) -> OpResult {
        match op {
            Op::Put { key, value, lease } => {
                self.put(key, value, *lease);
                OpResult::Put
            }
            Op::Delete { key } => OpResult::Deleted {
                count: usize::from(self.delete(key)),
            },
            Op::DeletePrefix { prefix } => {
                let keys = self.draft.keys_with_prefix(self.base, prefix);
                let deleted = keys.iter().filter(|key| self.delete(key));
                OpResult::Deleted {
                    count: deleted.count(),
                }
            }
            Op::Get { key } => OpResult::Got(self.get(key).cloned()),
        }
    }

    fn get(&self, key: &str) -> Option<&KeyValue> {
        match self.events.get(key) {
            Some(event) => (event.kind == EventKind::Put).then_some(&event.kv),
            None => self.draft.get(self.base, key),
        }
    }

    /// A key is put at most once by a branch and never also deleted by it, so the draft holds what was before.
    fn put(&mut self, key: &str, value: &Bytes, lease: Option<LeaseId>) {
        let prev = self.draft.get(self.base, key).cloned();
        let key = prev.as_ref().map_or_else(|| key.into(), |kv| Arc::clone(&kv.key));
        let kv = KeyValue {
            key: Arc::clone(&key),
            value: value.clone(),
            create_revision: prev.as_ref().map_or(self.revision, |kv| kv.create_revision),
            mod_revision: self.revision,
            version: prev.as_ref().map_or(1, |kv| kv.version + 1),
            lease,
        };
        let kind = EventKind::Put;
        self.events.insert(key, Event { kind, kv, prev });
    }

    fn delete(&mut self, key: &str) -> bool {
        let Some(prev) = self.get(key).cloned() else {
            return false;
        };
        let key = Arc::clone(&prev.key);
        let event = deletion(Arc::clone(&key), self.revision, Some(prev));
        self.events.insert(key, event);
        true
    }
}

/// The event of a deletion.
pub(crate) fn deletion(key: Arc<str>, revision: Revision, prev: Option<KeyValue>) -> Event {
    Event {
        kind: EventKind::Delete,
        kv: KeyValue {
            key,
            value: Bytes::new(),
            create_revision: 0,
            mod_revision: revision,
            version: 0,
            lease: None,
        },
        prev,
    }
}
