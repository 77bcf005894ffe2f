//! Owns: what can go wrong at the store, typed by what the caller can do about it.
//! Does not know: any backend's own errors; a backend translates them, with the detail as text.
//! Start here: [`StoreError::is_retryable`].

use crate::{LeaseId, Revision};

/// Why the store did not do what was asked. Unless a variant says otherwise, nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The history before `compacted` is gone.
    #[error(
        "revision {requested} was compacted away, the oldest readable one is {compacted}: list again and go on from the list's revision"
    )]
    Compacted {
        /// The revision that was asked for.
        requested: Revision,
        /// The oldest revision that can still be read.
        compacted: Revision,
    },
    /// The revision has not been written yet.
    #[error(
        "revision {requested} does not exist yet, the store is at {current}: read at {current} or watch from {requested}"
    )]
    FutureRevision {
        /// The revision that was asked for.
        requested: Revision,
        /// The newest revision.
        current: Revision,
    },
    /// A request exceeds one of the contract's limits.
    #[error("{what}: {got} exceeds the limit of {limit}; split the request")]
    TooLarge {
        /// What was measured, with its unit.
        what: &'static str,
        /// The most that is accepted.
        limit: usize,
        /// What the request has.
        got: usize,
    },
    /// The empty key, which no store accepts.
    #[error("{attempt} with an empty key: name the key")]
    EmptyKey {
        /// What was asked for.
        attempt: &'static str,
    },
    /// One branch of a txn changes a key twice.
    #[error("key {key:?} is changed twice by one branch of a txn: keep one of the two operations")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// The lease was never granted, was revoked, or has run out.
    #[error("lease {lease} is not alive: grant a new one")]
    LeaseNotFound {
        /// The lease.
        lease: LeaseId,
    },
    /// No room for another write. Reads go on, and writes do once there is room.
    #[error("{attempt}: no space left for {object}; free space or compact, then try again")]
    Full {
        /// What was asked for.
        attempt: &'static str,
        /// Where the space is missing.
        object: String,
    },
    /// This handle of the store was closed.
    #[error("{attempt}: the store was closed; open it again")]
    Closed {
        /// What was asked for.
        attempt: &'static str,
    },
    /// What is stored cannot be what was written.
    #[error("{object} is damaged ({detail}): check the store, and restore a backup if it stays so")]
    Damaged {
        /// The file, table or key concerned.
        object: String,
        /// What was found.
        detail: String,
    },
    /// The store cannot answer now. A write may or may not have happened: read before repeating it.
    #[error("{attempt}: the store is unavailable ({detail}); {}", remedy(*.retryable))]
    Unavailable {
        /// What was asked for.
        attempt: &'static str,
        /// What was found.
        detail: String,
        /// Whether trying again can help without anybody's doing.
        retryable: bool,
    },
    /// This backend does not have the operation.
    #[error("the {backend} store does not support {operation}: use a backend that does")]
    Unsupported {
        /// What was asked for.
        operation: &'static str,
        /// The backend's name.
        backend: &'static str,
    },
}

fn remedy(retryable: bool) -> &'static str {
    if retryable {
        "read, then try again"
    } else {
        "look at the store's log, then restart it"
    }
}

impl StoreError {
    /// Whether the same request can succeed later without a change to it.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Unavailable { retryable, .. } => *retryable,
            Self::FutureRevision { .. } => true,
            Self::Compacted { .. }
            | Self::TooLarge { .. }
            | Self::EmptyKey { .. }
            | Self::DuplicateKey { .. }
            | Self::LeaseNotFound { .. }
            | Self::Closed { .. }
            | Self::Damaged { .. }
            | Self::Unsupported { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_object_attempt_and_remedy() {
        let full = StoreError::Full {
            attempt: "txn",
            object: "/data/store.db".to_owned(),
        };
        assert_eq!(
            full.to_string(),
            "txn: no space left for /data/store.db; free space or compact, then try again"
        );
        assert!(full.is_retryable());
        let stuck = StoreError::Unavailable {
            attempt: "txn",
            detail: "fsync failed".to_owned(),
            retryable: false,
        };
        assert!(stuck.to_string().ends_with("restart it"));
        assert!(!stuck.is_retryable());
    }
}
