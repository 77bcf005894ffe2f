//! Owns: keys, versions of values, and the question "which keys, at which revision, from where on".
//! Does not know: how a backend finds them.
//! Start here: [`RangeRequest`].

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::{LeaseId, MAX_KEY_BYTES, Revision, StoreError};

/// One key as one revision left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key; shared, since it stands in a state, its drafts and its events.
    pub key: Arc<str>,
    /// The value; empty in a deletion, and when only keys were asked for.
    pub value: Bytes,
    /// The revision that created the key; 0 in a deletion.
    pub create_revision: Revision,
    /// The revision that wrote this version.
    pub mod_revision: Revision,
    /// How often the key was put since it was created; 0 in a deletion.
    pub version: u64,
    /// The lease whose end deletes the key.
    pub lease: Option<LeaseId>,
}

/// A set of keys that stand side by side in key order (the order of their bytes).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRange {
    /// This one key.
    Key(String),
    /// Every key that starts with this; the empty prefix is every key.
    Prefix(String),
    /// From `start` up to, and without, `end`.
    Interval {
        /// The first key of the interval.
        start: String,
        /// The first key after the interval.
        end: String,
    },
}

impl KeyRange {
    /// Whether `key` is in the range.
    pub fn contains(&self, key: &str) -> bool {
        match self {
            Self::Key(only) => key == only,
            Self::Prefix(prefix) => key.starts_with(prefix.as_str()),
            Self::Interval { start, end } => key >= start.as_str() && key < end.as_str(),
        }
    }

    /// The smallest key that the range can contain.
    pub fn start(&self) -> &str {
        match self {
            Self::Key(start) | Self::Prefix(start) | Self::Interval { start, .. } => start,
        }
    }

    /// The first bytes after the range, or none if the range runs to the last key.
    pub fn end(&self) -> Option<Vec<u8>> {
        match self {
            Self::Key(key) => Some([key.as_bytes(), b"\0"].concat()),
            Self::Prefix(prefix) => after_prefix(prefix.as_bytes()),
            Self::Interval { end, .. } => Some(end.clone().into_bytes()),
        }
    }

    /// Refuses what the contract does not allow as a key or as a bound.
    pub fn check(&self, attempt: &'static str) -> Result<(), StoreError> {
        match self {
            Self::Key(key) => check_key(key, attempt),
            Self::Prefix(prefix) => check_length(prefix),
            Self::Interval { start, end } => check_length(start).and_then(|()| check_length(end)),
        }
    }
}

/// The smallest byte string that is greater than everything with this prefix.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let keep = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix.get(..=keep)?.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    Some(end)
}

pub(crate) fn check_key(key: &str, attempt: &'static str) -> Result<(), StoreError> {
    if key.is_empty() {
        return Err(StoreError::EmptyKey { attempt });
    }
    check_length(key)
}

fn check_length(key: &str) -> Result<(), StoreError> {
    if key.len() > MAX_KEY_BYTES {
        return Err(StoreError::TooLarge {
            what: "bytes of a key",
            limit: MAX_KEY_BYTES,
            got: key.len(),
        });
    }
    Ok(())
}

/// Reads the keys of a range, in key order, as they were at one revision.
///
/// To page: repeat with [`RangeRequest::after`] the last key and [`RangeRequest::at`] the first answer's revision while
/// the answer says `more`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// The revision to read at; none is the current one.
    pub revision: Option<Revision>,
    /// The most items to return; 0 is no limit.
    pub limit: usize,
    /// Leave the values empty.
    pub keys_only: bool,
    /// Only keys greater than this one.
    pub after: Option<String>,
}

impl RangeRequest {
    /// Reads the keys of `range` at the current revision.
    pub fn new(range: KeyRange) -> Self {
        Self {
            range,
            revision: None,
            limit: 0,
            keys_only: false,
            after: None,
        }
    }

    /// Reads one key.
    pub fn key(key: impl Into<String>) -> Self {
        Self::new(KeyRange::Key(key.into()))
    }

    /// Reads every key that starts with `prefix`.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self::new(KeyRange::Prefix(prefix.into()))
    }

    /// Reads the keys from `start` up to, and without, `end`.
    pub fn interval(start: impl Into<String>, end: impl Into<String>) -> Self {
        Self::new(KeyRange::Interval {
            start: start.into(),
            end: end.into(),
        })
    }

    /// Reads at `revision`.
    pub fn at(mut self, revision: Revision) -> Self {
        self.revision = Some(revision);
        self
    }

    /// Returns at most `items`; 0 is no limit.
    pub fn limit(mut self, items: usize) -> Self {
        self.limit = items;
        self
    }

    /// Returns only keys greater than `key`.
    pub fn after(mut self, key: impl Into<String>) -> Self {
        self.after = Some(key.into());
        self
    }

    /// Leaves the values empty.
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }

    /// Refuses what the contract does not allow; every backend calls it first.
    pub fn check(&self) -> Result<(), StoreError> {
        self.range.check("range")?;
        self.after.as_deref().map_or(Ok(()), check_length)
    }

    /// Where the reading starts: the range's start, or behind the last page.
    pub fn lower_bound(&self) -> Bound<&str> {
        match self.after.as_deref() {
            Some(after) if after >= self.range.start() => Bound::Excluded(after),
            _ => Bound::Included(self.range.start()),
        }
    }

    /// Whether `revision` can be read, given the store's compaction and its current revision.
    pub fn resolve(&self, compacted: Revision, current: Revision) -> Result<Revision, StoreError> {
        let requested = self.revision.unwrap_or(current);
        if requested > current {
            return Err(StoreError::FutureRevision { requested, current });
        }
        if requested < compacted {
            return Err(StoreError::Compacted { requested, compacted });
        }
        Ok(requested)
    }

    /// Makes the answer from the matching keys, which come in key order and from [`RangeRequest::lower_bound`] on.
    pub fn answer<'a>(
        &self,
        matching: impl Iterator<Item = &'a KeyValue>,
        current: Revision,
    ) -> RangeResponse {
        let limit = if self.limit == 0 { usize::MAX } else { self.limit };
        let mut matching = matching;
        let items = matching.by_ref().take(limit).map(|kv| self.project(kv)).collect();
        RangeResponse {
            items,
            revision: current,
            more: matching.next().is_some(),
        }
    }

    fn project(&self, kv: &KeyValue) -> KeyValue {
        if self.keys_only {
            KeyValue {
                key: kv.key.clone(),
                value: Bytes::new(),
                ..*kv
            }
        } else {
            kv.clone()
        }
    }
}

/// The answer to a [`RangeRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeResponse {
    /// The keys, in key order.
    pub items: Vec<KeyValue>,
    /// The store's current revision when it answered, also when an older one was read.
    pub revision: Revision,
    /// Whether the limit left keys out.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_sibling() {
        let end = |prefix: &str| KeyRange::Prefix(prefix.to_owned()).end();
        assert_eq!(end("/vm/"), Some(b"/vm0".to_vec()));
        assert_eq!(end(""), None);
        assert_eq!(end("a\u{7f}"), Some(b"a\x80".to_vec()));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"\xff"), None);
    }

    #[test]
    fn paging_never_starts_before_the_range() {
        let request = RangeRequest::prefix("b").after("a");
        assert_eq!(request.lower_bound(), Bound::Included("b"));
        let request = RangeRequest::prefix("b").after("b1");
        assert_eq!(request.lower_bound(), Bound::Excluded("b1"));
    }
}
