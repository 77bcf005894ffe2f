//! Tokens with which people and programs show who they are. Only their SHA-256 is stored.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What whoever shows a token may do. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Read everything but the store's backup, tokens and consoles.
    Reader,
    /// Change everything that is listed, and use consoles.
    Operator,
    /// Also make and revoke tokens, let hosts join, and handle the store.
    Admin,
}

impl Role {
    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// What tokens may do that were made before there were roles.
    const fn former() -> Self {
        Self::Admin
    }

    const fn is_former(&self) -> bool {
        matches!(self, Self::Admin)
    }
}

/// What a token stands for. Stored under the token's hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Who shows it.
    pub user: String,
    /// What it is called.
    pub name: String,
    /// What it may do.
    #[serde(default = "Role::former", skip_serializing_if = "Role::is_former")]
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops to be accepted.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

impl TokenRecord {
    /// Whether it is accepted.
    pub fn counts(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }
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
