//! What happens to agents: their connections, their reports, and the steps of their cores.
//!
//! **Owns:** the way of a document to a core, and of a report to a server's own code.
//!
//! **Does not know:** what effects do: see [`crate::effects`].
//!
//! **Start here:** [`World::happen_to_agent`].

use std::collections::BTreeSet;

use driver::Core;
use driver::host::{Orders, has_arrived};
use driver::journal::Entry;
use driver::types::{Effect, EffectId, Failure, Identity, Input, Outcome};
use model::audit::Actor;
use model::document::HostDocument;
use model::report::{Report, Samples};
use model::{HostId, Reason};
use planner::concern::Concerned;
use rand::RngExt;
use server::hosts::{Documents, Said as Told, take_report};
use uuid::{Builder, Uuid};

use crate::bugs::Bug;
use crate::host::{Agent, Connection, Key, Post, Task, Waiting};
use crate::script::Node;
use crate::world::{AgentEvent, Event, Request, Said, World};

/// How long an agent goes without hearing a server before it counts as lost.
const STREAM_LOST_US: u64 = api::agent::STREAM_LOST_MS * 1000;
/// How long a document that cannot be kept waits until it is tried again.
const KEEP_AGAIN_US: u64 = 2_000_000;
/// How long a report, or a `go`, may go unanswered.
pub(crate) const DEADLINE_US: u64 = 10_000_000;

pub(crate) fn failure(code: &str, is_retryable: bool) -> Failure {
    Failure {
        reason: Reason::new(code, format!("simulated: {code}")),
        is_retryable,
    }
}

impl World {
    fn session(&mut self) -> Uuid {
        let ms = u64::try_from(self.time.wall(0).as_millisecond()).unwrap_or_default();
        let mut random = [0; 10];
        self.chance.fill(&mut random);
        Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
    }

    pub(crate) fn start_agent(&mut self, n: usize) {
        let host = &self.hosts[n];
        if !host.is_on || !host.is_member || host.agent.is_some() {
            return;
        }
        let (now_us, session) = (self.time.now_us(), self.session());
        self.hosts[n].start_agent(now_us, session);
        self.tell_agent(n, 0, AgentEvent::Post(now_us));
        self.tell_agent(n, 0, AgentEvent::Connect);
        self.spread(n);
    }

    pub(crate) fn happen_to_agent(&mut self, n: usize, what: AgentEvent) {
        match what {
            AgentEvent::Connect => self.connect(n),
            AgentEvent::Asked(request) => self.asked(n, request),
            AgentEvent::Connected(request, documents) => self.connected(n, request, documents),
            AgentEvent::Lost(number) => self.lost(n, number),
            AgentEvent::Document(number, document) => self.take_document(n, number, document),
            AgentEvent::Kept(number, document) => self.obey(n, number, *document),
            AgentEvent::Post(at_us) => self.post(n, at_us),
            AgentEvent::Posted { post, report } => self.posted(n, post, report),
            AgentEvent::Replaced => self.note_build(n),
            AgentEvent::Begin(key, id, effect) => self.begin_effect(n, key, id, effect),
            AgentEvent::Told(key, input) => self.told(n, key, input),
            AgentEvent::Timer(key, at_us) => {
                let task = self.task(n, key).filter(|task| task.timer_us == Some(at_us));
                if let Some(task) = task {
                    task.timer_us = None;
                    self.feed(n, key, Input::LookAgain);
                }
            }
        }
    }

    pub(crate) fn agent(&mut self, n: usize) -> Option<&mut Agent> {
        self.hosts[n].agent.as_mut()
    }

    pub(crate) fn task(&mut self, n: usize, key: Key) -> Option<&mut Task> {
        self.agent(n)?.tasks.get_mut(&key)
    }

    /// Tries a server.
    fn connect(&mut self, n: usize) {
        let server = self.hosts[n].server;
        let for_us = self.latency_us();
        if self.servers[server].cloud.is_none() || !self.reaches(Node::Host(n), Node::Server(server)) {
            return self.connect_elsewhere(n);
        }
        self.next_serial += 1;
        let request = Request {
            number: self.next_serial,
            server,
            server_epoch: self.servers[server].epoch,
        };
        if let Some(agent) = self.agent(n) {
            agent.connecting = Some(request.number);
        }
        self.tell_agent(n, for_us, AgentEvent::Asked(request));
        self.tell_agent(n, DEADLINE_US, AgentEvent::Connected(request, None));
    }

    /// The server's own code begins to tell a host what to do, or refuses to.
    fn asked(&mut self, n: usize, request: Request) {
        let server = &self.servers[request.server];
        let cloud = server.cloud.clone();
        let Some(cloud) = cloud.filter(|_| server.epoch == request.server_epoch) else {
            return self.answer_request(n, request, None);
        };
        let (id, epoch) = (self.hosts[n].id, self.hosts[n].epoch);
        self.have_done(request.server, async move {
            let documents = Documents::begin(&cloud, id).await.ok();
            Said::Begun {
                request,
                host: n,
                epoch,
                documents: documents.map(Box::new),
            }
        });
    }

    pub(crate) fn answer_request(&mut self, n: usize, request: Request, documents: Option<Box<Documents>>) {
        if self.reaches(Node::Server(request.server), Node::Host(n)) {
            let for_us = self.latency_us();
            self.tell_agent(n, for_us, AgentEvent::Connected(request, documents));
        }
    }

    fn connect_elsewhere(&mut self, n: usize) {
        self.change_over(n);
        self.connect_later(n);
    }

    /// The next thing that is asked goes to another server, as it does behind what shares requests among them.
    fn change_over(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        host.server = (host.server + 1) % self.servers.len();
    }

    fn connect_later(&mut self, n: usize) {
        let jitter = self.chance.random_range(0.5..1.0);
        if let Some(agent) = self.agent(n) {
            let pause = agent.backoff.next(jitter);
            self.tell_agent(n, micros(pause), AgentEvent::Connect);
        }
    }

    fn connected(&mut self, n: usize, request: Request, documents: Option<Box<Documents>>) {
        let Request {
            number,
            server,
            server_epoch,
        } = request;
        let is_there = self.servers[server].epoch == server_epoch;
        let Some(agent) = self.agent(n) else { return };
        if agent.connecting.take_if(|waited| *waited == number).is_none() {
            return;
        }
        let Some(documents) = documents.filter(|_| is_there) else {
            return self.connect_elsewhere(n);
        };
        agent.backoff = Default::default();
        agent.connection = Some(Connection {
            number,
            server,
            server_epoch,
            documents: *documents,
            is_broken: false,
            arrives_us: 0,
        });
        agent.core.connected();
        self.spread(n);
        self.stream_to(n);
    }

    fn lost(&mut self, n: usize, number: u64) {
        let Some(agent) = self.agent(n) else { return };
        if agent
            .connection
            .take_if(|connection| connection.number == number)
            .is_none()
        {
            return;
        }
        agent.core.lost();
        self.change_over(n);
        self.spread(n);
        self.connect_later(n);
    }

    /// The view has moved on: the streams that it concerns are told what is new.
    pub(crate) fn stream_documents(&mut self, server: usize) {
        self.streams_are_looked_at(server);
        let Some(cloud) = self.servers[server].cloud.clone() else {
            return;
        };
        let concerned = match self.servers[server].following.next(&cloud.cache) {
            Concerned::All => (0..self.hosts.len()).collect(),
            Concerned::Hosts(hosts) => self.numbers_of(&hosts),
        };
        for n in concerned {
            let connection = self.hosts[n].agent.as_ref().and_then(|a| a.connection.as_ref());
            if connection.is_some_and(|connection| connection.server == server) {
                self.stream_to(n);
            }
        }
    }

    /// Hosts are in the order of their ids.
    fn numbers_of(&self, hosts: &BTreeSet<HostId>) -> Vec<usize> {
        let numbers = hosts
            .iter()
            .map(|id| self.hosts.binary_search_by_key(id, |host| host.id));
        numbers.filter_map(Result::ok).collect()
    }

    fn stream_to(&mut self, n: usize) {
        let latency_us = self.latency_us();
        let now_us = self.time.now_us();
        let Some(connection) = self.agent(n).and_then(|agent| agent.connection.as_mut()) else {
            return;
        };
        if connection.is_broken {
            return;
        }
        let (number, server, epoch) = (connection.number, connection.server, connection.server_epoch);
        connection.arrives_us = connection.arrives_us.max(now_us + latency_us);
        let for_us = connection.arrives_us - now_us;
        if self.servers[server].epoch != epoch {
            return;
        }
        let Some(cloud) = self.servers[server].cloud.clone() else {
            return;
        };
        let Some(connection) = self.agent(n).and_then(|agent| agent.connection.as_mut()) else {
            return;
        };
        let told = connection.documents.next(&cloud.cache.view());
        match told {
            Told::Nothing => {}
            _ if !self.reaches(Node::Server(server), Node::Host(n)) => self.break_stream(n),
            Told::Document(document) => self.tell_agent(n, for_us, AgentEvent::Document(number, document)),
            Told::Ended => self.tell_agent(n, for_us, AgentEvent::Lost(number)),
        }
    }

    /// What was sent does not arrive: the agent hears nothing more of this server, and notes it after a while.
    pub(crate) fn break_stream(&mut self, n: usize) {
        let Some(connection) = self.agent(n).and_then(|agent| agent.connection.as_mut()) else {
            return;
        };
        if !std::mem::replace(&mut connection.is_broken, true) {
            let number = connection.number;
            self.tell_agent(n, STREAM_LOST_US, AgentEvent::Lost(number));
        }
    }

    fn take_document(&mut self, n: usize, number: u64, document: Box<HostDocument>) {
        let host = &mut self.hosts[n];
        let Some(agent) = &host.agent else { return };
        let is_current = agent.connection.as_ref().is_some_and(|c| c.number == number);
        if !is_current || !agent.core.admits(&document) {
            return;
        }
        if host.is_full {
            return self.tell_agent(n, KEEP_AGAIN_US, AgentEvent::Document(number, document));
        }
        // The document is on the disk before its revision is.
        host.document = Some((*document).clone());
        let for_us = self.chance.random_range(100..2_000);
        self.tell_agent(n, for_us, AgentEvent::Kept(number, document));
    }

    fn obey(&mut self, n: usize, number: u64, document: HostDocument) {
        let host = &mut self.hosts[n];
        let Some(agent) = &mut host.agent else { return };
        let is_current = agent.connection.as_ref().is_some_and(|c| c.number == number);
        if !is_current || !agent.core.admits(&document) {
            return;
        }
        host.journal.apply(Entry::Document {
            revision: document.revision,
        });
        agent.core.obey(document);
        self.spread(n);
    }

    /// Gives every incarnation its orders, and a core if it has none.
    fn spread(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        let Some(agent) = &mut host.agent else { return };
        let known = host.journal.marks.keys().copied().chain(agent.core.named());
        for key in known.collect::<Vec<_>>() {
            let identity = Identity {
                vm: key.0,
                incarnation: key.1,
                host: host.id,
            };
            agent.tasks.entry(key).or_insert_with(|| Task {
                core: Core::new(identity, host.journal.marks_of(key.0, key.1)),
                seen: Orders::default(),
                desired: None,
                timer_us: None,
                forgetting: None,
            });
        }
        for key in agent.tasks.keys().copied().collect::<Vec<_>>() {
            let Some(agent) = &mut self.hosts[n].agent else {
                return;
            };
            let latest = agent.core.orders(key.0, key.1);
            let Some(task) = agent.tasks.get_mut(&key) else {
                continue;
            };
            let old = std::mem::replace(&mut task.seen, latest.clone());
            for input in latest.news(&old) {
                self.feed(n, key, input);
            }
        }
    }

    /// One step of a core.
    pub(crate) fn feed(&mut self, n: usize, key: Key, input: Input) {
        let time = self.time.clone();
        let now = self.hosts[n].now(&time);
        let Some(task) = self.task(n, key) else { return };
        if let Input::Desired {
            document: Some(document),
            ..
        } = &input
        {
            task.desired = Some(document.clone());
        }
        for (id, effect) in task.core.step(now, input) {
            match effect {
                Effect::Timer { at_us } => {
                    let at_us = self.hosts[n].world_us(at_us).max(time.now_us());
                    if let Some(task) = self.task(n, key) {
                        task.timer_us = Some(at_us);
                    }
                    self.tell_agent(n, at_us - time.now_us(), AgentEvent::Timer(key, at_us));
                }
                Effect::Report { status, within_ms } => {
                    self.check_report(n, key, &status);
                    let within = std::time::Duration::from_millis(within_ms);
                    if let Some(agent) = self.agent(n) {
                        agent.board.set_run(now.monotonic_us, key.0, *status, within);
                    }
                    self.plan_post(n);
                }
                effect => {
                    if let Some(task) = self.task(n, key) {
                        task.forgetting = matches!(effect, Effect::Forget).then_some(id);
                    }
                    let for_us = self.chance.random_range(10..200);
                    self.tell_agent(n, for_us, AgentEvent::Begin(key, id, effect));
                }
            }
        }
        self.answer_go(n, key);
    }

    fn told(&mut self, n: usize, key: Key, input: Input) {
        let forgetting = self.task(n, key).and_then(|task| task.forgetting);
        if matches!((&input, forgetting), (Input::Done(done, _), Some(id)) if *done == id) {
            if let Some(agent) = self.agent(n) {
                agent.tasks.remove(&key);
            }
            // It may have been named again in the meantime.
            self.spread(n);
            return;
        }
        self.feed(n, key, input);
    }

    /// What changed is posted in time.
    pub(crate) fn plan_post(&mut self, n: usize) {
        let now_us = self.time.now_us();
        let host = &mut self.hosts[n];
        let due_us = host.agent.as_ref().and_then(|agent| agent.board.due_us());
        let Some(due_us) = due_us.map(|due_us| host.world_us(due_us).max(now_us)) else {
            return;
        };
        let Some(agent) = &mut host.agent else { return };
        if matches!(agent.post, Post::At(at_us) if due_us < at_us) {
            agent.post = Post::At(due_us);
            self.tell_agent(n, due_us - now_us, AgentEvent::Post(due_us));
        }
    }

    fn post(&mut self, n: usize, at_us: u64) {
        let host = &mut self.hosts[n];
        let epoch = host.epoch;
        let Some(agent) = &mut host.agent else { return };
        if agent.post != Post::At(at_us) {
            return;
        }
        agent.posts += 1;
        let post = agent.posts;
        agent.post = Post::UnderWay(post);
        let report = Box::new(agent.board.report(agent.session, Samples::default()));
        let server = self.hosts[n].server;
        self.tell_agent(n, DEADLINE_US, AgentEvent::Posted { post, report: None });
        if !self.reaches(Node::Host(n), Node::Server(server)) {
            return;
        }
        let event = Event::Report {
            server,
            host: n,
            epoch,
            post,
            report,
        };
        let for_us = self.latency_us();
        // The network may send twice what was sent once.
        if !self.is_mended && self.chance.random_range(0..100) == 0 {
            let again_us = self.chance.random_range(1_000..3_000_000);
            self.after(again_us, event.clone());
        }
        self.after(for_us, event);
    }

    /// The agent sees that another QEMU is in its program's place.
    fn note_build(&mut self, n: usize) {
        let time = self.time.clone();
        let host = &mut self.hosts[n];
        let (now_us, version) = (host.now(&time).monotonic_us, host.status().qemu_version);
        if let Some(agent) = &mut host.agent {
            agent.board.set_qemu_version(now_us, &version);
        }
        self.plan_post(n);
    }

    /// A report arrives: the server's own code takes it.
    pub(crate) fn take_report(
        &mut self,
        server: usize,
        host: usize,
        epoch: u64,
        post: u64,
        report: Box<Report>,
    ) {
        let server_epoch = self.servers[server].epoch;
        let id = self.hosts[host].id;
        let Some(cloud) = self.servers[server].cloud.clone() else {
            return self.answer_report(server, host, epoch, post, None);
        };
        if !self.is_member(server, id) {
            return self.answer_report(server, host, epoch, post, None);
        }
        let actor = Actor {
            name: format!("agent:{}", self.hosts[host].name()),
            from: None,
            request: None,
        };
        self.have_done(server, async move {
            let taken = take_report(&cloud, id, &actor, (*report).clone()).await;
            Said::Reported {
                server,
                server_epoch,
                host,
                epoch,
                post,
                report: taken.is_ok().then_some(report),
            }
        });
    }

    /// A host that is declared dead is refused, as its certificate is.
    fn is_member(&self, server: usize, host: HostId) -> bool {
        let cloud = self.servers[server].cloud.as_ref();
        cloud.is_some_and(|cloud| {
            let view = cloud.cache.view();
            view.hosts.get(&host).is_some_and(|host| !host.is_dead())
        })
    }

    pub(crate) fn answer_report(
        &mut self,
        server: usize,
        host: usize,
        epoch: u64,
        post: u64,
        report: Option<Box<Report>>,
    ) {
        if self.reaches(Node::Server(server), Node::Host(host)) {
            let what = AgentEvent::Posted { post, report };
            let for_us = self.latency_us();
            self.after(for_us, Event::Agent { host, epoch, what });
        }
    }

    fn posted(&mut self, n: usize, post: u64, report: Option<Box<Report>>) {
        let jitter = self.chance.random_range(0.5..1.0);
        let now_us = self.time.now_us();
        let Some(agent) = self.agent(n) else { return };
        if agent.post != Post::UnderWay(post) {
            return;
        }
        let is_taken = report.is_some();
        let next_us = match report {
            Some(report) => {
                agent.board.answered(*report);
                agent.post_backoff = Default::default();
                Agent::heartbeat_us(now_us)
            }
            None => now_us + micros(agent.post_backoff.next(jitter)),
        };
        agent.post = Post::At(next_us);
        self.tell_agent(n, next_us - now_us, AgentEvent::Post(next_us));
        self.plan_post(n);
        if !is_taken {
            self.leave_server(n);
        }
    }

    /// A server that takes no report is left for another one, if there is one.
    fn leave_server(&mut self, n: usize) {
        let connection = self.agent(n).and_then(|agent| agent.connection.as_ref());
        let number = connection.map(|connection| connection.number);
        match number.filter(|_| self.servers.len() > 1) {
            Some(number) => self.lost(n, number),
            None => self.change_over(n),
        }
    }

    /// A source's agent says that its QEMU completed.
    pub(crate) fn send_go(&mut self, n: usize, key: Key, id: EffectId, to: usize, to_key: Key) {
        let epoch = self.hosts[n].epoch;
        let late = Input::Failed(id, failure("go-unanswered", true));
        self.tell_agent(n, DEADLINE_US, AgentEvent::Told(key, late));
        if !self.reaches(Node::Host(n), Node::Host(to)) {
            return;
        }
        let event = Event::Go {
            from: n,
            epoch,
            from_key: key,
            effect: id,
            to,
            to_key,
        };
        if !self.is_mended && self.chance.random_range(0..20) == 0 {
            let again_us = self.chance.random_range(1_000..5_000_000);
            self.after(again_us, event.clone());
        }
        let for_us = self.latency_us();
        self.after(for_us, event);
    }

    pub(crate) fn take_go(
        &mut self,
        (from, epoch, from_key): (usize, u64, Key),
        effect: EffectId,
        to: usize,
        to_key: Key,
    ) {
        let source = self.hosts[from].id;
        let Some(agent) = self.agent(to) else { return };
        let is_source = agent.core.source_of(to_key.0, from_key.1, to_key.1) == Some(source);
        if !is_source || !agent.tasks.contains_key(&to_key) {
            return;
        }
        agent.waiting.push(Waiting {
            key: to_key,
            source: from,
            source_epoch: epoch,
            source_key: from_key,
            effect,
        });
        let input = Input::Go {
            from: from_key.1,
            to: to_key.1,
        };
        self.feed(to, to_key, input);
    }

    /// Who waits to hear that a guest has come is told when it has.
    fn answer_go(&mut self, n: usize, key: Key) {
        let Some(agent) = self.agent(n) else { return };
        let status = agent.tasks.get(&key).and_then(|task| task.core.status());
        if agent.waiting.is_empty() || !status.is_some_and(has_arrived) {
            return;
        }
        let (told, waiting) = std::mem::take(&mut agent.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|waiting| waiting.key == key);
        agent.waiting = waiting;
        for waiting in told {
            if self.reaches(Node::Host(n), Node::Host(waiting.source)) {
                let outcome = Outcome::TargetRuns {
                    downtime_us: Some(11_000),
                };
                let input = Input::Done(waiting.effect, outcome);
                let for_us = self.latency_us();
                let event = Event::Agent {
                    host: waiting.source,
                    epoch: waiting.source_epoch,
                    what: AgentEvent::Told(waiting.source_key, input),
                };
                self.after(for_us, event);
            }
        }
    }

    /// A target that does not wait for its source.
    pub(crate) fn hurry(&mut self, n: usize, key: Key) {
        if self.bug != Some(Bug::GoBeforeTheEnd) {
            return;
        }
        let task = self.task(n, key).and_then(|task| task.desired.clone());
        if let Some(model::document::Order::Target(target)) = task.map(|document| document.order) {
            let input = Input::Go {
                from: target.from,
                to: key.1,
            };
            self.feed(n, key, input);
        }
    }
}

pub(crate) fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
