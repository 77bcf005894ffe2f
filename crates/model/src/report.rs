//! What an agent reports: how its host is, and how each incarnation on it is.
//!
//! A report speaks of a document's revision and carries a sequence number within the agent's session; it is posted again
//! until it is answered. What is stored of it is each incarnation's [`RunStatus`], and only when it changed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::build::Built;
use crate::copy::CopyTo;
use crate::host::HostStatus;
use crate::migration::Progress;
use crate::vm::{BootDevice, SavedIn};
use crate::{HostId, Incarnation, Reason, VmId};

/// One report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The agent's start.
    pub session: Uuid,
    /// Rises with every report of the session.
    pub sequence: u64,
    /// The host, when it changed since the last report that was answered, and in the first one.
    pub host: Option<HostStatus>,
    /// The incarnations that the host knows of.
    pub runs: Vec<VmRun>,
    /// Whether `runs` has all of them: not so while an agent that was just started is still looking.
    #[serde(default)]
    pub is_complete: bool,
    /// Load and progress: kept in memory by the server, never stored.
    pub samples: Samples,
}

/// An incarnation's state with the VM that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRun {
    /// The VM.
    pub vm: VmId,
    /// The state.
    pub run: RunStatus,
}

/// How an incarnation is. Stored under `/vm/{id}/run/{incarnation}`; written for the agent of its host only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStatus {
    /// Which one.
    pub incarnation: Incarnation,
    /// The host that reports it.
    pub host: HostId,
    /// The document that the agent acted on.
    pub document_revision: u64,
    /// How far it is.
    pub state: RunState,
    /// Whether its guest ever executed here.
    pub ran: bool,
    /// Whether the guest's agent has answered since it was launched.
    pub ready: bool,
    /// The addresses that the guest has, loopback left out.
    pub addresses: Vec<IpAddr>,
    /// Where the QEMU of a target listens for the stream.
    pub stream: Option<String>,
    /// The source's side of a migration.
    pub outgoing: Option<Outgoing>,
    /// The size of the saved state, once there is one.
    pub saved_bytes: Option<u64>,
    /// Where it is.
    #[serde(default, skip_serializing_if = "SavedIn::is_host")]
    pub saved_in: SavedIn,
    /// What is wrong, or why it ended.
    pub reason: Option<Reason>,
    /// The steps of the start that have ended, from when its host began with it.
    #[serde(default)]
    pub steps: Vec<StepTime>,
    /// The last reboot that was asked for and made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebooted: Option<Rebooted>,
    /// Its drive for media, as its QEMU had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cdrom: Option<CdromState>,
    /// The copies of its disk, by what each is for, from when they are begun until they are not asked for any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub copies: BTreeMap<CopyTo, CopyState>,
    /// Its guest, which began as a copy of another's memory, has random numbers, a name and addresses of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_identity: bool,
    /// What came of what is done in the guest of a VM that builds a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built: Option<Built>,
}

/// How far a copy of a disk is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "copy", rename_all = "kebab-case")]
pub enum CopyState {
    /// The source's host is at it.
    UnderWay,
    /// It is whole, and durable.
    Made {
        /// Whether the guest's file systems were frozen for the instant that it is of.
        is_frozen: bool,
    },
    /// It is given up.
    Failed {
        /// Why.
        reason: Reason,
    },
}

/// How a drive for media is.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CdromState {
    /// The digest of the medium in it.
    pub medium: Option<String>,
    /// Whether its tray is open: an ejected medium, also one that the guest has ejected, leaves it so.
    pub is_open: bool,
    /// What the guest boots from at its next reset, the first choice first.
    pub boot: Vec<BootDevice>,
}

/// A step of a VM's start, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StepTime {
    /// Which one.
    pub step: StartStep,
    /// When it began, from the beginning of the start, in milliseconds.
    pub begun_ms: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// The steps of a VM's start. Seed, disk and network are made at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StartStep {
    /// From the request until a host was chosen, or found to have room.
    Placement,
    /// The host fetches the image, if it does not have it.
    Image,
    /// The host has others to start first.
    Turn,
    /// The disk on which the guest finds what it is told.
    Seed,
    /// The disk itself, a copy on write of the image.
    Disk,
    /// The ports.
    Network,
    /// QEMU is started, up to its monitor's answer.
    Process,
    /// The saved state is loaded.
    Load,
    /// Until the guest's processors run.
    Boot,
    /// Until the guest's agent answers.
    Agent,
    /// A guest that began as a copy of another's memory gets random numbers, time, name and addresses of its own.
    Identity,
    /// One that this release does not know.
    #[serde(other)]
    Other,
}

impl fmt::Display for StartStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A reboot that was asked for, and made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebooted {
    /// The user's request.
    pub request: u64,
    /// Whether the guest was reset, since it did not reboot by itself in time.
    pub forced: bool,
}

/// How far an incarnation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Image, disk, seed and ports are being made.
    Preparing,
    /// Its QEMU is started, its guest has not executed yet.
    Booting,
    /// The guest executes.
    Running,
    /// The guest's processors are stopped, as asked.
    Paused,
    /// Its state is being saved.
    Saving,
    /// It is being shut down.
    Stopping,
    /// A target that waits for the stream or takes it.
    Incoming,
    /// A target that has taken the stream and waits for `go`.
    Loaded,
    /// Closed: it will never be launched again.
    Closed,
    /// Closed, and its volumes are removed.
    Removed,
}

impl RunState {
    /// Whether it is the agent's promise that the incarnation will never be launched again.
    pub const fn is_closed(self) -> bool {
        matches!(self, Self::Closed | Self::Removed)
    }
}

/// The source's side of a migration, as its agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgoing {
    /// M.
    pub to: Incarnation,
    /// How far it is.
    pub state: OutgoingState,
    /// From the guest's stop to the target's answer, on the source's monotonic clock, less what the guest had run when it
    /// was sent.
    pub downtime_us: Option<u64>,
    /// From the start of the transfer to its end.
    pub transfer_ms: Option<u64>,
    /// Sent over the wire.
    pub bytes: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutgoingState {
    /// Started.
    Transferring,
    /// The guest is stopped for the last round.
    SwitchingOver,
    /// QEMU completed: the guest executes here no more.
    Completed,
    /// The promise "I will not switch over to M", made from what QEMU said when this report was made.
    Promised,
}

/// What is measured all the time and never stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// Processors' load over the last minute, in hundredths.
    pub load1_percent: u32,
    /// Memory that is free for guests.
    pub memory_available_mib: u64,
    /// Transfers under way.
    pub transfers: BTreeMap<VmId, Progress>,
    /// What each VM's QEMU takes beside its guest's memory.
    #[serde(default)]
    pub qemu_mib: BTreeMap<VmId, u64>,
    /// What the agent itself takes.
    #[serde(default)]
    pub agent: AgentUse,
    /// By how many seconds the host's calendar is ahead of the server's, as the last answer showed; behind, if negative.
    #[serde(default)]
    pub clock_ahead_s: Option<i64>,
    /// Disks that are being made whole by their VMs' QEMUs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub flattened: BTreeMap<VmId, CopyProgress>,
}

/// How far the work on a disk is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CopyProgress {
    /// How much of it is done.
    pub done_bytes: u64,
    /// Of how much.
    pub total_bytes: u64,
}

/// What an agent's process takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentUse {
    /// Resident memory.
    pub resident_kib: u64,
    /// Processor time since its start.
    pub cpu_ms: u64,
}
