//! The links between hosts: cutting them one way, and seeing what waits on them.
//!
//! **Owns:** making a host lose what it sends to another one, and the queues of the connections between the two.
//!
//! **Does not know:** what the connections are for.
//!
//! A cut is an entry in the sender's table of neighbours, which gives the other host an address that nobody has. So frames
//! leave and reach nobody: nothing is refused and no carrier is lost, as with a switch that drops. It needs no packet
//! filter and no queueing discipline, which a kernel may lack.
//!
//! **Start here:** [`World::mute`].

use std::fs;
use std::net::Ipv4Addr;
use std::process::Stdio;

use anyhow::{Context, ensure};
use tokio::process::Command;

use crate::world::World;

/// An address that no interface has.
const NOBODY: &str = "02:00:00:00:00:01";
/// A host's link to the others.
const LINK: &str = "eth0";

/// Where agents reach the server.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

impl World {
    /// Loses all that a host sends to an address of another one, until [`World::heal`].
    pub async fn mute(&self, host: &str, to: Ipv4Addr) -> anyhow::Result<()> {
        let to = to.to_string();
        let entry = ["replace", &to, "lladdr", NOBODY, "dev", LINK, "nud", "permanent"];
        self.neighbour(host, &entry).await
    }

    /// Ends what [`World::mute`] did.
    pub async fn heal(&self, host: &str, to: Ipv4Addr) -> anyhow::Result<()> {
        self.neighbour(host, &["delete", &to.to_string(), "dev", LINK])
            .await
    }

    /// Gives connections that begin from now on so much room in a host's kernel for what was not read yet.
    pub async fn make_room(&self, host: &str, bytes: u64) -> anyhow::Result<()> {
        let write = format!("echo 4096 {bytes} {bytes} >/proc/sys/net/ipv4/tcp_rmem");
        self.act_in(host, &["sh", "-c", &write]).await
    }

    /// Lets connections that begin from now on hold no more than so much that a host has to send.
    pub async fn bound_sending(&self, host: &str, bytes: u64) -> anyhow::Result<()> {
        let write = format!("echo 4096 {bytes} {bytes} >/proc/sys/net/ipv4/tcp_wmem");
        self.act_in(host, &["sh", "-c", &write]).await
    }

    /// Changes a host's table of neighbours.
    async fn neighbour(&self, host: &str, words: &[&str]) -> anyhow::Result<()> {
        self.act_in(host, &[&["ip", "neighbour"], words].concat()).await
    }

    /// What stands before a command that shall run in the namespaces of a host's agent; it becomes that command.
    pub fn entering(&self, host: &str) -> anyhow::Result<Vec<String>> {
        let pid = self.agent_pid(host)?.to_string();
        let user = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user"));
        let mut words = vec!["nsenter", "--net", "--target", &pid];
        // Nobody can enter the user namespace that he is in.
        if user("self")? != user(&pid)? {
            words.extend(["--user", "--preserve-credentials"]);
        }
        Ok(words.into_iter().map(str::to_owned).collect())
    }

    /// Runs a command in the namespaces of a host's agent.
    pub async fn act_in(&self, host: &str, words: &[&str]) -> anyhow::Result<()> {
        let mut entering = self.entering(host)?.into_iter();
        let mut command = Command::new(entering.next().context("nothing to start")?);
        command.args(entering).args(words).stdin(Stdio::null());
        let ended = command.output().await.context("starting nsenter")?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "{} on {host}: {said}", words.join(" "));
        Ok(())
    }
}

/// The connections of a namespace with one address, and what waits on them in the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queues {
    /// Bytes that were sent and are not acknowledged, or not sent yet.
    pub unacknowledged: u64,
    /// Bytes that came and were not read.
    pub unread: u64,
    /// Connections that neither side has closed.
    pub open: u64,
}

impl Queues {
    /// Those between the namespace of a process and an address.
    pub fn between(pid: i32, peer: Ipv4Addr) -> anyhow::Result<Self> {
        let table = fs::read_to_string(format!("/proc/{pid}/net/tcp"))
            .with_context(|| format!("reading the connections of process {pid}"))?;
        Ok(table
            .lines()
            .filter_map(|line| queues(line, peer))
            .fold(Self::default(), |sum, one| Self {
                unacknowledged: sum.unacknowledged + one.unacknowledged,
                unread: sum.unread + one.unread,
                open: sum.open + one.open,
            }))
    }
}

/// Of a line of `/proc/net/tcp`, if it is about a connection with this address. One that was closed may have bytes to send
/// still.
fn queues(line: &str, peer: Ipv4Addr) -> Option<Queues> {
    const ESTABLISHED: &str = "01";
    const LISTEN: &str = "0A";
    let mut words = line.split_whitespace();
    let (remote, state, queued) = (words.nth(2)?, words.next()?, words.next()?);
    // The kernel writes an address as a number of the machine.
    let address = u32::from_str_radix(remote.split_once(':')?.0, 16).ok()?;
    let is_it = Ipv4Addr::from(address.to_ne_bytes()) == peer && state != LISTEN;
    let (unacknowledged, unread) = queued.split_once(':').filter(|_| is_it)?;
    Some(Queues {
        unacknowledged: u64::from_str_radix(unacknowledged, 16).ok()?,
        unread: u64::from_str_radix(unread, 16).ok()?,
        open: u64::from(state == ESTABLISHED),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_those_of_open_connections_with_the_address() {
        let peer = Ipv4Addr::new(198, 18, 0, 11);
        let line = "   3: 0A0012C6:B5C0 0B0012C6:A1B2 01 00000010:00000203 00:00000000 00000000     0        0 1 1 0";
        let found = Queues {
            unacknowledged: 0x10,
            unread: 0x203,
            open: 1,
        };
        assert_eq!(queues(line, peer), Some(found));
        assert_eq!(queues(line, Ipv4Addr::new(198, 18, 0, 12)), None);
        assert_eq!(queues(&line.replace(" 01 ", " 0A "), peer), None);
        assert_eq!(
            queues(&line.replace(" 01 ", " 08 "), peer),
            Some(Queues { open: 0, ..found })
        );
        assert_eq!(
            queues("  sl  local_address rem_address   st tx_queue rx_queue", peer),
            None
        );
    }
}
