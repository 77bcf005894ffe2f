//! What was done to an object: who changed which field from what to what, as the audit trail has it.

use model::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An object's history, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct History {
    /// The writes; the last ones, if there are more than were asked for.
    pub items: Vec<HistoryEntry>,
    /// Whether older ones were left out.
    pub has_older: bool,
}

/// One write that concerned the object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryEntry {
    /// When.
    pub at: Timestamp,
    /// `user:NAME`, `controller` or `agent:HOST`.
    pub actor: String,
    /// The address that the request came from; `null` within the server.
    pub from: Option<String>,
    /// What was asked for, in a few words.
    pub action: String,
    /// What it changed of the object.
    pub changes: Vec<FieldChange>,
}

/// One field's change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FieldChange {
    /// Its path, as in `spec.memory_mib`; a part that came or went as a whole, as in `intent`.
    pub field: String,
    /// What it was; `null` if it was not there.
    pub before: Value,
    /// What it is; `null` if it is gone.
    pub after: Value,
}
