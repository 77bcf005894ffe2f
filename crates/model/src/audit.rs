//! Audit records: who wrote what, from where, and what it was before and after.
//!
//! Each is a key of its own, written in the transaction that it describes. The store's compaction drops old revisions of
//! keys, never keys, so the audit trail outlives it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Who makes a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// `user:NAME`, `controller` or `agent:HOST`.
    pub name: String,
    /// The address that the request came from; `None` within the server.
    pub from: Option<String>,
    /// The id of the request, which the log and the operation have too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}

impl Actor {
    /// The server's own controllers.
    pub fn controller() -> Self {
        Self {
            name: "controller".to_owned(),
            from: None,
            request: None,
        }
    }
}

/// One committed transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Who.
    pub actor: Actor,
    /// When.
    pub at: Timestamp,
    /// What was asked for, in a few words.
    pub action: String,
    /// What changed.
    pub changes: Vec<Change>,
}

/// One key's change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its value before; `None` if it was not there.
    pub before: Option<Value>,
    /// Its value after; `None` if it is gone.
    pub after: Option<Value>,
}
