//! A host: what its operator says of it, what it reports of itself, and what the controller has reserved on it and is
//! doing about it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use uuid::Uuid;

use crate::{HostId, Incarnation, MigrationId, VmId};

/// What the operator says. Written by the API only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSpec {
    /// No new VM is placed on it.
    #[serde(default)]
    pub cordoned: bool,
    /// A person's word that the machine is off: everything on it counts as fenced, and its agent is refused.
    #[serde(default)]
    pub confirmed_dead_at: Option<Timestamp>,
    /// The digest of the certificate's key that its agent must show, as lower-case hexadecimal SHA-256.
    pub certificate_sha256: Option<String>,
    /// That of the certificate with which the last one was asked for: it counts too, since the answer may have been lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_certificate_sha256: Option<String>,
    /// The machine that joined, told from others by a digest from which its id cannot be learned; an agent of before does
    /// not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// That its VMs shall leave it, and that no new one is placed on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// How much more is promised than there is; nothing more if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit: Option<Overcommit>,
}

/// How much of a host is promised to guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Overcommit {
    /// Guests' memory in hundredths of the memory that there is for them, from 50 to 400.
    pub memory_percent: u32,
    /// Virtual processors for each physical one, from 1 to 64.
    pub vcpus_per_cpu: u32,
}

/// An operator's wish that a host be empty. It holds until it is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Which wish: asked again, every VM gets its attempts anew.
    pub id: Uuid,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// By whom; the owner of the migrations.
    pub asked_by: String,
    /// How many VMs leave the host at a time.
    pub parallel: u32,
}

/// What the controller has done about a host. Written by the controller only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostIntent {
    /// How far its drain is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainRecord>,
    /// What it was made of when it took the VMs that it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<Known>,
    /// The starts that failed on it, one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_starts: Option<FailedStarts>,
}

/// Starts that failed on a host with none in between that did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedStarts {
    /// How many.
    pub in_row: u32,
    /// When the last one failed.
    pub last_at: Timestamp,
}

/// What VMs on a host may depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The processor model that guests saw.
    pub cpu_model: String,
    /// The latest release of the agent.
    pub agent_version: String,
}

/// What a drain has tried. What is left to do follows from the VMs that are on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRecord {
    /// See [`Drain::id`].
    pub drain: Uuid,
    /// The VMs that it has tried to move.
    pub moves: BTreeMap<VmId, DrainMove>,
}

/// The attempts to move one VM off a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainMove {
    /// How many migrations were made.
    pub attempts: u32,
    /// The last one.
    pub migration: MigrationId,
}

/// What the host reports of itself. Written for its agent only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// The release of its agent.
    pub agent_version: String,
    /// The release of its QEMU.
    pub qemu_version: String,
    /// Its processors.
    pub cpus: u32,
    /// Its memory.
    pub memory_mib: u64,
    /// What its agent and kernel keep for themselves.
    pub reserved_mib: u64,
    /// How guests are run.
    pub accelerator: Accelerator,
    /// Where its agent listens for other agents.
    pub peer_address: Option<SocketAddr>,
    /// What its kernel lacks, each with the consequence.
    pub lacks: Vec<Lack>,
    /// The processor model that guests see.
    pub cpu_model: String,
    /// Which start of the machine this is.
    pub boot_id: String,
    /// As whom QEMU runs; an agent of before does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_user: Option<QemuUser>,
    /// Whether it has UEFI for guests; an agent of before knows none.
    #[serde(default, skip_serializing_if = "is_false")]
    pub uefi: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl HostStatus {
    /// What memory that was kept here can be used with: QEMU's release, the processor that guests see, how they are run.
    pub fn build(&self) -> String {
        format!(
            "QEMU {}, {}, {:?}",
            self.qemu_version, self.cpu_model, self.accelerator.name
        )
    }
}

/// As whom QEMU runs, and why not with fewer rights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QemuUser {
    /// `vm`, `host` or `agent`.
    pub name: QemuUserName,
    /// Why it is not `vm`; `null` if it is.
    pub why: Option<String>,
}

/// What a guest that has taken over its QEMU is on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QemuUserName {
    /// Each VM has a user of its own.
    Vm,
    /// All VMs of the host have one user, who is nobody else.
    Host,
    /// The agent's own user: nothing but QEMU's sandbox is between a guest and the others of its host.
    Agent,
}

/// How guests are run, and why not faster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Accelerator {
    /// `kvm` or `tcg`; `simulated` on a host that is.
    pub name: AcceleratorName,
    /// Why it is not `kvm`; `null` if it is.
    pub why: Option<String>,
}

/// The accelerators that QEMU is used with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorName {
    /// Hardware virtualisation.
    Kvm,
    /// Emulation.
    Tcg,
    /// None: the host is simulated, and so are the guests on it.
    Simulated,
}

/// Something that a host's kernel cannot do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lack {
    /// What is missing.
    pub what: String,
    /// What Sterna cannot do there because of it.
    pub consequence: String,
}

/// What the servers hear from the host, as far as a change of it is worth keeping. Written by the server when that changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostContact {
    /// Since when nothing was heard; `None` while the host is connected.
    pub silent_since: Option<Timestamp>,
    /// The run of a server that hears the host, and that says when it no longer does; `None` if there is one server only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_by: Option<Uuid>,
    /// The VMs whose QEMU takes more of the host's memory than is reserved for it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub over_reservation: BTreeSet<VmId>,
    /// What the machine says that speaks for the host, and no other that has its keys: see the server's `speakers`. None
    /// while none has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaker: Option<String>,
}

/// What is reserved on a host. Written by the controller; the agent's reports do not touch it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservations {
    /// One entry per incarnation that may use the host's memory.
    pub vms: BTreeMap<VmId, Reserved>,
}

/// What one incarnation holds on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// Which one.
    pub incarnation: Incarnation,
    /// Main memory with QEMU's own part.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
}

impl Reserved {
    /// Whether a guest runs in it, or is to: rules for where VMs may be are about those, not about one whose disk is copied there.
    pub fn has_guest(&self) -> bool {
        self.vcpus > 0
    }
}

impl Reservations {
    /// The memory that is spoken for.
    pub fn memory_mib(&self) -> u64 {
        self.vms.values().map(|reserved| reserved.memory_mib).sum()
    }

    /// The virtual processors that are spoken for.
    pub fn vcpus(&self) -> u32 {
        self.vms.values().map(|reserved| reserved.vcpus).sum()
    }
}

/// A token with which one host may join. Stored hashed; used once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The name that the host gets, if the operator has set one.
    pub name: Option<String>,
    /// When it stops to be accepted.
    pub expires_at: Timestamp,
    /// The host that used it.
    pub used_by: Option<HostId>,
    /// The digest of that host's public key, as lower-case hexadecimal SHA-256: a repeat must show the same.
    #[serde(default)]
    pub used_key_sha256: Option<String>,
}
