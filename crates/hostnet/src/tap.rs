//! Owns: persistent taps, the ports that QEMU opens.
//! Does not know: QEMU.
//! Start here: [`Netlink::ensure_tap`].

use std::fs::File;
use std::path::Path;

use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoTun, LinkMessage};
use rustix::io::Errno;

use crate::error::NetError;
use crate::links::{data_of, kind_of};
use crate::names::LinkName;
use crate::netlink::{Attempt, Netlink};
use crate::sys;

/// The device that taps are made with.
pub(crate) const TUN_DEVICE: &str = "/dev/net/tun";

/// A tap with one queue that lives until it is deleted. QEMU opens it with
/// `-netdev tap,ifname=NAME,script=no,downscript=no`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapSpec {
    /// Its name.
    pub name: LinkName,
    /// The user who may open it without CAP_NET_ADMIN, as numbered in the caller's user namespace.
    pub owner: Option<u32>,
    /// The largest packet, in bytes: that of its bridge.
    pub mtu: u32,
}

impl Netlink {
    /// Makes a tap, or replaces a link of this name that differs, and switches it on, in no bridge: a closed port. One
    /// that is right is left as it is, in its bridge or not, and may be in use.
    pub async fn ensure_tap(&self, spec: &TapSpec) -> Result<(), NetError> {
        let attempt = Attempt {
            what: "make the tap",
            link: spec.name.as_str(),
        };
        let link = match self.find(&spec.name).await? {
            Some(link) if is_tap(&link, spec) => link,
            Some(_) => {
                self.delete_link(&spec.name).await?;
                self.create_tap(attempt, spec).await?
            }
            None => self.create_tap(attempt, spec).await?,
        };
        self.settle(attempt, &link, None, spec.mtu).await
    }

    async fn create_tap(&self, attempt: Attempt<'_>, spec: &TapSpec) -> Result<LinkMessage, NetError> {
        let (name, owner) = (spec.name.clone(), spec.owner);
        let task = tokio::task::spawn_blocking(move || create(&name, owner));
        match tokio::time::timeout(self.deadline(), task).await {
            Ok(Ok(created)) => created?,
            Ok(Err(lost)) => return Err(attempt.failed(std::io::Error::other(lost))),
            Err(_) => return Err(NetError::timed_out(attempt.what, attempt.link)),
        }
        let link = self.find(&spec.name).await?;
        link.ok_or_else(|| attempt.failed(Errno::NODEV.into()))
    }
}

fn create(name: &LinkName, owner: Option<u32>) -> Result<(), NetError> {
    let tun = Path::new(TUN_DEVICE);
    let tun = File::options().read(true).write(true).open(tun);
    let tun = tun.map_err(|error| NetError::new("make a tap: open", TUN_DEVICE, error))?;
    let failed = |errno| NetError::errno("make the tap", name, errno);
    sys::tap_attach(&tun, name).map_err(failed)?;
    if let Some(uid) = owner {
        sys::tap_set_owner(&tun, uid).map_err(failed)?;
    }
    // Last, so that a tap that is not complete goes with the file.
    sys::tap_persist(&tun).map_err(failed)
}

fn is_tap(link: &LinkMessage, spec: &TapSpec) -> bool {
    const OWNER: u16 = 1;
    const TYPE: u16 = 3;
    const PERSISTS: u16 = 6;
    const MULTI_QUEUE: u16 = 7;
    let Some(InfoData::Tun(data)) = data_of(link) else {
        return false;
    };
    let value = |wanted: u16| data.iter().find(|item| item.kind() == wanted).map(value_of);
    kind_of(link) == Some(&InfoKind::Tun)
        && value(TYPE) == Some(vec![2])
        && value(PERSISTS) == Some(vec![1])
        && value(MULTI_QUEUE) == Some(vec![0])
        && value(OWNER) == spec.owner.map(|uid| uid.to_ne_bytes().to_vec())
}

fn value_of(item: &InfoTun) -> Vec<u8> {
    let mut value = vec![0; item.value_len()];
    item.emit_value(&mut value);
    value
}
