//! A migration: one move of a VM, as a transaction in six stages.
//!
//! ```text
//! Planned → Preparing → Transferring → Decided → Activated → Done
//!              │             │            ╲
//!              └── Aborting ─┴─ Revoking ──→ Aborted          SwitchingOver: Transferring, as its source reports it
//! ```
//! In *Preparing* the target's incarnation exists on paper only; the transaction that enters *Transferring* stores the
//! grant to it, which is a hand-over: from then on only the source's given promise, or the end of both, aborts.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{HostId, Incarnation, Reason, VmId};

/// What the user wants. Written by the API only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationSpec {
    /// The VM that moves.
    pub vm: VmId,
    /// Where to; the scheduler chooses if `None`.
    pub to: Option<HostId>,
    /// Whether the user wants it to stop. A request: see the protocol.
    #[serde(default)]
    pub cancel: bool,
    /// The drain that it was made for. It does not begin when that drain is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Uuid>,
    /// The id of the request that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// How a VM moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The memory is copied in rounds while the VM runs.
    PreCopy,
}

/// The stages as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum MigrationPhase {
    /// Asked for; nothing is decided.
    Planned,
    /// The target's resources are reserved and its QEMU is started. Nothing is granted.
    Preparing,
    /// The grant is stored; the source copies the memory.
    Transferring,
    /// As Transferring, and the source has reported that its VM is stopped for the last round. Projected, not stored.
    SwitchingOver,
    /// The source has reported that its QEMU completed.
    Decided,
    /// The target runs, and the VM is bound to it; the source still has to close.
    Activated,
    /// The source has closed.
    Done,
    /// The source goes on; the target has to close.
    Aborting,
    /// The source is lost after the grant: the target runs or closes.
    Revoking,
    /// The VM did not move.
    Aborted,
}

impl MigrationPhase {
    /// Whether nothing will change any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Aborted)
    }

    /// Whether the target's incarnation has been granted.
    pub const fn is_granted(self) -> bool {
        !matches!(self, Self::Planned | Self::Preparing)
    }
}

/// What the controller has decided. Present from Preparing on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationIntent {
    /// The stage.
    pub phase: MigrationPhase,
    /// When it was entered.
    pub entered_at: Timestamp,
    /// When the present stage is given up.
    pub deadline: Option<Timestamp>,
    /// How.
    pub method: Method,
    /// From where, where to; absent if it was refused.
    pub route: Option<Route>,
    /// What was expected.
    pub predicted: Option<Figures>,
    /// What was measured.
    pub measured: Option<Figures>,
    /// Why it was refused or aborted.
    pub reason: Option<Reason>,
}

/// Source and target with their incarnations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The host that the VM leaves.
    pub source: HostId,
    /// The incarnation there.
    pub from: Incarnation,
    /// The host that the VM goes to.
    pub target: HostId,
    /// The incarnation there.
    pub to: Incarnation,
}

/// The three quantities of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Figures {
    /// From the guest's stop at the source to the target's QEMU letting it run, and the way of that answer back.
    pub downtime_ms: u64,
    /// From the request to the commit.
    pub total_ms: u64,
    /// Sent over the wire.
    pub bytes: u64,
}

/// How far a transfer is. Never stored; streamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// Which pass over the memory this is, from 1.
    pub round: u64,
    /// Bytes still to send.
    pub remaining_bytes: u64,
    /// Bytes of the guest's memory.
    pub total_bytes: u64,
    /// Bytes sent so far.
    pub sent_bytes: u64,
    /// How fast the guest writes, in pages of 4 KiB.
    pub dirty_pages_per_s: u64,
    /// How fast the memory is sent.
    pub bytes_per_s: u64,
}
