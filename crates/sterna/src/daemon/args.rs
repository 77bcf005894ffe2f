//! The options of the commands that stay.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::units;

/// The shortest life of a certificate.
const LIFE_MIN: Duration = Duration::from_secs(60);

/// Options of `sterna up`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sterna up --hosts 3 --data-dir /tmp/cloud\n  sterna up --simulate 1000 --data-dir /tmp/simulated\n\n\
    VMs that were left running in the same directory, by --keep or because this was killed, are found again. Until then \
    they go on, but reach only VMs of their own host. `sterna down` ends them."
)]
pub(crate) struct UpArgs {
    /// How many hosts: h1, h2, …
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) hosts: u8,
    /// Simulate so many hosts instead, for exploring and for load tests: the server is a real one, hosts and VMs are not. Needs
    /// no rights and no QEMU, and keeps nothing
    #[arg(long, value_name = "N", conflicts_with_all = ["hosts", "keep"])]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=i64::from(sim::HOSTS_MAX)))]
    pub(crate) simulate: Option<u16>,
    /// Where everything is kept
    #[arg(long, value_name = "DIR", default_value = "sterna-data")]
    pub(crate) data_dir: PathBuf,
    /// Where the server listens, for you; any free port of loopback if left out
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Also take images from https:// servers whose certificates are signed by the CAs in this PEM file; may be given several times
    #[arg(long, value_name = "FILE")]
    pub(crate) import_ca: Vec<PathBuf>,
    /// At the end, leave the VMs running for the next `sterna up` in the same directory
    #[arg(long)]
    pub(crate) keep: bool,
}

/// Options of `sterna down`.
#[derive(Debug, Args)]
#[command(after_help = "Example: sterna down --data-dir /tmp/cloud\n\n\
    The VMs are switched off as by pulling the plug; their disks and all objects stay in the directory.")]
pub(crate) struct DownArgs {
    /// The directory that was given to `sterna up`
    #[arg(long, value_name = "DIR", default_value = "sterna-data")]
    pub(crate) data_dir: PathBuf,
}

/// Options of `sterna server`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: sterna server --data-dir /var/lib/sterna/server --listen 0.0.0.0:8443 --name cloud.example"
)]
pub(crate) struct ServerArgs {
    /// Where the store, the keys and the images are kept
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Where the server listens; may be given several times
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8443")]
    pub(crate) listen: Vec<SocketAddr>,
    /// A name by which clients call it, beside localhost; may be given several times
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Vec<String>,
    /// An address by which clients call it, beside those it listens on; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: Vec<IpAddr>,
    /// How many requests a second each user may make; bursts may be five times as many; 0 is any number
    #[arg(long, value_name = "N", default_value_t = server::Rates::default().user_per_s)]
    pub(crate) requests_per_second: u32,
    /// How long certificates of servers and hosts are good for, at least 1m; they are made anew after half of it, without a restart
    #[arg(long, value_name = "DURATION", value_parser = life, default_value = "90d")]
    pub(crate) certificate_life: Duration,
    /// Let images be taken also from these addresses, as in 127.0.0.0/8: loopback, link-local, multicast, reserved and metadata
    /// addresses are refused otherwise; may be given several times
    #[arg(long, value_name = "CIDR")]
    pub(crate) import_allow: Vec<server::AddressRange>,
    /// Also take images from https:// servers whose certificates are signed by the CAs in this PEM file; may be given several times
    #[arg(long, value_name = "FILE")]
    pub(crate) import_ca: Vec<PathBuf>,
    /// Reach images' sources through the process that listens on this socket
    #[arg(long, value_name = "PATH", hide = true)]
    pub(crate) outlet: Option<PathBuf>,
    /// Also take connections on the listening socket that standard input is
    #[arg(long, hide = true)]
    pub(crate) listen_stdin: bool,
    /// End when this process, which started this one, ends
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) parent: Option<i32>,
}

/// Options of `sterna outlet`, which `sterna up` starts: it connects, outside of the network that the server is in.
#[derive(Debug, Args)]
#[command(after_help = "Example: sterna outlet --parent 4711")]
pub(crate) struct OutletArgs {
    /// End when this process, which started this one, ends
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) parent: Option<i32>,
}

/// A life that leaves time to renew.
fn life(text: &str) -> Result<Duration, String> {
    match units::duration(text)? {
        life if life < LIFE_MIN => Err("that is too short to renew in time: give at least 1m".to_owned()),
        life => Ok(life),
    }
}

/// Options of `sterna agent`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: sterna agent --data-dir /var/lib/sterna/agent --server https://cloud.example:8443 \
    --cacert ca.pem --join-token-file join.token --address 10.0.0.11"
)]
pub(crate) struct AgentArgs {
    /// Where the agent keeps its journal, its keys and its VMs
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Where a server answers
    #[arg(long, value_name = "URL")]
    pub(crate) server: String,
    /// The CA's certificate: `ca.pem` in the server's data directory
    #[arg(long, value_name = "PATH")]
    pub(crate) cacert: PathBuf,
    /// A file with the token from `sterna host token`; needed until the host has joined
    #[arg(long, value_name = "PATH")]
    pub(crate) join_token_file: Option<PathBuf>,
    /// The name that the host would like; the machine's if left out
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The address at which other hosts reach this one
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: IpAddr,
    /// The port for other agents; any free one if left out
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub(crate) peer_port: u16,
    /// The memory that guests do not get, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub(crate) reserved_mib: u64,
    /// How much each end of a migration's connection holds, in KiB: more carries more over a long link, less shortens the
    /// time that guests stand still; 0 leaves it to the kernel
    #[arg(
        long,
        value_name = "KIB",
        default_value_t = 256,
        env = "STERNA_MIGRATION_BUFFER_KIB"
    )]
    pub(crate) migration_buffer_kib: u16,
    /// Numbers of users and groups that nobody else on this machine has: where the agent may change users, each VM's QEMU
    /// runs as one of them
    #[arg(long, value_name = "FIRST-LAST", default_value = "1879048192-1879113727", value_parser = uids)]
    pub(crate) qemu_uids: RangeInclusive<u32>,
    /// How long a file in a datastore is kept after the last image with its content is gone, and then once more under another name
    #[arg(long, value_name = "DURATION", default_value = "1d", value_parser = units::duration, env = "STERNA_KEEP_UNNEEDED_IMAGES")]
    pub(crate) keep_unneeded_images: Duration,
    /// Enter this network namespace first
    #[arg(long, value_name = "PATH", hide = true)]
    pub(crate) namespace: Option<PathBuf>,
    /// End when this process, which started this one, ends
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) parent: Option<i32>,
}

/// Two numbers with a dash between them. Neither root nor nobody is among them.
fn uids(text: &str) -> Result<RangeInclusive<u32>, String> {
    const NOBODY: u32 = 65534;
    let numbers = text.split_once('-').and_then(|(first, last)| {
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        Some(first..=last)
    });
    match numbers {
        Some(uids)
            if uids.is_empty() || uids.contains(&0) || uids.contains(&NOBODY) || uids.contains(&u32::MAX) =>
        {
            Err("it must go up, and leave out 0, 65534 and 4294967295".to_owned())
        }
        Some(uids) => Ok(uids),
        None => Err("write it as 200000-265535".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_that_are_somebody_are_refused() {
        assert_eq!(uids("200000-265535"), Ok(200_000..=265_535));
        assert_eq!(uids("7-7"), Ok(7..=7));
        for wrong in [
            "",
            "5",
            "0-5",
            "9-8",
            "65000-66000",
            "1-x",
            "1000-4294967295",
            "1-4294967296",
        ] {
            assert!(uids(wrong).is_err(), "{wrong}");
        }
    }
}
