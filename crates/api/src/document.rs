//! Objects as files describe them, and what the server says of a whole set of them before any is written.
//!
//! A document is what creates an object: kind, name, labels, spec. For one that is there already, what the document leaves
//! out stays as it is, and a map of labels is replaced as a whole.

use std::collections::BTreeMap;

use model::Kind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::problem::Problem;

/// An object as a file describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its labels; as they are if `null`.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
    /// What is wanted, as for its creation.
    pub spec: Value,
}

/// Documents to check, in the order in which they would be written: each may refer to those before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckBody {
    /// The documents.
    pub documents: Vec<Document>,
}

/// What became of each document, in their order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckAnswer {
    /// One for each.
    pub results: Vec<Checked>,
}

/// What writing a document would lead to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Checked {
    /// What would happen.
    pub outcome: Outcome,
    /// The object's revision now, to be expected by the write; `null` if it is not there.
    pub revision: Option<u64>,
    /// The object as it is; `null` if it is not there.
    pub before: Option<Wanted>,
    /// The object as it would be; `null` if it is refused.
    pub after: Option<Wanted>,
    /// Why it would be refused.
    pub problem: Option<Problem>,
}

/// What would happen to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is as the document says.
    Unchanged,
    /// It would be created.
    Created,
    /// It would be changed.
    Changed,
    /// The write would be refused.
    Refused,
}

/// The user's part of an object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Wanted {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What is wanted.
    pub spec: Value,
}
