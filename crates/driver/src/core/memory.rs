//! What a core remembers besides the marks. A restart of the agent loses all of it, so nothing that must hold depends on
//! it: at worst a step is repeated, a deadline starts anew, a figure is missing.

use std::collections::{BTreeMap, BTreeSet};

use model::build::Built;
use model::copy::CopyTo;
use model::document::{Order, Stop};
use model::report::{CdromState, StartStep};
use model::{Incarnation, Reason};

use super::reboot::UnderWay;
use super::run::not_loaded;
use super::start::StartTimes;
use super::warm::{not_kept, not_loaded_warm, not_started};
use crate::passes::Passes;
use crate::types::{CopyJob, CopyJobState, Effect, Failure, Guest, Now, Outcome, QemuState, RunStatusWord};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) is_prepared: bool,
    /// Its guest has an identity of its own, and that is not written down yet.
    pub(super) is_identified: bool,
    /// Its guest has ended its boot.
    pub(super) is_settled: bool,
    /// What came of what is done in a guest that a template is made of.
    pub(super) built: Option<Built>,
    pub(super) ports_are_open: bool,
    /// Whether the network knows where a guest that came by a stream is now.
    pub(super) announcement: Announcement,
    pub(super) release: Release,
    pub(super) volumes_are_removed: bool,
    /// The state that it started from is deleted.
    pub(super) saved_is_removed: bool,
    /// The guest's power was cut because its time was over.
    pub(super) is_forced: bool,
    pub(super) is_forgotten: bool,
    /// Why it has to be closed.
    pub(super) fault: Option<Reason>,
    /// How its QEMU ended.
    pub(super) ended: Option<String>,
    pub(super) save: Save,
    /// Whether the guest stood still already when the save began.
    pub(super) stood_still: bool,
    /// Where QEMU listens for the stream.
    pub(super) stream: Option<String>,
    pub(super) incoming_since_us: Option<u64>,
    pub(super) transfer: Option<Transfer>,
    /// Since when the last part of a transfer is sent, and the guest stands still.
    pub(super) device_since_us: Option<u64>,
    pub(super) disk_retry: DiskRetry,
    /// What the guest's agent said.
    pub(super) guest: Guest,
    /// The drive, as it was seen last.
    pub(super) cdrom: Option<Box<CdromState>>,
    /// How often the guest was reset, as seen last.
    resets: u64,
    pub(super) reboot: Option<UnderWay>,
    pub(super) unnamed_since_us: Option<u64>,
    pub(super) start: StartTimes,
    pub(super) copies: Copies,
}

/// What is known of copies of its disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Copies {
    /// There may be something of them, by what they are for.
    pub(super) begun: BTreeSet<CopyTo>,
    /// Those that are whole, with whether their guest's file systems were frozen.
    pub(super) made: BTreeMap<CopyTo, bool>,
    /// Those that are given up.
    pub(super) failed: BTreeMap<CopyTo, Reason>,
}

impl Copies {
    fn observe(&mut self, jobs: &[CopyJob]) {
        for job in jobs {
            self.begun.insert(job.to);
            if let CopyJobState::Failed(why) = &job.state {
                self.failed
                    .entry(job.to)
                    .or_insert_with(|| copy_failed(job.to, why));
            }
        }
    }
}

/// Whether ports and sockets are deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Release {
    #[default]
    No,
    /// Not yet, but the end of the incarnation need not be kept back for it.
    Failed,
    Done,
}

/// Whether the network has to be told where the guest is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Announcement {
    /// It did not come from elsewhere, or not by this agent's doing.
    #[default]
    NotNeeded,
    Due,
    Made,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Save {
    #[default]
    No,
    /// The file holds the state that the guest still has.
    Whole {
        bytes: u64,
    },
    Failed(Reason),
}

/// The source's side of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) to: Incarnation,
    /// From when the deadline counts.
    pub(super) counted_from_us: u64,
    /// Unknown if an agent before this one started it.
    started_us: Option<u64>,
    pub(super) transfer_ms: Option<u64>,
    pub(super) bytes: Option<u64>,
    pub(super) downtime_us: Option<u64>,
    /// Whether the target has answered that the guest runs.
    pub(super) is_answered: bool,
    /// Whether QEMU was seen to have completed.
    pub(super) is_completed: bool,
    pub(super) error: Option<String>,
    pub(super) passes: Passes,
}

impl Transfer {
    /// One that is under way, or is over, without our knowing when it began.
    pub(super) fn found(to: Incarnation, now: Now) -> Self {
        Self {
            to,
            counted_from_us: now.monotonic_us,
            started_us: None,
            transfer_ms: None,
            bytes: None,
            downtime_us: None,
            is_answered: false,
            is_completed: false,
            error: None,
            passes: Passes::default(),
        }
    }

    fn started(to: Incarnation, now: Now) -> Self {
        Self {
            started_us: Some(now.monotonic_us),
            ..Self::found(to, now)
        }
    }

    pub(super) fn complete(&mut self, now: Now) {
        if !self.is_completed {
            self.is_completed = true;
            self.transfer_ms = self
                .started_us
                .map(|started_us| ms_between(started_us, now.monotonic_us));
        }
    }
}

/// When a guest that a disk error stopped is tried again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DiskRetry {
    at_us: Option<u64>,
    tries: u32,
}

impl DiskRetry {
    pub(super) fn due_us(&mut self, now_us: u64) -> u64 {
        let wait_us = (1_000_000_u64 << self.tries.min(5)).min(30_000_000);
        *self.at_us.get_or_insert(now_us + wait_us)
    }

    fn tried(&mut self) {
        if self.at_us.take().is_some() {
            self.tries += 1;
        }
    }
}

fn ms_between(from_us: u64, to_us: u64) -> u64 {
    to_us.saturating_sub(from_us) / 1000
}

impl Memory {
    /// Another document came.
    pub(super) fn follow(&mut self, order: Option<&Order>) {
        // What failed is tried again when it is ordered anew.
        if matches!(self.save, Save::Failed(_)) {
            self.save = Save::No;
        }
        if !matches!(order, Some(Order::Stop(Stop::Shutdown { .. }))) {
            self.is_forced = false;
        }
        match order {
            Some(Order::MigrateTo(order)) => self.transfer.take_if(|transfer| transfer.to != order.to),
            Some(Order::Run { .. } | Order::Target(_)) => self.transfer.take(),
            // Its figures are still wanted.
            Some(Order::Stop(_)) | None => None,
        };
        self.disk_retry = DiskRetry::default();
        self.unnamed_since_us = None;
    }

    /// The guest is here now. An agent that was restarted says so again.
    pub(super) fn arrive(&mut self) {
        if self.announcement == Announcement::NotNeeded {
            self.announcement = Announcement::Due;
        }
    }

    pub(super) fn starting(&mut self, now: Now, effect: &Effect) {
        match effect {
            Effect::Prepare { .. } => self.start.begins(None, now.monotonic_us),
            Effect::Spawn { .. } => self.start.begins(Some(StartStep::Process), now.monotonic_us),
            Effect::LoadSaved { .. } | Effect::LoadWarm { .. } => {
                self.start.begins(Some(StartStep::Load), now.monotonic_us)
            }
            Effect::Identify => self.start.follows(StartStep::Identity, now.monotonic_us),
            Effect::Migrate { to } => {
                self.transfer = Some(Transfer::started(*to, now));
            }
            Effect::Continue => {
                // From here on the guest is not what was saved.
                if matches!(self.save, Save::Whole { .. }) {
                    self.save = Save::No;
                }
                self.disk_retry.tried();
            }
            Effect::Copy { to } | Effect::CopyAtRest { to } => {
                self.copies.begun.insert(*to);
            }
            Effect::Forget => self.is_forgotten = true,
            _ => {}
        }
    }

    pub(super) fn succeeded(&mut self, now: Now, effect: &Effect, outcome: Outcome) {
        let now_us = now.monotonic_us;
        match (effect, outcome) {
            (Effect::Prepare { .. }, outcome) => {
                self.is_prepared = true;
                if let Outcome::Prepared { steps } = outcome {
                    self.start.had(&steps);
                }
            }
            (Effect::Spawn { .. } | Effect::LoadSaved { .. } | Effect::LoadWarm { .. }, _) => {
                self.start.follows(StartStep::Boot, now_us);
            }
            (Effect::Listen, Outcome::Listening { stream }) => {
                self.stream = Some(stream);
                // A target's start ends here; what follows is the source's time.
                self.start.ends();
            }
            (Effect::Identify, _) => {
                self.is_identified = true;
                self.start.follows_nothing(now_us);
            }
            (Effect::Settle, _) => self.is_settled = true,
            (Effect::Build, Outcome::Built(built)) => self.built = Some(built),
            (Effect::Warm, Outcome::Saved { bytes }) => self.save = Save::Whole { bytes },
            (Effect::OpenPorts, _) => self.ports_are_open = true,
            (Effect::Announce, _) => self.announcement = Announcement::Made,
            (Effect::Save { .. }, Outcome::Saved { bytes }) => self.save = Save::Whole { bytes },
            (Effect::Reset, _) => {
                if let Some(reboot) = &mut self.reboot {
                    reboot.is_reset = true;
                }
            }
            (Effect::Copy { to } | Effect::CopyAtRest { to }, Outcome::Copied { is_frozen }) => {
                self.copies.made.insert(*to, is_frozen);
            }
            (Effect::DropCopy { to }, _) => {
                self.copies.begun.remove(to);
            }
            (Effect::Release, _) => self.release = Release::Done,
            (Effect::RemoveVolumes, _) => self.volumes_are_removed = true,
            (Effect::RemoveSaved { .. }, _) => self.saved_is_removed = true,
            (Effect::SendGo { to, .. }, Outcome::TargetRuns { downtime_us }) => {
                if let Some(transfer) = self.transfer.as_mut().filter(|transfer| transfer.to == *to) {
                    transfer.is_answered = true;
                    transfer.downtime_us = downtime_us;
                }
            }
            _ => {}
        }
    }

    /// `is_final`: trying again does not help, or was tried often enough.
    pub(super) fn failed(&mut self, effect: &Effect, failure: Failure, is_final: bool) {
        match effect {
            Effect::Prepare { .. } | Effect::Listen if is_final => self.fault = Some(failure.reason),
            // Whether there is a process, the next look tells; if there is none, this is why.
            Effect::Spawn { .. } => self.fault = Some(failure.reason),
            Effect::LoadSaved { .. } => self.fault = Some(not_loaded(&failure.reason.message)),
            Effect::LoadWarm { .. } => self.fault = Some(not_loaded_warm(&failure.reason)),
            Effect::Identify if is_final => {
                let cause = format!(
                    "its guest could not be given an identity: {}",
                    failure.reason.message
                );
                self.fault = Some(not_started(&cause));
            }
            Effect::Settle | Effect::Warm if is_final => {
                self.save = Save::Failed(not_kept(&failure.reason.message));
            }
            Effect::Build if is_final => {
                self.built = Some(Built {
                    reason: Some(failure.reason),
                    ..Built::default()
                });
            }
            Effect::Save { .. } => self.save = Save::Failed(suspend_failed(&failure.reason)),
            Effect::Copy { to } | Effect::CopyAtRest { to } if is_final => {
                self.copies.failed.insert(*to, failure.reason);
            }
            Effect::Release => self.release = Release::Failed,
            Effect::Migrate { .. } => {
                if let Some(transfer) = &mut self.transfer {
                    transfer.error = Some(failure.reason.message);
                }
            }
            _ => {}
        }
    }

    pub(super) fn observe(&mut self, now: Now, state: &QemuState) {
        let now_us = now.monotonic_us;
        if state.run != RunStatusWord::FinishMigrate {
            self.device_since_us = None;
        }
        if state.run == RunStatusWord::Running && self.start.is_at(StartStep::Boot) {
            self.start.follows(StartStep::Agent, now_us);
        }
        if state.guest.ready && self.start.is_at(StartStep::Agent) {
            self.start.follows_nothing(now_us);
        }
        // A guest that begins anew has an agent that begins anew.
        self.guest.ready &= state.resets == self.resets;
        self.resets = state.resets;
        self.guest.ready |= state.guest.ready;
        self.guest.addresses.clone_from(&state.guest.addresses);
        self.copies.observe(state.copies.as_deref().unwrap_or_default());
        if state.cdrom.is_some() {
            self.cdrom.clone_from(&state.cdrom);
        }
        if let (Some(transfer), Some(progress)) = (&mut self.transfer, &state.progress) {
            transfer.bytes = Some(progress.sent_bytes);
        }
    }

    /// Every deadline has just begun, and nothing was measured.
    pub(super) fn forget_time(&mut self) {
        self.start = StartTimes::default();
        self.disk_retry = DiskRetry::default();
        for since_us in [
            &mut self.incoming_since_us,
            &mut self.device_since_us,
            &mut self.unnamed_since_us,
        ] {
            *since_us = since_us.map(|_| 0);
        }
        if let Some(transfer) = &mut self.transfer {
            *transfer = Transfer {
                to: transfer.to,
                counted_from_us: 0,
                started_us: None,
                transfer_ms: None,
                bytes: None,
                downtime_us: None,
                is_answered: transfer.is_answered,
                is_completed: transfer.is_completed,
                error: None,
                passes: Passes::default(),
            };
        }
    }
}

fn copy_failed(to: CopyTo, why: &str) -> Reason {
    if to.is_itself() {
        let message = format!(
            "the disk could not be made whole: {why}; it goes on over what it is over: look at the datastore's free space, \
             then `sterna vm flatten` again"
        );
        return Reason::new("flatten-failed", message);
    }
    let again = match to {
        CopyTo::Vm(_) | CopyTo::Itself { .. } => "try again with `sterna vm retry`",
        CopyTo::Image(_) => "give the same `sterna image create` again",
    };
    let message =
        format!("the disk could not be copied: {why}; look at the datastore's free space, then {again}");
    Reason::new("copy-failed", message)
}

fn suspend_failed(reason: &Reason) -> Reason {
    let message = format!(
        "the VM's state could not be saved, so it goes on: {}",
        reason.message
    );
    Reason::new("suspend-failed", message)
}
