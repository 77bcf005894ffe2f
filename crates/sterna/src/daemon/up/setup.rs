//! What a fresh cloud needs before anybody can use it: a datastore, a network, hosts; and how a person finds it.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use api::Create;
use api::client::{Client, ClientError};
use api::kinds::{Datastore, DatastoreSpec, Host, HostState, JoinToken, JoinTokenBody, Network, NetworkSpec};
use futures_util::StreamExt;

use super::Dir;
use crate::daemon::args::UpArgs;

/// The addresses of the network that every VM is plugged into by default.
const DEFAULT_CIDR: &str = "10.77.0.0/16";

/// The cloud, as its first operator.
pub(crate) struct Cloud {
    client: Client,
}

impl Cloud {
    /// Connects with the first token.
    pub(crate) fn connect(dir: &Dir, server: &str) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = dir.server().join(name);
            std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        Ok(Self {
            client: Client::new(server, read("admin.token")?.trim(), &read("ca.pem")?)?,
        })
    }

    /// A datastore and a network, if they are not there yet.
    pub(crate) async fn make_defaults(&self, dir: &Dir) -> anyhow::Result<()> {
        let path = dir.datastore().to_string_lossy().into_owned();
        let datastore = create(DatastoreSpec { path, coherent: true });
        unless_there(self.client.create::<Datastore>(&datastore, None, false).await)?;
        let network = create(NetworkSpec {
            cidr: DEFAULT_CIDR.to_owned(),
            vni: None,
        });
        unless_there(self.client.create::<Network>(&network, None, false).await)?;
        Ok(())
    }

    /// What simulated VMs are made from.
    pub(crate) async fn make_template(&self) -> anyhow::Result<()> {
        Ok(sim::make_template(&self.client).await?)
    }

    /// A file with a token for a host that has not joined yet.
    pub(crate) async fn join_token(&self, dir: &Dir, name: &str) -> anyhow::Result<Option<PathBuf>> {
        if dir.host(name).join("host.json").exists() {
            return Ok(None);
        }
        let body = JoinTokenBody {
            name: Some(name.to_owned()),
        };
        let token: JoinToken = self.client.post("/v1/join-tokens", &body).await?;
        std::fs::create_dir_all(dir.host(name))?;
        let path = dir.host(name).join("join.token");
        server::pki::write_private(&path, &token.token)?;
        Ok(Some(path))
    }

    /// Waits until so many hosts are up.
    pub(crate) async fn wait_for_hosts(&self, hosts: usize) -> anyhow::Result<()> {
        let mut up = std::collections::BTreeSet::new();
        let mut changes = self.client.watch::<Host>(None).await?;
        while up.len() < hosts {
            let change = changes.next().await.context("the server ended the watch")??;
            if change.object.status.state == HostState::Up {
                up.insert(change.object.name);
            }
        }
        Ok(())
    }
}

fn create<S>(spec: S) -> Create<S> {
    Create {
        name: Some("default".to_owned()),
        labels: std::collections::BTreeMap::new(),
        spec,
    }
}

fn unless_there<T>(created: Result<T, ClientError>) -> Result<(), ClientError> {
    match created {
        Err(error) if error.code() != Some("name-taken") => Err(error),
        _ => Ok(()),
    }
}

/// What a host of N on one machine keeps back, so that together they promise no more than there is.
pub(crate) fn reserved_mib(hosts: u8) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let total = text.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    });
    let total_mib = total.context("finding MemTotal in /proc/meminfo")? / 1024;
    let for_guests = total_mib.saturating_sub(1024) / u64::from(hosts.max(1));
    Ok(total_mib.saturating_sub(for_guests))
}

/// Writes how to reach the server, when everything is ready.
pub(crate) fn write_env(dir: &Dir, server: SocketAddr) -> anyhow::Result<()> {
    let token = std::fs::read_to_string(dir.server().join("admin.token"))?;
    let ca = dir.server().join("ca.pem");
    let text = format!(
        "export STERNA_SERVER='https://{server}'\nexport STERNA_TOKEN='{}'\nexport STERNA_CACERT='{}'\n",
        token.trim(),
        quoted(&ca.to_string_lossy()),
    );
    server::pki::write_private(&dir.env(), &text).with_context(|| format!("writing {}", dir.env().display()))
}

/// A text within single quotes of a shell.
fn quoted(text: &str) -> String {
    text.replace('\'', r"'\''")
}

/// What to type next.
pub(crate) fn welcome(args: &UpArgs, dir: &Dir, server: SocketAddr) -> String {
    let env = quoted(&dir.env().to_string_lossy());
    let hosts = args.hosts;
    let end = if args.keep {
        "Ctrl-C leaves the VMs running; `sterna down` ends them too."
    } else {
        "Ctrl-C takes everything down."
    };
    format!(
        "ready: {hosts} hosts, server https://{server}\n\n\
         In another terminal:\n  \
         . '{env}'\n  \
         sterna host list\n  \
         sterna image import tiny --file target/guest.qcow2\n  \
         sterna template create small --image tiny --memory 256MiB --vcpus 1\n  \
         sterna vm create web --template small --wait=ready\n  \
         sterna vm migrate web --wait\n\n\
         `sterna context set local --from '{env}'` keeps the way here for all terminals.\n\
         {end}"
    )
}

/// The same where hosts are simulated.
pub(crate) fn welcome_to_simulated(dir: &Dir, server: SocketAddr, hosts: u16) -> String {
    let env = quoted(&dir.env().to_string_lossy());
    format!(
        "ready: {hosts} SIMULATED hosts, server https://{server}\n\
         The server is a real one; hosts and VMs are not: there is no QEMU, and nothing is kept.\n\n\
         In another terminal:\n  \
         . '{env}'\n  \
         sterna host list\n  \
         sterna vm create web --template small --wait=ready\n  \
         sterna vm migrate web --wait\n  \
         sterna host drain h1 --wait\n\n\
         Ctrl-C ends it."
    )
}

/// What to type when the guests were left running.
pub(crate) fn farewell(guests: usize, dir: &Dir) -> String {
    let dir = quoted(&dir.0.to_string_lossy());
    format!(
        "{guests} VMs run on, each reachable on its own host only until\n  \
         sterna up --keep --data-dir '{dir}'\n\
         finds them again; this ends them:\n  \
         sterna down --data-dir '{dir}'"
    )
}
