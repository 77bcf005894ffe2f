//! An operation: one long action on an object, who asked for it, how far it is, and when patience ends.
//!
//! The record is made in the transaction of the request that it tells of; its status is the controller's. A record without
//! a status is under way, at its first try.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Kind, Reason};

/// What is being done. Made with the request; users only read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationSpec {
    /// What kind of action.
    pub action: Action,
    /// The kind of the object concerned.
    pub object_kind: Kind,
    /// The object concerned.
    pub object: Uuid,
    /// Its name: a deletion's record outlives what it deletes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub object_name: String,
    /// Which of the requests of its object it is, as the object's spec counts them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub request: u64,
    /// Who asked for it.
    pub owner: String,
    /// The id of the request that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// What an apply does in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apply: Option<Apply>,
}

/// What an apply does in a guest, in its order. What it writes and runs there is a secret: it is nowhere in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apply {
    /// Each step in a few words, without its content.
    pub steps: Vec<String>,
    /// When it is given up.
    pub deadline: Timestamp,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The actions that take long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Place and boot a VM, or restore its saved state.
    Start,
    /// Place a VM and make its disk.
    Prepare,
    /// Reboot its guest where it is.
    Reboot,
    /// Ask the guest to shut down, then pull the plug.
    Shutdown,
    /// Save the state and end.
    Suspend,
    /// Save the state into the datastore and end.
    Stop,
    /// Remove all that a VM owns.
    Delete,
    /// Run a script, or set files, users and keys, in a guest that runs.
    Apply,
    /// Make its disk whole, so that it needs neither an image nor a warm form.
    Flatten,
    /// Make a template, or its next version, of a VM.
    Build,
}

impl Action {
    /// The word in names and on the wire.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Prepare => "prepare",
            Self::Reboot => "reboot",
            Self::Shutdown => "shutdown",
            Self::Suspend => "suspend",
            Self::Stop => "stop",
            Self::Delete => "delete",
            Self::Apply => "apply",
            Self::Flatten => "flatten",
            Self::Build => "build",
        }
    }
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationStatus {
    /// How far.
    pub phase: OperationPhase,
    /// Which try this is, from 1: one more than the tries in a row before it that failed.
    pub attempt: u32,
    /// When patience ends, if it does.
    pub deadline: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it failed, or what else there is to say of its end.
    pub reason: Option<Reason>,
    /// What came of an apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<Applied>,
}

/// What came of an apply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Applied {
    /// How many of its steps were done, in their order.
    pub steps_done: usize,
    /// With what the script ended, or the step that failed; 128 and the signal's number if a signal ended it.
    pub exit_status: Option<i32>,
    /// The last that it printed, at most 2 KiB; a guest may print secrets, so those who only read do not see it.
    pub output: String,
    /// How much it printed, in bytes.
    pub output_bytes: u64,
}

impl OperationStatus {
    /// Under way, at this try.
    pub const fn running(attempt: u32) -> Self {
        Self {
            phase: OperationPhase::Running,
            attempt,
            deadline: None,
            ended_at: None,
            reason: None,
            applied: None,
        }
    }
}

/// The phases of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum OperationPhase {
    /// Under way.
    Running,
    /// Done as asked.
    Done,
    /// Given up; the reason says why.
    Failed,
    /// A newer request came before it had ended.
    Superseded,
}
