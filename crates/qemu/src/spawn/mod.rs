//! The life of a QEMU process: start, find again after the agent's restart, kill, reap.
//!
//! *Owns:* the process's files in the VM's directory: [`LOCK_FILE`], [`RECORD_FILE`], [`LOG_FILE`]. *Does not know:* whether a
//! VM should run, or what its command line says. *Start here:* [`spawn`], then [`find`].
//!
//! **Whose process is it.** QEMU holds a lock on the VM's `lock` file through an inherited descriptor, so "lock free" means
//! "process gone", whoever is its parent. A pid says nothing by itself: it counts together with the process's start time and
//! the machine's boot id, and the VM's uuid is asked for by QMP.
//!
//! **How the lock is inherited.** It is QEMU's standard input: an empty file, which reads like `/dev/null`. A descriptor
//! that is left open across `exec` instead would be inherited by whatever else the agent starts in the same instant, which
//! would then hold a dead VM's lock. So images, which are handed over too, are left open in the child alone.
//!
//! **What it may reach.** Images are opened for it, and come as descriptors too. So it needs no right over any file, and can
//! be a user of its own: see [`User`].
//!
//! **What happens to it when the agent ends.** Nothing: QEMU has a session of its own and its output goes to a file. There is
//! no parent-death signal.

mod log;
mod process;
mod user;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::thread::disable_transparent_huge_pages;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

pub use log::{LOG_BYTES_MAX, LOG_FILE, last_line, log_tail, trim_log};
pub use process::{Exit, KillError, ProcessId, QemuProcess, yield_to_others};
pub use user::{User, try_user};

use crate::command_line::{Access, Cache, CommandLine, OpenFile, QMP_SOCKET};
use crate::qmp::{Events, Qmp, QmpError};

/// The file that QEMU holds a lock on, in the VM's directory.
pub const LOCK_FILE: &str = "lock";
/// The file with the [`ProcessId`] of the VM's QEMU, in the VM's directory.
pub const RECORD_FILE: &str = "process.json";

/// How often a monitor that is not there yet is tried again.
const CONNECT_PAUSE: Duration = Duration::from_millis(2);
/// How long a QEMU that closed its monitor may take to end.
const END_AFTER_CLOSE: Duration = Duration::from_millis(500);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why no QEMU runs.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Another process holds the lock: this VM's QEMU, still running.
    #[error("a QEMU of this VM still holds {}: find it, and kill it first", lock.display())]
    Occupied {
        /// The lock.
        lock: PathBuf,
    },
    /// A file of the VM's directory is in the way.
    #[error("starting QEMU: cannot prepare {}", path.display())]
    Prepare {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file that QEMU is to have.
    #[error("starting QEMU: cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The program could not be started.
    #[error("starting QEMU: cannot run {}: is it installed?", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It was started, but could not be recorded, and was killed.
    #[error("QEMU was started, but its record {} could not be written, so it was killed", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Starts `program` as `user`, or as the caller's, in the VM's directory `directory`, which exists. The process survives its
/// starter.
///
/// It is launched when this returns, and answers on its monitor a few tens of milliseconds later: see [`connect`].
pub fn spawn(
    program: &Path,
    line: &CommandLine,
    directory: &Path,
    user: Option<User>,
) -> Result<QemuProcess, SpawnError> {
    let lock = take_lock(directory)?;
    let files: Vec<File> = line.files.iter().map(open).collect::<Result<_, _>>()?;
    let prepare = |path: &str, source| SpawnError::Prepare {
        path: directory.join(path),
        source,
    };
    trim_log(directory).map_err(|source| prepare(LOG_FILE, source))?;
    let log = log::open(directory).map_err(|source| prepare(LOG_FILE, source))?;
    let log_too = log.try_clone().map_err(|source| prepare(LOG_FILE, source))?;
    remove(&directory.join(RECORD_FILE)).map_err(|source| prepare(RECORD_FILE, source))?;
    user::open_directory(directory, user).map_err(|source| prepare("", source))?;
    // setsid(1) becomes QEMU: it does not fork unless it leads a process group, which a new child does not.
    let mut command = Command::new("setsid");
    command
        .args(user::becoming(user))
        .arg(program)
        .args(
            line.arguments
                .iter()
                .map(|argument| mapped(argument, &files, &line.files)),
        )
        .args(descriptors(&files, &line.files))
        .current_dir(directory)
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::from(lock))
        .stdout(Stdio::from(log))
        .stderr(Stdio::from(log_too));
    prepare_child(&mut command, files, user, line.maps_a_copy());
    let child = user::with_right_to_change(user, || command.spawn());
    let mut child = child.map_err(|source| SpawnError::Start {
        program: program.to_owned(),
        source,
    })?;
    let recorded = i32::try_from(child.id())
        .map_err(io::Error::other)
        .and_then(QemuProcess::open)
        .and_then(|process| process.id().write(directory).map(|()| process));
    recorded.map_err(|source| {
        // It has not run anything yet (`-S`): nothing is lost with it.
        let _ = child.kill();
        let _ = child.wait();
        SpawnError::Record {
            path: directory.join(RECORD_FILE),
            source,
        }
    })
}

fn open(file: &OpenFile) -> Result<File, SpawnError> {
    let mut options = File::options();
    options.read(true).write(file.access == Access::ReadWrite);
    if file.cache == Cache::Direct {
        // QEMU takes a descriptor only if it is open in the way that it would open the file.
        options.custom_flags(OFlags::DIRECT.bits().cast_signed());
    }
    options.open(&file.path).map_err(|source| SpawnError::Open {
        path: file.path.clone(),
        source,
    })
}

/// An argument with the names under which QEMU finds what it maps.
fn mapped(argument: &str, files: &[File], named: &[OpenFile]) -> String {
    let mut argument = argument.to_owned();
    for (set, (file, named)) in files.iter().zip(named).enumerate() {
        if named.is_mapped {
            let by_proc = format!("\"/proc/self/fd/{}\"", file.as_raw_fd());
            argument = argument.replace(&format!("\"/dev/fdset/{set}\""), &by_proc);
        }
    }
    argument
}

/// Tells QEMU which descriptors belong to which `/dev/fdset/N`.
fn descriptors(files: &[File], named: &[OpenFile]) -> impl Iterator<Item = String> {
    let sets = files.iter().zip(named).enumerate();
    let sets = sets.filter(|(_, (_, named))| !named.is_mapped);
    sets.flat_map(|(set, (file, named))| {
        let opaque = named.opaque.as_ref();
        let opaque = opaque.map_or_else(String::new, |opaque| format!(",opaque={opaque}"));
        let fd = file.as_raw_fd();
        ["-add-fd".to_owned(), format!("fd={fd},set={set}{opaque}")]
    })
}

/// Lets the child, and nobody else, inherit the files under the numbers that they have here. Whether it has its memory in small
/// pages only is the child's own too.
#[expect(
    unsafe_code,
    reason = "std has no safe way to let a child inherit a descriptor"
)]
fn prepare_child(command: &mut Command, files: Vec<File>, user: Option<User>, small_pages: bool) {
    let in_child = move || {
        if user.is_some() {
            // What it makes are sockets, in a directory that nobody else can get to; its starter has to use them.
            rustix::process::umask(Mode::empty());
        }
        if small_pages {
            // An old kernel that cannot do so takes more memory.
            let _ = disable_transparent_huge_pages(true);
        }
        let mut files = files.iter();
        Ok(files.try_for_each(|file| fcntl_setfd(file, FdFlags::empty()))?)
    };
    // SAFETY: between fork and exec it makes system calls, and neither allocates nor takes a lock.
    unsafe { command.pre_exec(in_child) };
}

fn take_lock(directory: &Path) -> Result<File, SpawnError> {
    let path = directory.join(LOCK_FILE);
    let opened = open_lock(&path).and_then(|file| {
        let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        locked.map(|()| file).map_err(io::Error::from)
    });
    match opened {
        Ok(file) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(SpawnError::Occupied { lock: path }),
        Err(source) => Err(SpawnError::Prepare { path, source }),
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    // Whoever may write into it could feed QEMU's standard input.
    options.read(true).write(true).create(true).truncate(true);
    options.mode(0o600).open(path)
}

/// Whether a process holds the lock of `directory`, that is: whether its QEMU is there, in whatever state.
pub fn is_occupied(directory: &Path) -> io::Result<bool> {
    let file = match File::open(directory.join(LOCK_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    // Shared, so that two who look do not see each other.
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Why a started QEMU cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It ended before it answered.
    #[error("QEMU ended while it was starting ({exit}): {log}")]
    Ended {
        /// How.
        exit: Exit,
        /// The last lines of its log.
        log: String,
    },
    /// It is there, but does not answer.
    #[error("QEMU runs, but its monitor does not answer")]
    Silent(#[source] QmpError),
    /// The process could not be watched.
    #[error("QEMU's process cannot be watched")]
    Watch(#[source] io::Error),
    /// Its directory stays open to it.
    #[error("the directory of QEMU's sockets cannot be closed to it")]
    Directory(#[source] io::Error),
}

/// Connects to the monitor `socket` of a QEMU that was just spawned, as soon as it is there.
pub async fn connect(
    process: &QemuProcess,
    directory: &Path,
    socket: &str,
    deadline: Duration,
) -> Result<(Qmp, Events), ConnectError> {
    let path = directory.join(socket);
    let error = tokio::select! {
        connected = connect_when_there(&path, deadline) => match connected {
            Ok(connected) => {
                user::close_directory(directory).map_err(ConnectError::Directory)?;
                return Ok(connected);
            }
            Err(error) => error,
        },
        exit = process.gone() => return Err(ended(exit, directory)),
    };
    // A QEMU that refuses its command line has opened the socket already, and closes it a moment before its end.
    match timeout(END_AFTER_CLOSE, process.gone()).await {
        Ok(exit) => Err(ended(exit, directory)),
        Err(_) => Err(ConnectError::Silent(error)),
    }
}

fn ended(exit: io::Result<Exit>, directory: &Path) -> ConnectError {
    match exit {
        Ok(exit) => ConnectError::Ended {
            exit,
            log: log_tail(directory),
        },
        Err(source) => ConnectError::Watch(source),
    }
}

async fn connect_when_there(path: &Path, deadline: Duration) -> Result<(Qmp, Events), QmpError> {
    let until = Instant::now() + deadline;
    loop {
        match Qmp::connect(path, deadline).await {
            // A socket of before, or none yet, or one that is bound and does not listen yet.
            Err(QmpError::Connect { .. }) if Instant::now() < until => sleep(CONNECT_PAUSE).await,
            result => return result,
        }
    }
}

/// What [`find`] found in a VM's directory.
#[derive(Debug)]
pub enum Found {
    /// No process holds the lock.
    Nothing,
    /// The VM's QEMU, proven by lock, process id and uuid; with a connection to the commanding monitor.
    Running(Box<Running>),
    /// A process holds the lock, but it could not be proven to be the VM's QEMU, or does not answer.
    Unproven {
        /// The process, where lock and record agree on it. It may be killed, never commanded.
        process: Option<QemuProcess>,
        /// Why.
        reason: String,
    },
}

/// A QEMU found again.
#[derive(Debug)]
pub struct Running {
    /// The process.
    pub process: QemuProcess,
    /// Its commanding monitor.
    pub qmp: Qmp,
    /// The monitor's events.
    pub events: Events,
}

/// Looks for the QEMU of VM `vm` in its directory, after a restart of the agent.
pub async fn find(directory: &Path, vm: Uuid, deadline: Duration) -> io::Result<Found> {
    if !is_occupied(directory)? {
        return Ok(Found::Nothing);
    }
    let recorded = ProcessId::read(directory).and_then(QemuProcess::reopen);
    let (recorded, record_error) = match recorded {
        Ok(process) => (Some(process), None),
        Err(error) => (None, Some(error)),
    };
    let unproven = |process, reason: String| {
        let reason = match &record_error {
            Some(error) => format!("{reason}; its process record is of no use: {error}"),
            None => reason,
        };
        Ok(Found::Unproven { process, reason })
    };
    let asked = timeout(deadline, ask(directory, deadline)).await;
    let (qmp, events, uuid) = match asked {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) => return unproven(recorded, error.to_string()),
        Err(_) => return unproven(recorded, "its monitor does not answer".to_owned()),
    };
    if uuid != vm {
        return unproven(
            None,
            format!("the QEMU in {} runs VM {uuid}", directory.display()),
        );
    }
    // A crash between start and record leaves none: the kernel knows who listens on the socket.
    let process = match (recorded, qmp.peer_pid()) {
        (Some(process), Some(pid)) if process.id().pid == pid => process,
        (None, Some(pid)) => {
            let process = QemuProcess::open(pid)?;
            process.id().write(directory)?;
            process
        }
        (process, _) => return unproven(process, "another process has its monitor".to_owned()),
    };
    // Its starter may have ended before it came to that.
    user::close_directory(directory)?;
    let running = Running { process, qmp, events };
    Ok(Found::Running(Box::new(running)))
}

async fn ask(directory: &Path, deadline: Duration) -> Result<(Qmp, Events, Uuid), QmpError> {
    let (qmp, events) = Qmp::connect(&directory.join(QMP_SOCKET), deadline).await?;
    let uuid = qmp.query_uuid().await?;
    Ok((qmp, events, uuid))
}

/// Kills the process and waits until it is gone: reaped if it is our child, and its lock free. What this cannot do within
/// `deadline` counts as running.
pub async fn kill(process: &QemuProcess, directory: &Path, deadline: Duration) -> Result<Exit, KillError> {
    let pid = process.id().pid;
    let not_gone = |source| KillError::NotGone { pid, source };
    process.send_kill().map_err(|source| not_gone(Some(source)))?;
    let gone = async {
        let exit = process.gone().await?;
        // A child of the agent that is between fork and exec holds it for an instant.
        while is_occupied(directory)? {
            sleep(CONNECT_PAUSE).await;
        }
        Ok(exit)
    };
    let ended = timeout(deadline, gone).await;
    match ended {
        Ok(result) => result.map_err(|source| not_gone(Some(source))),
        Err(_) => Err(not_gone(None)),
    }
}

#[cfg(test)]
mod tests;
