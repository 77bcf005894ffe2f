//! How far a drain is, and what a host's actions take.

use model::{Reason, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The body of an action on a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HostActionBody {
    /// For `drain`: how many VMs leave the host at a time, from 1 to 8; 2 if `null`.
    pub parallel: Option<u32>,
}

/// What is to be expected of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DrainState {
    /// It goes on by itself.
    Draining,
    /// All that is left needs somebody to do something.
    Stuck,
    /// Nothing runs on the host.
    Drained,
}

/// How far a drain is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainStatus {
    /// What is to be expected.
    pub state: DrainState,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// How many VMs leave the host at a time.
    pub parallel: u32,
    /// How many VMs it has moved.
    pub moved: u32,
    /// These and the ones that run on the host still.
    pub total: u32,
    /// How long the moves that are left are expected to take, in milliseconds.
    pub left_ms: u64,
    /// What the host still holds.
    pub vms: Vec<DrainVm>,
}

/// How a VM stands in a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DrainStanding {
    /// It is on its way.
    Moves,
    /// It can go, and waits for its turn.
    Queued,
    /// Nothing can be done now, and that changes by itself.
    Waits,
    /// It cannot leave unless somebody does something.
    Stays,
    /// It does not run, and its state is on the host's disk.
    Rests,
}

/// A VM that a draining host still holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainVm {
    /// Its name.
    pub vm: String,
    /// How it stands.
    pub standing: DrainStanding,
    /// The host that it would go to as things are.
    pub to: Option<String>,
    /// The migration under way.
    pub migration: Option<String>,
    /// How often this drain has tried to move it.
    pub attempts: u32,
    /// Why it does not move, with numbers; or why the last attempt failed.
    pub reason: Option<Reason>,
    /// What leads on.
    pub next_commands: Vec<String>,
}
