//! Owns: the txn: conditions on keys, and what to do when all of them hold or when one does not.
//! Does not know: the keys; [`crate::backend::Draft`] evaluates a txn against them.
//! Start here: [`Txn`].

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::range::check_key;
use crate::{KeyRange, KeyValue, LeaseId, MAX_REQUEST_BYTES, MAX_TXN_OPS, Revision, StoreError};

/// What a key's numbers are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// [`KeyValue::mod_revision`]; 0 if the key is absent.
    ModRevision,
    /// [`KeyValue::create_revision`]; 0 if the key is absent.
    CreateRevision,
    /// [`KeyValue::version`]; 0 if the key is absent.
    Version,
}

/// How the stored side stands to the given one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// Equal to it.
    Equal,
    /// Not equal to it.
    NotEqual,
    /// Less than it; values are ordered by their bytes.
    Less,
    /// Greater than it.
    Greater,
}

impl Relation {
    fn holds<T: Ord + ?Sized>(self, stored: &T, given: &T) -> bool {
        match self {
            Self::Equal => stored == given,
            Self::NotEqual => stored != given,
            Self::Less => stored < given,
            Self::Greater => stored > given,
        }
    }
}

/// What is compared with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// One of the key's numbers.
    Number {
        /// Which one.
        field: Field,
        /// How it must stand to `given`.
        relation: Relation,
        /// The given side.
        given: u64,
    },
    /// The key's value. No comparison with the value of an absent key holds, not even "not equal".
    Value {
        /// How it must stand to `given`.
        relation: Relation,
        /// The given side.
        given: Bytes,
    },
}

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// The condition.
    pub condition: Condition,
}

impl Compare {
    /// Begins a comparison of the revision that last wrote the key.
    pub fn mod_revision(key: impl Into<String>) -> CompareNumber {
        CompareNumber::new(key, Field::ModRevision)
    }

    /// Begins a comparison of the revision that created the key.
    pub fn create_revision(key: impl Into<String>) -> CompareNumber {
        CompareNumber::new(key, Field::CreateRevision)
    }

    /// Begins a comparison of the number of puts since the key was created.
    pub fn version(key: impl Into<String>) -> CompareNumber {
        CompareNumber::new(key, Field::Version)
    }

    /// The key's value stands in `relation` to `given`; never holds for an absent key.
    pub fn value(key: impl Into<String>, relation: Relation, given: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            condition: Condition::Value {
                relation,
                given: given.into(),
            },
        }
    }

    /// The key does not exist.
    pub fn absent(key: impl Into<String>) -> Self {
        Self::version(key).equals(0)
    }

    /// The key exists.
    pub fn present(key: impl Into<String>) -> Self {
        Self::version(key).greater_than(0)
    }

    /// The key is as it was read.
    pub fn unchanged(read: &KeyValue) -> Self {
        Self::mod_revision(&*read.key).equals(read.mod_revision)
    }

    /// Whether the condition holds for what is stored.
    pub fn holds(&self, stored: Option<&KeyValue>) -> bool {
        match &self.condition {
            Condition::Number {
                field,
                relation,
                given,
            } => relation.holds(&number_of(stored, *field), given),
            Condition::Value { relation, given } => stored.is_some_and(|kv| relation.holds(&kv.value, given)),
        }
    }

    fn size_bytes(&self) -> usize {
        let value = match &self.condition {
            Condition::Number { .. } => 0,
            Condition::Value { given, .. } => given.len(),
        };
        self.key.len() + value
    }
}

fn number_of(stored: Option<&KeyValue>, field: Field) -> u64 {
    stored.map_or(0, |kv| match field {
        Field::ModRevision => kv.mod_revision,
        Field::CreateRevision => kv.create_revision,
        Field::Version => kv.version,
    })
}

/// A [`Compare`] whose relation is still to be said.
#[derive(Debug, Clone)]
#[must_use]
pub struct CompareNumber {
    key: String,
    field: Field,
}

impl CompareNumber {
    fn new(key: impl Into<String>, field: Field) -> Self {
        Self {
            key: key.into(),
            field,
        }
    }

    fn with(self, relation: Relation, given: u64) -> Compare {
        Compare {
            key: self.key,
            condition: Condition::Number {
                field: self.field,
                relation,
                given,
            },
        }
    }

    /// It is `given`.
    pub fn equals(self, given: u64) -> Compare {
        self.with(Relation::Equal, given)
    }

    /// It is anything but `given`.
    pub fn differs_from(self, given: u64) -> Compare {
        self.with(Relation::NotEqual, given)
    }

    /// It is less than `given`.
    pub fn less_than(self, given: u64) -> Compare {
        self.with(Relation::Less, given)
    }

    /// It is `given` or less.
    pub fn at_most(self, given: u64) -> Compare {
        self.with(Relation::Less, given.saturating_add(1))
    }

    /// It is greater than `given`.
    pub fn greater_than(self, given: u64) -> Compare {
        self.with(Relation::Greater, given)
    }
}

/// One step of a txn. A step sees what earlier steps of the same txn did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a key, and binds it to the lease given here or, if none is, to no lease.
    Put {
        /// The key.
        key: String,
        /// The new value.
        value: Bytes,
        /// The lease whose end deletes the key.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; no error if it is absent.
    Delete {
        /// The key.
        key: String,
    },
    /// Deletes every key with this prefix.
    DeletePrefix {
        /// The prefix; the empty one is every key.
        prefix: String,
    },
    /// Reads a key.
    Get {
        /// The key.
        key: String,
    },
}

impl Op {
    /// Writes a key that is bound to no lease.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }
    }

    /// Writes a key that `lease` keeps.
    pub fn put_leased(key: impl Into<String>, value: impl Into<Bytes>, lease: LeaseId) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease: Some(lease),
        }
    }

    /// Deletes a key.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// Deletes every key with this prefix.
    pub fn delete_prefix(prefix: impl Into<String>) -> Self {
        Self::DeletePrefix {
            prefix: prefix.into(),
        }
    }

    /// Reads a key.
    pub fn get(key: impl Into<String>) -> Self {
        Self::Get { key: key.into() }
    }

    /// The keys that the step deletes, if it is a deletion.
    pub fn deletes(&self) -> Option<KeyRange> {
        match self {
            Self::Delete { key } => Some(KeyRange::Key(key.clone())),
            Self::DeletePrefix { prefix } => Some(KeyRange::Prefix(prefix.clone())),
            Self::Put { .. } | Self::Get { .. } => None,
        }
    }

    /// The one key that the step is about; none if it is about a prefix.
    pub(crate) fn key(&self) -> Option<&str> {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::Get { key } => Some(key),
            Self::DeletePrefix { .. } => None,
        }
    }

    fn check(&self) -> Result<(), StoreError> {
        match self {
            Self::Put { key, .. } => check_key(key, "put"),
            Self::Delete { key } => check_key(key, "delete"),
            Self::Get { key } => check_key(key, "get"),
            Self::DeletePrefix { prefix } => KeyRange::Prefix(prefix.clone()).check("delete prefix"),
        }
    }

    fn size_bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Delete { key } | Self::Get { key } => key.len(),
            Self::DeletePrefix { prefix } => prefix.len(),
        }
    }
}

/// Several steps that happen together or not at all, under conditions.
///
/// If every compare holds, `then` happens, else `otherwise`. What happens is one revision; a txn that changes nothing
/// (no put, and no deletion of a key that exists) makes none. One branch may change a key only once: no two puts of a
/// key, no put of a key that the same branch deletes.
///
/// Dropping the future of a txn does not take it back: it may still be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions.
    pub compares: Vec<Compare>,
    /// What happens if all conditions hold.
    pub then: Vec<Op>,
    /// What happens if one does not.
    pub otherwise: Vec<Op>,
}

impl Txn {
    /// A txn without conditions and steps.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds a step for the case that all conditions hold.
    pub fn then(mut self, op: Op) -> Self {
        self.then.push(op);
        self
    }

    /// Adds a step for the case that one condition does not hold.
    pub fn otherwise(mut self, op: Op) -> Self {
        self.otherwise.push(op);
        self
    }

    /// Adds a put to `then`.
    pub fn put(self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.then(Op::put(key, value))
    }

    /// Adds a deletion to `then`.
    pub fn delete(self, key: impl Into<String>) -> Self {
        self.then(Op::delete(key))
    }

    /// What counts towards [`MAX_REQUEST_BYTES`]: keys and values, and [`Txn::OP_BYTES`] for each compare and step.
    pub fn size_bytes(&self) -> usize {
        let compares: usize = self.compares.iter().map(Compare::size_bytes).sum();
        let ops: usize = self.ops().map(Op::size_bytes).sum();
        let count = self.compares.len() + self.then.len() + self.otherwise.len();
        compares + ops + count * Self::OP_BYTES
    }

    /// What a compare or a step takes on the wire besides its key and value.
    pub const OP_BYTES: usize = 32;

    fn ops(&self) -> impl Iterator<Item = &Op> {
        self.then.iter().chain(&self.otherwise)
    }

    /// Refuses what the contract does not allow; every backend calls it first.
    ///
    /// Compares count towards the limit of `otherwise`, because a backend may have to read their keys there to say
    /// which of them failed.
    pub fn check(&self) -> Result<(), StoreError> {
        check_count("operations of a txn's then", self.then.len())?;
        check_count(
            "compares and operations of a txn's otherwise",
            self.compares.len() + self.otherwise.len(),
        )?;
        for compare in &self.compares {
            check_key(&compare.key, "compare")?;
        }
        self.ops().try_for_each(Op::check)?;
        check_disjoint(&self.then)?;
        check_disjoint(&self.otherwise)?;
        let got = self.size_bytes();
        if got > MAX_REQUEST_BYTES {
            return Err(StoreError::TooLarge {
                what: "bytes of a txn",
                limit: MAX_REQUEST_BYTES,
                got,
            });
        }
        Ok(())
    }
}

fn check_count(what: &'static str, got: usize) -> Result<(), StoreError> {
    if got > MAX_TXN_OPS {
        return Err(StoreError::TooLarge {
            what,
            limit: MAX_TXN_OPS,
            got,
        });
    }
    Ok(())
}

/// No key is put twice, and none is both put and deleted.
fn check_disjoint(ops: &[Op]) -> Result<(), StoreError> {
    let mut put = BTreeSet::new();
    for op in ops {
        if let Op::Put { key, .. } = op
            && !put.insert(key.as_str())
        {
            return Err(StoreError::DuplicateKey { key: key.clone() });
        }
    }
    for range in ops.iter().filter_map(Op::deletes) {
        let next = put.range(range.start()..).next();
        if let Some(key) = next.filter(|key| range.contains(key)) {
            return Err(StoreError::DuplicateKey {
                key: (*key).to_owned(),
            });
        }
    }
    Ok(())
}

/// What one step did, in the order of the steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult {
    /// The key was written.
    Put,
    /// So many keys were deleted.
    Deleted {
        /// 0 if there was none.
        count: usize,
    },
    /// The key that was read, if it exists.
    Got(Option<KeyValue>),
}

/// A condition that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedCompare {
    /// Its place in [`Txn::compares`].
    pub index: usize,
    /// What the key was instead.
    pub actual: Option<KeyValue>,
}

/// What a txn did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnResponse {
    /// Whether every condition held, and so which branch happened.
    pub succeeded: bool,
    /// The revision that the txn made or, if it changed nothing, the current one.
    pub revision: Revision,
    /// What each step of the branch did.
    pub results: Vec<OpResult>,
    /// Every condition that did not hold, in order.
    pub failed: Vec<FailedCompare>,
}
