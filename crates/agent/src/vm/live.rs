//! A QEMU that is there: its process, its monitors, and the tasks that listen to it.
//!
//! **Owns:** the connections to one process, and when the guest was stopped for a switch-over.
//!
//! **Does not know:** what QEMU is to do.
//!
//! **Start here:** [`Live::attach`], for a process just started as for one found again.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use driver::types::QemuState;
use model::VmId;
use model::report::CopyProgress;
use qemu::command_line::{AGENT_SOCKET, CONSOLE_SOCKET, QMP_SECOND_SOCKET};
use qemu::guest_agent::ShutdownMode;
use qemu::qmp::copies::{DiskCopy, DiskCopyState};
use qemu::qmp::{Events, Hint, Qmp, QmpError};
use qemu::spawn::{self, QemuProcess};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::errand::Errand;
use super::observe::{self, Aside};
use super::{apply, console, guest};
use crate::link::Board;

/// How long a monitor may take to answer.
pub const QMP_DEADLINE: Duration = Duration::from_secs(5);
/// How long a guest may take until its file systems are frozen, with what its agent was asked before.
const FREEZE_PATIENCE: Duration = Duration::from_secs(10);
/// When it is first seen what a QEMU takes: its guest has booted by then.
const FIRST_MEASURED_AFTER: Duration = Duration::from_secs(10);
/// How often after that: it costs milliseconds for each GiB of a guest.
const MEASURED_EVERY: Duration = Duration::from_secs(60);
/// The file that says how QEMU was started.
const LAUNCH_FILE: &str = "launch.json";

/// How a QEMU was started: what it does not say itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Whether to take a stream.
    pub incoming: bool,
    /// As whom; the agent's own user if `None`.
    #[serde(default)]
    pub user: Option<u32>,
    /// Whether it has a drive for media.
    #[serde(default)]
    pub has_cdrom: bool,
}

impl Launch {
    /// Written before the start.
    pub fn write(self, directory: &Path) -> io::Result<()> {
        fs::write(
            directory.join(LAUNCH_FILE),
            serde_json::to_vec(&self).map_err(io::Error::other)?,
        )
    }

    /// As it was written.
    pub fn read(directory: &Path) -> io::Result<Self> {
        let bytes = fs::read(directory.join(LAUNCH_FILE))?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }
}

/// A QEMU that answers.
#[derive(Debug)]
pub struct Live {
    /// The process.
    pub process: Arc<QemuProcess>,
    /// The monitor that commands, and looks.
    pub qmp: Qmp,
    launch: Launch,
    /// When QEMU said that it stopped the guest, if it has not said since that the guest goes on.
    stopped_at: Arc<Mutex<Option<Instant>>>,
    /// In milliseconds; 0 if none was set by this agent.
    downtime_limit_ms: AtomicU64,
    /// Whether it may have copies of its disk: it is asked only then.
    may_copy: AtomicBool,
    /// How far its disk is made whole, as seen last.
    flattened: Mutex<Option<CopyProgress>>,
    guest: guest::Known,
    /// How often the guest was reset since it was attached to.
    resets: Arc<AtomicU64>,
    asks: mpsc::Sender<Ask>,
    /// They end with it.
    _tasks: JoinSet<()>,
}

/// What the guest's agent is asked for.
#[derive(Debug)]
pub enum Ask {
    /// To end its guest.
    End(EndAsk),
    /// To do something in its guest.
    Errand(Errand),
    /// To freeze its guest's file systems for an instant.
    Freeze(FreezeAsk),
}

/// A guest whose file systems shall stand still for an instant.
#[derive(Debug)]
pub struct FreezeAsk {
    /// Told whether they do.
    pub frozen: oneshot::Sender<bool>,
    /// Told, or dropped, when the instant is over.
    pub over: oneshot::Receiver<()>,
    /// Dropped when the guest goes on.
    pub thawed: oneshot::Sender<()>,
}

/// Of whoever has a guest's file systems frozen.
#[derive(Debug)]
pub struct Frozen {
    over: oneshot::Sender<()>,
    thawed: oneshot::Receiver<()>,
}

impl Frozen {
    /// The guest goes on; waits until it does.
    pub async fn thaw(self) {
        drop(self.over);
        let _ = self.thawed.await;
    }
}

/// A guest that shall end.
#[derive(Debug)]
pub struct EndAsk {
    /// How the guest shall end.
    pub mode: ShutdownMode,
    /// How often the guest had been reset when it was asked: one that has begun anew since did what was asked.
    at_resets: u64,
    resets: Arc<AtomicU64>,
}

impl EndAsk {
    /// Whether the guest is still the one that was meant.
    pub fn is_current(&self) -> bool {
        self.resets.load(Ordering::Relaxed) == self.at_resets
    }
}

/// Where what is heard goes.
#[derive(Debug, Clone)]
pub struct Listeners {
    /// Which VM it is.
    pub vm: VmId,
    /// Where what it takes is reported.
    pub board: Arc<Board>,
    /// Where its console is found.
    pub consoles: console::Consoles,
    /// Where what is wanted of its guest comes from.
    pub guests: apply::Guests,
    /// The run directory.
    pub directory: PathBuf,
    /// The console's log.
    pub console_log: PathBuf,
    /// Told when a look may be worth it.
    pub look: Arc<Notify>,
    /// What the guest's agent says.
    pub guest: guest::Known,
}

impl Live {
    /// Listens to a QEMU whose first monitor is connected.
    pub async fn attach(process: QemuProcess, qmp: Qmp, events: Events, to: Listeners) -> io::Result<Self> {
        let launch = Launch::read(&to.directory)?;
        prefer_host_work(&qmp).await;
        let process = Arc::new(process);
        let heard = Heard::default();
        let (stopped_at, resets) = (Arc::clone(&heard.stopped_at), Arc::clone(&heard.resets));
        let (asks, asked) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(hear(events, heard, to.guest.clone(), Arc::clone(&to.look)));
        tasks.spawn(watch_process(Arc::clone(&process), Arc::clone(&to.look)));
        tasks.spawn(watch_memory(process.id().pid, to.vm, to.board));
        to.guest.recall(&to.directory);
        let agent = to.directory.join(AGENT_SOCKET);
        let wanted = guest::Wanted::new(asked, to.guests.publish(to.vm));
        let asking = guest::watch(agent, to.guest.clone(), Arc::clone(&to.look), wanted);
        tasks.spawn(while_it_lives(Arc::clone(&process), asking));
        match connect(&to.directory, CONSOLE_SOCKET).await {
            Ok(console) => drop(tasks.spawn(console::serve(to.vm, console, to.console_log, to.consoles))),
            Err(error) => tracing::warn!(%error, "the guest's console is not logged"),
        }
        tasks.spawn(hold_second_monitor(to.directory.join(QMP_SECOND_SOCKET)));
        Ok(Self {
            process,
            qmp,
            launch,
            stopped_at,
            downtime_limit_ms: AtomicU64::new(0),
            may_copy: AtomicBool::new(true),
            flattened: Mutex::default(),
            guest: to.guest,
            resets,
            asks,
            _tasks: tasks,
        })
    }

    /// What QEMU says now.
    pub async fn look(&self) -> Result<QemuState, QmpError> {
        let (status, migration) = tokio::try_join!(self.qmp.query_status(), self.qmp.query_migrate())?;
        let cdrom = if self.launch.has_cdrom && observe::is_at_rest(&status.status, &migration.status) {
            self.qmp.query_cdrom().await?
        } else {
            None
        };
        let may_copy = self.may_copy.load(Ordering::Relaxed);
        let copies = if may_copy && observe::is_here(&status.status, &migration.status) {
            let copies = self.qmp.query_copies().await?;
            self.may_copy.store(!copies.is_empty(), Ordering::Relaxed);
            self.note_flattened(&copies);
            Some(copies)
        } else if observe::is_here(&status.status, &migration.status) {
            Some(Vec::new())
        } else {
            None
        };
        let limit_ms = self.downtime_limit_ms.load(Ordering::Relaxed);
        let aside = Aside {
            guest: self.guest.get(),
            is_incoming: self.launch.incoming,
            downtime_limit_ms: (limit_ms > 0).then_some(limit_ms),
            resets: self.resets.load(Ordering::Relaxed),
            cdrom,
            copies,
        };
        Ok(observe::state(&status.status, migration, aside))
    }

    /// How far its disk is made whole, as seen at the last look; `None`: it is not being made so.
    pub fn flattened(&self) -> Option<CopyProgress> {
        *self.flattened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_flattened(&self, copies: &[DiskCopy]) {
        let itself = copies
            .iter()
            .find(|copy| copy.to.is_itself() && copy.state == DiskCopyState::Copies);
        *self.flattened.lock().unwrap_or_else(PoisonError::into_inner) = itself.map(|copy| copy.progress);
    }

    /// A copy of its disk is about to be made.
    pub fn note_copy(&self) {
        self.may_copy.store(true, Ordering::Relaxed);
    }

    /// The downtime limit was set.
    pub fn note_downtime_limit(&self, ms: u64) {
        self.downtime_limit_ms.store(ms, Ordering::Relaxed);
    }

    /// How long the guest has stood still, if its stop was seen.
    pub fn stopped_for(&self) -> Option<Duration> {
        let stopped_at = *self.stopped_at.lock().unwrap_or_else(PoisonError::into_inner);
        stopped_at.map(|at| at.elapsed())
    }

    /// Has the guest's agent ask for a shutdown or a reboot; a request that waits already is enough.
    pub fn ask(&self, mode: ShutdownMode) {
        let _ = self.asks.try_send(Ask::End(EndAsk {
            mode,
            at_resets: self.resets.load(Ordering::Relaxed),
            resets: Arc::clone(&self.resets),
        }));
    }

    /// Has something done in the guest as soon as its agent answers; nothing is told of it if its QEMU ends before.
    pub async fn give(&self, errand: Errand) {
        let _ = self.asks.send(Ask::Errand(errand)).await;
    }

    /// Has the guest's agent freeze its file systems, if it answers in time.
    pub async fn freeze(&self) -> Option<Frozen> {
        if !self.guest.get().ready {
            return None;
        }
        let (frozen, answer) = oneshot::channel();
        let (over, is_over) = oneshot::channel();
        let (went_on, thawed) = oneshot::channel();
        let ask = Ask::Freeze(FreezeAsk {
            frozen,
            over: is_over,
            thawed: went_on,
        });
        let asked = async {
            self.asks.send(ask).await.ok()?;
            answer.await.ok()
        };
        let is_frozen = timeout(FREEZE_PATIENCE, asked).await.ok().flatten()?;
        is_frozen.then_some(Frozen { over, thawed })
    }
}

/// Agents, and the threads of QEMU that move a guest's memory, come before what guests compute: the work of a host has
/// an end, and while it lasts somebody may stand still.
async fn prefer_host_work(qmp: &Qmp) {
    match qmp.vcpu_threads().await {
        Ok(threads) => {
            if let Err(error) = spawn::yield_to_others(&threads) {
                tracing::warn!(%error, "the guest's processors keep the priority of the host's own work");
            }
        }
        Err(error) => tracing::warn!(%error, "QEMU does not name its guest's threads"),
    }
}

/// What events tell and no question does.
#[derive(Debug, Default)]
struct Heard {
    stopped_at: Arc<Mutex<Option<Instant>>>,
    resets: Arc<AtomicU64>,
}

/// Turns events into looks.
async fn hear(mut events: Events, heard: Heard, guest: guest::Known, look: Arc<Notify>) {
    while let Some(hint) = events.next().await {
        let name = match &hint {
            Hint::Event(event) => event.name.as_str(),
            Hint::Lagged(_) => "",
        };
        let stopped_at = || heard.stopped_at.lock().unwrap_or_else(PoisonError::into_inner);
        match name {
            "STOP" => *stopped_at() = Some(Instant::now()),
            "RESUME" => *stopped_at() = None,
            "RESET" => {
                heard.resets.fetch_add(1, Ordering::Relaxed);
                guest.begin_anew();
            }
            _ => {}
        }
        tracing::trace!(name, "QEMU's event");
        look.notify_one();
    }
    look.notify_one();
}

/// Keeps the second monitor from being taken by anybody else: a watchdog gets it from here.
async fn hold_second_monitor(socket: PathBuf) {
    match Qmp::connect(&socket, QMP_DEADLINE).await {
        Ok((_qmp, mut events)) => while events.next().await.is_some() {},
        Err(error) => tracing::warn!(%error, "the second monitor is not held"),
    }
}

/// Says when the process has ended.
async fn watch_process(process: Arc<QemuProcess>, look: Arc<Notify>) {
    if let Err(error) = process.gone().await {
        tracing::warn!(%error, "QEMU's end will be seen late");
    }
    look.notify_one();
}

/// Ends with the process, so that nobody waits for what a guest that is gone was to do.
async fn while_it_lives(process: Arc<QemuProcess>, task: impl Future<Output = ()>) {
    tokio::select! {
        () = task => {}
        Ok(_) = process.gone() => {}
    }
}

/// Measures what QEMU takes beside its guest's memory, now and then.
async fn watch_memory(pid: i32, vm: VmId, board: Arc<Board>) {
    let mut pause = FIRST_MEASURED_AFTER;
    loop {
        sleep(pause).await;
        pause = MEASURED_EVERY;
        match tokio::task::spawn_blocking(move || qemu::memory::measure(pid)).await {
            Ok(Ok(held)) => board.set_qemu_mib(vm, Some(held.own_kib.div_ceil(1024))),
            Ok(Err(error)) => tracing::debug!(%error, "QEMU's memory is not measured"),
            Err(error) => tracing::warn!(%error, "QEMU's memory is not measured"),
        }
    }
}

/// Connects to a socket by its directory's descriptor: the path itself may be longer than a socket's name can be.
async fn connect(directory: &Path, name: &str) -> io::Result<UnixStream> {
    let directory = fs::File::open(directory)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())).await
}
