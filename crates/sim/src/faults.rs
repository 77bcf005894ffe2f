//! The steps of a script, done and undone.
//!
//! **Owns:** what each fault switches on, and that all of it is mended in the end.
//!
//! **Does not know:** which steps there are: see [`crate::script`].
//!
//! **Start here:** [`World::step`].

use std::sync::PoisonError;

use model::{HostId, Kind};

use crate::script::{Node, Step};
use crate::store::Weather;
use crate::world::{AgentEvent, Event, QemuEvent, World};

/// How long the word of a person takes at most to be heard, or not.
const TOLD_US: u64 = 5_000_000;
/// How long somebody waits who has to say something again.
const AGAIN_US: u64 = 1_000_000;

impl World {
    /// Does the nth step.
    pub(crate) fn step(&mut self, n: usize) {
        let Some(step) = self.the_step(n) else { return };
        let lasts_ms = self.begin_fault(n, &step);
        if let Some(for_ms) = lasts_ms {
            self.after(for_ms * 1000, Event::Over(n));
        }
    }

    /// Switches a fault on; answers how long it lasts, if it has an end of its own.
    fn begin_fault(&mut self, n: usize, step: &Step) -> Option<u64> {
        match *step {
            Step::CrashServer { server, for_ms } if self.has(Node::Server(server)) => {
                self.end_server(server);
                self.after(for_ms * 1000, Event::StartServer(server));
            }
            Step::CrashAgent { host, for_ms } if self.has(Node::Host(host)) => {
                self.crash_agent(host, for_ms * 1000);
            }
            Step::CrashAtEffect { host, nth, is_after } if self.has(Node::Host(host)) => {
                self.hosts[host].crash_at = Some((nth, is_after));
            }
            Step::StopHost { host, for_ms } if self.has(Node::Host(host)) => {
                self.stop_host(host);
                self.after(for_ms * 1000, Event::StartHost(host));
            }
            Step::LoseHost { host, told_ms } if self.has(Node::Host(host)) => {
                self.stop_host(host);
                self.hosts[host].is_lost = true;
                return Some(told_ms);
            }
            Step::Join { host } if self.has(Node::Host(host)) => self.join(host),
            Step::Upgrade => self.upgrade(),
            Step::KillQemu { host, nth } if self.has(Node::Host(host)) => self.kill_qemu(host, nth),
            Step::HangQemu { host, nth, for_ms } if self.has(Node::Host(host)) => {
                self.hang_qemu(host, nth, for_ms);
            }
            Step::Jump { node, by_s } if self.has(node) => self.jump(node, by_s),
            Step::SpoilLoads { host, for_ms } if self.has(Node::Host(host)) => {
                self.hosts[host].spoils_loads = true;
                return Some(for_ms);
            }
            Step::FillHost { host, for_ms } if self.has(Node::Host(host)) => {
                self.hosts[host].is_full = true;
                return Some(for_ms);
            }
            Step::SlowHost { host, for_ms } if self.has(Node::Host(host)) => {
                self.hosts[host].is_slow = true;
                return Some(for_ms);
            }
            Step::Cut { from, to, for_ms } if self.has(from) && self.has(to) => {
                self.cut(from, to);
                return Some(for_ms);
            }
            Step::FillStore { for_ms } => {
                self.weather(|weather| weather.is_full = true);
                return Some(for_ms);
            }
            Step::ShakeStore { for_ms } => {
                self.weather(|weather| weather.fails_one_in = Some(8));
                return Some(for_ms);
            }
            Step::SlowStore { for_ms } => {
                self.weather(|weather| (weather.slow_us, weather.lag_us) = (30_000, 200_000));
                return Some(for_ms);
            }
            ref wish => self.ask(n, wish),
        }
        None
    }

    /// Switches the nth step's fault off.
    pub(crate) fn over(&mut self, n: usize) {
        match self.the_step(n) {
            Some(Step::SpoilLoads { host, .. }) => self.hosts[host].spoils_loads = false,
            Some(Step::FillHost { host, .. }) => self.hosts[host].is_full = false,
            Some(Step::SlowHost { host, .. }) => self.hosts[host].is_slow = false,
            Some(Step::Cut { from, to, .. }) => {
                self.cuts.remove(&(from, to));
            }
            Some(Step::LoseHost { host, .. }) => self.tell_dead(n, host),
            Some(Step::FillStore { .. }) => self.weather(|weather| weather.is_full = false),
            Some(Step::ShakeStore { .. }) => self.weather(|weather| weather.fails_one_in = None),
            Some(Step::SlowStore { .. }) => {
                self.weather(|weather| (weather.slow_us, weather.lag_us) = (0, 0));
            }
            _ => {}
        }
    }

    /// Everything works again, and whatever was down comes back.
    pub(crate) fn mend(&mut self) {
        self.is_mended = true;
        self.checks.forms.mended();
        self.weather(|weather| *weather = Weather::default());
        self.cuts.clear();
        for server in 0..self.servers.len() {
            self.after(1_000, Event::StartServer(server));
        }
        for n in 0..self.hosts.len() {
            let host = &mut self.hosts[n];
            host.spoils_loads = false;
            host.is_full = false;
            host.is_slow = false;
            host.crash_at = None;
            for process in host.qemus.values_mut() {
                process.is_silent = false;
            }
            // Whoever says now that it is off is heard before it is on again.
            let for_us = if std::mem::take(&mut host.is_lost) {
                TOLD_US
            } else {
                1_000
            };
            self.after(for_us, Event::StartHost(n));
            self.after(for_us, Event::StartAgent(n));
            self.after(for_us, Event::Join(n));
        }
    }

    fn weather(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.weather.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn cut(&mut self, from: Node, to: Node) {
        self.cuts.insert((from, to));
        // Of a stream whose server is not heard nothing arrives any more, not even that there is nothing new.
        if let (Node::Server(server), Node::Host(host)) = (from, to) {
            let agent = self.hosts[host].agent.as_ref();
            let connection = agent.and_then(|agent| agent.connection.as_ref());
            if connection.is_some_and(|connection| connection.server == server) {
                self.break_stream(host);
            }
        }
    }

    fn stop_host(&mut self, n: usize) {
        let keys: Vec<_> = self.hosts[n].qemus.keys().copied().collect();
        for key in keys {
            self.end_qemu(n, key);
        }
        self.hosts[n].stop();
    }

    /// A person sees that a host is off and says so, again until that is known or the host comes back.
    fn tell_dead(&mut self, n: usize, host: usize) {
        let (id, name) = (self.hosts[host].id, self.hosts[host].name());
        let is_dead = self.checks.view.hosts.get(&id).is_some_and(|host| host.is_dead());
        let ends_us = self.script.size.seconds * 1_000_000;
        let is_late = self.time.now_us() + TOLD_US > ends_us;
        if !is_dead && !is_late && self.hosts[host].is_lost && self.hosts[host].is_member {
            self.operate(n, name, "confirm-dead");
            self.after(AGAIN_US, Event::Over(n));
        }
    }

    /// A host joins, again until it is one of the cloud's. One that was declared dead joins as the same again.
    pub(crate) fn join(&mut self, n: usize) {
        let host = &self.hosts[n];
        if !host.is_on {
            return;
        }
        let there = self.checks.view.find(Kind::Host, None, &host.name()).map(HostId);
        let parts = there.and_then(|id| self.checks.view.hosts.get(&id));
        if let Some(id) = there.filter(|_| parts.is_some_and(|host| !host.is_dead())) {
            let host = &mut self.hosts[n];
            (host.id, host.is_member) = (id, true);
            return self.start_agent(n);
        }
        self.ask_to_join(n);
        self.after(AGAIN_US, Event::Join(n));
    }

    /// Every host gets another build of QEMU, which its agent notes after a while. What runs goes on with the one that it has.
    fn upgrade(&mut self) {
        for n in 0..self.hosts.len() {
            self.hosts[n].build += 1;
            self.tell_agent(n, AGAIN_US, AgentEvent::Replaced);
        }
    }

    fn kill_qemu(&mut self, n: usize, nth: usize) {
        if let Some(key) = self.hosts[n].nth_qemu(nth) {
            self.end_qemu(n, key);
            self.feed(n, key, driver::types::Input::LookAgain);
        }
    }

    fn hang_qemu(&mut self, n: usize, nth: usize, for_ms: u64) {
        let Some(key) = self.hosts[n].nth_qemu(nth) else {
            return;
        };
        if let Some(process) = self.hosts[n].qemus.get_mut(&key) {
            process.is_silent = true;
            let event = Event::Qemu {
                host: n,
                key,
                serial: process.serial,
                what: QemuEvent::Answers,
            };
            self.after(for_ms * 1000, event);
        }
    }
}
