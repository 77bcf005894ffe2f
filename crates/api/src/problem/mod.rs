//! How an error looks on the wire: problem details as in RFC 9457, with a code for programs and a remedy for people.

mod codes;

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use codes::{CODES, Code};

/// The media type of an error.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Why a request was refused or failed, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// A URI that names the kind of problem: `urn:sterna:problem:` and the code.
    #[serde(rename = "type")]
    pub type_uri: Box<str>,
    /// The kind of problem in a few words.
    pub title: Box<str>,
    /// The HTTP status code.
    pub status: u16,
    /// What was attempted, why it was not done, and what to do about it.
    pub detail: String,
    /// Stable, for programs.
    pub code: String,
    /// What helps against problems of this code.
    #[serde(default)]
    pub remedy: Box<str>,
    /// The object's revision now, where another one was expected; the oldest one, where a watch came too late.
    pub current_revision: Option<u64>,
    /// After how many seconds to try again, as the header `Retry-After` says too; `null` where that does not help.
    #[serde(default)]
    pub retry_after_s: Option<u16>,
}

impl Problem {
    /// A problem from its status, code and detail.
    pub fn new(status: u16, code: &str, detail: impl Into<String>) -> Self {
        Self {
            type_uri: format!("urn:sterna:problem:{code}").into(),
            title: title(status).into(),
            status,
            detail: detail.into(),
            code: code.to_owned(),
            remedy: codes::find(code).map_or("", |code| code.remedy).into(),
            current_revision: None,
            retry_after_s: matches!(status, 429 | 503).then_some(1),
        }
    }

    /// The request says something that cannot be meant: 422.
    pub fn invalid(code: &str, detail: impl Into<String>) -> Self {
        Self::new(422, code, detail)
    }

    /// The request does not fit what is there: 409.
    pub fn conflict(code: &str, detail: impl Into<String>) -> Self {
        Self::new(409, code, detail)
    }

    /// What is named is not there: 404.
    pub fn not_found(kind: model::Kind, name: &str) -> Self {
        Self::new(
            404,
            "not-found",
            format!("there is no {kind} {name:?}: `sterna {kind} list` shows what there is"),
        )
    }

    /// The same problem with the revision to go on from.
    #[must_use]
    pub fn at_revision(mut self, revision: u64) -> Self {
        self.current_revision = Some(revision);
        self
    }

    /// The same problem with how long to wait: whole seconds, at least one.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        let whole = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
        self.retry_after_s = Some(u16::try_from(whole).unwrap_or(u16::MAX).max(1));
        self
    }
}

impl From<model::Reason> for Problem {
    fn from(reason: model::Reason) -> Self {
        Self::invalid(&reason.code, reason.message)
    }
}

/// A status code in words.
pub fn title(status: u16) -> &'static str {
    match status {
        400 => "Bad request",
        401 => "Not signed in",
        403 => "Not allowed",
        404 => "Not found",
        405 => "Method not allowed",
        409 => "Conflict",
        410 => "Gone",
        413 => "Too large",
        415 => "Unsupported media type",
        422 => "Invalid",
        426 => "Upgrade required",
        429 => "Too many requests",
        503 => "Not available now",
        504 => "Timed out",
        _ => "Internal error",
    }
}
