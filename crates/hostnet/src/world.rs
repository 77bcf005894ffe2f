//! Many hosts on one machine: each is a network namespace, all are joined by an underlay.
//!
//! Owns: the network namespaces of the test hosts, the underlay's bridge and its links, and cutting them.
//!
//! Does not know: the processes that run in the hosts, which enter by themselves.
//!
//! Start here: [`enter_world`], then [`World`].
//!
//! ```text
//!  namespace of the machine      namespace of the world              namespace of host 0, 1, …
//!  (untouched)                   underlay 198.18.0.1/24 ── h0 ─┬─ eth0 198.18.0.10/24
//!                                                       ── h1 ─┴─ eth0 198.18.0.11/24
//! ```
//!
//! The order is: the process that is the world opens its outside sockets, calls [`enter_world`] before it has threads,
//! starts its runtime, opens a [`World`] and adds hosts. [`World::host_path`] names a host's namespace to a child process,
//! which calls [`enter_host`] before it has threads. A child that is started again comes back into the same namespace,
//! with all the links that were made in it. When the world and all processes in it have ended, the kernel removes
//! everything: links of a namespace go with it.

mod enter;
mod namespace;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};
use rustix::io::Errno;

pub use enter::{enter_host, enter_world, enter_world_beside};
pub use namespace::HostNamespace;

use crate::error::NetError;
use crate::links::BridgeSpec;
use crate::names::{LinkName, Mac};
use crate::netlink::{Attempt, Netlink};

/// The most hosts in a world.
pub const MAX_HOSTS: u8 = 200;

/// The world's own address in the underlay (RFC 2544: kept for tests, never routed).
pub const WORLD_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// The largest packet of the underlay, in bytes.
pub const UNDERLAY_MTU: u32 = 1500;

/// The interface by which a host is joined to the underlay, as the host sees it.
pub const HOST_LINK: &str = "eth0";

const UNDERLAY: &str = "underlay";
const PREFIX_LEN: u8 = 24;
const FIRST_HOST: u8 = 10;

/// Which host of a world: from 0, below [`MAX_HOSTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostIndex(u8);

impl HostIndex {
    /// None if a world cannot have so many.
    #[must_use]
    pub fn new(index: u8) -> Option<Self> {
        (index < MAX_HOSTS).then_some(Self(index))
    }

    /// The host's address in the underlay.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 0, FIRST_HOST + self.0)
    }

    /// The host's link, as the world sees it.
    fn link(self) -> LinkName {
        LinkName::known(&format!("h{}", self.0))
    }

    /// Fixed, so that the others' ARP tables stay right when the link is made anew.
    fn mac(self) -> Mac {
        Mac([2, 0x53, 0x54, 0, 1, self.0])
    }
}

/// The underlay and the namespaces of its hosts. Dropping it lets go of the namespaces, which then last as long as there
/// are processes in them.
#[derive(Debug)]
pub struct World {
    netlink: Netlink,
    hosts: BTreeMap<HostIndex, HostNamespace>,
}

impl World {
    /// Makes the underlay in the current network namespace, which [`enter_world`] made.
    pub async fn open() -> Result<Self, NetError> {
        let netlink = Netlink::open()?;
        let underlay = LinkName::known(UNDERLAY);
        netlink.set_up(&LinkName::known("lo")).await?;
        let mac = Some(Mac([2, 0x53, 0x54, 0, 0, 1]));
        let bridge = BridgeSpec {
            name: underlay.clone(),
            mac,
            mtu: UNDERLAY_MTU,
        };
        netlink.ensure_bridge(&bridge).await?;
        netlink.add_address(&underlay, WORLD_ADDRESS, PREFIX_LEN).await?;
        Ok(Self {
            netlink,
            hosts: BTreeMap::new(),
        })
    }

    /// Makes a host's namespace, its link to the underlay, its address and its route; a host that is there is made right.
    /// Answers [`World::host_path`].
    pub async fn add_host(&mut self, index: HostIndex) -> Result<PathBuf, NetError> {
        let namespace = match self.hosts.remove(&index) {
            Some(namespace) => namespace,
            None => HostNamespace::create().await?,
        };
        self.join(index, namespace).await
    }

    /// Takes over the namespace of a process that an earlier world left behind, a VM for example, as a host's. The caller
    /// must have come by [`enter_world_beside`].
    pub async fn adopt_host(&mut self, index: HostIndex, pid: u32) -> Result<PathBuf, NetError> {
        self.join(index, HostNamespace::of_process(pid)?).await
    }

    /// The file that stands for a host's namespace while this process has its [`World`]: an argument for a child process.
    #[must_use]
    pub fn host_path(&self, index: HostIndex) -> Option<PathBuf> {
        self.hosts.get(&index).map(HostNamespace::path)
    }

    /// Removes a host's link and lets go of its namespace.
    pub async fn remove_host(&mut self, index: HostIndex) -> Result<(), NetError> {
        self.netlink.delete_link(&index.link()).await?;
        self.hosts.remove(&index);
        Ok(())
    }

    /// Cuts a host off, in both directions; it sees that its carrier is gone.
    pub async fn cut_link(&self, index: HostIndex) -> Result<(), NetError> {
        self.netlink.set_down(&index.link()).await
    }

    /// Ends a cut.
    pub async fn heal_link(&self, index: HostIndex) -> Result<(), NetError> {
        self.netlink.set_up(&index.link()).await
    }

    async fn join(&mut self, index: HostIndex, namespace: HostNamespace) -> Result<PathBuf, NetError> {
        let link = index.link();
        let is_joined = namespace.run(has_link).await??;
        if !(is_joined && self.netlink.link_exists(&link).await?) {
            // An end without its other end here is an earlier world's.
            self.netlink.delete_link(&link).await?;
            namespace.run(delete_link).await??;
            self.create_veth(index, &namespace).await?;
        }
        self.netlink.attach(&link, &LinkName::known(UNDERLAY)).await?;
        self.netlink.set_up(&link).await?;
        namespace.run(move || configure(index)).await??;
        let path = namespace.path();
        self.hosts.insert(index, namespace);
        Ok(path)
    }

    /// A pair of links, one of which is born in the host's namespace.
    async fn create_veth(&self, index: HostIndex, namespace: &HostNamespace) -> Result<(), NetError> {
        let link = index.link();
        let attempt = Attempt {
            what: "make the underlay's link",
            link: link.as_str(),
        };
        let peer = LinkUnspec::new_with_name(HOST_LINK)
            .address(index.mac().0.to_vec())
            .mtu(UNDERLAY_MTU)
            .setns_by_fd(namespace.raw_fd());
        let pair = LinkMessageBuilder::<LinkVeth>::new(link.as_str(), HOST_LINK)
            .mtu(UNDERLAY_MTU)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
        let message: LinkMessage = pair.build();
        self.netlink
            .send(
                attempt,
                RouteNetlinkMessage::NewLink(message),
                NLM_F_CREATE | NLM_F_EXCL,
            )
            .await
    }
}

/// Within a host's namespace: whether it is joined to an underlay.
async fn has_link() -> Result<bool, NetError> {
    Netlink::open()?.link_exists(&LinkName::known(HOST_LINK)).await
}

/// Within a host's namespace: removes its link to any underlay.
async fn delete_link() -> Result<(), NetError> {
    Netlink::open()?.delete_link(&LinkName::known(HOST_LINK)).await
}

/// Within a host's namespace: gives it its address.
async fn configure(index: HostIndex) -> Result<(), NetError> {
    let netlink = Netlink::open()?;
    let link = LinkName::known(HOST_LINK);
    netlink.set_up(&LinkName::known("lo")).await?;
    netlink.set_up(&link).await?;
    netlink.add_address(&link, index.address(), PREFIX_LEN).await?;
    netlink.set_default_route(WORLD_ADDRESS).await
}

/// An error of a thread that could not give its answer.
fn lost() -> NetError {
    NetError::errno("act in", "a host's namespace", Errno::INTR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_of_a_world_has_an_address_of_its_own() {
        let last = HostIndex::new(MAX_HOSTS - 1).unwrap();
        assert_eq!(last.address(), Ipv4Addr::new(198, 18, 0, 209));
        assert_eq!(last.link().as_str(), "h199");
        assert_eq!(HostIndex::new(MAX_HOSTS), None);
    }
}
