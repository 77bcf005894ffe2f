//! The kinds: what is wanted and what is, as people and programs see it. References are by name or id in requests, and
//! by name in answers.

use std::net::IpAddr;

use model::event::Lifecycle;
use model::host::{Accelerator, Lack, Overcommit, QemuUser};
use model::lifecycle::{Availability, Phase};
use model::migration::{Figures, Method, MigrationPhase, Progress};
use model::operation::{Action, Applied, OperationPhase};
use model::report::{CopyProgress, StepTime};
use model::user_data::UserData;
use model::vm::{BootDevice, Consistency, Firmware, Power, RefusedGroup, SeedFormat, StartChoice};
use model::{Incarnation, Kind, Reason, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::drain::DrainStatus;
pub use crate::image::{Image, ImageSource, ImageSpec, ImageState, ImageStatus, ImageUsers, UploadStatus};
pub use crate::placement::PlacementSpec;
pub use crate::profile::{Profile, ProfileSpec, ProfileStatus};
use crate::resource::{Object, Resource};
pub use crate::template::{Template, TemplateSpec, TemplateStatus};

/// A virtual machine.
pub struct Vm;
/// A host.
pub struct Host;
/// A network.
pub struct Network;
/// A datastore.
pub struct Datastore;
/// A migration.
pub struct Migration;
/// An operation.
pub struct Operation;
/// An event.
pub struct Event;

/// What a VM shall be. What is left out comes from the template, then from defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VmSpec {
    /// The template that it is made from: its newest version, or with `@` and a number that one, as in `web@3`. It is shown
    /// without the version, which is in the status.
    pub template: Option<String>,
    /// The profile whose sizes it has, where no others are given here; the template's if `null`.
    pub profile: Option<String>,
    /// Virtual processors.
    pub vcpus: Option<u32>,
    /// Main memory, in MiB.
    pub memory_mib: Option<u64>,
    /// The image of its root disk; the disk is blank if neither this nor the template has one.
    pub image: Option<String>,
    /// The size of its root disk, in bytes; the image's if `null`. A blank disk needs it.
    pub disk_bytes: Option<u64>,
    /// Where its volumes are.
    pub datastore: Option<String>,
    /// Network interfaces; if `null` one in each of the template's networks, and without a template one in the network `default` if
    /// there is one.
    pub nics: Option<Vec<NicSpec>>,
    /// What the guest is told.
    pub guest: Option<GuestSpec>,
    /// Where it may run.
    pub placement: PlacementSpec,
    /// What it should be doing; `running` if `null`.
    pub power: Option<Power>,
    /// Its drive for installation media; `null` if it has none. It may be given one while it is off, and keeps it.
    pub cdrom: Option<CdromSpec>,
    /// What it boots from, the first choice first; the disk, then the drive, if `null`. A change holds from the guest's next
    /// reset on.
    pub boot: Option<Vec<BootDevice>>,
    /// The VM that it is a copy of: its root disk is copied before the first start, also while the other runs. Sizes,
    /// networks and what the guest is told are the other's too, where nothing else is given; name, MACs and addresses are not.
    pub clone_of: Option<String>,
    /// What starts its guest, `bios` or `uefi`; the template's if `null`, or `bios`. UEFI keeps variables of the VM's own. It stays
    /// as it is.
    pub firmware: Option<Firmware>,
    /// The copy has all that the guest sees, and does not depend on the source's image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clone_full: Option<bool>,
    /// How it is started the first time: it boots if `null`.
    pub start: Option<StartChoice>,
    /// The template that it is the warm form of: it is booted once, and its memory is kept. All else is the template's.
    pub warms: Option<String>,
    /// The template that is made of it: it is booted once, what is asked for is done in its guest, which then forgets who it
    /// is, and its disk becomes the template's image. Then it is deleted. All but its interfaces is calculated; it has none
    /// unless they are given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builds: Option<BuildSpec>,
}

/// A template that is made of a VM, or a template's next version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BuildSpec {
    /// The template's name. There is none yet of that name, unless it is refreshed.
    pub template: String,
    /// The VM whose disk, as that is at one instant, it begins with; needed unless the template is refreshed, which begins
    /// with its newest version's image otherwise. It goes on.
    pub from_vm: Option<String>,
    /// Whether it is the next version of a template that is there. All but the image stays as in the newest.
    pub refresh: bool,
    /// A script that is run in the guest, as root: it begins with `#!`, or is one for `/bin/sh`. It holds passwords perhaps:
    /// only operators see it.
    pub script: Option<String>,
}

/// A drive for installation media.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CdromSpec {
    /// The image in it, an ISO 9660 medium; empty if `null`. It may be changed while the VM runs.
    pub image: Option<String>,
    /// Whether what is in it is also taken from a guest that holds it; else the guest is asked for it.
    pub force: bool,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// The network that it is plugged into.
    pub network: String,
    /// Calculated if left out.
    #[serde(default)]
    pub mac: Option<String>,
    /// Taken from the network's pool if left out.
    #[serde(default)]
    pub address: Option<IpAddr>,
}

/// What a guest is told through its seed, a disk that it reads at its first boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GuestSpec {
    /// The VM's name if `null`.
    pub hostname: Option<String>,
    /// Public keys, one an entry.
    pub ssh_keys: Vec<String>,
    /// A script that begins with `#!`, cloud-config, or whatever the guest's own software reads. Of a list, each text is a
    /// part that begins as cloud-init has it (`#!`, `#cloud-config`, `#include`, ...), and the guest gets them as one MIME
    /// document.
    pub user_data: Option<UserData>,
    /// The same from the image's provider, before the user's own.
    pub vendor_data: Option<UserData>,
    /// The form of the seed: `nocloud` or `configdrive`; `nocloud` if `null`.
    pub seed: Option<SeedFormat>,
}

/// How a VM is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VmStatus {
    /// Where it is in its life.
    pub phase: Phase,
    /// Whether it can be used.
    pub availability: Availability,
    /// The host that holds it.
    pub host: Option<String>,
    /// The attempt to run it that is open, or the last one.
    pub incarnation: Option<Incarnation>,
    /// The addresses that the guest reports.
    pub addresses: Vec<IpAddr>,
    /// Whether the guest's agent has answered.
    pub ready: bool,
    /// The migration under way.
    pub migration: Option<String>,
    /// The operation under way: the long action that was asked for last.
    pub operation: Option<String>,
    /// What is wrong; `null` if nothing is.
    pub reason: Option<Reason>,
    /// How its host was chosen.
    pub placement: Option<Placement>,
    /// The steps of its start where it is now, from the request on.
    pub steps: Vec<StepTime>,
    /// What it takes of its host's memory; `null` while none is reserved for it.
    pub memory: Option<VmMemory>,
    /// The parts of its spec that the running or saved guest does not have yet: they hold from the next start on. What
    /// is not named here holds now; what the guest is told (`guest`) is read at each start.
    pub at_next_start: Vec<String>,
    /// What leads on from here.
    pub next_commands: Vec<String>,
    /// Its drive for installation media, as its host saw it last; `null` if it does not run, or has none.
    #[serde(default)]
    pub cdrom: Option<CdromStatus>,
    /// The copy that its root disk is; `null` if it is none, or is not made yet.
    #[serde(default)]
    pub copied: Option<CopyStatus>,
    /// The version of the template that it was made from.
    #[serde(default)]
    pub template_version: Option<u64>,
    /// The warm form whose disk lies under its own; it is not deleted before this VM.
    pub layer: Option<String>,
    /// Why it was booted although it was to be started from its template's kept memory.
    pub booted_instead: Option<Reason>,
    /// Its root disk.
    #[serde(default)]
    pub disk: Option<DiskStatus>,
}

/// The copy that a VM's root disk is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CopyStatus {
    /// When it was whole.
    pub made_at: Timestamp,
    /// In which state it has the guest's file systems: `frozen` of a guest that ran and whose agent held them still for the
    /// instant that the copy is of, `crash-consistent` of one that was not asked or did not answer, `off` of one that was off.
    pub consistency: Consistency,
}

/// How a VM's root disk is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskStatus {
    /// Whether it needs nothing under it, neither an image nor a warm form's disk.
    pub whole: bool,
    /// Since when, if it was made so.
    pub whole_since: Option<Timestamp>,
    /// Whether it is being made whole, or will be when its VM is where that can be done.
    pub flattening: bool,
    /// How far that is, while its VM's QEMU does it.
    pub progress: Option<CopyProgress>,
    /// Why the last request to make it whole came to nothing.
    pub reason: Option<Reason>,
    /// The size that its guest sees; `null` if that is not known yet.
    pub bytes: Option<u64>,
}

/// How a drive for installation media is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CdromStatus {
    /// The image in it.
    pub image: Option<String>,
    /// Whether its tray is open, as it is after an ejection, also by the guest.
    pub is_open: bool,
    /// What the guest boots from at its next reset.
    pub boot: Vec<BootDevice>,
}

/// What a VM takes of its host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmMemory {
    /// Reserved for it: its main memory and QEMU's own part.
    pub reserved_mib: u64,
    /// Of this, for QEMU's own part.
    pub qemu_reserved_mib: u64,
    /// What its QEMU really takes beside the guest's memory, measured by its host each minute; `null` until then.
    pub qemu_mib: Option<u64>,
}

/// How a host was chosen, or why none was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Placement {
    /// When.
    pub decided_at: Timestamp,
    /// The chosen host.
    pub chosen: Option<String>,
    /// How many hosts were looked at.
    pub considered: u32,
    /// Hosts that were refused, by reason.
    pub refused: Vec<RefusedGroup>,
}

impl Resource for Vm {
    const KIND: Kind = Kind::Vm;
    const COLUMNS: &'static [&'static str] =
        &["PHASE", "HOST", "ADDRESS", "VCPUS", "MEMORY", "AGE", "REASON"];
    type Spec = VmSpec;
    type Status = VmStatus;

    fn row(vm: &Object<VmSpec, VmStatus>) -> Vec<String> {
        vec![
            vm.status.phase.to_string(),
            vm.status.host.clone().unwrap_or_default(),
            addresses(vm),
            size(vm, "vcpus", vm.spec.vcpus.map(|n| n.to_string())),
            size(
                vm,
                "memory_mib",
                vm.spec.memory_mib.map(|mib| format!("{mib} MiB")),
            ),
            vm.created_at.to_string(),
            vm.status
                .reason
                .as_ref()
                .map(|reason| reason.code.clone())
                .unwrap_or_default(),
        ]
    }
}

/// A size, and whether the guest has it already.
fn size(vm: &Object<VmSpec, VmStatus>, part: &str, text: Option<String>) -> String {
    let text = text.unwrap_or_default();
    if vm.status.at_next_start.iter().any(|later| later == part) {
        format!("{text} at next start")
    } else {
        text
    }
}

/// What the guest reports, or until it does what it was given.
fn addresses(vm: &Object<VmSpec, VmStatus>) -> String {
    let given = vm.spec.nics.iter().flatten().filter_map(|nic| nic.address);
    let reported = vm.status.addresses.iter().copied();
    let all: Vec<IpAddr> = if vm.status.addresses.is_empty() {
        given.collect()
    } else {
        reported.collect()
    };
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// What an operator says of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HostSpec {
    /// No new VM is placed on it.
    pub cordoned: bool,
    /// Its VMs shall leave it, and no new one is placed on it. Set by `drain`; cleared by `undrain` and `uncordon`.
    pub draining: bool,
    /// How much more is promised to guests than there is; nothing more if `null`.
    pub overcommit: Option<Overcommit>,
    /// A person's word that the machine is off. Set by `confirm-dead`; cleared when the host joins again.
    pub confirmed_dead: bool,
}

/// Whether a host can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// It has joined and not reported yet.
    Joining,
    /// It is heard.
    Up,
    /// It is not heard.
    Silent,
    /// It was declared dead.
    Dead,
}

/// How a host is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HostStatus {
    /// Whether it can be used.
    pub state: HostState,
    /// Since when it is silent.
    pub silent_since: Option<Timestamp>,
    /// The release of its agent.
    pub agent_version: Option<String>,
    /// The release of its QEMU.
    pub qemu_version: Option<String>,
    /// How guests are run, and why not faster.
    pub accelerator: Option<Accelerator>,
    /// As whom QEMU runs, and why not with fewer rights; `null` if its agent does not say.
    #[serde(default)]
    pub qemu_user: Option<QemuUser>,
    /// Whether it has UEFI for guests, as with the package `ovmf`.
    #[serde(default)]
    pub uefi: bool,
    /// The processor that guests see.
    pub cpu_model: Option<String>,
    /// Its processors.
    pub cpus: Option<u32>,
    /// What guests may use, in MiB, with what is promised beyond the memory that there is.
    pub memory_mib: Option<u64>,
    /// What is reserved for VMs, in MiB.
    pub reserved_mib: u64,
    /// How many VMs hold something on it.
    pub vms: u32,
    /// Processors' load over the last minute in hundredths, as heard last; `null` if that is too long ago.
    pub load1_percent: Option<u32>,
    /// By how many seconds its clock is ahead of the server's (behind, if negative), as heard last; `null` if that is too
    /// long ago.
    #[serde(default)]
    pub clock_ahead_s: Option<i64>,
    /// What its kernel lacks.
    pub lacks: Vec<Lack>,
    /// How far its drain is, if it has one.
    #[serde(default)]
    pub drain: Option<DrainStatus>,
    /// What is wrong; `null` if nothing is.
    pub reason: Option<Reason>,
    /// What leads on from here.
    pub next_commands: Vec<String>,
}

impl Resource for Host {
    const KIND: Kind = Kind::Host;
    const CREATES: bool = false;
    const COLUMNS: &'static [&'static str] =
        &["STATE", "CORDONED", "VMS", "CPUS", "MEMORY", "RESERVED", "ACCEL"];
    type Spec = HostSpec;
    type Status = HostStatus;

    fn row(host: &Object<HostSpec, HostStatus>) -> Vec<String> {
        let status = &host.status;
        vec![
            word(&status.state),
            closed_word(host).to_owned(),
            status.vms.to_string(),
            status.cpus.map(|n| n.to_string()).unwrap_or_default(),
            status
                .memory_mib
                .map(|mib| format!("{mib} MiB"))
                .unwrap_or_default(),
            format!("{} MiB", status.reserved_mib),
            status
                .accelerator
                .as_ref()
                .map(|accelerator| word(&accelerator.name))
                .unwrap_or_default(),
        ]
    }
}

/// Whether new VMs come to a host.
fn closed_word(host: &Object<HostSpec, HostStatus>) -> &'static str {
    use crate::drain::DrainState;
    match host.status.drain.as_ref().map(|drain| drain.state) {
        Some(DrainState::Draining) => "draining",
        Some(DrainState::Stuck) => "drain stuck",
        Some(DrainState::Drained) => "drained",
        None if host.spec.cordoned => "yes",
        None => "",
    }
}

/// Nothing to say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NoStatus {}

/// A network over hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Its IPv4 addresses, as in `10.1.0.0/24`.
    pub cidr: String,
    /// Its VXLAN identifier; a free one if left out.
    #[serde(default)]
    pub vni: Option<u32>,
}

impl Resource for Network {
    const KIND: Kind = Kind::Network;
    const COLUMNS: &'static [&'static str] = &["CIDR", "VNI"];
    type Spec = NetworkSpec;
    type Status = NoStatus;

    fn row(network: &Object<NetworkSpec, NoStatus>) -> Vec<String> {
        vec![
            network.spec.cidr.clone(),
            network.spec.vni.map(|vni| vni.to_string()).unwrap_or_default(),
        ]
    }
}

/// A directory that every host sees under the same path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatastoreSpec {
    /// Absolute.
    pub path: String,
    /// Whether hosts see each other's writes without going past their page caches.
    #[serde(default)]
    pub coherent: bool,
}

impl Resource for Datastore {
    const KIND: Kind = Kind::Datastore;
    const COLUMNS: &'static [&'static str] = &["PATH", "COHERENT"];
    type Spec = DatastoreSpec;
    type Status = NoStatus;

    fn row(datastore: &Object<DatastoreSpec, NoStatus>) -> Vec<String> {
        vec![datastore.spec.path.clone(), datastore.spec.coherent.to_string()]
    }
}

/// A move of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrationSpec {
    /// The VM.
    pub vm: String,
    /// The host to go to; chosen if left out.
    #[serde(default)]
    pub to: Option<String>,
    /// Whether it shall stop. It does, if it still can.
    #[serde(default)]
    pub cancel: bool,
}

/// How a migration is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MigrationStatus {
    /// The stage.
    pub phase: MigrationPhase,
    /// Why it was refused or aborted.
    pub reason: Option<Reason>,
    /// How.
    pub method: Option<Method>,
    /// The host that is left.
    pub source: Option<String>,
    /// The host that is gone to.
    pub target: Option<String>,
    /// The incarnation that is left.
    pub from_incarnation: Option<Incarnation>,
    /// The incarnation that is gone to.
    pub to_incarnation: Option<Incarnation>,
    /// What was expected.
    pub predicted: Option<Figures>,
    /// What was measured.
    pub measured: Option<Figures>,
    /// How far the transfer is, as heard last.
    pub progress: Option<Progress>,
}

impl Resource for Migration {
    const KIND: Kind = Kind::Migration;
    const COLUMNS: &'static [&'static str] =
        &["PHASE", "VM", "FROM", "TO", "DOWNTIME", "TOTAL", "SENT", "REASON"];
    type Spec = MigrationSpec;
    type Status = MigrationStatus;

    fn row(migration: &Object<MigrationSpec, MigrationStatus>) -> Vec<String> {
        let status = &migration.status;
        // Until it is over, what is expected of it.
        let figures = |show: fn(&Figures) -> String| match (&status.measured, &status.predicted) {
            (Some(measured), _) => show(measured),
            (None, Some(predicted)) if status.reason.is_none() => format!("~{}", show(predicted)),
            _ => String::new(),
        };
        vec![
            format!("{:?}", status.phase),
            migration.spec.vm.clone(),
            status.source.clone().unwrap_or_default(),
            status.target.clone().unwrap_or_default(),
            figures(|of| format!("{} ms", of.downtime_ms)),
            figures(|of| format!("{} ms", of.total_ms)),
            figures(|of| format!("{} MiB", of.bytes.div_ceil(1 << 20))),
            status
                .reason
                .as_ref()
                .map(|reason| reason.code.clone())
                .unwrap_or_default(),
        ]
    }
}

/// A long action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OperationSpec {
    /// What is done.
    pub action: Action,
    /// The kind of the object concerned.
    pub object_kind: Kind,
    /// The name of the object concerned.
    pub object: String,
    /// The id of the request that asked for it; the logs have it too.
    pub request_id: Option<String>,
    /// What an apply does in the guest, in its order; empty for all else.
    #[serde(default)]
    pub steps: Vec<String>,
}

/// How far a long action is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OperationStatus {
    /// How far.
    pub phase: OperationPhase,
    /// Which try this is: one more than the tries in a row before it that failed.
    pub attempt: u32,
    /// When patience ends.
    pub deadline: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it failed, or what else there is to say of its end.
    pub reason: Option<Reason>,
    /// What came of an apply that has ended.
    #[serde(default)]
    pub applied: Option<Applied>,
}

impl Resource for Operation {
    const KIND: Kind = Kind::Operation;
    const CREATES: bool = false;
    const CHANGES: bool = false;
    const COLUMNS: &'static [&'static str] =
        &["ACTION", "OBJECT", "PHASE", "ATTEMPT", "AGE", "TOOK", "REASON"];
    type Spec = OperationSpec;
    type Status = OperationStatus;

    fn row(operation: &Object<OperationSpec, OperationStatus>) -> Vec<String> {
        vec![
            word(&operation.spec.action),
            format!("{} {}", operation.spec.object_kind, operation.spec.object),
            format!("{:?}", operation.status.phase),
            operation.status.attempt.to_string(),
            operation.created_at.to_string(),
            took(operation).unwrap_or_default(),
            operation
                .status
                .reason
                .as_ref()
                .map(|reason| reason.code.clone())
                .unwrap_or_default(),
        ]
    }
}

/// From the request to the end.
fn took(operation: &Object<OperationSpec, OperationStatus>) -> Option<String> {
    let took = operation.status.ended_at?.duration_since(operation.created_at);
    Some(format!("{:.1} s", took.as_secs_f64()))
}

/// What happened to an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventSpec {
    /// The kind of the object concerned.
    pub object_kind: Kind,
    /// Its id.
    pub object: String,
    /// Its name then.
    pub object_name: String,
    /// When.
    pub at: Timestamp,
    /// What, in a few words.
    pub summary: String,
    /// What a VM holds from now on, for life-cycle events.
    pub lifecycle: Option<Lifecycle>,
    /// Why, if something is wrong.
    pub reason: Option<Reason>,
}

impl Resource for Event {
    const KIND: Kind = Kind::Event;
    const CREATES: bool = false;
    const CHANGES: bool = false;
    const COLUMNS: &'static [&'static str] = &["AT", "OBJECT", "WHAT", "REASON"];
    type Spec = EventSpec;
    type Status = NoStatus;

    fn row(event: &Object<EventSpec, NoStatus>) -> Vec<String> {
        let spec = &event.spec;
        vec![
            spec.at.to_string(),
            format!("{} {}", spec.object_kind, spec.object_name),
            spec.summary.clone(),
            spec.reason
                .as_ref()
                .map(|reason| reason.code.clone())
                .unwrap_or_default(),
        ]
    }
}

/// The body of an action on a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ActionBody {
    /// Whether a shutdown pulls the plug at once, and a reboot resets without asking the guest.
    pub force: bool,
}

/// The body that makes a token with which a host joins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JoinTokenBody {
    /// The name that the host gets; its own choice if `null`.
    pub name: Option<String>,
}

/// A token with which one host joins, shown once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinToken {
    /// The secret.
    pub token: String,
    /// When it stops to be accepted.
    pub expires_at: Timestamp,
}

/// A value's word on the wire.
pub(crate) fn word<T: Serialize>(value: &T) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}
