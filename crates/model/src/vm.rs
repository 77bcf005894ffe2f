//! A virtual machine: what its user wants, what the controller intends, what its hosts report.
//!
//! One writer per part: the user writes [`VmSpec`] (through the API), the controller writes [`VmIntent`], and the agent
//! of the host that holds an incarnation writes that incarnation's [`crate::report::RunStatus`].

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::build::{Builds, Built};
use crate::copy::CopyTo;
pub use crate::placement::PlacementRule;
use crate::report::{Outgoing, OutgoingState, RunState, RunStatus};
use crate::template::TemplateSpec;
use crate::user_data::UserData;
use crate::{
    DatastoreId, HostId, ImageId, Incarnation, Kind, MigrationId, NetworkId, ProfileId, Reason, TemplateId,
    VmId,
};

/// What the user wants the VM to be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// Running.
    Running,
    /// In memory with its processors stopped.
    Paused,
    /// Its state saved to disk on its host, which it keeps.
    Suspended,
    /// Its state saved into its datastore, no host held.
    Stopped,
    /// Powered off.
    Off,
    /// Powered off and never booted: its disk is made, where it would run. Only a new VM can be asked to be.
    Prepared,
    /// Not placed until it is released.
    Hold,
}

impl Power {
    /// Whether a host has to be found for it.
    pub const fn needs_host(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Prepared)
    }
}

/// What the user wants. Written by the API only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The template that it was made from.
    pub template: Option<TemplateId>,
    /// Which version of the template; an older release did not note it if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_version: Option<u64>,
    /// The profile that its sizes are of, as far as no others were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<ProfileId>,
    /// Virtual processors.
    pub vcpus: u32,
    /// Main memory.
    pub memory_mib: u64,
    /// The image that its root disk is a copy-on-write duplicate of; the disk is blank if `None`.
    #[serde(default)]
    pub image: Option<ImageId>,
    /// The size of the root disk; the image's if `None`. Always there for a blank one.
    pub disk_bytes: Option<u64>,
    /// Where its volumes are.
    pub datastore: DatastoreId,
    /// Network interfaces.
    pub nics: Vec<Nic>,
    /// What the guest is told about itself.
    pub guest: GuestConfig,
    /// Where it may run.
    pub placement: PlacementRule,
    /// What it should be doing.
    pub power: Power,
    /// Whether a power-off skips the guest's own shutdown.
    #[serde(default)]
    pub force: bool,
    /// Counts the requests to change `power`, so that a VM that ended by itself starts again only when asked again.
    pub power_request: u64,
    /// The last request to reboot the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot: Option<RebootRequest>,
    /// Its drive for installation media.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cdrom: Option<Cdrom>,
    /// What it boots from, the first choice first; [`BootDevice::USUAL`] if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub boot: Vec<BootDevice>,
    /// The VM whose root disk its own is a copy of, made before its first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<VmId>,
    /// What starts its guest.
    #[serde(default, skip_serializing_if = "Firmware::is_usual")]
    pub firmware: Firmware,
    /// How it is started the first time.
    #[serde(default, skip_serializing_if = "StartChoice::is_usual")]
    pub start: StartChoice,
    /// It is the warm form of this template: it is booted once, and its memory and its devices' state are kept for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warms: Option<TemplateId>,
    /// Counts the requests to make its disk whole.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flatten_request: u64,
    /// A template, or its next version, is made of its disk, and it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builds: Option<Box<Builds>>,
}

/// How a new VM is started the first time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StartChoice {
    /// It boots.
    #[default]
    Boot,
    /// From its template's kept memory where that is possible; else it boots.
    Auto,
    /// From its template's kept memory; it boots, and says why, if that turns out to be impossible.
    #[serde(rename = "instant")]
    AtOnce,
}

impl StartChoice {
    /// Whether it is the one that needs no word.
    pub const fn is_usual(&self) -> bool {
        matches!(self, Self::Boot)
    }
}

impl VmSpec {
    /// The images that have to be there for it to run.
    pub fn images(&self) -> impl Iterator<Item = ImageId> {
        let medium = self.cdrom.as_ref().and_then(|cdrom| cdrom.medium);
        self.image.into_iter().chain(medium)
    }

    /// All that has to be there as long as it is.
    pub fn needs(&self) -> impl Iterator<Item = (Kind, Uuid)> {
        let images = self.images().map(|image| (Kind::Image, image.0));
        let networks = self.nics.iter().map(|nic| (Kind::Network, nic.network.0));
        let builds = self.builds.iter();
        let built = builds.clone().map(|builds| (Kind::Image, builds.image.0));
        let given = builds.filter_map(|builds| builds.gives.as_ref());
        images
            .chain([(Kind::Datastore, self.datastore.0)])
            .chain(networks)
            .chain(built)
            .chain(given.flat_map(TemplateSpec::needs))
    }
}

/// What starts a guest. A VM keeps it for its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// The PC's first.
    #[default]
    Bios,
    /// UEFI, with variables of the VM's own.
    Uefi,
}

impl Firmware {
    /// Whether it is the one that needs no word.
    pub const fn is_usual(&self) -> bool {
        matches!(self, Self::Bios)
    }
}

/// A drive for media that are only read. A VM keeps it for its life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cdrom {
    /// What is in it.
    pub medium: Option<ImageId>,
    /// Whether the medium is also taken from a guest that holds it.
    #[serde(default)]
    pub force: bool,
}

/// Something to boot from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BootDevice {
    /// The root disk.
    Disk,
    /// The medium in the drive.
    Cdrom,
}

impl BootDevice {
    /// The disk, and while that is blank the medium.
    pub const USUAL: [Self; 2] = [Self::Disk, Self::Cdrom];
}

/// A request to reboot a guest where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebootRequest {
    /// Counts them, from 1.
    pub request: u64,
    /// Whether the guest is reset without being asked.
    pub force: bool,
}

/// A network interface. MAC and address are calculated when the VM is created and never change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The network that it is plugged into.
    pub network: NetworkId,
    /// Six octets in hexadecimal with colons.
    pub mac: String,
    /// The address that the guest is told.
    pub address: Option<IpAddr>,
    /// The length of the network's prefix.
    pub prefix_len: u8,
}

/// What the guest learns through its seed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// The VM's name if `None`.
    pub hostname: Option<String>,
    /// Keys for the administrator's account, one a line.
    pub ssh_keys: Vec<String>,
    /// What its user has it carry out.
    pub user_data: Option<UserData>,
    /// What the provider of its image has it carry out; its user's own goes before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor_data: Option<UserData>,
    /// The form in which it is told.
    #[serde(default, skip_serializing_if = "SeedFormat::is_usual")]
    pub seed: SeedFormat,
}

/// The form of the disk from which a guest learns what it is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SeedFormat {
    /// As cloud-init's data source NoCloud reads it.
    #[default]
    NoCloud,
    /// As OpenStack's ConfigDrive, version 2.
    ConfigDrive,
}

impl SeedFormat {
    /// Whether it is the one that needs no word.
    pub const fn is_usual(&self) -> bool {
        matches!(self, Self::NoCloud)
    }
}

/// User data holds passwords, and what is formatted this way may end in a log.
impl fmt::Debug for GuestConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestConfig")
            .field("hostname", &self.hostname)
            .field("ssh_keys", &self.ssh_keys.len())
            .field("user_data", &self.user_data)
            .field("vendor_data", &self.vendor_data)
            .field("seed", &self.seed)
            .finish()
    }
}

/// What the controller has decided for a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmIntent {
    /// The last of the user's power requests that was acted on.
    pub answered_request: u64,
    /// The highest incarnation ever granted, also to migrations' targets. It never goes back.
    pub last_incarnation: Incarnation,
    /// The host that holds the VM: its open incarnation, its saved state, or at least its place.
    pub host: Option<HostId>,
    /// The open incarnation on `host`.
    pub open: Option<Open>,
    /// The migration under way.
    pub migration: Option<MigrationId>,
    /// A state saved by a closed incarnation, to be used once.
    pub saved: Option<SavedState>,
    /// Whether volumes exist that deletion has to remove.
    #[serde(default)]
    pub has_volumes: bool,
    /// How the last incarnation ended.
    pub ended: Option<Ended>,
    /// How the host was chosen, or why none was.
    pub placement: Option<PlacementRecord>,
    /// The last of the user's requests to reboot that needs no further step.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub answered_reboot: u64,
    /// The copy that its root disk is, once that is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied: Option<Copied>,
    /// The warm VM whose disk lies under its own: it, or the VM that it is a copy of, was started from its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<VmId>,
    /// Why it was booted although it was to be started from its template's kept memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted_instead: Option<Reason>,
    /// What became of the requests to make its disk whole.
    #[serde(default, skip_serializing_if = "Flattening::is_none")]
    pub flattening: Flattening,
    /// What is to be done in the guest of a VM that builds a template is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built: Option<Built>,
}

impl VmIntent {
    /// Whether its disk needs neither image nor layer any more, although it was made over one.
    pub const fn is_whole(&self) -> bool {
        self.flattening.whole.is_some()
    }
}

/// What became of the requests to make a root disk whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flattening {
    /// The last of the user's requests that needs no further step.
    pub answered_request: u64,
    /// Since when it is whole. It stays so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<Whole>,
    /// Why the last request came to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Reason>,
}

impl Flattening {
    /// Whether there is nothing to be said of it.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// A root disk that needs nothing under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    /// When the controller learned of it.
    pub at: Timestamp,
    /// Its size then, as its guest sees it: the image that said it may be gone.
    pub bytes: u64,
}

/// A root disk that is a copy of another VM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// When the controller learned that it is whole.
    pub at: Timestamp,
    /// What is in it.
    pub consistency: Consistency,
}

/// In which state a copy has a guest's file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As the guest left them when it was switched off.
    Off,
    /// Of a guest that ran: they were frozen for the instant that the copy is of.
    Frozen,
    /// Of a guest that ran, and was not or could not be asked to freeze them: as after a power failure.
    CrashConsistent,
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// An incarnation that was granted and is neither closed nor fenced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Which one.
    pub incarnation: Incarnation,
    /// When it was granted.
    pub granted_at: Timestamp,
    /// What its host shall do with it.
    pub goal: Goal,
    /// What it starts from.
    pub start: Start,
    /// The memory and processors that it holds on its host.
    pub memory_mib: u64,
    /// See `memory_mib`.
    pub vcpus: u32,
    /// After an aborted migration: the source, which had completed, may run again.
    #[serde(default)]
    pub resume: bool,
    /// The guest shall be rebooted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot: Option<Reboot>,
    /// What its host copies its disk for now.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub copies: BTreeSet<CopyTo>,
}

impl Open {
    /// Whether it was told to go on after an aborted migration (`resume`), and is not known to have done so: until then its
    /// guest stands still in a QEMU that has handed it over, can hear nothing, and cannot be saved. Of one whose transfer
    /// completed, *running* is only what its guest was before.
    pub fn has_to_go_on(&self, run: Option<&RunStatus>) -> bool {
        let has_executed = |run: &RunStatus| {
            let stopped_by_error = |reason: &Reason| reason.code == "disk-error";
            run.state == RunState::Running
                || run.state == RunState::Paused && run.reason.as_ref().is_some_and(stopped_by_error)
        };
        let completed = |outgoing: &Outgoing| outgoing.state == OutgoingState::Completed;
        let goes_on = |run: &RunStatus| has_executed(run) && !run.outgoing.as_ref().is_some_and(completed);
        self.resume && !run.is_some_and(goes_on)
    }
}

/// A reboot of a guest, which its incarnation outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reboot {
    /// The user's request.
    pub request: u64,
    /// When the guest is reset if it has not rebooted.
    pub force_at: Timestamp,
}

/// What a host shall do with an open incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "goal", rename_all = "kebab-case")]
pub enum Goal {
    /// Run it, with its processors stopped if `paused`.
    Run {
        /// Whether the user paused it.
        paused: bool,
    },
    /// Ask the guest to shut down; pull the plug at the deadline.
    Shutdown {
        /// When patience ends.
        force_at: Timestamp,
    },
    /// Pull the plug.
    Kill,
    /// Save its state to disk and end it.
    Suspend,
    /// Save its state into its datastore and end it.
    Stop,
    /// Make its disk and end it, without ever starting it.
    Prepare,
    /// Copy its disk to other VMs and end it, without ever starting it.
    Copy,
    /// Keep its memory and its devices' state for others, and end it.
    Warm,
}

/// What an incarnation starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum Start {
    /// Its disks.
    Disk,
    /// A saved state, on the same host or in the datastore.
    Saved(SavedState),
    /// The stream of a migration.
    Stream,
    /// The memory and devices' state that a warm VM left for others.
    Warm {
        /// The warm VM.
        vm: VmId,
        /// The incarnation that left them.
        incarnation: Incarnation,
    },
}

/// Where a memory state is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SavedIn {
    /// On the disk of the host that saved it.
    #[default]
    Host,
    /// In the VM's datastore, where any host can go on with it.
    Datastore,
}

impl SavedIn {
    /// Whether only the host that saved it can go on with it.
    pub const fn is_host(&self) -> bool {
        matches!(self, Self::Host)
    }
}

/// A locally administered MAC, from the VM's id and the interface's number.
pub fn calculated_mac(id: Uuid, index: usize) -> String {
    // The last bytes of a UUID v7 are random; with fewer than five of them thousands of VMs would meet.
    let [.., a, b, c, d, last] = *id.as_bytes();
    let last = last.wrapping_add(u8::try_from(index).unwrap_or(0));
    format!("52:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{last:02x}")
}

/// A saved memory state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedState {
    /// The host that saved it.
    pub host: HostId,
    /// Where it is.
    #[serde(default, skip_serializing_if = "SavedIn::is_host")]
    pub saved_in: SavedIn,
    /// The processor that the guest saw, which it must find again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// The incarnation that was saved; the file's name follows from it.
    pub incarnation: Incarnation,
    /// How large it is.
    pub bytes: u64,
    /// The memory and processors of the saved machine, which the next incarnation must have too.
    pub memory_mib: u64,
    /// See `memory_mib`.
    pub vcpus: u32,
    /// Of a warm form: what kept its memory, since only the same can go on from it; see [`crate::host::HostStatus::build`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
    /// Of a warm form: the hosts that could not go on from it, since what they run is of another build.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub refused_by: BTreeSet<HostId>,
}

/// How an incarnation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Which one.
    pub incarnation: Incarnation,
    /// When the controller learned of it.
    pub at: Timestamp,
    /// Whether it did what was asked of it.
    pub outcome: Outcome,
    /// What happened, for people; always there when the outcome is a failure.
    pub reason: Option<Reason>,
}

/// What an ended incarnation leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Powered off by its user or from inside.
    Off,
    /// Saved on its host.
    Suspended,
    /// Saved in its datastore.
    Stopped,
    /// It ended when it should not have, or never started.
    Failed,
    /// Its host is dead, as a power device or a person said.
    Fenced,
}

/// How a host was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementRecord {
    /// When it was decided.
    pub decided_at: Timestamp,
    /// The chosen host's name, if one fits.
    pub chosen: Option<String>,
    /// How many hosts were looked at.
    pub considered: u32,
    /// One entry for each group of hosts refused for the same reason.
    pub refused: Vec<RefusedGroup>,
}

/// Hosts refused for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedGroup {
    /// How many.
    pub count: u32,
    /// Some of their names.
    pub hosts: Vec<String>,
    /// Why, with numbers: those of the host that came nearest.
    pub reason: Reason,
}
