//! Owns: what a store should do, as simply as can be said: one full map of all keys for each revision.
//! Does not know: any backend's code; the evaluation of txns is written a second time here, on purpose.
//! Start here: [`Model::apply`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    Condition, Event, EventKind, FailedCompare, Field, KeyRange, KeyValue, LeaseId, Op, OpResult,
    RangeRequest, Relation, Revision, Txn, TxnResponse,
};

type Keys = BTreeMap<String, KeyValue>;

#[derive(Debug, Clone)]
pub(super) struct Model {
    base: Revision,
    pub(super) compacted: Revision,
    /// The keys at `base`, at `base + 1`, and so on.
    history: Vec<Keys>,
}

impl Model {
    pub(super) fn new(base: Revision, compacted: Revision) -> Self {
        Self {
            base,
            compacted,
            history: vec![Keys::new()],
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.base + self.history.len() as u64 - 1
    }

    pub(super) fn at(&self, revision: Revision) -> Option<&Keys> {
        let index = usize::try_from(revision.checked_sub(self.base)?).ok()?;
        self.history.get(index)
    }

    fn now(&self) -> Keys {
        self.at(self.revision()).cloned().unwrap_or_default()
    }

    pub(super) fn apply(&mut self, txn: &Txn) -> TxnResponse {
        let mut keys = self.now();
        let failed = failed_compares(&keys, txn);
        let succeeded = failed.is_empty();
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        let revision = self.revision() + 1;
        let results = ops.iter().map(|op| run(&mut keys, revision, op)).collect();
        self.push_if_changed(keys);
        TxnResponse {
            succeeded,
            revision: self.revision(),
            results,
            failed,
        }
    }

    pub(super) fn end_lease(&mut self, lease: LeaseId) {
        let mut keys = self.now();
        keys.retain(|_, kv| kv.lease != Some(lease));
        self.push_if_changed(keys);
    }

    fn push_if_changed(&mut self, keys: Keys) {
        if self.history.last() != Some(&keys) {
            self.history.push(keys);
        }
    }

    /// The items and `more` of a range at a revision that exists.
    pub(super) fn range(&self, request: &RangeRequest, at: Revision) -> (Vec<KeyValue>, bool) {
        let keys = self.at(at).cloned().unwrap_or_default();
        let after = request.after.clone();
        let mut items: Vec<KeyValue> = keys
            .into_values()
            .filter(|kv| inside(&request.range, &kv.key))
            .filter(|kv| after.as_ref().is_none_or(|after| *kv.key > **after))
            .collect();
        let more = request.limit > 0 && items.len() > request.limit;
        if more {
            items.truncate(request.limit);
        }
        if request.keys_only {
            items.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        (items, more)
    }

    /// The events of `revision` in the range: the difference of two maps.
    pub(super) fn events(&self, range: &KeyRange, revision: Revision) -> Vec<Event> {
        let empty = Keys::new();
        let new = self.at(revision).unwrap_or(&empty);
        let before = revision.checked_sub(1).and_then(|before| self.at(before));
        let old = before.unwrap_or(&empty);
        let keys: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
        let inside = keys.into_iter().filter(|key| inside(range, key));
        inside
            .filter_map(|key| difference(key, old.get(key), new.get(key), revision))
            .collect()
    }
}

fn inside(range: &KeyRange, key: &str) -> bool {
    match range {
        KeyRange::Key(only) => key.as_bytes() == only.as_bytes(),
        KeyRange::Prefix(prefix) => key.as_bytes().starts_with(prefix.as_bytes()),
        KeyRange::Interval { start, end } => {
            key.as_bytes() >= start.as_bytes() && key.as_bytes() < end.as_bytes()
        }
    }
}

fn difference(
    key: &str,
    old: Option<&KeyValue>,
    new: Option<&KeyValue>,
    revision: Revision,
) -> Option<Event> {
    if old == new {
        return None;
    }
    let kv = new.cloned().unwrap_or_else(|| KeyValue {
        key: key.into(),
        value: Bytes::new(),
        create_revision: 0,
        mod_revision: revision,
        version: 0,
        lease: None,
    });
    let kind = match new {
        Some(_) => EventKind::Put,
        None => EventKind::Delete,
    };
    let prev = old.cloned();
    Some(Event { kind, kv, prev })
}

fn failed_compares(keys: &Keys, txn: &Txn) -> Vec<FailedCompare> {
    let mut failed = Vec::new();
    for (index, compare) in txn.compares.iter().enumerate() {
        let stored = keys.get(&compare.key);
        if !holds(&compare.condition, stored) {
            let actual = stored.cloned();
            failed.push(FailedCompare { index, actual });
        }
    }
    failed
}

fn holds(condition: &Condition, stored: Option<&KeyValue>) -> bool {
    let (order, relation) = match condition {
        Condition::Number {
            field,
            relation,
            given,
        } => {
            let number = match (stored, field) {
                (None, _) => 0,
                (Some(kv), Field::ModRevision) => kv.mod_revision,
                (Some(kv), Field::CreateRevision) => kv.create_revision,
                (Some(kv), Field::Version) => kv.version,
            };
            (number.cmp(given), relation)
        }
        Condition::Value { relation, given } => match stored {
            None => return false,
            Some(kv) => (kv.value.as_ref().cmp(given.as_ref()), relation),
        },
    };
    match relation {
        Relation::Equal => order.is_eq(),
        Relation::NotEqual => order.is_ne(),
        Relation::Less => order.is_lt(),
        Relation::Greater => order.is_gt(),
    }
}

fn run(keys: &mut Keys, revision: Revision, op: &Op) -> OpResult {
    match op {
        Op::Put { key, value, lease } => {
            let old = keys.get(key);
            let kv = KeyValue {
                key: key.as_str().into(),
                value: value.clone(),
                create_revision: old.map_or(revision, |kv| kv.create_revision),
                mod_revision: revision,
                version: old.map_or(0, |kv| kv.version) + 1,
                lease: *lease,
            };
            keys.insert(key.clone(), kv);
            OpResult::Put
        }
        Op::Delete { key } => OpResult::Deleted {
            count: usize::from(keys.remove(key).is_some()),
        },
        Op::DeletePrefix { prefix } => {
            let before = keys.len();
            keys.retain(|key, _| !key.starts_with(prefix.as_str()));
            OpResult::Deleted {
                count: before - keys.len(),
            }
        }
        Op::Get { key } => OpResult::Got(keys.get(key).cloned()),
    }
}
