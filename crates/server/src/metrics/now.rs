//! What is so at the moment: read from the view, the store, the controller and the last reports when it is asked for.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use api::kinds::{Host, HostState};
use model::host::Reservations;
use model::lifecycle::Phase;
use planner::View;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use store::Status;

use super::process::Process;
use super::{Label, Maker, set, set_seconds};
use crate::kinds::Served;
use crate::routes::App;

const MIB: i64 = 1 << 20;

type Decision = [(&'static str, &'static str); 2];

/// The metrics that are read, not counted.
pub(super) struct Now {
    vms: Family<Label, Gauge>,
    hosts: Family<Label, Gauge>,
    migrations: Family<Label, Gauge>,
    watchers: Family<Label, Gauge>,
    queued: Gauge,
    decisions: Family<Decision, Counter>,
    store: Store,
    machines: Machines,
    process: Process,
}

/// How the store stands.
struct Store {
    revision: Gauge,
    keys: Gauge,
    size: Gauge,
    free: Gauge,
}

/// What agents said last of their hosts.
struct Machines {
    load: Family<Label, Gauge<f64, AtomicU64>>,
    available: Family<Label, Gauge>,
    reserved: Family<Label, Gauge>,
    age: Family<Label, Gauge<f64, AtomicU64>>,
    agent_memory: Family<Label, Gauge>,
    agent_cpu: Family<Label, Counter<f64, AtomicU64>>,
}

impl Now {
    pub(super) fn new(all: &mut Maker) -> Self {
        let build: Family<Label, Gauge> = all.make(
            Family::default(),
            "sterna_build_info",
            "Always 1; its label says the release",
        );
        build
            .get_or_create(&[("version", env!("CARGO_PKG_VERSION").to_owned())])
            .set(1);
        Self {
            vms: all.make(Family::default(), "sterna_vms", "VMs, by phase"),
            hosts: all.make(Family::default(), "sterna_hosts", "Hosts, by state"),
            migrations: all.make(
                Family::default(),
                "sterna_migrations",
                "Migrations under way, by phase",
            ),
            watchers: all.make(
                Family::default(),
                "sterna_watchers",
                "Clients that follow a kind by a watch or a poll",
            ),
            queued: all.make(
                Gauge::default(),
                "sterna_controller_queue_length",
                "Objects that the controller has to look at",
            ),
            decisions: all.make(
                Family::default(),
                "sterna_controller_decisions",
                "Looks of the controller at an object, by what came of it",
            ),
            store: Store::new(all),
            machines: Machines::new(all),
            process: Process::new(all),
        }
    }

    /// Reads everything.
    pub(super) fn read(&self, app: &App, status: &Status) {
        self.process.read();
        self.store.read(status);
        let watchers = app.places.taken_by_kind().into_iter();
        let watchers = watchers.map(|(kind, count)| (kind.to_string(), number(count)));
        show(&self.watchers, "kind", watchers.collect());
        self.queued.set(number(app.figures.queue_length()));
        for (item, outcome, count) in app.figures.decisions() {
            let labels = [("item", item), ("outcome", outcome.word())];
            set(&self.decisions.get_or_create(&labels), count);
        }
        let view = app.cache.view();
        self.cloud(app, &view);
        self.machines.read(app, &view);
    }

    fn cloud(&self, app: &App, view: &View) {
        let mut vms: BTreeMap<String, i64> = zeros(Phase::ALL.iter().map(ToString::to_string));
        for (phase, _) in view.vms.keys().filter_map(|id| view.phase(*id)) {
            *vms.entry(phase.to_string()).or_default() += 1;
        }
        show(&self.vms, "phase", vms);
        let states = [
            HostState::Joining,
            HostState::Up,
            HostState::Silent,
            HostState::Dead,
        ];
        let mut hosts = zeros(states.iter().map(word));
        for status in view
            .hosts
            .keys()
            .filter_map(|id| Host::status(&app.heard, view, id.0))
        {
            *hosts.entry(word(&status.state)).or_default() += 1;
        }
        show(&self.hosts, "state", hosts);
        let mut migrations = BTreeMap::new();
        for (_, migration) in view.all_active_migrations() {
            *migrations.entry(word(&migration.phase())).or_default() += 1;
        }
        show(&self.migrations, "phase", migrations);
    }
}

impl Store {
    fn new(all: &mut Maker) -> Self {
        Self {
            revision: all.make(Gauge::default(), "sterna_store_revision", "The store's revision"),
            keys: all.make(Gauge::default(), "sterna_store_keys", "Keys in the store"),
            size: all.make(
                Gauge::default(),
                "sterna_store_size_bytes",
                "What the store takes on its medium",
            ),
            free: all.make(
                Gauge::default(),
                "sterna_store_free_bytes",
                "What of that is free for what will be written",
            ),
        }
    }

    fn read(&self, status: &Status) {
        self.revision.set(number(status.revision));
        self.keys.set(number(status.keys));
        self.size.set(number(status.size_bytes.unwrap_or(0)));
        self.free.set(number(status.free_bytes.unwrap_or(0)));
    }
}

impl Machines {
    fn new(all: &mut Maker) -> Self {
        Self {
            load: all.make(
                Family::default(),
                "sterna_host_load1",
                "The host's load over the last minute",
            ),
            available: all.make(
                Family::default(),
                "sterna_host_memory_available_bytes",
                "Memory of the host that is available",
            ),
            reserved: all.make(
                Family::default(),
                "sterna_host_memory_reserved_bytes",
                "Memory of the host that is reserved for VMs",
            ),
            age: all.make(
                Family::default(),
                "sterna_host_report_age_seconds",
                "Since when nothing was heard from the host's agent",
            ),
            agent_memory: all.make(
                Family::default(),
                "sterna_agent_resident_memory_bytes",
                "Resident memory of the host's agent",
            ),
            agent_cpu: all.make(
                Family::default(),
                "sterna_agent_cpu_seconds",
                "Processor time of the host's agent since its start",
            ),
        }
    }

    /// Hosts that are gone are forgotten.
    fn read(&self, app: &App, view: &View) {
        self.load.clear();
        self.available.clear();
        self.reserved.clear();
        self.age.clear();
        self.agent_memory.clear();
        self.agent_cpu.clear();
        for (id, host) in view.hosts.iter().filter(|(_, host)| host.object.is_some()) {
            let label = [("host", host.name().to_owned())];
            let reserved = host.reservations.as_ref().map(|at| &at.value);
            let reserved = reserved.map_or(0, Reservations::memory_mib);
            self.reserved.get_or_create(&label).set(number(reserved) * MIB);
            let Some(last) = app.heard.last(*id) else { continue };
            let samples = last.samples;
            let age = app.env.monotonic().saturating_sub(last.at);
            self.age.get_or_create(&label).set(age.as_secs_f64());
            let load = f64::from(samples.load1_percent) / 100.0;
            self.load.get_or_create(&label).set(load);
            let available = number(samples.memory_available_mib) * MIB;
            self.available.get_or_create(&label).set(available);
            let agent = number(samples.agent.resident_kib) * 1024;
            self.agent_memory.get_or_create(&label).set(agent);
            let cpu_s = samples.agent.cpu_ms as f64 / 1000.0;
            set_seconds(&self.agent_cpu.get_or_create(&label), cpu_s);
        }
    }
}

fn number(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

fn zeros(words: impl Iterator<Item = String>) -> BTreeMap<String, i64> {
    words.map(|word| (word, 0)).collect()
}

/// A value's word on the wire.
fn word<T: serde::Serialize>(value: &T) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// Shows these and no others.
fn show(family: &Family<Label, Gauge>, label: &'static str, counts: BTreeMap<String, i64>) {
    family.clear();
    for (value, count) in counts {
        family.get_or_create(&[(label, value)]).set(count);
    }
}
