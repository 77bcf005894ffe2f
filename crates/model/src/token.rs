//! Tokens with which people and programs show who they are. Only their SHA-256 is stored.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a token stands for. Stored under the token's hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Who shows it.
    pub user: String,
    /// What it is called.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops to be accepted.
    pub expires_at: Option<Timestamp>,
}

/// The answer to a request that carried a request id: a repeat gets the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Who asked.
    pub user: String,
    /// SHA-256 of method, path and body: another request under the same id is refused.
    pub fingerprint: String,
    /// The status code that was answered.
    pub status: u16,
    /// The body that was answered: the object as it was then.
    pub body: serde_json::Value,
    /// When.
    pub at: Timestamp,
}
