//! Owns: entries of forwarding tables: the peers that a tunnel floods to, and addresses pinned to a port.
//! Does not know: who the peers are.
//! Start here: [`Netlink::set_vxlan_peers`].

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::link::{InfoData, InfoVxlan, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use crate::error::NetError;
use crate::links::data_of;
use crate::names::{LinkName, Mac};
use crate::netlink::{Attempt, Netlink};

/// The address whose entries tell a tunnel where to send what is for nobody known, or for everybody.
const EVERYBODY: Mac = Mac([0; 6]);

impl Netlink {
    /// Makes a tunnel flood to exactly these hosts. The tunnel's own address among them is left out, since frames that
    /// come back would be learned as the host's.
    pub async fn set_vxlan_peers(&self, name: &LinkName, peers: &BTreeSet<Ipv4Addr>) -> Result<(), NetError> {
        let attempt = Attempt {
            what: "set the peers of",
            link: name.as_str(),
        };
        let link = self
            .find(name)
            .await?
            .ok_or_else(|| attempt.failed(Errno::NODEV.into()))?;
        let own = local_address(&link);
        let wanted: BTreeSet<_> = peers.iter().copied().filter(|peer| Some(*peer) != own).collect();
        let present = self.flooded_to(attempt, link.header.index).await?;
        for peer in wanted.difference(&present) {
            let entry = RouteNetlinkMessage::NewNeighbour(flood_entry(link.header.index, *peer));
            self.send(attempt, entry, NLM_F_CREATE | NLM_F_APPEND).await?;
        }
        for peer in present.difference(&wanted) {
            let entry = RouteNetlinkMessage::DelNeighbour(flood_entry(link.header.index, *peer));
            match self.send(attempt, entry, 0).await {
                Err(error) if !error.is(Errno::NOENT) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The hosts that a tunnel floods to.
    pub async fn vxlan_peers(&self, name: &LinkName) -> Result<BTreeSet<Ipv4Addr>, NetError> {
        let attempt = Attempt {
            what: "read the peers of",
            link: name.as_str(),
        };
        let index = self.index_of(attempt, name).await?;
        self.flooded_to(attempt, index).await
    }

    /// Tells a bridge that an address is at a port of its, from now on and not only once it was heard there. The port's
    /// leaving the bridge ends it.
    pub async fn pin_mac(&self, port: &LinkName, mac: Mac) -> Result<(), NetError> {
        let attempt = Attempt {
            what: "pin an address to",
            link: port.as_str(),
        };
        let index = self.index_of(attempt, port).await?;
        let mut message = entry(index, mac);
        message.header.state = NeighbourState::Noarp;
        message.header.flags = NeighbourFlags::Controller;
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.send(attempt, message, NLM_F_CREATE | NLM_F_REPLACE).await
    }

    async fn flooded_to(&self, attempt: Attempt<'_>, index: u32) -> Result<BTreeSet<Ipv4Addr>, NetError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        let entries = self
            .dump(attempt, RouteNetlinkMessage::GetNeighbour(message))
            .await?;
        let peer = |entry| match entry {
            RouteNetlinkMessage::NewNeighbour(entry) if entry.header.ifindex == index => flood_target(&entry),
            _ => None,
        };
        Ok(entries.into_iter().filter_map(peer).collect())
    }
}

fn entry(index: u32, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

fn flood_entry(index: u32, peer: Ipv4Addr) -> NeighbourMessage {
    let mut message = entry(index, EVERYBODY);
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message
        .attributes
        .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(peer)));
    message
}

/// Where an entry floods to, if it is one that floods.
fn flood_target(entry: &NeighbourMessage) -> Option<Ipv4Addr> {
    let mut for_everybody = false;
    let mut target = None;
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(address) => for_everybody = *address == EVERYBODY.0,
            NeighbourAttribute::Destination(NeighbourAddress::Inet(peer)) => target = Some(*peer),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                target = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            }
            _ => {}
        }
    }
    target.filter(|_| for_everybody)
}

fn local_address(link: &LinkMessage) -> Option<Ipv4Addr> {
    let Some(InfoData::Vxlan(data)) = data_of(link) else {
        return None;
    };
    data.iter().find_map(|item| match item {
        InfoVxlan::Local(address) => Some(*address),
        _ => None,
    })
}
