//! What the core of one incarnation is told ([`Input`]) and what it asks for ([`Effect`]).

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::build::Built;
use model::copy::CopyTo;
use model::document::VmDocument;
use model::migration::Progress;
use model::report::{CdromState, Rebooted, RunStatus, StepTime};
use model::vm::SavedIn;
use model::{HostId, Incarnation, Reason, Timestamp, VmId};
use serde::{Deserialize, Serialize};

/// Time as cores see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For deadlines: microseconds since the agent's start, on a clock that never goes back.
    pub monotonic_us: u64,
    /// For what people read, and for deadlines that the controller wrote.
    pub wall: Timestamp,
}

/// Numbers effects within a core. An answer to another number than the one awaited is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EffectId(pub u64);

/// Whether the agent is sure that the servers still honour it. For a VM that is not protected, `live` means connected and
/// `fresh` means that the document was read in this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Lease {
    /// Connected.
    pub live: bool,
    /// Connected, and the document is of this connection. Implies `live`.
    pub fresh: bool,
}

/// What the journal holds of one incarnation. Durable before any effect that depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// A QEMU may have been started for it.
    pub launched: bool,
    /// Its guest may have executed here.
    pub ran: bool,
    /// It will never be launched again.
    pub closed: bool,
    /// `migrate` may have been issued for each of these.
    pub sent: BTreeSet<Incarnation>,
    /// Neither `migrate` nor `migrate-continue` is issued for any of these any more.
    pub no_switch: BTreeSet<Incarnation>,
    /// A save may have been begun after all that was sent: what QEMU completed last is not a migration.
    #[serde(default)]
    pub saving: bool,
    /// The saved state that it starts from may have been used: from now on the VM boots from disk only.
    pub used_saved: bool,
    /// Its state was saved whole when it was closed: the size of the file.
    pub saved_bytes: Option<u64>,
    /// Where that file is.
    #[serde(default)]
    pub saved_in: SavedIn,
    /// Its guest, which began as a copy of another's memory, has an identity of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub identified: bool,
    /// Its volumes were removed.
    pub removed: bool,
    /// The last reboot that was begun.
    #[serde(default)]
    pub rebooting: Option<Rebooting>,
    /// The last reboot that was asked for and made.
    #[serde(default)]
    pub rebooted: Option<Rebooted>,
    /// Why it was closed, if not as asked.
    pub reason: Option<Reason>,
}

impl Marks {
    /// Adds a mark that is durable.
    pub fn set(&mut self, mark: &Mark) {
        match mark {
            Mark::Launched => self.launched = true,
            Mark::Ran => self.ran = true,
            Mark::Closed {
                reason,
                saved_bytes,
                saved_in,
            } => {
                self.closed = true;
                self.reason.clone_from(reason);
                self.saved_bytes = *saved_bytes;
                self.saved_in = *saved_in;
            }
            Mark::Sent { to } => {
                self.sent.insert(*to);
                self.saving = false;
            }
            Mark::NoSwitch { to } => {
                self.no_switch.insert(*to);
            }
            Mark::Saving => self.saving = true,
            Mark::UsedSaved => self.used_saved = true,
            Mark::Identified => self.identified = true,
            Mark::Removed => self.removed = true,
            Mark::Rebooting(rebooting) => self.rebooting = Some(*rebooting),
            Mark::Rebooted(rebooted) => self.rebooted = Some(*rebooted),
        }
    }
}

/// A reboot that may have been asked of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebooting {
    /// The user's request.
    pub request: u64,
    /// For how long the guest was up before, if that was known: one that has been up for less was rebooted since.
    pub up_ms: Option<u64>,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mark", rename_all = "kebab-case")]
pub enum Mark {
    /// See [`Marks::launched`].
    Launched,
    /// See [`Marks::ran`].
    Ran,
    /// See [`Marks::closed`].
    Closed {
        /// Why, if not as asked.
        reason: Option<Reason>,
        /// The size of the saved state, if it was saved.
        saved_bytes: Option<u64>,
        /// Where it is.
        #[serde(default)]
        saved_in: SavedIn,
    },
    /// See [`Marks::sent`].
    Sent {
        /// M.
        to: Incarnation,
    },
    /// See [`Marks::no_switch`].
    NoSwitch {
        /// M.
        to: Incarnation,
    },
    /// See [`Marks::saving`].
    Saving,
    /// See [`Marks::used_saved`].
    UsedSaved,
    /// See [`Marks::identified`].
    Identified,
    /// See [`Marks::removed`].
    Removed,
    /// See [`Marks::rebooting`].
    Rebooting(Rebooting),
    /// See [`Marks::rebooted`].
    Rebooted(Rebooted),
}

/// What QEMU says, as the protocol's column *QEMU* needs it. Events only cause a new look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Qemu {
    /// No process, and the lock on its directory is free.
    None,
    /// There is a process, but it does not answer, or not as expected. Nothing is decided from this but patience.
    Silent,
    /// It answered.
    Answers(QemuState),
}

/// QEMU's answers to `query-status` and `query-migrate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuState {
    /// `query-status`'s `status`.
    pub run: RunStatusWord,
    /// `query-migrate`'s `status`: of the *last* migration in either direction.
    pub migration: MigrationWord,
    /// `query-migrate`'s error text.
    pub migration_error: Option<String>,
    /// The pass, what remains, and the rates, while there is a migration.
    pub progress: Option<Progress>,
    /// The downtime limit that QEMU has now.
    pub downtime_limit_ms: Option<u64>,
    /// Whether it was started to take a stream.
    pub is_incoming: bool,
    /// What the guest's agent said last.
    pub guest: Guest,
    /// The last sign of the guest's end that QEMU kept.
    pub ended: Option<GuestEnd>,
    /// How often the guest was reset, by itself or by us, since this agent first saw its QEMU.
    pub resets: u64,
    /// Its drive for media; `None` if it has none, or was not asked for it now.
    pub cdrom: Option<Box<CdromState>>,
    /// The copies that it makes of its disk, and those that it has made or failed to until it is told to forget them; `None`
    /// if it was not asked for them now.
    pub copies: Option<Vec<CopyJob>>,
}

/// A copy of a disk, as QEMU makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyJob {
    /// What it is for.
    pub to: CopyTo,
    /// How far it is.
    pub state: CopyJobState,
}

/// How far a copy is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum CopyJobState {
    /// Under way.
    Copies,
    /// All is copied, and nothing is kept of it yet.
    Done,
    /// It failed, in QEMU's words.
    Failed(String),
}

/// What is known from the guest's agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guest {
    /// Whether it has answered since the launch.
    pub ready: bool,
    /// The guest's addresses, loopback left out.
    pub addresses: Vec<IpAddr>,
    /// For how long it has been up, as it counts itself, when it was asked last. Never from before this agent's start.
    pub up_ms: Option<u64>,
}

/// Why a guest stands still by itself (`-action shutdown=pause,panic=pause` keeps its QEMU for us to see).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEnd {
    /// It powered itself off, by itself or when asked.
    PowerOff,
    /// Its kernel panicked.
    Panic,
    /// QEMU met an error that it cannot go on from.
    InternalError,
    /// A disk error stopped it.
    IoError,
}

/// The run states of QEMU that matter. All others are `Other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RunStatusWord {
    /// The guest executes.
    Running,
    /// Stopped by `stop`, or loaded and never continued.
    Paused,
    /// Started with `-S`, nothing loaded, never continued.
    Prelaunch,
    /// Waits for a stream, or takes it.
    InMigrate,
    /// A migration to elsewhere completed.
    PostMigrate,
    /// Stopped for the last round of a migration.
    FinishMigrate,
    /// The guest powered off and is kept.
    Shutdown,
    /// The guest panicked and is kept.
    GuestPanicked,
    /// A disk error.
    IoError,
    /// QEMU's own error.
    InternalError,
    /// Anything else.
    Other,
}

/// The migration states of QEMU that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MigrationWord {
    /// There was none.
    None,
    /// `setup`.
    Setup,
    /// `active`.
    Active,
    /// `pre-switchover`.
    PreSwitchover,
    /// `device`.
    Device,
    /// `completed`.
    Completed,
    /// `failed`.
    Failed,
    /// `cancelling`.
    Cancelling,
    /// `cancelled`.
    Cancelled,
}

/// What a core is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The host's document of this revision says this of the incarnation; `None`: it names nothing, or another.
    Desired {
        /// The document's revision.
        revision: u64,
        /// The order and the machine.
        document: Option<Box<VmDocument>>,
    },
    /// The host's document, or the part of the journal that is about this incarnation, cannot be read. Until a readable
    /// document comes, nothing is changed.
    Unreadable(Reason),
    /// The connection to the servers came or went. `fresh` follows the [`Input::Desired`] that makes it so.
    Lease(Lease),
    /// What QEMU said when it was looked at: the answer to [`Effect::Look`], and never sent after that has failed.
    Observed(Qemu),
    /// How QEMU's process ended, in words, where that is known. It comes before the look that finds none, and changes nothing
    /// but what people are told.
    Ended(String),
    /// The agent of the source's host says that its QEMU completed; checked to come from the host that the order names.
    Go {
        /// N.
        from: Incarnation,
        /// M.
        to: Incarnation,
    },
    /// An effect succeeded.
    Done(EffectId, Outcome),
    /// An effect failed or ran out of time. It may have taken effect all the same.
    Failed(EffectId, Failure),
    /// An effect was not begun, or left when it only waited for the guest: the incarnation's order changed meanwhile.
    NotBegun(EffectId),
    /// An event hinted that something may have changed, or a timer rang.
    LookAgain,
}

/// What an effect found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more to say.
    Ok,
    /// `Listen`: where QEMU takes the stream.
    Listening {
        /// `tcp:ADDRESS:PORT`.
        stream: String,
    },
    /// `Save`: the size of the file.
    Saved {
        /// In bytes.
        bytes: u64,
    },
    /// `Prepare`: what it consisted of.
    Prepared {
        /// Counted from the beginning of the effect.
        steps: Vec<StepTime>,
    },
    /// `Copy`, `CopyAtRest`: the copy is whole and durable.
    Copied {
        /// Whether the guest's file systems were frozen for the instant that it is of.
        is_frozen: bool,
    },
    /// `Build`: what came of it in the guest.
    Built(Built),
    /// `SendGo`: the target runs.
    TargetRuns {
        /// From the guest's stop to this answer, less what the guest had run by then, if the stop was seen.
        downtime_us: Option<u64>,
    },
}

/// Why an effect failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For people and programs.
    pub reason: Reason,
    /// Whether trying again may help.
    pub is_retryable: bool,
}

/// What a core asks for. Each is one durable or outside action, idempotent, and comes back as [`Input::Done`] or
/// [`Input::Failed`]. A core has at most one under way, besides reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write to the journal; done when it is durable.
    Journal(Mark),
    /// Fetch the image, make the overlay, the seed and the ports (closed). For a target: only the ports, the disks are
    /// there already.
    Prepare {
        /// Whether it is for a migration's target.
        as_target: bool,
    },
    /// Start QEMU with `-S`; for a target or a saved state also with `-incoming defer`.
    Spawn {
        /// Whether it takes a stream.
        incoming: bool,
    },
    /// Set capabilities and parameters and listen for the source named in the order. Asked again, it answers where QEMU
    /// listens already.
    Listen,
    /// Load a saved state into a QEMU that was started to take a stream; done when it is loaded.
    LoadSaved {
        /// The incarnation that saved it.
        incarnation: Incarnation,
        /// Where it is.
        saved_in: SavedIn,
    },
    /// Load what a warm VM left into a QEMU that was started to take a stream and maps its memory; done when it is loaded,
    /// with the links of its ports down.
    LoadWarm {
        /// The warm VM.
        vm: VmId,
        /// The incarnation that left it.
        incarnation: Incarnation,
    },
    /// Give a guest that began as a copy of another's memory random numbers, then time, name and addresses of its own.
    Identify,
    /// Wait until the guest has ended its boot, and has nothing left to write.
    Settle,
    /// Have the guest done what makes it a template's, or hear how far it is: [`Outcome::Built`] when that has ended.
    Build,
    /// Stop the processors and leave memory and devices' state for others. Asked again, as [`Effect::Save`].
    Warm,
    /// Delete a saved state that was used.
    RemoveSaved {
        /// The incarnation that saved it.
        incarnation: Incarnation,
        /// Where it is.
        saved_in: SavedIn,
    },
    /// Plug the ports into their bridges.
    OpenPorts,
    /// `cont`.
    Continue,
    /// Tell the network where the guest's addresses are now.
    Announce,
    /// `stop`.
    Pause,
    /// Stop the processors and write the state to the file of this incarnation. Asked again after the agent's restart, it
    /// waits for the save that is under way, or answers the size if the file is whole.
    Save {
        /// Where to.
        saved_in: SavedIn,
    },
    /// Ask the guest to power off, by ACPI and by its agent. Repeated by the core.
    AskShutdown,
    /// Ask the guest to reboot, by its agent. Repeated by the core.
    AskReboot,
    /// Reset the guest.
    Reset,
    /// Put the wanted medium into the drive, in place of what is in it, or take that out.
    ChangeMedium,
    /// Have the guest boot from what is wanted, from its next reset on.
    SetBoot,
    /// Have QEMU copy the root disk, or, when it has, make the copy durable, or have a server take it. Done with
    /// [`Outcome::Copied`] when that is so; what QEMU does meanwhile is observed.
    Copy {
        /// What for.
        to: CopyTo,
    },
    /// Copy the root disk where there is no QEMU. Done with [`Outcome::Copied`] when the copy is whole and durable, or a server
    /// has it, and otherwise soon: it is asked for again.
    CopyAtRest {
        /// What for.
        to: CopyTo,
    },
    /// End a copy that is not wanted any more, and delete what there is of it, unless it is another VM's whole disk.
    DropCopy {
        /// What it was for.
        to: CopyTo,
    },
    /// End the process and wait until it is gone.
    Kill,
    /// Unplug and delete the ports, delete the seed and the sockets. Volumes and saved states stay.
    Release,
    /// Delete volumes, saved states and console logs.
    RemoveVolumes,
    /// Set capabilities and parameters, then `migrate`.
    Migrate {
        /// M.
        to: Incarnation,
    },
    /// `migrate-continue`.
    MigrateContinue {
        /// M.
        to: Incarnation,
    },
    /// `migrate_cancel`.
    MigrateCancel,
    /// Raise the downtime limit.
    SetDowntimeLimit {
        /// The new one.
        ms: u64,
    },
    /// Tell the target's agent that this QEMU completed; done when it answers that the guest runs.
    SendGo {
        /// M.
        to: Incarnation,
        /// The target's host.
        host: HostId,
        /// The target's host's name.
        host_name: String,
        /// Where its agent listens.
        peer: String,
    },
    /// Look at QEMU; comes back as [`Input::Observed`].
    Look,
    /// Feed [`Input::LookAgain`] no later than this. Replaces the one before.
    Timer {
        /// On the monotonic clock.
        at_us: u64,
    },
    /// Tell the servers. Never fails: the shell keeps the latest and posts it until it is answered.
    Report {
        /// What to tell.
        status: Box<RunStatus>,
        /// Begin to post it no later than this; what is told in the meantime replaces it.
        within_ms: u64,
    },
    /// The incarnation is closed, its report was named by no document for a while, and nothing of it is left: the core
    /// can be dropped, its directory deleted.
    Forget,
}

/// Which incarnation a core is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// The VM.
    pub vm: VmId,
    /// The incarnation.
    pub incarnation: Incarnation,
    /// The host that the agent runs on.
    pub host: HostId,
}
