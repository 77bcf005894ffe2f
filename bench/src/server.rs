//! A server in a process of its own, on the loopback interface: with no hosts, or with simulated ones.
//!
//! **Owns:** the process, its directory, and the requests that are made to it.
//!
//! **Start here:** [`Server::alone`], [`Server::simulated`].

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api::Create;
use api::client::Client;
use api::kinds::{Datastore, DatastoreSpec, Vm, VmSpec};
use futures_util::{StreamExt, TryStreamExt, stream};
use model::vm::Power;
use testkit::world::program;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::process::Process;

/// How many requests are under way at a time where many are made.
const AT_ONCE: usize = 64;
const START_PATIENCE: Duration = Duration::from_secs(300);

/// A server that runs.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    token: String,
    ca: String,
    /// From the start of the process to its first answer.
    pub(crate) started: Duration,
}

impl Server {
    /// `sterna server` in a directory, which may have a store.
    pub(crate) async fn alone(dir: &Path) -> anyhow::Result<Self> {
        Self::alone_with(dir, &[]).await
    }

    /// The same, with these options too.
    pub(crate) async fn alone_with(dir: &Path, options: &[&str]) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("https://{}", listener.local_addr()?);
        let mut command = Command::new(program()?);
        command.args(["server", "--listen-stdin", "--listen", "127.0.0.1:0"]);
        command
            .args(["--requests-per-second", "0", "--data-dir"])
            .arg(dir)
            .args(options);
        command.stdin(Stdio::from(OwnedFd::from(listener)));
        let begun = Instant::now();
        let child = begin(command, "ready").await?;
        let read =
            |name: &str| std::fs::read_to_string(dir.join(name)).with_context(|| format!("reading {name}"));
        let (token, ca) = (read("admin.token")?.trim().to_owned(), read("ca.pem")?);
        Self::answering(child, url, token, ca, begun).await
    }

    /// `sterna up --simulate` in a directory.
    pub(crate) async fn simulated(dir: &Path, hosts: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(program()?);
        command
            .args(["up", "--simulate", &hosts.to_string(), "--data-dir"])
            .arg(dir);
        command.stdin(Stdio::null());
        let begun = Instant::now();
        let child = begin(command, "ready:").await?;
        let said = std::fs::read_to_string(dir.join("env")).context("reading env")?;
        let said = said
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        let said: BTreeMap<_, _> = said.map(|(key, value)| (key, value.trim_matches('\''))).collect();
        let value = |key: &str| {
            said.get(key)
                .map(|value| (*value).to_owned())
                .context("env is not complete")
        };
        let ca = std::fs::read_to_string(value("STERNA_CACERT")?)?;
        Self::answering(child, value("STERNA_SERVER")?, value("STERNA_TOKEN")?, ca, begun).await
    }

    async fn answering(
        child: Child,
        url: String,
        token: String,
        ca: String,
        begun: Instant,
    ) -> anyhow::Result<Self> {
        let mut server = Self {
            child,
            url,
            token,
            ca,
            started: Duration::ZERO,
        };
        server.client()?.store_status().await?;
        server.started = begun.elapsed();
        Ok(server)
    }

    /// A pool of connections of its own.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(&self.url, &self.token, &self.ca)?)
    }

    /// One HTTP/2 connection of its own.
    pub(crate) fn connection(&self) -> anyhow::Result<Client> {
        Ok(Client::multiplexed(&self.url, &self.token, &self.ca)?)
    }

    /// Its process.
    pub(crate) fn process(&self) -> anyhow::Result<Process> {
        Ok(Process(self.child.id().context("the server has ended")?))
    }

    /// Ends it in order.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        let pid = self
            .child
            .id()
            .and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
        let pid = pid.context("the server has ended")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let ended = self.child.wait().await?;
        ensure!(ended.success(), "the server ended with {ended}");
        Ok(())
    }

    /// An image and a template for VMs that no host has to run.
    pub(crate) async fn furnish(&self) -> anyhow::Result<()> {
        let client = self.client()?;
        let datastore = DatastoreSpec {
            path: "/nowhere".to_owned(),
            coherent: true,
        };
        client
            .create::<Datastore>(&named("default", datastore), None, false)
            .await?;
        sim::make_template(&client).await?;
        Ok(())
    }

    /// Creates VMs with these numbers, many at once on one pool of connections.
    pub(crate) async fn create_vms(
        &self,
        numbers: std::ops::Range<usize>,
        power: Power,
    ) -> anyhow::Result<Duration> {
        let client = self.client()?;
        client.store_status().await?;
        let begun = Instant::now();
        let made = stream::iter(numbers).map(|number| {
            let client = &client;
            async move {
                let vm = named(&vm_name(number), spec(power));
                client.create::<Vm>(&vm, None, false).await.map(drop)
            }
        });
        made.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        Ok(begun.elapsed())
    }
}

/// Starts a daemon, and waits for the line with which it says that it is ready.
async fn begin(mut command: Command, word: &str) -> anyhow::Result<Child> {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command.env("STERNA_LOG", "warn");
    let mut child = command.spawn().context("starting the server")?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let said = async {
        while let Some(line) = lines.next_line().await? {
            if line.starts_with(word) {
                return anyhow::Ok(());
            }
        }
        anyhow::bail!("the server ended: see what `sterna server` says")
    };
    tokio::time::timeout(START_PATIENCE, said)
        .await
        .context("the server is not ready")??;
    // What it says later is read by nobody, and is little.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok(child)
}

pub(crate) fn vm_name(number: usize) -> String {
    format!("bench-{number}")
}

fn spec(power: Power) -> VmSpec {
    VmSpec {
        template: Some("small".to_owned()),
        power: Some(power),
        ..VmSpec::default()
    }
}

fn named<S>(name: &str, spec: S) -> Create<S> {
    Create {
        name: Some(name.to_owned()),
        labels: BTreeMap::new(),
        spec,
    }
}
