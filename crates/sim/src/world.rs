//! A world: servers, hosts, links, time, and what happens next.
//!
//! **Owns:** the queue of events, the order in which they happen, and the faults that are on.
//!
//! **Does not know:** what servers and agents decide, and what must hold: see [`crate::check`].
//!
//! **Start here:** [`World::run`].
//!
//! ```text
//! events by time ──▶ World::happen ──▶ agents' cores ──▶ effects ──▶ events
//! sleepers       ──▶ Tasks::run    ──▶ servers' own code, over the store
//!                        after each: World::look_over
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::discriminant;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use controller::cache::Cache;
use driver::types::{Effect, EffectId, Input};
use futures_util::FutureExt;
use model::copy::CopyTo;
use model::document::HostDocument;
use model::report::Report;
use model::{HostId, VmId};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use server::hosts::{Documents, Following};
use server::shared::Cloud;
use store::{MemoryStore, Store};
use tokio::sync::watch;
use uuid::Uuid;

use crate::bugs::Bug;
use crate::check::Checks;
use crate::disks::{Given, Under};
use crate::host::{Host, Key};
use crate::script::{Node, Script, Step};
use crate::store::{SimStore, Weather};
use crate::tasks::Tasks;
use crate::time::{SimEnv, Time};
use crate::users::Answered;

/// How long after the faults every VM that should run has to.
pub(crate) const SETTLED_US: u64 = 60_000_000;
/// How long after them nothing may be left over: the longest patience of a migration's target, and some.
pub(crate) const TIDY_US: u64 = 180_000_000;

/// What happens.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// The nth step of the script.
    Step(usize),
    /// What the nth step did is undone.
    Over(usize),
    /// Everything is mended.
    Mend,
    /// Every VM that should run does.
    Settled,
    /// Nothing is left over.
    Tidy,
    StartServer(usize),
    StartAgent(usize),
    StartHost(usize),
    /// A host that has not joined, or has to join again, tries.
    Join(usize),
    /// Streams of documents are looked at.
    Documents(usize),
    Agent {
        host: usize,
        epoch: u64,
        what: AgentEvent,
    },
    /// A report arrives at a server.
    Report {
        server: usize,
        host: usize,
        epoch: u64,
        post: u64,
        report: Box<Report>,
    },
    Qemu {
        host: usize,
        key: Key,
        serial: u64,
        what: QemuEvent,
    },
    /// `go` arrives at a target's agent.
    Go {
        from: usize,
        epoch: u64,
        from_key: Key,
        effect: EffectId,
        to: usize,
        to_key: Key,
    },
}

/// An agent's request for a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) number: u64,
    pub(crate) server: usize,
    pub(crate) server_epoch: u64,
}

/// What happens to an agent.
#[derive(Debug, Clone)]
pub(crate) enum AgentEvent {
    Connect,
    /// The request for a connection has come to a server.
    Asked(Request),
    /// It is answered; refused, or not answered in time, if there are no documents.
    Connected(Request, Option<Box<Documents>>),
    Lost(u64),
    Document(u64, Box<HostDocument>),
    Kept(u64, Box<HostDocument>),
    Post(u64),
    Posted {
        post: u64,
        report: Option<Box<Report>>,
    },
    /// Another QEMU was found in its program's place.
    Replaced,
    Begin(Key, EffectId, Effect),
    Told(Key, Input),
    Timer(Key, u64),
}

/// What happens in a QEMU by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QemuEvent {
    /// The guest's agent answers.
    Ready,
    /// The guest powers off.
    PowersOff,
    /// All but the last part of the memory was sent.
    Sent,
    /// The last part was.
    SentAll,
    /// It answers again.
    Answers,
    /// A copy of its disk has ended well.
    Copied(CopyTo),
}

/// A server.
pub(crate) struct Server {
    pub(crate) env: Arc<SimEnv>,
    pub(crate) epoch: u64,
    pub(crate) cloud: Option<Arc<Cloud>>,
    revisions: Option<watch::Receiver<u64>>,
    /// Streams will be looked at.
    is_noted: bool,
    /// Which of them.
    pub(crate) following: Following,
}

/// What servers' tasks say to the world.
pub(crate) enum Said {
    /// A report was taken, or not.
    Reported {
        server: usize,
        server_epoch: u64,
        host: usize,
        epoch: u64,
        post: u64,
        report: Option<Box<Report>>,
    },
    /// A server has begun to tell a host what to do, or refused to.
    Begun {
        request: Request,
        host: usize,
        epoch: u64,
        documents: Option<Box<Documents>>,
    },
    /// A user was answered.
    Answered(Answered),
    /// An image's content was taken, or not.
    Given(Given),
}

/// Everything.
pub(crate) struct World {
    pub(crate) time: Arc<Time>,
    pub(crate) script: Script,
    pub(crate) bug: Option<Bug>,
    pub(crate) memory: Arc<MemoryStore>,
    pub(crate) weather: Arc<Mutex<Weather>>,
    pub(crate) servers: Vec<Server>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) tasks: Tasks,
    pub(crate) said: Arc<Mutex<Vec<Said>>>,
    pub(crate) cuts: BTreeSet<(Node, Node)>,
    /// Disks and saved states in the datastore.
    pub(crate) overlays: BTreeSet<VmId>,
    /// Those of them that are whole copies of others.
    pub(crate) copies: BTreeSet<VmId>,
    /// Those of them that are over nothing, though they were made over an image.
    pub(crate) wholes: BTreeSet<VmId>,
    /// What each disk is over.
    pub(crate) unders: BTreeMap<VmId, Under>,
    pub(crate) stored: BTreeSet<Key>,
    /// The build of the QEMU that each process is of, and that kept each memory.
    pub(crate) builds: BTreeMap<Key, u64>,
    pub(crate) chance: ChaCha8Rng,
    pub(crate) checks: Checks,
    pub(crate) is_mended: bool,
    pub(crate) next_serial: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    hasher: DefaultHasher,
    count: u64,
    /// What happened, if it is to be kept.
    pub(crate) log: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(script: Script, bug: Option<Bug>) -> Self {
        let time = Arc::new(Time::default());
        let clock = time.clone();
        let memory = Arc::new(MemoryStore::new(Arc::new(move || {
            std::time::Duration::from_micros(clock.now_us())
        })));
        let mut chance = ChaCha8Rng::seed_from_u64(script.seed ^ 0x5eed);
        let servers = (0..script.size.servers).map(|n| Server {
            env: Arc::new(SimEnv::new(time.clone(), script.seed ^ (n as u64 + 1) << 32)),
            epoch: 0,
            cloud: None,
            revisions: None,
            is_noted: false,
            following: Following::default(),
        });
        let hosts = (0..script.size.hosts).map(|n| {
            let id = HostId(Uuid::from_u128(
                0x0190_0000_0000_7000_8000_0000_0001_0000 + n as u128,
            ));
            let drift_ppm = chance.random_range(-200..200);
            let memory_mib = [2048, 4096][chance.random_range(0..2_usize)];
            Host::new(n, id, memory_mib, drift_ppm)
        });
        let (servers, mut hosts): (Vec<_>, Vec<_>) = (servers.collect(), hosts.collect());
        for host in &mut hosts {
            host.server = host.number % servers.len();
            let joins = |(_, step): &(u64, Step)| *step == Step::Join { host: host.number };
            host.is_member = !script.steps.iter().any(joins);
        }
        Self {
            checks: Checks::new(&memory, &script),
            time,
            script,
            bug,
            memory,
            weather: Arc::default(),
            servers,
            hosts,
            tasks: Tasks::default(),
            said: Arc::default(),
            cuts: BTreeSet::new(),
            overlays: BTreeSet::new(),
            copies: BTreeSet::new(),
            wholes: BTreeSet::new(),
            unders: BTreeMap::new(),
            stored: BTreeSet::new(),
            builds: BTreeMap::new(),
            chance,
            is_mended: false,
            next_serial: 0,
            events: BTreeMap::new(),
            next_event: 0,
            hasher: DefaultHasher::new(),
            count: 0,
            log: None,
        }
    }

    /// Lets everything happen. Answers what was wrong, if anything was.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        self.furnish()?;
        self.begin();
        while let Some(at_us) = self.next_us() {
            self.time.reach(at_us);
            let mut is_over = false;
            if let Some(event) = self.due() {
                self.note(&event);
                is_over = matches!(event, Event::Tidy);
                self.happen(event);
            }
            self.tasks.run();
            self.hear();
            self.look_over();
            if let Some(what) = self.checks.wrong.take() {
                return Err(format!("at {:.6} s: {what}", self.time.now_us() as f64 / 1e6));
            }
            if is_over {
                break;
            }
        }
        Ok(())
    }

    /// The digest of all that happened, and how much that was.
    pub(crate) fn digest(&self) -> (u64, u64) {
        (self.hasher.finish(), self.count)
    }

    fn begin(&mut self) {
        for server in 0..self.servers.len() {
            self.at(0, Event::StartServer(server));
        }
        for host in 0..self.hosts.len() {
            self.at(1_000, Event::StartAgent(host));
        }
        let steps: Vec<u64> = self.script.steps.iter().map(|(at_us, _)| *at_us).collect();
        for (n, at_us) in steps.into_iter().enumerate() {
            self.at(at_us, Event::Step(n));
        }
        let mended_us = self.script.size.seconds * 1_000_000;
        self.at(mended_us, Event::Mend);
        self.at(mended_us + SETTLED_US, Event::Settled);
        self.at(mended_us + TIDY_US, Event::Tidy);
    }

    /// The next event, if its time has come.
    pub(crate) fn due(&mut self) -> Option<Event> {
        let next = self.events.first_entry()?;
        (next.key().0 <= self.time.now_us()).then(|| next.remove())
    }

    pub(crate) fn next_us(&self) -> Option<u64> {
        let event_us = self.events.keys().next().map(|(at_us, _)| *at_us);
        event_us.into_iter().chain(self.time.next_us()).min()
    }

    pub(crate) fn at(&mut self, at_us: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((at_us, self.next_event), event);
    }

    pub(crate) fn after(&mut self, for_us: u64, event: Event) {
        self.at(self.time.now_us() + for_us, event);
    }

    /// The store has changed.
    pub(crate) fn note_revision(&mut self, revision: u64, events: &[store::Event]) {
        self.hasher.write_u64(revision);
        for event in events {
            self.hasher.write(event.kv.key.as_bytes());
            self.hasher.write(&event.kv.value);
            if let Some(log) = &mut self.log {
                let value = String::from_utf8_lossy(&event.kv.value);
                log.push(format!(
                    "{:>12}   {revision} {} {value}",
                    self.time.now_us(),
                    event.kv.key
                ));
            }
        }
    }

    fn note(&mut self, event: &Event) {
        self.count += 1;
        self.hasher.write_u64(self.time.now_us());
        discriminant(event).hash(&mut self.hasher);
        if let Event::Agent { host, epoch, what } = event {
            (host, epoch, discriminant(what)).hash(&mut self.hasher);
        }
        if let Some(log) = &mut self.log {
            log.push(format!("{:>12} {event:?}", self.time.now_us()));
        }
    }

    pub(crate) fn happen(&mut self, event: Event) {
        match event {
            Event::Step(n) => self.step(n),
            Event::Over(n) => self.over(n),
            Event::Mend => self.mend(),
            Event::Settled => self.check_settled(),
            Event::Tidy => self.check_tidy(),
            Event::StartServer(server) => self.start_server(server),
            Event::StartAgent(host) => self.start_agent(host),
            Event::StartHost(host) => self.start_host(host),
            Event::Join(host) => self.join(host),
            Event::Documents(server) => self.stream_documents(server),
            Event::Agent { host, epoch, what } if self.hosts[host].epoch == epoch => {
                self.happen_to_agent(host, what);
            }
            Event::Agent { .. } => {}
            Event::Report {
                server,
                host,
                epoch,
                post,
                report,
            } => self.take_report(server, host, epoch, post, report),
            Event::Qemu {
                host,
                key,
                serial,
                what,
            } => self.happen_in_qemu(host, key, serial, what),
            Event::Go {
                from,
                epoch,
                from_key,
                effect,
                to,
                to_key,
            } => self.take_go((from, epoch, from_key), effect, to, to_key),
        }
    }

    /// Has a server's own code do something in a task of that server; the world hears what became of it.
    pub(crate) fn have_done(&mut self, server: usize, doing: impl Future<Output = Said> + Send + 'static) {
        let heard = self.said.clone();
        self.tasks.spawn(server, async move {
            let said = doing.await;
            heard.lock().unwrap_or_else(PoisonError::into_inner).push(said);
        });
    }

    /// What servers' tasks said.
    pub(crate) fn hear(&mut self) {
        loop {
            let said = std::mem::take(&mut *self.said.lock().unwrap_or_else(PoisonError::into_inner));
            if said.is_empty() {
                break;
            }
            for said in said {
                match said {
                    Said::Reported {
                        server,
                        server_epoch,
                        host,
                        epoch,
                        post,
                        report,
                    } => {
                        if self.servers[server].epoch == server_epoch {
                            self.answer_report(server, host, epoch, post, report);
                        }
                    }
                    Said::Begun {
                        request,
                        host,
                        epoch,
                        documents,
                    } => {
                        if self.hosts[host].epoch == epoch {
                            self.answer_request(host, request, documents);
                        }
                    }
                    Said::Answered(answered) => self.note_answer(answered),
                    Said::Given(given) => self.note_given(&given),
                }
            }
        }
        self.note_revisions();
    }

    /// Where the view has moved on, streams of documents are looked at.
    fn note_revisions(&mut self) {
        for n in 0..self.servers.len() {
            let server = &mut self.servers[n];
            let Some(revisions) = &mut server.revisions else {
                continue;
            };
            if revisions.has_changed().unwrap_or(false) {
                revisions.mark_unchanged();
                if !std::mem::replace(&mut server.is_noted, true) {
                    self.after(100, Event::Documents(n));
                }
            }
        }
    }

    pub(crate) fn streams_are_looked_at(&mut self, server: usize) {
        self.servers[server].is_noted = false;
    }

    /// Whether something that is sent arrives.
    pub(crate) fn reaches(&self, from: Node, to: Node) -> bool {
        !self.cuts.contains(&(from, to))
    }

    /// How long a message takes: not long, but for a few.
    pub(crate) fn latency_us(&mut self) -> u64 {
        let late = !self.is_mended && self.chance.random_range(0..200) == 0;
        if late {
            self.chance.random_range(2_000..1_000_000)
        } else {
            self.chance.random_range(100..2_000)
        }
    }

    pub(crate) fn tell_agent(&mut self, host: usize, for_us: u64, what: AgentEvent) {
        let epoch = self.hosts[host].epoch;
        self.after(for_us, Event::Agent { host, epoch, what });
    }

    fn start_server(&mut self, n: usize) {
        let server = &mut self.servers[n];
        if server.cloud.is_some() {
            return;
        }
        server.epoch += 1;
        let seed = self.script.seed ^ (n as u64 + 1) << 48 ^ server.epoch << 16;
        let env = server.env.clone();
        let store: Arc<dyn Store> = Arc::new(SimStore::new(
            self.memory.clone(),
            env.clone(),
            self.weather.clone(),
            seed,
            self.bug,
        ));
        // What is read is there at once.
        let Some(Ok(opened)) = Cache::open(store.clone(), env.clone()).now_or_never() else {
            return self.after(100_000, Event::StartServer(n));
        };
        let cache = opened.cache;
        let cloud = Arc::new(Cloud::new(store.clone(), cache.clone(), env.clone()));
        let server = &mut self.servers[n];
        server.revisions = Some(cache.subscribe());
        server.cloud = Some(cloud.clone());
        server.is_noted = false;
        server.following = Following::default();
        self.tasks.spawn(n, opened.following);
        self.tasks
            .spawn(n, controller::run::run(store, cache, env, Arc::default()));
        let own = cloud.env.next_id();
        self.tasks.spawn(n, server::contact::run(cloud, own));
    }

    pub(crate) fn end_server(&mut self, n: usize) {
        let server = &mut self.servers[n];
        server.epoch += 1;
        server.cloud = None;
        server.revisions = None;
        self.tasks.end(n);
        for host in 0..self.hosts.len() {
            let agent = self.hosts[host].agent.as_ref();
            let connection = agent.and_then(|agent| agent.connection.as_ref());
            let number = connection
                .filter(|connection| connection.server == n)
                .map(|connection| connection.number);
            if let Some(number) = number {
                let for_us = self.latency_us();
                self.tell_agent(host, for_us, AgentEvent::Lost(number));
            }
        }
    }

    fn start_host(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        if !host.is_on && !host.is_lost {
            host.is_on = true;
            host.boots += 1;
            self.after(2_000_000, Event::StartAgent(n));
        }
    }

    /// Moves a node's calendar.
    pub(crate) fn jump(&mut self, node: Node, by_s: i64) {
        let by_us = by_s.saturating_mul(1_000_000);
        match node {
            Node::Host(n) => self.hosts[n].offset_us += by_us,
            Node::Server(n) => {
                self.servers[n].env.offset_us.fetch_add(by_us, Ordering::Relaxed);
            }
        }
    }

    /// Whether a step's node is one of this world's.
    pub(crate) fn has(&self, node: Node) -> bool {
        match node {
            Node::Server(n) => n < self.servers.len(),
            Node::Host(n) => n < self.hosts.len(),
        }
    }

    pub(crate) fn the_step(&self, n: usize) -> Option<Step> {
        self.script.steps.get(n).map(|(_, step)| step.clone())
    }
}
