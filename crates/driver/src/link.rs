//! What a host has to tell the servers, and when.
//!
//! **Owns:** the latest state of the host and of each incarnation, when it has to be posted, what of it was answered, and
//! how long to wait after a failure.
//!
//! **Does not know:** how a report is posted, and to whom.
//!
//! **Start here:** [`Board`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::host::HostStatus;
use model::migration::Progress;
use model::report::{CopyProgress, Report, RunStatus, Samples, VmRun};
use model::{Incarnation, VmId};
use uuid::Uuid;

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(5);

/// Waits longer from failure to failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(BACKOFF_FIRST)
    }
}

impl Backoff {
    /// How long to wait now. `jitter`, from a half to one, keeps many hosts from trying in step.
    pub fn next(&mut self, jitter: f64) -> Duration {
        let now = self.0.mul_f64(jitter);
        self.0 = (self.0 * 2).min(BACKOFF_LAST);
        now
    }
}

/// What is to be reported: always the latest. Times are of the agent's monotonic clock.
#[derive(Debug, Clone)]
pub struct Board {
    host: HostStatus,
    /// The host's status as it was last answered.
    answered: Option<HostStatus>,
    runs: BTreeMap<(VmId, Incarnation), RunStatus>,
    /// The journal's incarnations of which nothing was said yet; none while the journal was not read.
    unsaid: Option<BTreeSet<(VmId, Incarnation)>>,
    transfers: BTreeMap<VmId, Progress>,
    qemu_mib: BTreeMap<VmId, u64>,
    flattened: BTreeMap<VmId, CopyProgress>,
    sequence: u64,
    /// When what changed has to be posted.
    due_us: Option<u64>,
}

impl Board {
    /// A board that reports the host and no runs yet.
    pub fn new(host: HostStatus) -> Self {
        Self {
            host,
            answered: None,
            runs: BTreeMap::new(),
            unsaid: None,
            transfers: BTreeMap::new(),
            qemu_mib: BTreeMap::new(),
            flattened: BTreeMap::new(),
            sequence: 0,
            due_us: None,
        }
    }

    /// These are what the host knows of: reports are not complete until each was set or forgotten.
    pub fn expect_runs(&mut self, runs: impl IntoIterator<Item = (VmId, Incarnation)>) {
        self.unsaid = Some(runs.into_iter().collect());
    }

    /// Replaces the state of an incarnation; to be posted within the given time if it changed.
    pub fn set_run(&mut self, now_us: u64, vm: VmId, run: RunStatus, within: Duration) {
        let key = (vm, run.incarnation);
        let was_unsaid = self.said(&key);
        let old = self.runs.insert(key, run);
        if was_unsaid || old.as_ref() != self.runs.get(&key) {
            self.post_within(now_us, within);
        }
    }

    /// Nothing is left of the incarnation.
    pub fn forget_run(&mut self, now_us: u64, vm: VmId, incarnation: Incarnation) {
        self.said(&(vm, incarnation));
        self.runs.remove(&(vm, incarnation));
        self.post_within(now_us, Duration::ZERO);
    }

    /// The host's QEMU is of another release from now on; posted at once.
    pub fn set_qemu_version(&mut self, now_us: u64, version: &str) {
        version.clone_into(&mut self.host.qemu_version);
        self.post_within(now_us, Duration::ZERO);
    }

    fn post_within(&mut self, now_us: u64, within: Duration) {
        let within_us = u64::try_from(within.as_micros()).unwrap_or(u64::MAX);
        let due_us = now_us.saturating_add(within_us);
        self.due_us = Some(self.due_us.map_or(due_us, |earlier_us| earlier_us.min(due_us)));
    }

    /// Something is known of an incarnation; whether it is the first time.
    fn said(&mut self, run: &(VmId, Incarnation)) -> bool {
        self.unsaid.as_mut().is_some_and(|unsaid| unsaid.remove(run))
    }

    /// When what changed has to be posted; none if nothing did.
    pub const fn due_us(&self) -> Option<u64> {
        self.due_us
    }

    /// How far a transfer is; goes out with the next heartbeat.
    pub fn set_transfer(&mut self, vm: VmId, progress: Option<Progress>) {
        match progress {
            Some(progress) => self.transfers.insert(vm, progress),
            None => self.transfers.remove(&vm),
        };
    }

    /// How far a disk is made whole; `None`: it is not being made so.
    pub fn set_flattened(&mut self, vm: VmId, progress: Option<CopyProgress>) {
        match progress {
            Some(progress) => self.flattened.insert(vm, progress),
            None => self.flattened.remove(&vm),
        };
    }

    /// What a VM's QEMU takes beside its guest's memory; goes out with the next heartbeat.
    pub fn set_qemu_mib(&mut self, vm: VmId, mib: Option<u64>) {
        match mib {
            Some(mib) => self.qemu_mib.insert(vm, mib),
            None => self.qemu_mib.remove(&vm),
        };
    }

    /// What is posted now.
    pub fn report(&mut self, session: Uuid, load: Samples) -> Report {
        self.sequence += 1;
        self.due_us = None;
        let runs = self.runs.iter().map(|((vm, _), run)| VmRun {
            vm: *vm,
            run: run.clone(),
        });
        Report {
            session,
            sequence: self.sequence,
            host: (self.answered.as_ref() != Some(&self.host)).then(|| self.host.clone()),
            runs: runs.collect(),
            is_complete: self.unsaid.as_ref().is_some_and(BTreeSet::is_empty),
            samples: Samples {
                transfers: self.transfers.clone(),
                qemu_mib: self.qemu_mib.clone(),
                flattened: self.flattened.clone(),
                ..load
            },
        }
    }

    /// A server has taken a report.
    pub fn answered(&mut self, report: Report) {
        if let Some(host) = report.host {
            self.answered = Some(host);
        }
    }
}
