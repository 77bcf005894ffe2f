//! A world: one `sterna up` in a temporary directory, from its start to the proof that nothing of it is left.
//!
//! **Owns:** the process, its directory, and where in that directory everything lies.
//!
//! **Does not know:** VMs; see [`crate::vms`].
//!
//! A test ends its world with [`World::down`], which fails if anything stays behind. A world that is dropped without it
//! belongs to a test that failed: it is taken down all the same, and the logs' last lines are shown;
//! with `STERNA_KEEP` set its directory stays for a closer look.
//!
//! `start`, `leave`, `kill`, `copy` and `end` have what happens to it.
//!
//! **Start here:** [`World::up`].

mod copy;
mod end;
mod kill;
mod leave;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use api::client::Client;
use model::VmId;
use tokio::time::timeout;

use crate::clean::Machine;
use crate::clocks;
use crate::process::{self, Process};

pub use copy::Copied;
pub use leave::Left;
pub use start::{COMMON_USER, debian_image, guest_image, program};

use start::{Output, Start, Up, says_ready};

/// How long a world may take to be ready, on a machine that has other things to do.
const UP_PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to be gone.
const DOWN_PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// For [`World::up_with`]: what two QEMUs send each other is held by the kernel as it likes, and by as much as
/// [`World::make_room`] says.
pub const ROOM: &[(&str, &str)] = &[("STERNA_MIGRATION_BUFFER_KIB", "0")];

/// Who a world belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whoever runs the test.
    Tester,
    /// An ordinary user, whom root becomes for it.
    Nobody,
    /// Root of a container that has few users, and among them [`COMMON_USER`].
    Contained,
}

/// Whether VMs outlive their `sterna up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything ends with it.
    Nothing,
    /// VMs run on.
    Vms,
}

/// A running cloud.
#[derive(Debug)]
pub struct World {
    up: Up,
    /// Kept open, since a program that writes to a closed pipe fails.
    _output: Output,
    client: Client,
}

impl World {
    /// Starts so many hosts and waits until all are ready.
    pub async fn up(hosts: u8) -> anyhow::Result<Self> {
        Self::up_as(Owner::Tester, hosts).await
    }

    /// As [`World::up`], for the owner.
    pub async fn up_as(owner: Owner, hosts: u8) -> anyhow::Result<Self> {
        Self::fresh(owner, hosts, Keep::Nothing).await
    }

    /// As [`World::up_as`], with VMs that outlive its `sterna up`; see [`World::leave`].
    pub async fn up_kept(owner: Owner, hosts: u8) -> anyhow::Result<Self> {
        Self::fresh(owner, hosts, Keep::Vms).await
    }

    /// As [`World::up`]; its programs have these variables in their environment, and its clocks can be set.
    pub async fn up_with(
        hosts: u8,
        variables: &'static [(&'static str, &'static str)],
    ) -> anyhow::Result<Self> {
        let mut start = Self::place(Owner::Tester, hosts, Keep::Nothing)?;
        start.variables = clocks::prepare(&start.root, hosts)?.into();
        let variables = variables.iter().map(|(key, value)| (*key, (*value).to_owned()));
        start.variables.extend(variables);
        Self::start(start, Machine::look()).await
    }

    /// As [`World::up`]; its `sterna up` has these options too.
    pub async fn up_told(hosts: u8, options: &[&str]) -> anyhow::Result<Self> {
        let mut start = Self::place(Owner::Tester, hosts, Keep::Nothing)?;
        start.options = options.iter().map(|option| (*option).to_owned()).collect();
        Self::start(start, Machine::look()).await
    }

    /// One in a directory of its own.
    async fn fresh(owner: Owner, hosts: u8, keep: Keep) -> anyhow::Result<Self> {
        Self::start(Self::place(owner, hosts, keep)?, Machine::look()).await
    }

    fn place(owner: Owner, hosts: u8, keep: Keep) -> anyhow::Result<Start> {
        let root = tempfile::Builder::new().prefix("sterna-world-").tempdir()?.keep();
        Ok(Start {
            root,
            owner,
            hosts,
            keep,
            variables: Vec::new(),
            options: Vec::new(),
        })
    }

    async fn start(start: Start, before: Machine) -> anyhow::Result<Self> {
        let (mut up, mut output) = Up::spawn(start, before)?;
        let ready = timeout(UP_PATIENCE, says_ready(&mut output)).await;
        up.is_in_use();
        ready.with_context(|| format!("sterna up was not ready within {UP_PATIENCE:?}"))??;
        let client = client(&data(&up.start.root).join("env"))?;
        Ok(Self {
            up,
            _output: output,
            client,
        })
    }

    /// A client of its server, as its first operator.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What a program needs in its environment to ask its server.
    pub fn environment(&self) -> anyhow::Result<BTreeMap<String, String>> {
        environment(&data(&self.up.start.root).join("env"))
    }

    /// The directory that was given to `sterna up`.
    pub fn directory(&self) -> PathBuf {
        data(&self.up.start.root)
    }

    /// Where all of it is.
    pub(crate) fn root(&self) -> &Path {
        &self.up.start.root
    }

    /// A host's directory.
    pub fn host(&self, host: &str) -> PathBuf {
        self.directory().join("hosts").join(host)
    }

    /// A VM's directory on a host.
    pub fn vm(&self, host: &str, vm: VmId) -> PathBuf {
        self.host(host).join("vms").join(vm.to_string())
    }

    /// Where the volumes of all VMs are.
    pub fn volumes(&self) -> PathBuf {
        self.directory().join("datastore").join("volumes")
    }

    /// The process of `sterna up`.
    pub fn up_pid(&self) -> i32 {
        self.up.pid()
    }

    /// The server's process now.
    pub fn server_pid(&self) -> anyhow::Result<i32> {
        let server = self.child("the server", |words| {
            words.get(1).is_some_and(|word| word == "server")
        });
        server.map(|process| process.id.pid)
    }

    /// The process of a host's agent now.
    pub fn agent_pid(&self, host: &str) -> anyhow::Result<i32> {
        self.agent(host).map(|process| process.id.pid)
    }

    /// The interfaces in a host's network namespace.
    pub fn interfaces(&self, host: &str) -> anyhow::Result<BTreeSet<String>> {
        let path = format!("/proc/{}/net/dev", self.agent_pid(host)?);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let names = text.lines().filter_map(|line| line.split_once(':'));
        Ok(names.map(|(name, _)| name.trim().to_owned()).collect())
    }

    /// The program as a user's command, with this cloud for its server.
    pub fn command(&self, words: &[&str]) -> anyhow::Result<tokio::process::Command> {
        let mut command = tokio::process::Command::new(program()?);
        command.args(words).kill_on_drop(true).envs(self.environment()?);
        Ok(command)
    }

    /// A host's address in the underlay.
    pub fn address(&self, host: &str) -> anyhow::Result<Ipv4Addr> {
        let agent = self.agent(host)?;
        let pairs = agent.command_line.windows(2);
        let mut values = pairs.filter(|pair| pair[0] == "--address").map(|pair| &pair[1]);
        let value = values.next().context("an agent was not told its address")?;
        value.parse().with_context(|| format!("{value} is no address"))
    }

    fn agent(&self, host: &str) -> anyhow::Result<Process> {
        let names_it = |pair: &[String]| pair[0] == "--name" && pair[1] == host;
        self.child(host, |words| {
            words.get(1).is_some_and(|word| word == "agent") && words.windows(2).any(names_it)
        })
    }

    fn child(&self, what: &str, is_it: impl Fn(&[String]) -> bool) -> anyhow::Result<Process> {
        let children = process::all()
            .into_iter()
            .filter(|process| process.parent == self.up_pid());
        let mut found = children.filter(|process| is_it(&process.command_line));
        found.next().with_context(|| format!("{what} has no process now"))
    }

    /// Takes everything down, and fails if anything of it is left.
    pub async fn down(self) -> anyhow::Result<()> {
        let Self { mut up, .. } = self;
        let left = up.end();
        ensure!(left.is_empty(), "after the end of the world: {}", left.join("; "));
        up.remove()
    }
}

fn data(root: &Path) -> PathBuf {
    root.join("data")
}

/// What a file that `sterna up` writes for the shell sets.
fn environment(env: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(env).with_context(|| format!("reading {}", env.display()))?;
    let said = text
        .lines()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    Ok(said
        .map(|(key, value)| (key.to_owned(), value.trim_matches('\'').to_owned()))
        .collect())
}

/// A client from the file that `sterna up` writes for shells.
fn client(env: &Path) -> anyhow::Result<Client> {
    let said = environment(env)?;
    let value = |key: &str| {
        said.get(key)
            .with_context(|| format!("{key} is not in {}", env.display()))
    };
    let ca = fs::read_to_string(value("STERNA_CACERT")?).context("reading the CA's certificate")?;
    Ok(Client::new(value("STERNA_SERVER")?, value("STERNA_TOKEN")?, &ca)?)
}
