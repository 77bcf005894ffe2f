//! Networks on this host: a bridge and a tunnel for each, a port for each interface of each incarnation.
//!
//! **Owns:** the names of links, derived from the host's directory so that two hosts on one kernel never meet, and the
//! order in which links are made and go.
//!
//! **Does not know:** when a port may be opened.
//!
//! **Start here:** [`Network::prepare`]. A port is closed until [`Network::open`]: its tap is in no bridge.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use driver::types::Identity;
use hostnet::{
    BridgeSpec, InvalidName, LinkKind, LinkName, Mac, NetError, Netlink, TapSpec, VXLAN_OVERHEAD_BYTES,
    VXLAN_PORT, VxlanSpec, link_name, link_prefix, world_prefix,
};
use model::document::{NetworkDocument, Port};
use qemu::command_line::NIC_SLOTS;
use qemu::spawn::User;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

/// What fits into a packet of a guest: the underlay's Ethernet less the tunnel's header.
pub const GUEST_MTU: u32 = 1500 - VXLAN_OVERHEAD_BYTES;

/// Why a network is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel.
    #[error("{}", crate::link::chain(.0))]
    Kernel(#[from] NetError),
    /// A document's MAC address.
    #[error(transparent)]
    Mac(#[from] InvalidName),
}

impl NetworkError {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Kernel(error) if error.is_retryable())
    }
}

/// Who opens the taps: QEMU has none of the agent's rights over networks unless both are root.
fn owner(user: Option<User>) -> Option<u32> {
    let uid = rustix::process::geteuid();
    user.map(|user| user.id)
        .or_else(|| (!uid.is_root()).then_some(uid.as_raw()))
}

/// The networks of this host.
#[derive(Clone)]
pub struct Network {
    netlink: Netlink,
    world: u64,
    underlay: Ipv4Addr,
    /// Whoever makes or deletes a network holds it.
    state: Arc<Mutex<State>>,
}

/// What documents say of each network.
#[derive(Debug, Default)]
struct State {
    /// The last one.
    wanted: BTreeMap<u32, NetworkDocument>,
    /// What the links were brought to; `None` while that is not known.
    settled: Option<BTreeMap<u32, NetworkDocument>>,
}

impl Network {
    /// In the network namespace of the calling thread.
    pub fn open(data_dir: &Path, underlay: IpAddr) -> Result<Self, NetworkError> {
        let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
        let world = digest
            .iter()
            .take(8)
            .fold(0, |world, byte| world << 8 | u64::from(*byte));
        let underlay = match underlay {
            IpAddr::V4(address) => address,
            // Tunnels are made over IPv4 only; the kernel's refusal of this one names it.
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        Ok(Self {
            netlink: Netlink::open()?,
            world,
            underlay,
            state: Arc::default(),
        })
    }

    /// The tap of an interface.
    pub fn tap(&self, id: Identity, index: usize) -> LinkName {
        link_name(
            self.world,
            LinkKind::Tap,
            format!("{}/{}/{index}", id.vm, id.incarnation).as_bytes(),
        )
    }

    fn bridge(&self, vni: u32) -> LinkName {
        link_name(self.world, LinkKind::Bridge, &vni.to_be_bytes())
    }

    fn tunnel(&self, vni: u32) -> LinkName {
        link_name(self.world, LinkKind::Vxlan, &vni.to_be_bytes())
    }

    /// Makes what the ports need, and the ports, closed, for a QEMU that runs as `user`. A port that is there is left as it
    /// is.
    pub async fn prepare(
        &self,
        id: Identity,
        ports: &[Port],
        user: Option<User>,
    ) -> Result<(), NetworkError> {
        let state = self.state.lock().await;
        for vni in ports.iter().map(|port| port.vni).collect::<BTreeSet<_>>() {
            let document = state.wanted.get(&vni).cloned().unwrap_or_default();
            self.ensure(vni, &document).await?;
        }
        for index in 0..ports.len() {
            let name = self.tap(id, index);
            self.netlink
                .ensure_tap(&TapSpec {
                    name,
                    owner: owner(user),
                    mtu: GUEST_MTU,
                })
                .await?;
        }
        Ok(())
    }

    async fn ensure(&self, vni: u32, document: &NetworkDocument) -> Result<(), NetworkError> {
        let (bridge, tunnel) = (self.bridge(vni), self.tunnel(vni));
        let spec = BridgeSpec {
            name: bridge.clone(),
            mac: Some(self.bridge_mac(vni)),
            mtu: GUEST_MTU,
        };
        self.netlink.ensure_bridge(&spec).await?;
        let spec = VxlanSpec {
            name: tunnel.clone(),
            vni,
            local: self.underlay,
            port: VXLAN_PORT,
            mtu: GUEST_MTU,
        };
        self.netlink.ensure_vxlan(&spec).await?;
        self.netlink.attach(&tunnel, &bridge).await?;
        Ok(self.netlink.set_vxlan_peers(&tunnel, &peers(document)).await?)
    }

    /// Locally administered, and another one on every host.
    fn bridge_mac(&self, vni: u32) -> Mac {
        let digest = Sha256::new()
            .chain_update(self.world.to_be_bytes())
            .chain_update(vni.to_be_bytes())
            .finalize();
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&digest[..6]);
        bytes[0] = bytes[0] & 0xfc | 0x02;
        Mac(bytes)
    }

    /// Remembers what the document says, for ports made from now on.
    pub async fn note(&self, document: BTreeMap<u32, NetworkDocument>) {
        self.state.lock().await.wanted = document;
    }

    /// Brings the networks that are there to what the document says, and deletes those that it does not name: also what an
    /// agent left that ended half-way.
    pub async fn settle(&self) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        let State { wanted, settled } = &mut *state;
        if settled.as_ref() == Some(wanted) {
            return Ok(());
        }
        let before = settled.take().unwrap_or_default();
        let links = self.netlink.links(&world_prefix(self.world)).await?;
        let there: BTreeSet<String> = links.into_iter().map(|link| link.name).collect();
        // The tunnel first: it is in the bridge.
        for kind in [LinkKind::Vxlan, LinkKind::Bridge] {
            let prefix = link_prefix(self.world, kind);
            let is_wanted = |name: &str| {
                let mut own = wanted
                    .keys()
                    .map(|vni| link_name(self.world, kind, &vni.to_be_bytes()));
                own.any(|wanted| wanted.as_str() == name)
            };
            let own = there.iter().filter(|name| name.starts_with(&prefix));
            for name in own.filter(|name| !is_wanted(name)) {
                self.netlink.delete_link(&name.parse()?).await?;
            }
        }
        for (vni, document) in &*wanted {
            let has_changed = before.get(vni) != Some(document);
            if has_changed && there.contains(self.tunnel(*vni).as_str()) {
                self.netlink
                    .set_vxlan_peers(&self.tunnel(*vni), &peers(document))
                    .await?;
            }
        }
        *settled = Some(wanted.clone());
        Ok(())
    }

    /// Plugs the ports into their bridges.
    pub async fn plug(&self, id: Identity, ports: &[Port]) -> Result<(), NetworkError> {
        for (index, port) in ports.iter().enumerate() {
            let mac = port.mac.parse()?;
            self.netlink
                .open_port(&self.tap(id, index), &self.bridge(port.vni), mac)
                .await?;
        }
        Ok(())
    }

    /// Tells each network where the addresses are now.
    pub async fn announce(&self, ports: &[Port]) -> Result<(), NetworkError> {
        for port in ports {
            let address = match port.address {
                Some(IpAddr::V4(address)) => Some(address),
                _ => None,
            };
            self.netlink
                .announce(&self.bridge(port.vni), port.mac.parse()?, address)
                .await?;
        }
        Ok(())
    }

    /// Deletes all ports that the incarnation can have.
    pub async fn release(&self, id: Identity) -> Result<(), NetworkError> {
        for index in 0..usize::from(NIC_SLOTS) {
            self.netlink.delete_link(&self.tap(id, index)).await?;
        }
        Ok(())
    }
}

fn peers(document: &NetworkDocument) -> BTreeSet<Ipv4Addr> {
    let v4 = |address: &IpAddr| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    };
    document.peers.iter().filter_map(v4).collect()
}
