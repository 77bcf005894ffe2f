//! An operation: one long action on an object, who carries it out, how far it is, and when patience ends.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Kind, Reason};

/// What is being done. Operations are written by the controller; users only read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationSpec {
    /// What kind of action.
    pub action: Action,
    /// The kind of the object concerned.
    pub object_kind: Kind,
    /// The object concerned.
    pub object: Uuid,
    /// Who asked for it.
    pub owner: String,
}

/// The actions that take long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Place and boot a VM, or restore its saved state.
    Start,
    /// Ask the guest to shut down, then pull the plug.
    Shutdown,
    /// Save the state and end.
    Suspend,
    /// Remove all that a VM owns.
    Delete,
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationStatus {
    /// How far.
    pub phase: OperationPhase,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// When patience ends, if it does.
    pub deadline: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it failed.
    pub reason: Option<Reason>,
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
}
