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
//! **Start here:** [`World::up`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use api::client::Client;
use model::VmId;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::time::{sleep, timeout};

use crate::clean::{self, Machine};
use crate::process::{self, Process};

/// How long a world may take to be ready, on a machine that has other things to do.
const UP_PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to be gone.
const DOWN_PATIENCE: Duration = Duration::from_secs(30);
/// How long the kernel may take to remove what ended processes held.
const GONE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a supervised process that was killed may take to be back.
const AGAIN_PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);
/// How many lines of each log are shown of a world that failed.
const LOG_LINES: usize = 25;
/// Set: what a failed test leaves is not removed.
const KEEP: &str = "STERNA_KEEP";

/// Who a world belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whoever runs the test.
    Tester,
    /// An ordinary user, whom root becomes for it.
    Nobody,
}

/// The user and group that own nothing.
const NOBODY: &str = "65534";

/// A running cloud.
#[derive(Debug)]
pub struct World {
    up: Up,
    /// Kept open, since a program that writes to a closed pipe fails.
    _output: Output,
    client: Client,
}

type Output = Lines<BufReader<pipe::Receiver>>;

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

    /// As [`World::up`]; server and agents log all that they have to say, as JSON.
    pub async fn up_talkative(hosts: u8) -> anyhow::Result<Self> {
        let mut start = Self::place(Owner::Tester, hosts, Keep::Nothing)?;
        start.variables = &[("STERNA_LOG", "debug"), ("STERNA_LOG_FORMAT", "json")];
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
            variables: &[],
        })
    }

    async fn start(start: Start, before: Machine) -> anyhow::Result<Self> {
        let (mut up, mut output) = Up::spawn(start, before)?;
        let ready = timeout(UP_PATIENCE, says_ready(&mut output)).await;
        up.stage = Stage::InUse;
        ready.with_context(|| format!("sterna up was not ready within {UP_PATIENCE:?}"))??;
        let client = client(&data(&up.start.root).join("env"))?;
        Ok(Self {
            up,
            _output: output,
            client,
        })
    }

    /// Ends `sterna up` and waits until its server and its agents have ended too. Only VMs are left.
    pub async fn leave(self, how: Signal) -> anyhow::Result<Left> {
        let Self { mut up, .. } = self;
        let children: Vec<Process> = process::all()
            .into_iter()
            .filter(|one| one.parent == up.pid() && one.command_line.iter().any(|word| word == "--parent"))
            .collect();
        ensure!(!children.is_empty(), "sterna up has no server and no agents");
        let pid = Pid::from_raw(up.pid()).context("sterna up has no number")?;
        kill_process(pid, how).context("ending sterna up")?;
        let ended = async {
            loop {
                match up.child.try_wait()? {
                    Some(status) => return anyhow::Ok(status),
                    None => sleep(PAUSE).await,
                }
            }
        };
        let status = timeout(DOWN_PATIENCE, ended)
            .await
            .context("sterna up does not end")??;
        up.stage = Stage::Over;
        // From here on it is what is left that clears up after a failed test.
        let left = Left {
            start: Some(up.start.clone()),
            before: up.before.clone(),
        };
        ensure!(
            how == Signal::KILL || status.success(),
            "sterna up ended with {status}"
        );
        let gone = async {
            while children.iter().any(Process::is_there) {
                sleep(PAUSE).await;
            }
        };
        timeout(DOWN_PATIENCE, gone)
            .await
            .context("server and agents outlive sterna up")?;
        Ok(left)
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

    /// Kills the server and waits until another one has been started.
    pub async fn kill_server(&self) -> anyhow::Result<()> {
        kill_and_wait(|| self.server_pid()).await
    }

    /// Kills a host's agent and waits until another one has been started.
    pub async fn kill_agent(&self, host: &str) -> anyhow::Result<()> {
        kill_and_wait(|| self.agent_pid(host)).await
    }

    /// Takes everything down, and fails if anything of it is left.
    pub async fn down(self) -> anyhow::Result<()> {
        let Self { mut up, .. } = self;
        let left = up.end();
        ensure!(left.is_empty(), "after the end of the world: {}", left.join("; "));
        up.remove()
    }
}

/// Whether VMs outlive their `sterna up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything ends with it.
    Nothing,
    /// VMs run on.
    Vms,
}

/// How a `sterna up` is started.
#[derive(Debug, Clone)]
struct Start {
    root: PathBuf,
    owner: Owner,
    hosts: u8,
    keep: Keep,
    /// Of its environment, beside the test's own.
    variables: &'static [(&'static str, &'static str)],
}

/// What is left of a world without its `sterna up`. Dropped, it belongs to a test that failed: it is taken down.
#[derive(Debug)]
pub struct Left {
    /// Absent: somebody else has it now.
    start: Option<Start>,
    before: Machine,
}

impl Left {
    /// Starts `sterna up` again in the same directory.
    pub async fn up(mut self, keep: Keep) -> anyhow::Result<World> {
        let start = self.start.take().context("nothing is left")?;
        World::start(Start { keep, ..start }, self.before.clone()).await
    }

    /// Takes down by `sterna down`, and fails if anything is left.
    pub fn down(mut self) -> anyhow::Result<()> {
        let start = self.start.take().context("nothing is left")?;
        let ended = start.sterna("down")?.output().context("starting sterna down")?;
        let left = left(&start.root, &[], &self.before);
        for process in clean::processes(&start.root, &[]) {
            process::kill_seen(&process);
        }
        fs::remove_dir_all(&start.root).with_context(|| format!("removing {}", start.root.display()))?;
        ensure!(
            ended.status.success(),
            "sterna down: {}",
            String::from_utf8_lossy(&ended.stderr)
        );
        ensure!(left.is_empty(), "after sterna down: {}", left.join("; "));
        Ok(())
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if let Some(start) = self.start.take() {
            let processes = clean::processes(&start.root, &[]);
            processes.iter().for_each(process::kill_seen);
            show_failure(&start.root, &[]);
        }
    }
}

impl Start {
    /// The program, as the owner and in the directory. With the parent-death signal a world ends also when its test is
    /// killed.
    fn sterna(&self, command: &str) -> anyhow::Result<Command> {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--pdeathsig", "TERM"]);
        if self.owner == Owner::Nobody {
            fs::set_permissions(&self.root, fs::Permissions::from_mode(0o777))?;
            setpriv.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
        }
        setpriv
            .envs(self.variables.iter().copied())
            .arg(program()?)
            .arg(command)
            .arg("--data-dir")
            .arg(data(&self.root));
        Ok(setpriv)
    }
}

/// The process of `sterna up` and its directory. Dropped before its time, it belongs to a test that failed.
#[derive(Debug)]
struct Up {
    start: Start,
    child: Child,
    before: Machine,
    stage: Stage,
}

/// What a drop means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody waits for it any more: it ends in silence.
    Starting,
    /// Its test failed.
    InUse,
    /// Nothing runs, and something was left.
    EndedBadly,
    /// Nothing is left.
    Over,
}

impl Up {
    fn spawn(start: Start, before: Machine) -> anyhow::Result<(Self, Output)> {
        let mut command = start.sterna("up")?;
        command.args(["--hosts", &start.hosts.to_string()]);
        if start.keep == Keep::Vms {
            command.arg("--keep");
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(start.root.join("up.log"))?;
        // In a process group of its own: Ctrl-C is for whoever has the terminal, who then ends this.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0);
        let child = command.spawn().context("starting sterna up by setpriv")?;
        let mut up = Self {
            start,
            child,
            before,
            stage: Stage::Starting,
        };
        let output = up.child.stdout.take().context("sterna up has no output")?;
        let output = pipe::Receiver::from_owned_fd(OwnedFd::from(output))?;
        Ok((up, BufReader::new(output).lines()))
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn remove(&mut self) -> anyhow::Result<()> {
        self.stage = Stage::Over;
        fs::remove_dir_all(&self.start.root)
            .with_context(|| format!("removing {}", self.start.root.display()))
    }

    /// Ends all processes, the stubborn ones by force; what was not as it should be.
    fn end(&mut self) -> Vec<String> {
        self.stage = Stage::EndedBadly;
        let mut problems = Vec::new();
        let seen = process::descendants(self.pid());
        if !process::terminate(self.pid(), DOWN_PATIENCE) {
            problems.push(format!("sterna up did not end within {DOWN_PATIENCE:?}"));
            let stubborn = process::descendants(self.pid());
            let _ = self.child.kill();
            stubborn.iter().for_each(process::kill_seen);
        }
        match self.child.wait() {
            Ok(status) if status.success() => {}
            Ok(status) => problems.push(format!("sterna up ended with {status}")),
            Err(error) => problems.push(format!("sterna up could not be waited for: {error}")),
        }
        if self.start.keep == Keep::Vms {
            problems.extend(self.end_kept());
        }
        problems.extend(left(&self.start.root, &seen, &self.before));
        clean::processes(&self.start.root, &seen)
            .iter()
            .for_each(process::kill_seen);
        problems
    }
}

impl Up {
    /// What a `sterna up --keep` left running ends by `sterna down`.
    fn end_kept(&self) -> Option<String> {
        let ended = self.start.sterna("down").and_then(|mut down| Ok(down.output()?));
        match ended {
            Ok(ended) if ended.status.success() => None,
            Ok(ended) => Some(format!("sterna down: {}", String::from_utf8_lossy(&ended.stderr))),
            Err(error) => Some(format!("sterna down: {error:#}")),
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let left = match self.stage {
            Stage::Over => return,
            Stage::EndedBadly => Vec::new(),
            Stage::Starting | Stage::InUse => {
                let was = self.stage;
                let left = self.end();
                if was == Stage::Starting && left.is_empty() && self.remove().is_ok() {
                    return;
                }
                left
            }
        };
        show_failure(&self.start.root, &left);
    }
}

async fn says_ready(output: &mut Output) -> anyhow::Result<()> {
    while let Some(line) = output.next_line().await? {
        if line.starts_with("ready:") {
            return Ok(());
        }
    }
    bail!("sterna up ended before it was ready")
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

async fn kill_and_wait(pid: impl Fn() -> anyhow::Result<i32>) -> anyhow::Result<()> {
    let old = pid()?;
    process::kill(old).await?;
    let again = async {
        while pid().is_err() {
            sleep(PAUSE).await;
        }
    };
    timeout(AGAIN_PATIENCE, again)
        .await
        .context("a killed process was not started again")
}

/// What is left after a world, once the kernel has had its time.
fn left(root: &Path, seen: &[Process], before: &Machine) -> Vec<String> {
    let deadline = Instant::now() + GONE_PATIENCE;
    loop {
        let mut left: Vec<String> = clean::processes(root, seen)
            .iter()
            .map(Process::describe)
            .collect();
        left.extend(before.additions());
        if left.is_empty() || Instant::now() > deadline {
            return left.into_iter().map(|what| format!("{what} is left")).collect();
        }
        std::thread::sleep(PAUSE);
    }
}

/// Shows what may help to find out why, and clears up.
fn show_failure(root: &Path, left: &[String]) {
    for what in left {
        eprintln!("after its end: {what}");
    }
    for log in logs(root) {
        let text = fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("--- {}", log.display());
        for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
            eprintln!("{line}");
        }
    }
    let directory = root.display();
    if std::env::var_os(KEEP).is_some() {
        eprintln!("the world's directory is kept: {directory}");
    } else if let Err(error) = fs::remove_dir_all(root) {
        eprintln!("the world's directory {directory} stays: {error}");
    } else {
        eprintln!("set {KEEP}=1 to keep the world's directory the next time");
    }
}

/// The logs of `sterna up`, of server and agents, and of the guests' consoles.
fn logs(root: &Path) -> Vec<PathBuf> {
    let below = |directory: PathBuf| -> Vec<PathBuf> {
        let entries = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let hosts = below(data(root).join("hosts"));
    let vms = hosts.into_iter().flat_map(|host| below(host.join("vms")));
    let of_vms = vms.flat_map(below).flat_map(|path| [path.join("qemu.log"), path]);
    let of_vms = of_vms.filter(|path| path.is_file() && path.extension().is_some_and(|end| end == "log"));
    std::iter::once(root.join("up.log"))
        .chain(below(data(root).join("log")))
        .chain(of_vms)
        .collect()
}

/// The program under test: `STERNA_BIN`, or the one that was built beside this.
pub fn program() -> anyhow::Result<PathBuf> {
    found("STERNA_BIN", "sterna", "make build")
}

/// The guest's image: `STERNA_GUEST`, or the one in the directory that this was built in.
pub fn guest_image() -> anyhow::Result<PathBuf> {
    found("STERNA_GUEST", "guest.qcow2", "make guest")
}

fn found(variable: &str, name: &str, remedy: &str) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable).map(PathBuf::from) {
        ensure!(
            path.is_file(),
            "{variable} names {}, which is no file: run `{remedy}`",
            path.display()
        );
        return Ok(path);
    }
    let own = std::env::current_exe().context("finding this program")?;
    let near = own
        .ancestors()
        .skip(1)
        .take(3)
        .map(|directory| directory.join(name));
    let path = near.into_iter().find(|path| path.is_file());
    path.with_context(|| {
        format!(
            "no {name} near {}: run `{remedy}`, or set {variable}",
            own.display()
        )
    })
}
