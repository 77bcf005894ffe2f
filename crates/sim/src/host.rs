//! A simulated host: what is on its disk, the processes that it runs, and its agent.
//!
//! **Owns:** what survives a crash of the agent, what survives a loss of power, and the agent's memory, which survives
//! neither. The agent decides with the product's own cores.
//!
//! **Does not know:** time and other nodes: see [`crate::world`].
//!
//! **Start here:** [`Host`], then [`Agent`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use driver::host::{Orders, is_kept};
use driver::journal::State;
use driver::link::Backoff;
use driver::types::{EffectId, Now};
use driver::{Board, Core, HostCore};
use model::document::{HostDocument, VmDocument};
use model::host::{Accelerator, AcceleratorName, HostStatus};
use model::{HostId, Incarnation, Reason, VmId, samples};
use server::hosts::Documents;
use uuid::Uuid;

use crate::qemu::Process;
use crate::time::Time;

/// One incarnation on a host.
pub(crate) type Key = (VmId, Incarnation);

/// A host.
pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) number: usize,
    pub(crate) memory_mib: u64,
    /// Counts its agents and their ends: what was meant for one that ended is dropped.
    pub(crate) epoch: u64,
    /// Whether the machine has power.
    pub(crate) is_on: bool,
    /// It has no power until everything is mended.
    pub(crate) is_lost: bool,
    /// Whether it has joined.
    pub(crate) is_member: bool,
    /// The server that it asks next.
    pub(crate) server: usize,
    pub(crate) boots: u64,
    /// Which build its QEMU is of.
    pub(crate) build: u64,
    pub(crate) agent: Option<Agent>,
    pub(crate) journal: State,
    pub(crate) document: Option<HostDocument>,
    pub(crate) saved: BTreeSet<Key>,
    pub(crate) ports: BTreeSet<Key>,
    pub(crate) qemus: BTreeMap<Key, Process>,
    /// Processes that nobody sees: there are some only with [`crate::Bug::KillIgnored`].
    pub(crate) ghosts: BTreeMap<Key, Process>,
    /// How often each was launched.
    pub(crate) launches: BTreeMap<Key, u32>,
    /// How far its calendar is off.
    pub(crate) offset_us: i64,
    /// How much its clock gains, in millionths.
    pub(crate) drift_ppm: i64,
    pub(crate) is_full: bool,
    pub(crate) is_slow: bool,
    pub(crate) spoils_loads: bool,
    /// At which effect from now its agent ends, and whether that is carried out.
    pub(crate) crash_at: Option<(u64, bool)>,
}

/// What an agent has in memory.
pub(crate) struct Agent {
    pub(crate) session: Uuid,
    pub(crate) started_us: u64,
    pub(crate) core: HostCore,
    pub(crate) board: Board,
    pub(crate) tasks: BTreeMap<Key, Task>,
    /// The request for a connection that is not answered yet.
    pub(crate) connecting: Option<u64>,
    pub(crate) connection: Option<Connection>,
    pub(crate) backoff: Backoff,
    pub(crate) post: Post,
    pub(crate) post_backoff: Backoff,
    /// How many reports were posted.
    pub(crate) posts: u64,
    /// Who waits to hear that a guest has come.
    pub(crate) waiting: Vec<Waiting>,
}

/// One incarnation's.
pub(crate) struct Task {
    pub(crate) core: Core,
    pub(crate) seen: Orders,
    pub(crate) desired: Option<Box<VmDocument>>,
    pub(crate) timer_us: Option<u64>,
    /// The effect after which nothing is left of it.
    pub(crate) forgetting: Option<EffectId>,
}

/// A stream of documents.
pub(crate) struct Connection {
    pub(crate) number: u64,
    pub(crate) server: usize,
    pub(crate) server_epoch: u64,
    pub(crate) documents: Documents,
    /// Something that was sent on it did not arrive.
    pub(crate) is_broken: bool,
    /// When what was sent last arrives: what is sent later does not come before.
    pub(crate) arrives_us: u64,
}

/// Where the report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Post {
    /// The next one is posted then.
    At(u64),
    /// This one is under way.
    UnderWay(u64),
}

/// A source's agent that sent `go`.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) key: Key,
    pub(crate) source: usize,
    pub(crate) source_epoch: u64,
    pub(crate) source_key: Key,
    pub(crate) effect: EffectId,
}

impl Host {
    pub(crate) fn new(number: usize, id: HostId, memory_mib: u64, drift_ppm: i64) -> Self {
        Self {
            id,
            number,
            memory_mib,
            epoch: 0,
            is_on: true,
            is_lost: false,
            is_member: true,
            server: 0,
            boots: 0,
            build: 0,
            agent: None,
            journal: State::default(),
            document: None,
            saved: BTreeSet::new(),
            ports: BTreeSet::new(),
            qemus: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            launches: BTreeMap::new(),
            offset_us: 0,
            drift_ppm,
            is_full: false,
            is_slow: false,
            spoils_loads: false,
            crash_at: None,
        }
    }

    pub(crate) fn name(&self) -> String {
        format!("h{}", self.number + 1)
    }

    pub(crate) fn status(&self) -> HostStatus {
        HostStatus {
            cpus: 16,
            agent_version: "sim".to_owned(),
            qemu_version: format!("10.0.{}", self.build),
            accelerator: Accelerator {
                name: AcceleratorName::Simulated,
                why: Some("the host is simulated, and so are its VMs".to_owned()),
            },
            peer_address: Some(self.address()),
            boot_id: format!("{}-{}", self.number, self.boots),
            ..samples::host_status(self.number + 1, self.memory_mib)
        }
    }

    /// From 192.0.2.1 on, which nobody has.
    fn address(&self) -> SocketAddr {
        let number = u32::try_from(self.number).unwrap_or_default();
        SocketAddr::new(
            Ipv4Addr::from(0xc000_0201_u32.saturating_add(number)).into(),
            7000,
        )
    }

    /// An agent that starts: it knows what is on the disk.
    pub(crate) fn start_agent(&mut self, now_us: u64, session: Uuid) {
        self.epoch += 1;
        let mut board = Board::new(self.status());
        board.expect_runs(self.journal.marks.keys().copied());
        let revision = self.journal.document_revision;
        self.agent = Some(Agent {
            session,
            started_us: now_us,
            core: HostCore::new(self.id, revision, self.kept(revision)),
            board,
            tasks: BTreeMap::new(),
            connecting: None,
            connection: None,
            backoff: Backoff::default(),
            post: Post::At(now_us),
            post_backoff: Backoff::default(),
            posts: 0,
            waiting: Vec::new(),
        });
    }

    fn kept(&self, revision: u64) -> Result<Option<HostDocument>, Reason> {
        match &self.document {
            _ if revision == 0 => Ok(None),
            Some(document) if is_kept(document, self.id, revision) => Ok(Some(document.clone())),
            _ => Err(Reason::new("document-unreadable", "it is of another revision")),
        }
    }

    /// The agent ends.
    pub(crate) fn end_agent(&mut self) {
        self.epoch += 1;
        self.agent = None;
        self.crash_at = None;
    }

    /// The machine loses its power.
    pub(crate) fn stop(&mut self) {
        self.end_agent();
        self.is_on = false;
        self.qemus.clear();
        self.ghosts.clear();
        self.ports.clear();
    }

    /// Time as its cores see it.
    pub(crate) fn now(&self, time: &Time) -> Now {
        let since_us = self
            .agent
            .as_ref()
            .map_or(0, |agent| time.now_us().saturating_sub(agent.started_us));
        Now {
            monotonic_us: self.drifted(since_us, 1),
            wall: time.wall(self.offset_us),
        }
    }

    /// When a time of its own clock is.
    pub(crate) fn world_us(&self, monotonic_us: u64) -> u64 {
        let started_us = self.agent.as_ref().map_or(0, |agent| agent.started_us);
        // Its timers ring when their time has come, never before.
        started_us
            .saturating_add(self.drifted(monotonic_us, -1))
            .saturating_add(1)
    }

    fn drifted(&self, us: u64, sign: i64) -> u64 {
        let gained = i128::from(us) * i128::from(self.drift_ppm * sign) / 1_000_000;
        u64::try_from(i128::from(us) + gained).unwrap_or(us)
    }

    /// The nth of its processes, in the order of their keys.
    pub(crate) fn nth_qemu(&self, nth: usize) -> Option<Key> {
        let count = self.qemus.len();
        (count > 0)
            .then(|| self.qemus.keys().nth(nth % count).copied())
            .flatten()
    }
}

impl Agent {
    /// When the next report is due, if none is under way.
    pub(crate) fn heartbeat_us(now_us: u64) -> u64 {
        let every = Duration::from_millis(api::agent::KEEP_ALIVE_MS);
        now_us + u64::try_from(every.as_micros()).unwrap_or_default()
    }
}
