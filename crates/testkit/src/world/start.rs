//! Starting `sterna up`: as whom, with what, and what it is started from.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe;

use super::end::Stage;
use super::{Keep, Owner, data};
use crate::clean::Machine;

/// The user and group that own nothing.
const NOBODY: &str = "65534";

/// The user for all QEMUs of a host, in a container.
pub const COMMON_USER: (&str, u32) = ("sterna-qemu", 64_003);
const CONTAINED: &str = include_str!("contained.sh");

pub(super) type Output = Lines<BufReader<pipe::Receiver>>;

/// How a `sterna up` is started.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) root: PathBuf,
    pub(super) owner: Owner,
    pub(super) hosts: u8,
    pub(super) keep: Keep,
    /// Of its environment, beside the test's own.
    pub(super) variables: Vec<(&'static str, String)>,
    /// Of `sterna up`, beside what every world has.
    pub(super) options: Vec<String>,
}

impl Start {
    /// The program, as the owner and in the directory. With the parent-death signal a world ends also when its test is
    /// killed.
    pub(super) fn sterna(&self, command: &str) -> anyhow::Result<Command> {
        let mut setpriv = match self.owner {
            Owner::Contained => self.container()?,
            Owner::Tester | Owner::Nobody => Command::new("setpriv"),
        };
        setpriv.args(["--pdeathsig", "TERM"]);
        if self.owner == Owner::Nobody {
            fs::set_permissions(&self.root, fs::Permissions::from_mode(0o777))?;
            setpriv.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
        }
        setpriv
            .envs(self.variables.iter().cloned())
            .arg(program()?)
            .arg(command)
            .arg("--data-dir")
            .arg(data(&self.root));
        Ok(setpriv)
    }

    /// What runs setpriv in a container.
    fn container(&self) -> anyhow::Result<Command> {
        let users = self.root.join("passwd");
        let (name, id) = COMMON_USER;
        let others = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
        fs::write(
            &users,
            format!("{others}{name}:x:{id}:{id}::/:/usr/sbin/nologin\n"),
        )?;
        let mut shell = Command::new("sh");
        shell
            .args(["-c", CONTAINED, "contained.sh"])
            .arg(users)
            .arg("setpriv");
        Ok(shell)
    }
}

/// The process of `sterna up` and its directory. Dropped before its time, it belongs to a test that failed.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) start: Start,
    pub(super) child: Child,
    pub(super) before: Machine,
    pub(super) stage: Stage,
}

impl Up {
    pub(super) fn spawn(start: Start, before: Machine) -> anyhow::Result<(Self, Output)> {
        let mut command = start.sterna("up")?;
        command.args(["--hosts", &start.hosts.to_string()]);
        command.args(&start.options);
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

    pub(super) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

/// Waits until it says that all is ready.
pub(super) async fn says_ready(output: &mut Output) -> anyhow::Result<()> {
    while let Some(line) = output.next_line().await? {
        if line.starts_with("ready:") {
            return Ok(());
        }
    }
    bail!("sterna up ended before it was ready")
}

/// The program under test: `STERNA_BIN`, or the one that was built beside this.
pub fn program() -> anyhow::Result<PathBuf> {
    found("STERNA_BIN", "sterna", "make build")
}

/// The guest's image: `STERNA_GUEST`, or the one in the directory that this was built in.
pub fn guest_image() -> anyhow::Result<PathBuf> {
    found("STERNA_GUEST", "guest.qcow2", "make guest")
}

/// The image of a Debian with cloud-init.
pub fn debian_image() -> anyhow::Result<PathBuf> {
    found(
        "STERNA_DEBIAN",
        "debian.qcow2",
        "guest/debian.sh target/debian.qcow2",
    )
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
