//! What all requests share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use controller::Env;
use controller::cache::Cache;
use controller::figures::Figures;
use model::audit::Actor;
use model::migration::Progress;
use model::report::{Report, Samples};
use model::{HostId, Incarnation, VmId};
use planner::reports::ReportOrder;
use store::Store;
use tokio::sync::{Semaphore, watch};

use crate::calls::Calls;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::pki::Pki;

/// One server's state. Everything that matters is in the store; the rest is what was heard lately.
pub struct Shared {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The view of it.
    pub cache: Arc<Cache>,
    /// Time and ids.
    pub env: Arc<dyn Env>,
    /// The cloud's CAs.
    pub pki: Pki,
    /// Where images' content is kept.
    pub images: PathBuf,
    /// Where the server keeps its files.
    pub data_dir: PathBuf,
    /// Held while a backup is taken.
    pub backup: tokio::sync::Mutex<()>,
    /// What hosts said lately.
    pub heard: Heard,
    /// The agents that listen for calls.
    pub calls: Calls,
    /// How often may be asked.
    pub limits: Limits,
    /// What is counted.
    pub metrics: Metrics,
    /// What the controller counts.
    pub figures: Arc<Figures>,
    /// Places for those who wait for changes.
    pub polls: Arc<Semaphore>,
    /// Places for those who read changes as a stream.
    pub watches: Arc<Semaphore>,
}

impl Shared {
    /// What a commit needs.
    pub fn writer<'a>(&'a self, actor: &'a Actor) -> controller::commit::Writer<'a> {
        controller::commit::Writer {
            store: self.store.as_ref(),
            cache: &self.cache,
            env: self.env.as_ref(),
            actor,
        }
    }
}

/// What hosts said lately: never stored.
pub struct Heard {
    hosts: Mutex<BTreeMap<HostId, LastHeard>>,
    orders: Mutex<BTreeMap<HostId, Arc<tokio::sync::Mutex<ReportOrder>>>>,
    /// Rises whenever a host was heard.
    pub beats: watch::Sender<u64>,
}

/// The last report of a host.
#[derive(Debug, Clone)]
pub struct LastHeard {
    /// When it came.
    pub at: Instant,
    /// What was measured.
    pub samples: Samples,
    /// The incarnations that it has open; none if it does not know all of them yet.
    pub open: Option<Vec<(VmId, Incarnation)>>,
}

impl LastHeard {
    /// What is kept of a report.
    pub fn of(report: Report, at: Instant) -> Self {
        let open = report.runs.iter().filter(|run| !run.run.state.is_closed());
        let open = open.map(|run| (run.vm, run.run.incarnation)).collect();
        Self {
            at,
            samples: report.samples,
            open: report.is_complete.then_some(open),
        }
    }
}

impl Default for Heard {
    fn default() -> Self {
        Self {
            hosts: Mutex::default(),
            orders: Mutex::default(),
            beats: watch::Sender::new(0),
        }
    }
}

impl Heard {
    fn hosts(&self) -> MutexGuard<'_, BTreeMap<HostId, LastHeard>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host was heard.
    pub fn note(&self, host: HostId, heard: LastHeard) {
        self.hosts().insert(host, heard);
        self.beats.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// The last report of a host.
    pub fn last(&self, host: HostId) -> Option<LastHeard> {
        self.hosts().get(&host).cloned()
    }

    /// What each host has open, of those that have said all of it.
    pub fn open(&self) -> BTreeMap<HostId, Vec<(VmId, Incarnation)>> {
        let hosts = self.hosts();
        let complete = hosts
            .iter()
            .filter_map(|(id, last)| Some((*id, last.open.clone()?)));
        complete.collect()
    }

    /// Reports of a host are taken one after the other, each at most once, and never after a newer one.
    pub fn order(&self, host: HostId) -> Arc<tokio::sync::Mutex<ReportOrder>> {
        let mut all = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(host).or_default().clone()
    }

    /// What a VM's QEMU on a host takes beside its guest's memory, if that was measured.
    pub fn qemu_mib(&self, host: HostId, vm: VmId) -> Option<u64> {
        self.hosts().get(&host)?.samples.qemu_mib.get(&vm).copied()
    }

    /// How far the transfer of a VM from a host is.
    pub fn progress(&self, host: HostId, vm: VmId) -> Option<Progress> {
        self.hosts().get(&host)?.samples.transfers.get(&vm).cloned()
    }
}
