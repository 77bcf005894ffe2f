//! The desired document of a host: all that it shall do, at one revision of the store.
//!
//! Computed by the planner from the store, streamed by any server, obeyed by the host's agent. Documents count by rising
//! revision only. What a document neither names nor calls unreadable, the agent ends: see the protocol's table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::build::BuildWork;
use crate::copy::{CopyShape, CopyTo};
use crate::image::ImageFormat;
use crate::vm::{BootDevice, Firmware, GuestConfig, Reboot, SavedIn};
use crate::{HostId, Incarnation, VmId};

/// All that a host shall do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDocument {
    /// The store's revision that it speaks of.
    pub revision: u64,
    /// The host that it is for.
    pub host: HostId,
    /// What it shall do for each VM.
    pub vms: BTreeMap<VmId, VmDocument>,
    /// VMs that the host may have to do with, and whose records cannot be read: nothing is changed about them.
    #[serde(default)]
    pub unreadable: BTreeSet<VmId>,
    /// The networks that its VMs are plugged into.
    pub networks: BTreeMap<u32, NetworkDocument>,
}

/// What a host shall do for one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDocument {
    /// The incarnation that the order is for.
    pub incarnation: Incarnation,
    /// What to do with it.
    pub order: Order,
    /// The machine to make.
    pub machine: Machine,
    /// The guest shall be rebooted while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot: Option<Reboot>,
    /// What its root disk shall be copied for: VMs' disks in the same datastore, and images.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub copies: BTreeMap<CopyTo, CopyShape>,
    /// What it is done for: for logs, nothing is decided by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
}

/// What something is done for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The operation or migration.
    pub operation: Uuid,
    /// The id of the request that asked for it, if a request did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}

impl HostDocument {
    /// Whether another document asks for nothing else: it may be of another revision, and for another cause.
    pub fn asks_the_same(&self, other: &Self) -> bool {
        let (mine, theirs) = (self.vms.iter(), other.vms.iter());
        let vms = mine.map(|(id, vm)| (id, vm.asked()));
        self.unreadable == other.unreadable
            && self.networks == other.networks
            && vms.eq(theirs.map(|(id, vm)| (id, vm.asked())))
    }
}

/// All of a VM's part of a document that is to be obeyed.
type Asked<'a> = (
    Incarnation,
    &'a Order,
    &'a Machine,
    Option<Reboot>,
    &'a BTreeMap<CopyTo, CopyShape>,
);

impl VmDocument {
    /// All of it that is to be obeyed.
    const fn asked(&self) -> Asked<'_> {
        (
            self.incarnation,
            &self.order,
            &self.machine,
            self.reboot,
            &self.copies,
        )
    }
}

/// What to do with an incarnation: the column *document* of the protocol's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// Run N.
    Run {
        /// Whether its processors shall be stopped.
        paused: bool,
        /// RESUME: it completed a migration whose target closed without running.
        resume: bool,
        /// What it starts from, if it is not launched yet.
        start: StartFrom,
    },
    /// Stop N.
    Stop(Stop),
    /// Run N and move it to M.
    MigrateTo(MigrateTo),
    /// Be the target M.
    Target(Target),
}

/// What an incarnation starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum StartFrom {
    /// Its disks.
    Disk,
    /// The state that an earlier incarnation saved.
    Saved {
        /// Which one.
        incarnation: Incarnation,
        /// Where it is.
        #[serde(default, skip_serializing_if = "SavedIn::is_host")]
        saved_in: SavedIn,
    },
    /// It was launched as a migration's target, so it is never started afresh.
    Never,
    /// The memory and devices' state that a warm VM left for others, in the same datastore.
    Warm {
        /// The warm VM.
        vm: VmId,
        /// The incarnation that left them.
        incarnation: Incarnation,
    },
}

/// How an incarnation ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "kebab-case")]
pub enum Stop {
    /// By the guest, asked through ACPI and its agent, and by force at the deadline.
    Shutdown {
        /// When patience ends.
        force_at: Timestamp,
    },
    /// By force.
    Kill,
    /// By saving its state to disk.
    Suspend,
    /// By saving its state into the datastore.
    Store,
    /// By itself, when its disk is made, and copied as asked: it is never started.
    Prepare,
    /// By leaving its memory and its devices' state for others.
    Warm,
    /// By force, since it runs elsewhere now: this host's ports and files of it go, its volumes stay.
    Release,
    /// By force, with its volumes: the VM is deleted.
    Remove,
}

/// The source's side of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateTo {
    /// M.
    pub to: Incarnation,
    /// The target's host.
    pub host: HostId,
    /// The target's host's name, as its certificate has it.
    pub host_name: String,
    /// Where the target's QEMU listens; absent until it does.
    pub stream: Option<String>,
    /// Where the target's agent listens.
    pub peer: Option<String>,
    /// Whether the grant to M is stored.
    pub granted: bool,
    /// Whether the controller asks for the end of it.
    pub cancel: bool,
    /// Whether the guest's processors shall be stopped after it.
    pub paused: bool,
    /// How long the transfer may take, counted by the source from its start.
    pub timeout_ms: u64,
}

/// The target's side of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// N.
    pub from: Incarnation,
    /// The source's host: only from it `go` is taken.
    pub host: HostId,
    /// The source's host's name, as its certificate has it.
    pub host_name: String,
    /// How far the migration is.
    pub state: TargetState,
    /// Whether the guest's processors stay stopped.
    pub paused: bool,
    /// How long to wait for the stream's end, counted by the target from its start.
    pub timeout_ms: u64,
}

/// How far a migration is, for its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetState {
    /// Start and listen.
    Prepare,
    /// The grant is stored: take the stream.
    Granted,
    /// The source completed: run.
    Decided,
    /// The source is lost or goes on: close unless it ran.
    Revoked,
}

/// A machine, with all that was calculated for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The VM's name.
    pub name: String,
    /// The UUID that firmware and guest see: the VM's id.
    pub uuid: Uuid,
    /// Virtual processors.
    pub vcpus: u32,
    /// Main memory.
    pub memory_mib: u64,
    /// The root disk.
    pub disk: Disk,
    /// Network interfaces, in their order.
    pub nics: Vec<Port>,
    /// What the guest is told.
    pub guest: GuestConfig,
    /// Its drive for media.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cdrom: Option<Cdrom>,
    /// What it boots from, the first choice first.
    #[serde(default = "usual_boot", skip_serializing_if = "is_usual_boot")]
    pub boot: Vec<BootDevice>,
    /// What starts the guest.
    #[serde(default, skip_serializing_if = "Firmware::is_usual")]
    pub firmware: Firmware,
    /// Its memory is a file, which others map when it has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_memory: bool,
    /// What is done in its guest, of whose disk a template is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildWork>,
}

fn usual_boot() -> Vec<BootDevice> {
    BootDevice::USUAL.into()
}

fn is_usual_boot(boot: &[BootDevice]) -> bool {
    boot == BootDevice::USUAL
}

/// An image, as hosts find it in a datastore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    /// Its digest, which names its file.
    #[serde(rename = "image_sha256")]
    pub sha256: String,
    /// Its layout.
    #[serde(rename = "image_format")]
    pub format: ImageFormat,
}

/// A drive for media that are only read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cdrom {
    /// What shall be in it, in the root disk's datastore.
    pub medium: Option<ImageFile>,
    /// Whether the medium is also taken from a guest that holds it.
    pub force: bool,
}

/// A root disk, in a datastore: an overlay over an image there, or blank at first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The datastore's directory.
    pub datastore: String,
    /// Whether the hosts' page caches agree on its files.
    pub coherent: bool,
    /// The image.
    #[serde(flatten)]
    pub image: Option<ImageFile>,
    /// The size that the guest sees.
    pub bytes: u64,
    /// The warm VM whose disk lies between its own and the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<VmId>,
}

/// A network interface and where it is plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The network's VXLAN identifier: the key of [`HostDocument::networks`].
    pub vni: u32,
    /// The MAC address.
    pub mac: String,
    /// The address that the guest is told.
    pub address: Option<IpAddr>,
    /// The length of the network's prefix.
    pub prefix_len: u8,
}

/// A network as a host sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDocument {
    /// The addresses of the other hosts that the segment reaches.
    pub peers: Vec<IpAddr>,
}
