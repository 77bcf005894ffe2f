//! One process, held so that its number cannot come to mean another.
//!
//! *Owns:* the process descriptor, and what identifies a process across restarts of the agent. *Does not know:* QEMU.
//! *Start here:* [`QemuProcess::open`], [`QemuProcess::reopen`].

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, WaitId, WaitIdOptions, pidfd_getfd};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::RECORD_FILE;

/// By how much guests' processors are nicer: they get a third of the weight of what is not.
const GUEST_NICE: i32 = 5;
const LAST_NICE: i32 = 19;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What tells a process from all others, before and after it, on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it started, in the kernel's ticks since boot.
    pub start_ticks: u64,
    /// The boot that these ticks count from.
    pub boot_id: String,
}

impl ProcessId {
    /// Of the process that has this number now.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let boot_id = fs::read_to_string(BOOT_ID)?;
        Ok(Self {
            pid,
            start_ticks: start_ticks(&stat)?,
            boot_id: boot_id.trim().to_owned(),
        })
    }

    pub(super) fn read(directory: &Path) -> io::Result<Self> {
        let bytes = fs::read(directory.join(RECORD_FILE))?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let path = directory.join(RECORD_FILE);
        let new = path.with_extension("json.new");
        fs::write(&new, serde_json::to_vec(self).map_err(io::Error::other)?)?;
        fs::rename(new, path)
    }
}

/// Field 22. The second field, the name, may itself hold spaces and brackets: count from its end.
fn start_ticks(stat: &str) -> io::Result<u64> {
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest);
    let field = after_name.and_then(|rest| rest.split_whitespace().nth(19));
    let ticks = field.and_then(|field| field.parse().ok());
    ticks.ok_or_else(|| io::Error::other("a process's start time cannot be read"))
}

/// A process that is held by a descriptor: signals reach it or nobody.
#[derive(Debug)]
pub struct QemuProcess {
    id: ProcessId,
    descriptor: OwnedFd,
    /// Its end is told once by the kernel, and asked for by several.
    exit: Mutex<Option<Exit>>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It is gone; how is known to its parent only, which is not this process.
    NotOurChild,
}

impl fmt::Display for Exit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(formatter, "exit code {code}"),
            Self::Signal(signal) => write!(formatter, "signal {signal}"),
            Self::NotOurChild => write!(formatter, "end seen by its lock only"),
        }
    }
}

/// Why a process counts as running still.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// It was not seen to end.
    #[error(
        "QEMU (process {pid}) was killed and is still there; if it stays, only a restart of this machine ends it"
    )]
    NotGone {
        /// Its number.
        pid: i32,
        /// The system's answer, unless it is the deadline that passed.
        source: Option<io::Error>,
    },
}

impl QemuProcess {
    /// Holds the process that has this number now: a child that was not waited for, or one known by other means.
    pub fn open(pid: i32) -> io::Result<Self> {
        let descriptor = open_descriptor(pid)?;
        let id = ProcessId::of(pid)?;
        Ok(Self {
            id,
            descriptor,
            exit: Mutex::default(),
        })
    }

    /// Holds the process of a record, if it is still that one.
    pub fn reopen(id: ProcessId) -> io::Result<Self> {
        let process = Self::open(id.pid)?;
        if process.id == id {
            return Ok(process);
        }
        let pid = id.pid;
        Err(io::Error::other(format!("process {pid} is another one now")))
    }

    /// What tells it from all others.
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Its sockets, as descriptors of ours. The kernel allows it to whom it allows to trace the process: to root, and to the
    /// parent.
    pub(crate) fn sockets(&self) -> io::Result<Vec<OwnedFd>> {
        let mut sockets = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.id.pid))? {
            let entry = entry?;
            // It may be closed by now.
            let is_socket = fs::read_link(entry.path())
                .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
            let number = entry.file_name().to_string_lossy().parse();
            if let (true, Ok(number)) = (is_socket, number) {
                match pidfd_getfd(&self.descriptor, number, PidfdGetfdFlags::empty()) {
                    Ok(socket) => sockets.push(socket),
                    Err(Errno::BADF) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(sockets)
    }

    /// Kills it, without waiting for its end; see [`kill`](super::kill). No error if it has ended already.
    pub fn send_kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.descriptor, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process has ended, and reaps it if it is our child. Cancel-safe; needs a tokio runtime.
    pub async fn gone(&self) -> io::Result<Exit> {
        // A descriptor of its own, so that several may wait.
        let watched = watch(self.descriptor.try_clone()?)?;
        let _ready = watched.readable().await?;
        self.reap()
    }

    fn reap(&self) -> io::Result<Exit> {
        let mut known = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(exit) = *known {
            return Ok(exit);
        }
        let exit = self.wait()?;
        *known = Some(exit);
        Ok(exit)
    }

    fn wait(&self) -> io::Result<Exit> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let waited = rustix::process::waitid(WaitId::PidFd(self.descriptor.as_fd()), options);
        match waited {
            Ok(Some(status)) => {
                let code = status.exit_status().map(Exit::Code);
                let signal = status.terminating_signal().map(Exit::Signal);
                Ok(code.or(signal).unwrap_or(Exit::NotOurChild))
            }
            Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(Exit::NotOurChild),
            Err(error) => Err(error.into()),
        }
    }
}

/// Makes threads give way to what runs with this process's niceness. Needs no privileges.
pub fn yield_to_others(threads: &[i32]) -> io::Result<()> {
    let nice = rustix::process::getpriority_process(None)? + GUEST_NICE;
    let threads = threads.iter().filter_map(|thread| Pid::from_raw(*thread));
    for thread in threads {
        // For the kernel a thread is what this names, whatever the call's name says.
        rustix::process::setpriority_process(Some(thread), nice.min(LAST_NICE))?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "tokio has no safe way to watch a descriptor")]
fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what watches it, so it stays open, and the same one, for as long.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(watched?)
}

fn open_descriptor(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_start_time() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(start_ticks(stat).unwrap(), 4711);
        assert!(start_ticks("7 (a").is_err());
    }

    #[test]
    fn a_record_of_another_boot_or_start_is_not_believed() {
        let own = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        QemuProcess::reopen(own.clone()).unwrap();
        let mut other_boot = own.clone();
        other_boot.boot_id = "of before".to_owned();
        assert!(QemuProcess::reopen(other_boot).is_err());
        let mut other_start = own;
        other_start.start_ticks += 1;
        assert!(QemuProcess::reopen(other_start).is_err());
    }
}
