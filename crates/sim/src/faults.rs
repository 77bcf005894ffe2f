//! The steps of a script, done and undone.
//!
//! **Owns:** what each fault switches on, and that all of it is mended in the end.
//!
//! **Does not know:** which steps there are: see [`crate::script`].
//!
//! **Start here:** [`World::step`].

use std::sync::PoisonError;

use crate::script::{Node, Step};
use crate::store::Weather;
use crate::world::{Event, QemuEvent, World};

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
            self.after(1_000, Event::StartHost(n));
            self.after(1_000, Event::StartAgent(n));
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
