//! Owns: how bridges and tunnels must look, and the plain operations on links of any kind.
//! Does not know: ports of bridges (`ports`), forwarding entries (`fdb`), taps (`tap`).
//! Start here: [`Netlink::ensure_bridge`].

use std::net::Ipv4Addr;

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoData, InfoKind, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo as LinkInfoAttribute, LinkMessage,
};
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVxlan, RouteMessageBuilder,
};
use rustix::io::Errno;

use crate::error::{Cause, NetError};
use crate::names::{LinkName, Mac};
use crate::netlink::{Attempt, Netlink, into_link};

/// The UDP port of VXLAN (RFC 7348).
pub const VXLAN_PORT: u16 = 4789;

/// What a tunnel takes of each frame's room: a network over an underlay with an MTU of 1500 has 1450.
pub const VXLAN_OVERHEAD_BYTES: u32 = 50;

/// A bridge that forwards at once: no spanning tree, no multicast snooping, no IPv6 address of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Its name.
    pub name: LinkName,
    /// Its address; without one the kernel takes that of a port, which changes as ports come and go.
    pub mac: Option<Mac>,
    /// The largest packet, in bytes.
    pub mtu: u32,
}

/// A tunnel that learns where addresses are, and floods to the peers of [`Netlink::set_vxlan_peers`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanSpec {
    /// Its name.
    pub name: LinkName,
    /// The network's identifier, of 24 bits. A namespace has at most one tunnel with it on a port.
    pub vni: u32,
    /// This host's address in the underlay.
    pub local: Ipv4Addr,
    /// The UDP port, usually [`VXLAN_PORT`].
    pub port: u16,
    /// The largest packet, in bytes: the underlay's less [`VXLAN_OVERHEAD_BYTES`].
    pub mtu: u32,
}

/// A link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `bridge`, `vxlan`, `tun`, `veth`, …; none for hardware.
    pub kind: Option<String>,
    /// Its address, if it is an Ethernet interface.
    pub mac: Option<Mac>,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Whether it was switched on; it may still lack a carrier.
    pub is_up: bool,
    /// The index of the bridge whose port it is.
    pub bridge: Option<u32>,
    /// Free text.
    pub alias: Option<String>,
}

impl Netlink {
    /// Makes a bridge, or makes the one of this name right, and switches it on.
    pub async fn ensure_bridge(&self, spec: &BridgeSpec) -> Result<(), NetError> {
        let wanted = LinkBridge::new(spec.name.as_str())
            .stp_state(BridgeStpState::Disabled)
            .forward_delay(0)
            .mcast_snooping(false);
        let wanted = spec
            .mac
            .into_iter()
            .fold(wanted, |wanted, mac| wanted.address(mac.0.to_vec()));
        let attempt = Attempt {
            what: "make the bridge",
            link: spec.name.as_str(),
        };
        let fits = |link: &LinkMessage| kind_of(link) == Some(&InfoKind::Bridge);
        let link = self
            .ensure_link(attempt, &spec.name, wanted.build(), fits)
            .await?;
        self.settle(attempt, &link, spec.mac, spec.mtu).await
    }

    /// Makes a tunnel, or replaces one of this name that differs, and switches it on. A new one has no peers.
    pub async fn ensure_vxlan(&self, spec: &VxlanSpec) -> Result<(), NetError> {
        let wanted = LinkVxlan::new(spec.name.as_str(), spec.vni)
            .local(spec.local)
            .port(spec.port)
            .learning(true);
        let attempt = Attempt {
            what: "make the VXLAN tunnel",
            link: spec.name.as_str(),
        };
        let fits = |link: &LinkMessage| is_vxlan(link, spec);
        let link = self
            .ensure_link(attempt, &spec.name, wanted.build(), fits)
            .await?;
        self.settle(attempt, &link, None, spec.mtu).await
    }

    /// Removes a link; that there is none is fine.
    pub async fn delete_link(&self, name: &LinkName) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        let attempt = Attempt {
            what: "delete",
            link: name.as_str(),
        };
        match self.send(attempt, RouteNetlinkMessage::DelLink(message), 0).await {
            Err(error) if error.is(Errno::NODEV) => Ok(()),
            other => other,
        }
    }

    /// Whether there is a link of this name.
    pub async fn link_exists(&self, name: &LinkName) -> Result<bool, NetError> {
        Ok(self.find(name).await?.is_some())
    }

    /// The link of this name.
    pub async fn link(&self, name: &LinkName) -> Result<Option<LinkInfo>, NetError> {
        Ok(self.find(name).await?.as_ref().map(describe))
    }

    /// The links whose names begin with `prefix`, ordered by name.
    pub async fn links(&self, prefix: &str) -> Result<Vec<LinkInfo>, NetError> {
        let attempt = Attempt {
            what: "list",
            link: "the links",
        };
        let all = self
            .dump(attempt, RouteNetlinkMessage::GetLink(LinkMessage::default()))
            .await?;
        let mut links: Vec<_> = all
            .into_iter()
            .filter_map(into_link)
            .map(|link| describe(&link))
            .collect();
        links.retain(|link| link.name.starts_with(prefix));
        links.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(links)
    }

    /// Switches a link on.
    pub async fn set_up(&self, name: &LinkName) -> Result<(), NetError> {
        let attempt = Attempt {
            what: "switch on",
            link: name.as_str(),
        };
        self.change(attempt, by_name(name).up()).await
    }

    /// Switches a link off.
    pub async fn set_down(&self, name: &LinkName) -> Result<(), NetError> {
        let attempt = Attempt {
            what: "switch off",
            link: name.as_str(),
        };
        self.change(attempt, by_name(name).down()).await
    }

    /// Sets a link's largest packet, in bytes.
    pub async fn set_mtu(&self, name: &LinkName, mtu: u32) -> Result<(), NetError> {
        let attempt = Attempt {
            what: "set the MTU of",
            link: name.as_str(),
        };
        self.change(attempt, by_name(name).mtu(mtu)).await
    }

    /// Writes free text to a link, of at most 255 bytes: what it stands for, for people who look at it.
    pub async fn set_alias(&self, name: &LinkName, alias: &str) -> Result<(), NetError> {
        let attempt = Attempt {
            what: "set the alias of",
            link: name.as_str(),
        };
        self.change(attempt, by_name(name).alias(alias)).await
    }

    /// Gives a link an address, if it has not got it.
    pub async fn add_address(
        &self,
        name: &LinkName,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), NetError> {
        let attempt = Attempt {
            what: "add an address to",
            link: name.as_str(),
        };
        let index = self.index_of(attempt, name).await?;
        let message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(address, prefix_len)
            .build();
        let message = RouteNetlinkMessage::NewAddress(message);
        self.send(attempt, message, NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// Sends what has no route of its own through `gateway`.
    pub async fn set_default_route(&self, gateway: Ipv4Addr) -> Result<(), NetError> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
        let attempt = Attempt {
            what: "set",
            link: "the default route",
        };
        self.send(
            attempt,
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
    }

    /// Changes a link that is there.
    pub(crate) async fn change(
        &self,
        attempt: Attempt<'_>,
        wanted: LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetError> {
        self.send(attempt, RouteNetlinkMessage::NewLink(wanted.build()), 0)
            .await
    }

    /// The link of this name, made anew if it is not there or does not fit.
    async fn ensure_link(
        &self,
        attempt: Attempt<'_>,
        name: &LinkName,
        wanted: LinkMessage,
        fits: impl Fn(&LinkMessage) -> bool,
    ) -> Result<LinkMessage, NetError> {
        match self.find(name).await? {
            Some(link) if fits(&link) => return Ok(link),
            Some(_) => self.delete_link(name).await?,
            None => {}
        }
        let created = self
            .send(
                attempt,
                RouteNetlinkMessage::NewLink(wanted),
                NLM_F_CREATE | NLM_F_EXCL,
            )
            .await;
        // A failed creation is no failure if somebody else made the link in between.
        match (created, self.find(name).await?) {
            (_, Some(link)) if fits(&link) => Ok(link),
            (Err(error), _) => Err(error),
            (Ok(()), _) => Err(attempt.failed(Errno::NODEV.into())),
        }
    }

    /// Sets what can be changed while a link is used, and switches it on.
    pub(crate) async fn settle(
        &self,
        attempt: Attempt<'_>,
        link: &LinkMessage,
        mac: Option<Mac>,
        mtu: u32,
    ) -> Result<(), NetError> {
        let now = describe(link);
        if now.is_up && now.mtu == mtu && mac.is_none_or(|mac| now.mac == Some(mac)) {
            return Ok(());
        }
        // Before it is up, or it would take an IPv6 address, and guests could speak to the host by it.
        let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let quiet = LinkUnspec::new_with_index(now.index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode]));
        match self.change(attempt, quiet).await {
            Err(error) if error.cause != Cause::Unsupported => return Err(error),
            _ => {}
        }
        let change = LinkUnspec::new_with_index(now.index).mtu(mtu).up();
        let change = mac
            .into_iter()
            .fold(change, |change, mac| change.address(mac.0.to_vec()));
        self.change(attempt, change).await
    }
}

pub(crate) fn by_name(name: &LinkName) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_name(name.as_str())
}

fn describe(link: &LinkMessage) -> LinkInfo {
    let mut info = LinkInfo {
        index: link.header.index,
        name: String::new(),
        kind: kind_of(link).map(ToString::to_string),
        mac: None,
        mtu: 0,
        is_up: link.header.flags.contains(LinkFlags::Up),
        bridge: None,
        alias: None,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => info.name.clone_from(name),
            LinkAttribute::Address(address) => info.mac = address.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => info.mtu = *mtu,
            LinkAttribute::Controller(index) => info.bridge = Some(*index),
            LinkAttribute::IfAlias(alias) => info.alias = Some(alias.clone()),
            _ => {}
        }
    }
    info
}

fn kind_attributes(link: &LinkMessage) -> impl Iterator<Item = &LinkInfoAttribute> {
    link.attributes.iter().flat_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(attributes) => attributes.as_slice(),
        _ => &[],
    })
}

pub(crate) fn kind_of(link: &LinkMessage) -> Option<&InfoKind> {
    kind_attributes(link).find_map(|attribute| match attribute {
        LinkInfoAttribute::Kind(kind) => Some(kind),
        _ => None,
    })
}

pub(crate) fn data_of(link: &LinkMessage) -> Option<&InfoData> {
    kind_attributes(link).find_map(|attribute| match attribute {
        LinkInfoAttribute::Data(data) => Some(data),
        _ => None,
    })
}

fn is_vxlan(link: &LinkMessage, spec: &VxlanSpec) -> bool {
    let Some(InfoData::Vxlan(data)) = data_of(link) else {
        return false;
    };
    let wanted = [
        InfoVxlan::Id(spec.vni),
        InfoVxlan::Local(spec.local),
        InfoVxlan::Port(spec.port),
        InfoVxlan::Learning(true),
    ];
    let has_group = data
        .iter()
        .any(|item| matches!(item, InfoVxlan::Group(_) | InfoVxlan::Group6(_)));
    !has_group && wanted.iter().all(|item| data.contains(item))
}
