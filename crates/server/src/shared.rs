//! What all requests share.
//!
//! [`Cloud`] is what requests are decided on and written with: it needs no network, no files and no clock of its own, so
//! that simulated users and agents are answered by the same code. [`Shared`] has beside it what a server on a real machine
//! needs.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::Problem;
use controller::Env;
use controller::cache::Cache;
use controller::figures::Figures;
use model::audit::Actor;
use model::image::ImportProgress;
use model::migration::Progress;
use model::report::CopyProgress;
use model::report::{Report, Samples};
use model::{HostId, ImageId, Incarnation, VmId};
use planner::reports::ReportOrder;
use store::Store;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use crate::answer::store_problem;
use crate::calls::Calls;
use crate::contact::SILENT_AFTER;
use crate::hosts::Bells;
use crate::images::import::Reach;
use crate::images::upload::Uploads;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::pki::Pki;
use crate::places::Places;
use crate::speakers::Speakers;

/// How long is waited for the view to have what the store has.
const CATCH_UP: Duration = Duration::from_secs(5);

/// What is known of the cloud. Everything that matters is in the store; the rest is what was heard lately.
pub struct Cloud {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The view of it.
    pub cache: Arc<Cache>,
    /// Time and ids.
    pub env: Arc<dyn Env>,
    /// What hosts said lately.
    pub heard: Heard,
}

impl Cloud {
    /// Of which nothing was heard yet.
    pub fn new(store: Arc<dyn Store>, cache: Arc<Cache>, env: Arc<dyn Env>) -> Self {
        Self {
            store,
            cache,
            env,
            heard: Heard::default(),
        }
    }

    /// Waits until the view has all that the store has now, or says that this server is behind.
    pub async fn reach_all(&self) -> Result<(), Problem> {
        let revision = self.store.revision().await;
        let revision = revision.map_err(|error| store_problem(&error))?;
        if self.cache.reach(revision, CATCH_UP).await {
            return Ok(());
        }
        let detail =
            "this server has not heard yet of all that its store has: try again, or ask another server";
        Err(Problem::new(503, "server-behind", detail))
    }

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

/// One server's state.
pub struct Shared {
    /// What its requests are decided on.
    pub cloud: Arc<Cloud>,
    /// This run of it.
    pub server: Uuid,
    /// The cloud's CAs.
    pub pki: Pki,
    /// Where images' content is kept.
    pub images: PathBuf,
    /// Held while content gets its name and an image gets it.
    pub keeping: tokio::sync::Mutex<()>,
    /// Rung when content was kept that no image may have.
    pub discarded: tokio::sync::Notify,
    /// Who sends images' content.
    pub uploads: Uploads,
    /// How images' sources are reached.
    pub reach: Arc<Reach>,
    /// Where the server keeps its files.
    pub data_dir: PathBuf,
    /// Held while a backup is taken.
    pub backup: tokio::sync::Mutex<()>,
    /// Held while a host joins.
    pub joins: tokio::sync::Mutex<()>,
    /// Who is told when its document may have changed.
    pub bells: Bells,
    /// The agents that listen for calls.
    pub calls: Calls,
    /// A permit for each apply that this server does.
    pub applies: Arc<Semaphore>,
    /// How often may be asked.
    pub limits: Limits,
    /// What is counted.
    pub metrics: Metrics,
    /// What the controller counts.
    pub figures: Arc<Figures>,
    /// Places for those who follow what changes.
    pub places: Arc<Places>,
}

impl Deref for Shared {
    type Target = Cloud;

    fn deref(&self) -> &Cloud {
        &self.cloud
    }
}

/// What hosts said lately, and how far imports are: never stored.
pub struct Heard {
    imports: Mutex<BTreeMap<ImageId, ImportProgress>>,
    hosts: Mutex<BTreeMap<HostId, LastHeard>>,
    orders: Mutex<BTreeMap<HostId, Arc<tokio::sync::Mutex<ReportOrder>>>>,
    /// Which machines speak for them.
    pub speakers: Speakers,
    /// Rises whenever a host was heard, or an import went on.
    pub beats: watch::Sender<u64>,
    /// Rises whenever a host was heard that was not heard for a while, or never.
    pub(crate) returns: watch::Sender<u64>,
}

/// The last report of a host.
#[derive(Debug, Clone)]
pub struct LastHeard {
    /// When it came, on the server's monotonic clock.
    pub at: Duration,
    /// What was measured.
    pub samples: Samples,
    /// The incarnations that it has open; none if it does not know all of them yet.
    pub open: Option<Vec<(VmId, Incarnation)>>,
}

impl LastHeard {
    /// What is kept of a report.
    pub fn of(report: Report, at: Duration) -> Self {
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
            imports: Mutex::default(),
            hosts: Mutex::default(),
            orders: Mutex::default(),
            speakers: Speakers::default(),
            beats: watch::Sender::new(0),
            returns: watch::Sender::new(0),
        }
    }
}

impl Heard {
    fn hosts(&self) -> MutexGuard<'_, BTreeMap<HostId, LastHeard>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host was heard.
    pub fn note(&self, host: HostId, heard: LastHeard) {
        let at = heard.at;
        let before = self.hosts().insert(host, heard);
        if before.is_none_or(|before| at.saturating_sub(before.at) >= SILENT_AFTER) {
            self.returns.send_modify(|n| *n = n.wrapping_add(1));
        }
        self.beats.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// When the last report of a host came, on the server's monotonic clock.
    pub fn last_at(&self, host: HostId) -> Option<Duration> {
        self.hosts().get(&host).map(|last| last.at)
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

    /// How far an import is that this server does; `None` when it has ended.
    pub(crate) fn note_import(&self, image: ImageId, progress: Option<ImportProgress>) {
        let mut imports = self.imports.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            Some(progress) => imports.insert(image, progress),
            None => imports.remove(&image),
        };
        drop(imports);
        self.beats.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// How far an import is, if this server does it.
    pub(crate) fn import(&self, image: ImageId) -> Option<ImportProgress> {
        let imports = self.imports.lock().unwrap_or_else(PoisonError::into_inner);
        imports.get(&image).cloned()
    }

    /// How far a VM's disk is made whole by its host.
    pub(crate) fn flattened(&self, host: HostId, vm: VmId) -> Option<CopyProgress> {
        self.hosts().get(&host)?.samples.flattened.get(&vm).copied()
    }

    /// How far the transfer of a VM from a host is.
    pub fn progress(&self, host: HostId, vm: VmId) -> Option<Progress> {
        self.hosts().get(&host)?.samples.transfers.get(&vm).cloned()
    }
}
