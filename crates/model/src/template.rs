//! A template: what new VMs are made from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::vm::GuestConfig;
use crate::{ImageId, NetworkId, ProfileId};

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
    /// Where its sizes are from that are not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<FromProfile>,
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
