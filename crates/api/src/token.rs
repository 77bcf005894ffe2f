//! Tokens: what people and programs show, what each may do, and until when.

use model::Timestamp;
use model::token::Role;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A token as it is listed: never its secret, which is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Token {
    /// What it is called.
    pub name: String,
    /// Who shows it: the audit trail says `user:` and this.
    pub user: String,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops to be accepted; never if `null`.
    pub expires_at: Option<Timestamp>,
}

/// All tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tokens {
    /// By name.
    pub items: Vec<Token>,
}

/// The body that makes a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBody {
    /// What it is called, and who shows it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it stops to be accepted; never if left out.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}

/// A token that was made, with its secret, which is shown once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewToken {
    /// The secret.
    pub secret: String,
    /// The rest of it.
    #[serde(flatten)]
    pub token: Token,
}
