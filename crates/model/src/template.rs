//! A template: what new VMs are made from. A change of what it gives is a new version; the ones before are kept.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::build::BuiltFrom;
use crate::vm::{Firmware, GuestConfig};
use crate::{DatastoreId, ImageId, Kind, NetworkId, Object, ProfileId, Reason, VmId};

/// Defaults for new VMs. A VM keeps what it was given when it was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateSpec {
    /// The content of the root disk.
    pub image: ImageId,
    /// Virtual processors.
    pub vcpus: u32,
    /// Main memory.
    pub memory_mib: u64,
    /// The size of the root disk; the image's if `None`.
    pub disk_bytes: Option<u64>,
    /// One interface for each.
    pub networks: Vec<NetworkId>,
    /// What the guest is told.
    pub guest: GuestConfig,
    /// What starts the guest.
    #[serde(default, skip_serializing_if = "Firmware::is_usual")]
    pub firmware: Firmware,
    /// Where its sizes are from that are not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<FromProfile>,
    /// Which version this is. A number is used once.
    #[serde(default = "first_version", skip_serializing_if = "is_first")]
    pub version: u64,
    /// How this version came to be; with the template if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
    /// Whether a warm form of its newest version shall always be there, and where. It is nothing that VMs are given: a change of it
    /// makes no version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_warm: Option<KeepWarm>,
}

/// A template of whose newest version a warm form is made whenever there is none that can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepWarm {
    /// Where the memory is kept.
    pub datastore: DatastoreId,
}

/// Why a VM cannot start from kept memory where QEMU is of another build than what kept it.
pub const ANOTHER_BUILD: &str = "warm-form-of-another-build";

/// The controller's part of a template: which warm form was made last for one that is kept warm, and how often that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateIntent {
    /// What the tries were for: when this is another, they are counted anew.
    pub made_for: String,
    /// How many forms failed since then, with none between them that could be used.
    pub failures: u32,
    /// When the last was made.
    pub tried_at: Timestamp,
    /// The last one.
    pub form: VmId,
    /// Why it was made.
    pub why: Reason,
    /// Why the last one that failed did: it is deleted then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Reason>,
}

/// The number of a template's first version.
pub const FIRST_VERSION: u64 = 1;

const fn first_version() -> u64 {
    FIRST_VERSION
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_first(version: &u64) -> bool {
    *version == FIRST_VERSION
}

impl TemplateSpec {
    /// Whether VMs that are made from both are given the same.
    pub fn gives_the_same(&self, other: &Self) -> bool {
        let plain = |spec: &Self| Self {
            version: FIRST_VERSION,
            made: None,
            keep_warm: None,
            ..spec.clone()
        };
        plain(self) == plain(other)
    }

    /// All that has to be there as long as it is.
    pub fn needs(&self) -> impl Iterator<Item = (Kind, Uuid)> {
        let networks = self.networks.iter().map(|network| (Kind::Network, network.0));
        let keeps = self
            .keep_warm
            .iter()
            .map(|keep| (Kind::Datastore, keep.datastore.0));
        [(Kind::Image, self.image.0)]
            .into_iter()
            .chain(networks)
            .chain(keeps)
    }
}

/// How a version came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub by: String,
    /// What it was built from, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built_from: Option<BuiltFrom>,
}

/// How the newest version came to be.
pub fn made(template: &Object<TemplateSpec>) -> Made {
    let with_template = || Made {
        at: template.meta.created_at,
        by: template.meta.owner.clone(),
        built_from: None,
    };
    template.spec.made.clone().unwrap_or_else(with_template)
}

/// A version after which others came: what it gives is what it gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateVersion {
    /// How it came to be.
    pub made: Made,
    /// What it gives.
    pub spec: TemplateSpec,
}

/// What a template has of a profile: it keeps what it was given when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromProfile {
    /// Which one.
    pub profile: ProfileId,
    /// Whether the virtual processors are the profile's.
    pub vcpus: bool,
    /// Whether the main memory is the profile's.
    pub memory: bool,
    /// Whether the size of the root disk is the profile's.
    pub disk: bool,
    /// The labels of the hosts on which such VMs run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub host_labels: BTreeMap<String, String>,
}
