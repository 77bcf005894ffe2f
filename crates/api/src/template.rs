//! Templates: what VMs are made from, as they are on the wire.

use model::build::BuiltFrom;
use model::vm::Firmware;
use model::{Kind, Reason, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kinds::GuestSpec;
use crate::resource::{Object, Resource};

/// A template.
pub struct Template;

/// Defaults for new VMs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateSpec {
    /// The image of the root disk.
    pub image: String,
    /// The profile whose sizes it has, where no others are given here.
    #[serde(default)]
    pub profile: Option<String>,
    /// Virtual processors; the profile's if `null`, or 1 without a profile.
    #[serde(default)]
    pub vcpus: Option<u32>,
    /// Main memory, in MiB; the profile's if `null`. Without a profile it is needed.
    #[serde(default)]
    pub memory_mib: Option<u64>,
    /// The size of the root disk, in bytes; the profile's if `null`, and if that has none the image's.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// One interface for each; the network `default` if left out.
    #[serde(default)]
    pub networks: Option<Vec<String>>,
    /// What the guest is told.
    #[serde(default)]
    pub guest: GuestSpec,
    /// What starts the guest, `bios` or `uefi`; `bios` if `null`.
    #[serde(default)]
    pub firmware: Option<Firmware>,
    /// Whether a warm form of its newest version is always kept, so that VMs can start from there; not if `null`. A change of this
    /// makes no version.
    #[serde(default)]
    pub keep_warm: Option<KeepWarm>,
}

/// A warm form is made whenever there is none that VMs can start from, and deleted when nobody needs it any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeepWarm {
    /// Where the memory is kept; `default` if `null`.
    pub datastore: Option<String>,
}

/// How a template is kept warm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Warmth {
    /// How it stands.
    pub state: WarmState,
    /// The warm form that VMs start from, or the one that is made now: a VM.
    pub form: Option<String>,
    /// The host whose QEMU kept its memory, or is to.
    pub host: Option<String>,
    /// How many forms have failed in a row.
    pub failures: u32,
    /// Why the last one failed; else why the last one was made.
    pub reason: Option<Reason>,
    /// When the next one is made at the earliest.
    pub next_at: Option<Timestamp>,
}

/// How it stands with the warm form of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WarmState {
    /// VMs can start from it.
    Ready,
    /// It is being made.
    Making,
    /// There is none, and one will be made.
    Due,
    /// Making one has failed too often: none is made until the template or the hosts' QEMUs change.
    GivenUp,
}

/// What VMs get that are made from a template.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TemplateStatus {
    /// Virtual processors, its own or the profile's.
    pub vcpus: u32,
    /// Main memory, in MiB, its own or the profile's.
    pub memory_mib: u64,
    /// The size of the root disk, in bytes, its own or the profile's; the image's if `null`.
    pub disk_bytes: Option<u64>,
    /// The number of the newest version, which is what it gives. A change of what it gives makes a new one.
    pub version: u64,
    /// What the newest version was built from; `null` if it was not.
    pub built_from: Option<BuiltFrom>,
    /// How it is kept warm; `null` if it is not.
    pub warm: Option<Warmth>,
}

/// A version of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TemplateVersion {
    /// Counts them, from 1; a number is used once.
    pub version: u64,
    /// When it was made.
    pub made_at: Timestamp,
    /// Who made it.
    pub made_by: String,
    /// What it was built from; `null` if it was not.
    #[serde(default)]
    pub built_from: Option<BuiltFrom>,
    /// How many VMs are made from it.
    pub vms: usize,
    /// Virtual processors, its own or the profile's.
    pub vcpus: u32,
    /// Main memory, in MiB, its own or the profile's.
    pub memory_mib: u64,
    /// The size of the root disk, in bytes, its own or the profile's; the image's if `null`.
    pub disk_bytes: Option<u64>,
    /// What it says.
    pub spec: TemplateSpec,
}

/// The versions of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TemplateVersions {
    /// The newest first.
    pub items: Vec<TemplateVersion>,
}

impl Resource for Template {
    const KIND: Kind = Kind::Template;
    const COLUMNS: &'static [&'static str] = &[
        "IMAGE", "VERSION", "PROFILE", "VCPUS", "MEMORY", "NETWORKS", "WARM",
    ];
    type Spec = TemplateSpec;
    type Status = TemplateStatus;

    fn row(template: &Object<TemplateSpec, TemplateStatus>) -> Vec<String> {
        let (spec, status) = (&template.spec, &template.status);
        let networks = spec.networks.clone().unwrap_or_default().join(",");
        vec![
            spec.image.clone(),
            status.version.to_string(),
            spec.profile.clone().unwrap_or_default(),
            status.vcpus.to_string(),
            format!("{} MiB", status.memory_mib),
            networks,
            status.warm.as_ref().map(word).unwrap_or_default(),
        ]
    }
}

fn word(warm: &Warmth) -> String {
    let word = match warm.state {
        WarmState::Ready => "ready",
        WarmState::Making => "making",
        WarmState::Due => "due",
        WarmState::GivenUp => "given-up",
    };
    word.to_owned()
}
