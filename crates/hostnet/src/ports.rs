//! Owns: which links are ports of which bridge; a port that is in no bridge is closed.
//! Does not know: when a port may be opened.
//! Start here: [`Netlink::open_port`].

use rustix::io::Errno;

use crate::error::NetError;
use crate::links::by_name;
use crate::names::{LinkName, Mac};
use crate::netlink::{Attempt, Netlink};

impl Netlink {
    /// Makes a link a port of a bridge, if it is not.
    pub async fn attach(&self, port: &LinkName, bridge: &LinkName) -> Result<(), NetError> {
        let attempt = Attempt {
            what: "attach to a bridge",
            link: port.as_str(),
        };
        let missing = |name: &LinkName| NetError::errno("attach to a bridge: look up", name, Errno::NODEV);
        let bridge_index = self
            .find(bridge)
            .await?
            .ok_or_else(|| missing(bridge))?
            .header
            .index;
        let link = self.link(port).await?.ok_or_else(|| missing(port))?;
        if link.bridge == Some(bridge_index) {
            return Ok(());
        }
        self.change(attempt, by_name(port).controller(bridge_index)).await
    }

    /// Takes a link out of its bridge, if it is in one.
    pub async fn detach(&self, port: &LinkName) -> Result<(), NetError> {
        let attempt = Attempt {
            what: "detach from its bridge",
            link: port.as_str(),
        };
        self.change(attempt, by_name(port).nocontroller()).await
    }

    /// Lets a VM's frames pass: its tap becomes a port of the bridge, which from now on sends the VM's address there. Call
    /// [`Netlink::announce`] after it, so that other hosts do too.
    pub async fn open_port(&self, tap: &LinkName, bridge: &LinkName, mac: Mac) -> Result<(), NetError> {
        self.attach(tap, bridge).await?;
        self.pin_mac(tap, mac).await
    }

    /// Stops a VM's frames in both directions. The VM keeps its carrier.
    pub async fn close_port(&self, tap: &LinkName) -> Result<(), NetError> {
        self.detach(tap).await
    }
}
