//! Host networking: links, bridges, VXLAN, taps and namespaces, by rtnetlink.
//!
//! Owns: the only connection to the kernel's netlink, what a link must look like, the names of links, and the network
//! namespaces that are test hosts ([`world`]).
//!
//! Does not know: virtual machines, networks as users see them, who wants what. Packet filters and DHCP are elsewhere.
//!
//! Start here: [`Netlink`], whose `ensure_…` calls may be repeated at will; then [`world`].
//!
//! Every call acts on the network namespace that the calling thread was in when it opened its [`Netlink`], ends within
//! the deadline, and needs CAP_NET_ADMIN there: root, or the root of a user namespace, which any user can be.

mod announce;
mod error;
mod fdb;
mod links;
mod names;
mod netlink;
mod ports;
mod probe;
mod sys;
mod tap;
pub mod world;

pub use error::{Cause, NetError};
pub use links::{BridgeSpec, LinkInfo, VXLAN_OVERHEAD_BYTES, VXLAN_PORT, VxlanSpec};
pub use names::{InvalidName, LinkKind, LinkName, Mac, link_name, link_prefix, world_prefix};
pub use netlink::Netlink;
pub use probe::{Lack, probe_kernel};
pub use tap::TapSpec;
