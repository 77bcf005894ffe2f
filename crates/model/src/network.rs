//! A virtual network over hosts.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::VmId;

/// An IPv4 network on a VXLAN segment that joins a bridge on every host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The network's address.
    pub address: Ipv4Addr,
    /// The length of its prefix, 8 to 30.
    pub prefix_len: u8,
    /// The VXLAN network identifier, unique in the cloud.
    pub vni: u32,
}

impl NetworkSpec {
    /// The addresses that VMs may have, lowest first: all but the network's, the first (kept for a gateway) and the
    /// broadcast address.
    pub fn hosts(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let size = 1u64 << (32 - u32::from(self.prefix_len.min(32)));
        let base = u64::from(u32::from(self.address));
        let last = base.saturating_add(size.saturating_sub(1));
        (base.saturating_add(2)..last)
            .filter_map(|n| u32::try_from(n).ok())
            .map(Ipv4Addr::from)
    }

    /// Whether an address is one that a VM may have.
    pub fn has_host(&self, address: Ipv4Addr) -> bool {
        let size = 1u64 << (32 - u32::from(self.prefix_len.min(32)));
        let offset = u64::from(u32::from(address)).checked_sub(u64::from(u32::from(self.address)));
        offset.is_some_and(|offset| offset >= 2 && offset.saturating_add(1) < size)
    }
}

/// Who holds an address. Stored under a key of its own, so that two requests for the same address conflict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressHolder {
    /// The VM.
    pub vm: VmId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_last_addresses_are_not_for_vms() {
        let spec = NetworkSpec {
            address: Ipv4Addr::new(10, 0, 0, 0),
            prefix_len: 29,
            vni: 1,
        };
        let all: Vec<_> = spec.hosts().map(|address| address.to_string()).collect();
        assert_eq!(all, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        for address in spec.hosts() {
            assert!(spec.has_host(address));
        }
        for last in [0, 1, 7, 8] {
            assert!(!spec.has_host(Ipv4Addr::new(10, 0, 0, last)), "{last}");
        }
    }
}
