//! Two hosts, each with a core, a journal and at most one QEMU; the link between them; time.
//!
//! What must never happen is checked after every step, by [`World::check`] and where an effect is carried out.

use std::collections::{BTreeMap, BTreeSet};

use driver::Core;
use driver::qemu_model::Process;
use driver::types::{
    Effect, EffectId, Failure, Identity, Input, Lease, Marks, MigrationWord, Now, Outcome, Qemu,
    RunStatusWord,
};
use model::copy::{CopyShape, CopyTo};
use model::document::{Disk, ImageFile, Machine, Order, VmDocument};
use model::image::ImageFormat;
use model::report::{OutgoingState, RunState, RunStatus};
use model::vm::{BootDevice, GuestConfig, Reboot};
use model::{HostId, Incarnation, Reason, Timestamp, VmId};

/// What a fault does to an effect, to an agent or to a QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The agent dies before the effect is carried out.
    CrashBefore,
    /// The agent dies after the effect was carried out, before it learns so.
    CrashAfter,
    /// The effect is not carried out, and said to have failed.
    Refused,
    /// The effect is carried out, and said to have failed.
    Unclear,
    /// The host's QEMU dies before the effect.
    QemuDies,
    /// The host's connection to the servers is lost before the effect, for three seconds.
    Offline,
}

pub(crate) const FAULTS: [Fault; 6] = [
    Fault::CrashBefore,
    Fault::CrashAfter,
    Fault::Refused,
    Fault::Unclear,
    Fault::QemuDies,
    Fault::Offline,
];

/// How the link behaves when the last part has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Good,
    /// The transfer never gets on.
    Stalls,
    /// The target loads, its acknowledgement is lost, the source runs on by itself.
    AckLostRunsOn,
    /// The target loads, its acknowledgement is lost, the source stands still.
    AckLostStands,
    /// The target loads, its acknowledgement is lost and nothing comes after it: the source waits.
    AckSwallowed,
}

/// One host: what its agent has, what is durable, what the servers know of it.
pub(crate) struct Host {
    pub(crate) id: Identity,
    pub(crate) core: Option<Core>,
    pub(crate) marks: Marks,
    pub(crate) process: Option<Process>,
    /// What the servers have for it, and what it has read last and keeps on its disk.
    pub(crate) document: Document,
    on_disk: Document,
    is_online: bool,
    /// When it connects again.
    reconnect_us: Option<u64>,
    pending: Option<(EffectId, Effect)>,
    /// When the `go` that is under way is given up.
    go_until_us: Option<u64>,
    timer_us: Option<u64>,
    /// What the servers know, newest last.
    pub(crate) reports: Vec<RunStatus>,
    undelivered: Option<RunStatus>,
    /// What was carried out, in its order.
    pub(crate) log: Vec<Effect>,
    pub(crate) is_forgotten: bool,
    /// Sizes of whole files of saved states, by the incarnation that saved.
    pub(crate) saved: BTreeMap<Incarnation, u64>,
    /// Whether the guest powers off when asked.
    pub(crate) listens: bool,
    /// Whether the guest holds its medium.
    pub(crate) holds_medium: bool,
    /// The reboot that its orders go with.
    pub(crate) reboot: Option<Reboot>,
    /// The copies of its disk that its orders go with.
    pub(crate) copies: BTreeMap<CopyTo, CopyShape>,
    /// Effects that fail, by name, with whether trying again may help.
    pub(crate) broken: BTreeMap<&'static str, bool>,
    pub(crate) spawns: u32,
    promised: BTreeSet<Incarnation>,
    has_reported_closed: bool,
}

type Document = Option<(u64, Option<VmDocument>)>;

impl Host {
    fn new(incarnation: Incarnation, host: &str) -> Self {
        let id = Identity {
            vm: vm(),
            incarnation,
            host: host.parse::<HostId>().unwrap(),
        };
        Self {
            id,
            core: Some(Core::new(id, Marks::default())),
            marks: Marks::default(),
            process: None,
            document: None,
            on_disk: None,
            is_online: true,
            reconnect_us: None,
            pending: None,
            go_until_us: None,
            timer_us: None,
            reports: Vec::new(),
            undelivered: None,
            log: Vec::new(),
            is_forgotten: false,
            saved: BTreeMap::new(),
            listens: true,
            holds_medium: false,
            reboot: None,
            copies: BTreeMap::new(),
            broken: BTreeMap::new(),
            spawns: 0,
            promised: BTreeSet::new(),
            has_reported_closed: false,
        }
    }

    pub(crate) fn state(&self) -> Option<RunState> {
        self.reports.last().map(|status| status.state)
    }

    pub(crate) fn last(&self) -> &RunStatus {
        self.reports.last().expect("nothing was reported")
    }

    pub(crate) fn executes(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.executes())
    }
}

pub(crate) struct World {
    pub(crate) hosts: Vec<Host>,
    pub(crate) now_us: u64,
    pub(crate) link: Link,
    /// `go` never arrives.
    pub(crate) go_is_lost: bool,
    /// The source's QEMU completed, and its guest was not continued since.
    pub(crate) handed_over: bool,
    /// How many effects were begun, and what happens at which.
    pub(crate) effects: usize,
    pub(crate) faults: BTreeMap<usize, (usize, Fault)>,
    /// Decides who comes first where the order is open.
    pub(crate) seed: u64,
    revision: u64,
    /// The story is over.
    pub(crate) end_us: Option<u64>,
    /// What documents say that the VM is.
    pub(crate) machine: Machine,
}

pub(crate) const SOURCE: usize = 0;
pub(crate) const TARGET: usize = 1;
pub(crate) const N: Incarnation = Incarnation(1);
pub(crate) const M: Incarnation = Incarnation(2);

fn vm() -> VmId {
    "01900000-0000-7000-8000-000000000001".parse().unwrap()
}

fn machine() -> Machine {
    Machine {
        name: "web".to_owned(),
        uuid: vm().0,
        vcpus: 1,
        memory_mib: 256,
        disk: Disk {
            datastore: "/data".to_owned(),
            coherent: true,
            image: Some(ImageFile {
                sha256: "00".to_owned(),
                format: ImageFormat::Qcow2,
            }),
            bytes: 1 << 30,
            layer: None,
        },
        nics: Vec::new(),
        guest: GuestConfig::default(),
        cdrom: None,
        boot: BootDevice::USUAL.into(),
        firmware: Default::default(),
        keeps_memory: false,
        build: None,
    }
}

fn wall_at(us: u64) -> Timestamp {
    Timestamp::from_microsecond(1_700_000_000_000_000 + i64::try_from(us).unwrap()).unwrap()
}

/// What a choice between several next steps may fall on.
#[derive(Clone, Copy)]
enum Action {
    Effect(usize),
    Link,
}

impl World {
    pub(crate) fn new() -> Self {
        let hosts = vec![
            Host::new(N, "01900000-0000-7000-8000-00000000000a"),
            Host::new(M, "01900000-0000-7000-8000-00000000000b"),
        ];
        Self {
            hosts,
            now_us: 1_000_000,
            link: Link::Good,
            go_is_lost: false,
            handed_over: false,
            effects: 0,
            faults: BTreeMap::new(),
            seed: 0,
            revision: 0,
            end_us: None,
            machine: machine(),
        }
    }

    pub(crate) fn now(&self) -> Now {
        Now {
            monotonic_us: self.now_us,
            wall: wall_at(self.now_us),
        }
    }

    pub(crate) fn wall_in_ms(&self, ms: u64) -> Timestamp {
        wall_at(self.now_us + ms * 1000)
    }

    /// The servers change what a host shall do. Answers whether that is anything new.
    pub(crate) fn order(&mut self, at: usize, order: Option<Order>) -> bool {
        let incarnation = self.hosts[at].id.incarnation;
        let document = order.map(|order| VmDocument {
            incarnation,
            order,
            machine: self.machine.clone(),
            reboot: self.hosts[at].reboot,
            copies: self.hosts[at].copies.clone(),
            cause: None,
        });
        if self.hosts[at]
            .document
            .as_ref()
            .is_some_and(|(_, known)| *known == document)
        {
            return false;
        }
        self.revision += 1;
        self.hosts[at].document = Some((self.revision, document));
        if self.hosts[at].is_online {
            self.connect(at);
        }
        true
    }

    /// The host reads its document, and the servers its last report.
    fn connect(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        host.is_online = true;
        host.reconnect_us = None;
        host.reports.extend(host.undelivered.take());
        host.on_disk.clone_from(&host.document);
        self.read_document(at);
        self.feed(
            at,
            Input::Lease(Lease {
                live: true,
                fresh: true,
            }),
        );
    }

    fn read_document(&mut self, at: usize) {
        if let Some((revision, document)) = self.hosts[at].on_disk.clone() {
            self.feed(
                at,
                Input::Desired {
                    revision,
                    document: document.map(Box::new),
                },
            );
        }
    }

    pub(crate) fn disconnect(&mut self, at: usize, for_us: u64) {
        self.hosts[at].is_online = false;
        self.hosts[at].reconnect_us = Some(self.now_us + for_us);
        self.feed(at, Input::Lease(Lease::default()));
    }

    /// The agent dies and is started again: what was not durable is gone, and it connects only after a while.
    pub(crate) fn restart_agent(&mut self, at: usize) {
        let reconnect_us = self.now_us + 5_000;
        let host = &mut self.hosts[at];
        if host.is_forgotten {
            return;
        }
        host.core = Some(Core::new(host.id, host.marks.clone()));
        host.pending = None;
        host.go_until_us = None;
        host.timer_us = None;
        host.undelivered = None;
        host.is_online = false;
        host.reconnect_us = Some(reconnect_us);
        self.read_document(at);
    }

    pub(crate) fn kill_qemu(&mut self, at: usize) {
        self.hosts[at].process = None;
        self.stream_breaks(at);
        self.feed(at, Input::LookAgain);
    }

    /// One end of the stream is gone.
    pub(crate) fn stream_breaks(&mut self, gone: usize) {
        let other = 1 - gone;
        let Some(process) = &mut self.hosts[other].process else {
            return;
        };
        if gone == TARGET && process.is_transferring() {
            process.fail(MigrationWord::Failed, true);
        } else if gone == SOURCE && process.run == RunStatusWord::InMigrate && process.is_listening {
            process.break_off();
        } else {
            return;
        }
        self.feed(other, Input::LookAgain);
    }

    pub(crate) fn feed(&mut self, at: usize, input: Input) {
        let now = self.now();
        let Some(core) = &mut self.hosts[at].core else {
            return;
        };
        let effects = core.step(now, input);
        for (id, effect) in effects {
            match effect {
                Effect::Report { status, .. } => self.take_report(at, *status),
                Effect::Timer { at_us } => self.hosts[at].timer_us = Some(at_us),
                Effect::Forget => {
                    self.hosts[at].core = None;
                    self.hosts[at].is_forgotten = true;
                }
                effect => {
                    assert_eq!(self.hosts[at].pending, None, "two effects are under way");
                    self.hosts[at].pending = Some((id, effect));
                }
            }
        }
        self.check();
    }

    fn take_report(&mut self, at: usize, status: RunStatus) {
        let host = &mut self.hosts[at];
        let code = status.reason.as_ref().map(|reason| reason.code.as_str());
        assert_ne!(
            code,
            Some("unforeseen"),
            "{:?} {:?} {:?}",
            host.on_disk,
            host.process,
            host.marks
        );
        if status.state.is_closed() {
            assert_eq!(host.process, None, "closed, with a process");
            assert!(host.marks.closed, "closed, without the mark");
            host.has_reported_closed = true;
        }
        if let Some(outgoing) = status
            .outgoing
            .as_ref()
            .filter(|outgoing| outgoing.state == OutgoingState::Promised)
        {
            assert!(
                host.marks.no_switch.contains(&outgoing.to),
                "promised, without the mark"
            );
            let process = host.process.as_ref().unwrap();
            assert!(
                !process.is_transferring() && !process.has_completed(),
                "promised: {process:?}"
            );
            host.promised.insert(outgoing.to);
        }
        if host.is_online {
            host.reports.push(status)
        } else {
            host.undelivered = Some(status)
        }
    }

    /// What must hold always.
    fn check(&self) {
        let running = self.hosts.iter().filter(|host| host.executes()).count();
        assert!(running <= 1, "two copies run");
        for host in &self.hosts {
            assert!(host.spawns <= 1, "launched twice");
            assert!(!host.executes() || host.marks.ran, "runs, without the mark");
            assert!(
                !host.has_reported_closed || host.process.is_none(),
                "a process after closed was reported"
            );
            let has_switched = host.promised.contains(&M) && self.handed_over;
            assert!(!has_switched, "the promise was broken");
        }
    }

    /// Goes on until nothing happens any more, or the time is over. `controller` acts first whenever it can.
    pub(crate) fn run(&mut self, controller: &mut dyn FnMut(&mut Self) -> bool, for_us: u64) {
        let end_us = self.now_us + for_us;
        for step in 0.. {
            assert!(step < 20_000, "it does not come to rest");
            if controller(self) || self.act(step) {
                continue;
            }
            let end_us = self.end_us.map_or(end_us, |at_us| at_us.min(end_us));
            let Some(at_us) = self.next_us().filter(|at_us| *at_us <= end_us) else {
                self.now_us = end_us;
                return;
            };
            self.now_us = self.now_us.max(at_us);
            self.ring();
        }
    }

    /// The same without anyone who changes an order.
    pub(crate) fn settle(&mut self, for_us: u64) {
        self.run(&mut |_| false, for_us);
    }

    fn next_us(&self) -> Option<u64> {
        let times = self
            .hosts
            .iter()
            .flat_map(|host| [host.timer_us, host.reconnect_us, host.go_until_us]);
        times.flatten().min()
    }

    fn ring(&mut self) {
        for at in 0..self.hosts.len() {
            let is_due = |time: Option<u64>| time.is_some_and(|at_us| at_us <= self.now_us);
            let host = &self.hosts[at];
            let (timer, reconnect, go) = (
                is_due(host.timer_us),
                is_due(host.reconnect_us),
                is_due(host.go_until_us),
            );
            if timer {
                self.hosts[at].timer_us = None;
                self.feed(at, Input::LookAgain);
            }
            if reconnect {
                self.connect(at);
            }
            if go {
                self.answer_go(at, false);
            }
        }
    }

    fn act(&mut self, step: u64) -> bool {
        let mut actions = Vec::new();
        for at in 0..self.hosts.len() {
            let host = &self.hosts[at];
            let is_waiting = host.go_until_us.is_some() && !self.target_runs();
            if host.pending.is_some() && !is_waiting {
                actions.push(Action::Effect(at));
            }
        }
        if self.link_can_move() {
            actions.push(Action::Link);
        }
        let choice = (self.seed ^ step).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        let Some(count) = u64::try_from(actions.len()).ok().filter(|count| *count > 0) else {
            return false;
        };
        self.now_us += 100;
        match actions[usize::try_from(choice % count).unwrap()] {
            Action::Effect(at) => self.begin(at),
            Action::Link => self.move_link(),
        }
        self.check();
        true
    }

    fn target_runs(&self) -> bool {
        let status = self.hosts[TARGET].core.as_ref().and_then(Core::status);
        status
            .is_some_and(|status| status.ran && matches!(status.state, RunState::Running | RunState::Paused))
    }

    fn link_can_move(&self) -> bool {
        let word = self.hosts[SOURCE]
            .process
            .as_ref()
            .filter(|process| process.is_transferring());
        match word.map(|process| process.migration) {
            Some(MigrationWord::Active) => self.link != Link::Stalls,
            Some(MigrationWord::Device) => !(self.link == Link::AckSwallowed && self.target_has_loaded()),
            _ => false,
        }
    }

    fn target_has_loaded(&self) -> bool {
        let target = self.hosts[TARGET].process.as_ref();
        target.is_some_and(|target| target.run != RunStatusWord::InMigrate)
    }

    fn move_link(&mut self) {
        let [source, target] = &mut self.hosts[..] else {
            unreachable!()
        };
        let (Some(process), listener) = (&mut source.process, &mut target.process) else {
            return;
        };
        if process.migration == MigrationWord::Active {
            process.pre_switchover();
            return self.feed(SOURCE, Input::LookAgain);
        }
        let listener = listener
            .as_mut()
            .filter(|listener| listener.run == RunStatusWord::InMigrate);
        let sent = process.guest_sent();
        match (listener, self.link) {
            (None, _) => process.fail(MigrationWord::Failed, true),
            (Some(listener), Link::AckSwallowed) => listener.load(sent),
            (Some(listener), Link::AckLostRunsOn | Link::AckLostStands) => {
                listener.load(sent);
                process.fail(MigrationWord::Failed, self.link == Link::AckLostRunsOn);
            }
            (Some(listener), _) => {
                listener.load(sent);
                process.complete();
                self.handed_over = true;
            }
        }
        self.feed(TARGET, Input::LookAgain);
        self.feed(SOURCE, Input::LookAgain);
    }

    /// Begins the effect that is pending, or lets happen to it what shall happen.
    fn begin(&mut self, at: usize) {
        if self.hosts[at].go_until_us.is_some() {
            return self.answer_go(at, true);
        }
        self.effects += 1;
        let (on, fault) = match self.faults.remove(&self.effects) {
            Some((on, fault)) => (Some(on), Some(fault)),
            None => (None, None),
        };
        match fault {
            Some(Fault::QemuDies) => self.kill_qemu(on.unwrap()),
            Some(Fault::Offline) => self.disconnect(on.unwrap(), 3_000_000),
            Some(Fault::CrashBefore) => return self.restart_agent(at),
            _ => {}
        }
        let Some((id, effect)) = self.hosts[at].pending.take() else {
            return;
        };
        self.hosts[at].log.push(effect.clone());
        if fault == Some(Fault::Refused) {
            return self.feed(at, Input::Failed(id, failure("refused", true)));
        }
        if let Effect::SendGo { .. } = effect {
            self.hosts[at].pending = Some((id, effect));
            self.send_go(at);
        } else {
            let answer = self.carry_out(at, &effect);
            match (fault, answer) {
                (Some(Fault::CrashAfter), _) => {}
                (Some(Fault::Unclear), _) => self.feed(at, Input::Failed(id, failure("unclear", true))),
                (_, Answer::Done(outcome)) => self.feed(at, Input::Done(id, outcome)),
                (_, Answer::Seen(qemu)) => self.feed(at, Input::Observed(qemu)),
                (_, Answer::Failed(failure)) => self.feed(at, Input::Failed(id, failure)),
            }
        }
        if fault == Some(Fault::CrashAfter) {
            self.restart_agent(at);
        }
    }

    fn send_go(&mut self, at: usize) {
        self.hosts[at].go_until_us = Some(self.now_us + 1_000_000);
        if !self.go_is_lost {
            let (from, to) = (
                self.hosts[SOURCE].id.incarnation,
                self.hosts[TARGET].id.incarnation,
            );
            self.feed(TARGET, Input::Go { from, to });
        }
    }

    fn answer_go(&mut self, at: usize, runs: bool) {
        self.hosts[at].go_until_us = None;
        let Some((id, _)) = self.hosts[at].pending.take() else {
            return;
        };
        if runs {
            self.feed(
                at,
                Input::Done(
                    id,
                    Outcome::TargetRuns {
                        downtime_us: Some(11_000),
                    },
                ),
            );
        } else {
            self.feed(at, Input::Failed(id, failure("no-answer", true)));
        }
    }
}

pub(crate) enum Answer {
    Done(Outcome),
    Seen(Qemu),
    Failed(Failure),
}

pub(crate) fn failure(code: &str, is_retryable: bool) -> Failure {
    Failure {
        reason: Reason::new(code, format!("it failed: {code}")),
        is_retryable,
    }
}
