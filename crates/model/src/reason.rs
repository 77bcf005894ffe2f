//! Why something is as it is: a stable code for programs and a sentence for people.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A named cause. The message says what was attempted, what happened and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reason {
    /// Lower case with dashes, stable over releases, for programs.
    pub code: String,
    /// One or two sentences for people.
    pub message: String,
}

impl Reason {
    /// A reason from its code and sentence.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
        }
    }
}
