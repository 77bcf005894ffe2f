//! Processes as the kernel shows them.
//!
//! **Owns:** reading `/proc`: who descends from whom, who works in a directory; ending a process for good.
//!
//! **Does not know:** what the processes are for.
//!
//! **Start here:** [`all`].

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use qemu::spawn::{ProcessId, QemuProcess};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// How long a killed process may take to be gone.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// A process, as it was seen.
#[derive(Debug, Clone)]
pub struct Process {
    /// What tells it from all others.
    pub id: ProcessId,
    /// Its parent.
    pub parent: i32,
    /// Its program and arguments.
    pub command_line: Vec<String>,
    /// Where it works, if that may be seen.
    pub directory: Option<PathBuf>,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut after_name = stat.rsplit_once(')')?.1.split_whitespace();
        let state = after_name.next()?;
        let parent = after_name.next()?.parse().ok()?;
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words = command_line
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty());
        // What has ended and waits for its parent holds nothing any more.
        (state != "Z").then_some(())?;
        Some(Self {
            id: ProcessId::of(pid).ok()?,
            parent,
            command_line: words
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect(),
            directory: fs::read_link(format!("/proc/{pid}/cwd")).ok(),
        })
    }

    /// The process of a record, if it has not ended.
    pub fn of(id: ProcessId) -> Option<Self> {
        Self::read(id.pid).filter(|now| now.id == id)
    }

    /// Whether it is there still, and has not ended.
    pub fn is_there(&self) -> bool {
        Self::of(self.id.clone()).is_some()
    }

    /// Whether it was told of the directory, or works in it.
    pub fn concerns(&self, directory: &Path) -> bool {
        let text = directory.to_string_lossy();
        let works_there = self
            .directory
            .as_ref()
            .is_some_and(|own| own.starts_with(directory));
        works_there || self.command_line.iter().any(|word| word.contains(text.as_ref()))
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let words: String = self.command_line.join(" ").chars().take(160).collect();
        format!("process {} ({words})", self.id.pid)
    }
}

/// Every process that has not ended.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::read).collect()
}

/// Every process that descends from this one, itself left out.
pub fn descendants(ancestor: i32) -> Vec<Process> {
    let mut others = all();
    let mut found = Vec::new();
    let mut parents = BTreeSet::from([ancestor]);
    loop {
        let (below, rest): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|one| parents.contains(&one.parent));
        if below.is_empty() {
            return found;
        }
        parents.extend(below.iter().map(|one| one.id.pid));
        found.extend(below);
        others = rest;
    }
}

/// A process that stands still until this is dropped.
#[derive(Debug)]
pub struct Frozen(Pid);

impl Frozen {
    /// Stops it, as a debugger or a machine without room for it would.
    pub fn stop(pid: i32) -> anyhow::Result<Self> {
        let pid = Pid::from_raw(pid).context("no process has the number 0")?;
        kill_process(pid, Signal::STOP).with_context(|| format!("stopping process {pid:?}"))?;
        Ok(Self(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// Kills a process and waits until it has ended.
pub async fn kill(pid: i32) -> anyhow::Result<()> {
    let process = QemuProcess::open(pid).with_context(|| format!("opening process {pid}"))?;
    process.send_kill()?;
    match tokio::time::timeout(END_PATIENCE, process.gone()).await {
        Ok(gone) => gone
            .map(drop)
            .with_context(|| format!("waiting for process {pid}")),
        Err(_) => bail!("process {pid} was killed, and is still there"),
    }
}

/// Kills a process that is still the one that was seen; no error if it is gone.
pub(crate) fn kill_seen(process: &Process) {
    if let Ok(held) = QemuProcess::reopen(process.id.clone()) {
        let _ = held.send_kill();
    }
}

/// Asks a process to end, and waits for it on this thread; whether it ended in time.
pub fn terminate(pid: i32, patience: Duration) -> bool {
    let Some(pid) = Pid::from_raw(pid) else {
        return true;
    };
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else {
        return true;
    };
    let _ = kill_process(pid, Signal::TERM);
    let timeout = Timespec::try_from(patience).ok();
    let mut watched = [PollFd::new(&descriptor, PollFlags::IN)];
    matches!(poll(&mut watched, timeout.as_ref()), Ok(1))
}
