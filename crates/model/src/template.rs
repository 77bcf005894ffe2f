//! A template: what new VMs are made from.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::vm::GuestConfig;
use crate::{ImageId, Kind, NetworkId};

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
}

impl TemplateSpec {
    /// All that has to be there as long as it is.
    pub fn needs(&self) -> impl Iterator<Item = (Kind, Uuid)> {
        let networks = self.networks.iter().map(|network| (Kind::Network, network.0));
        [(Kind::Image, self.image.0)].into_iter().chain(networks)
    }
}
