//! Owns: finding out what this kernel lacks, by trying it.
//! Does not know: what to do without it.
//! Start here: [`probe_kernel`].

use std::fs::File;

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::{LinkBridge, LinkUnspec, LinkVeth, LinkVlan, LinkVxlan};
use rustix::io::Errno;

use crate::error::{Cause, NetError};
use crate::names::LinkName;
use crate::netlink::{Attempt, Netlink};
use crate::sys;
use crate::tap::TUN_DEVICE;
use crate::world::HostNamespace;

/// Something that this host cannot do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What is missing.
    pub what: &'static str,
    /// What does not work without it.
    pub consequence: &'static str,
    /// What the kernel said.
    pub detail: String,
}

/// Tries, in a namespace of its own that goes away with it, all that networks are made of. Nothing is left behind. Whoever
/// may not make a namespace, as a real host's agent that has rights over its own network only, learns nothing: there, what
/// the kernel lacks shows when it is used.
pub async fn probe_kernel() -> Vec<Lack> {
    let scratch = async { HostNamespace::create().await?.run(try_all).await? };
    scratch.await.unwrap_or_else(|error: NetError| match error.cause {
        Cause::NotPermitted => Vec::new(),
        _ => vec![lack(
            "network namespaces",
            "neither test hosts nor this probe work; nothing else was tried",
            &error,
        )],
    })
}

async fn try_all() -> Result<Vec<Lack>, NetError> {
    let netlink = Netlink::open()?;
    let vlan = |base| LinkVlan::new("probe-vlan", base, 5).build();
    let bridge = netlink.try_link(LinkBridge::new("probe-bridge").build()).await;
    let veth = netlink
        .try_link(LinkVeth::new("probe-veth", "probe-peer").build())
        .await;
    let vxlan = netlink
        .try_link(LinkVxlan::new("probe-vxlan", 1).port(crate::VXLAN_PORT).build())
        .await;
    let base = netlink
        .link(&LinkName::known("probe-veth"))
        .await?
        .map_or(1, |link| link.index);
    let vlan = netlink.try_link(vlan(base)).await;
    let netem = netlink.try_netem(base).await;
    let tun = tokio::task::spawn_blocking(try_tun).await;
    let tun = tun.unwrap_or_else(|lost| Err(NetError::new("try", TUN_DEVICE, std::io::Error::other(lost))));
    let tried = [
        ("bridge", "VMs have no network", bridge),
        ("veth", "`sterna up` cannot join its test hosts", veth),
        ("vxlan", "networks do not reach from host to host", vxlan),
        ("tun", "VMs have no network", tun),
        ("802.1Q", "networks cannot use VLANs", vlan),
        ("netem", "tests cannot slow a link down", netem),
    ];
    let lacks = tried.into_iter().filter_map(|(what, consequence, result)| {
        let error = result.err()?;
        Some(lack(what, consequence, &error))
    });
    Ok(lacks.collect())
}

fn lack(what: &'static str, consequence: &'static str, error: &NetError) -> Lack {
    let source = std::error::Error::source(error);
    let detail = source.map_or_else(|| error.to_string(), ToString::to_string);
    Lack {
        what,
        consequence,
        detail,
    }
}

impl Netlink {
    async fn try_link(&self, message: LinkMessage) -> Result<(), NetError> {
        let attempt = Attempt {
            what: "try",
            link: "an interface of this kind",
        };
        self.send(
            attempt,
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
    }

    /// Without its options the kernel refuses it, but only after it has found it.
    async fn try_netem(&self, index: u32) -> Result<(), NetError> {
        let attempt = Attempt {
            what: "try",
            link: "netem",
        };
        self.change(attempt, LinkUnspec::new_with_index(index).up())
            .await?;
        let index = i32::try_from(index).map_err(|_| attempt.failed(Errno::RANGE.into()))?;
        let mut message = TcMessage::with_index(index);
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind("netem".to_owned()));
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        match self.send(attempt, message, NLM_F_CREATE | NLM_F_EXCL).await {
            Err(error) if error.is(Errno::INVAL) => Ok(()),
            other => other,
        }
    }
}

fn try_tun() -> Result<(), NetError> {
    let tun = File::options().read(true).write(true).open(TUN_DEVICE);
    let tun = tun.map_err(|error| NetError::new("open", TUN_DEVICE, error))?;
    let name = LinkName::known("probe-tap");
    sys::tap_attach(&tun, &name).map_err(|errno| NetError::errno("make the tap", name, errno))
}
