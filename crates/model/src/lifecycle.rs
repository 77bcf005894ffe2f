//! The life of a VM: its phases, every legal transition, and the phase as a pure projection of what is stored.
//!
//! ```text
//! Pending ⇄ Hold
//! Pending → Prolog → Boot → Running → Shutdown → Epilog → Done      Prolog → Off: prepared, never booted
//!                    Running ⇄ Paused | Migrating
//!                    Running → Suspended → (Boot) → Running     state saved on its host, which it keeps
//!                    Running → Stopped   → Pending → …          state and disks in the datastore, host freed
//!                    Running → Shutdown  → Off → Pending → …    powered off, no saved state
//! any → Failed (with the step and the cause) → retried or deleted;   host silent → Unknown → fenced → Pending
//! ```
//!
//! The phase is never stored: [`project`] computes it from the user's spec, the controller's intent and the agents'
//! reports. [`TRANSITIONS`] is the chart above with the shortcuts that follow from crashes and from deletion.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::migration::MigrationPhase;
use crate::report::{RunState, RunStatus};
use crate::vm::{Goal, Outcome, Power, VmIntent, VmSpec};
use crate::{Incarnation, Reason};

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Waits for a host.
    Pending,
    /// Not placed until it is released.
    Hold,
    /// Its disk, seed and ports are made.
    Prolog,
    /// Its QEMU is started or its saved state loaded.
    Boot,
    /// Its guest executes.
    Running,
    /// Its guest's processors are stopped.
    Paused,
    /// It moves to another host while it runs.
    Migrating,
    /// Its state is saved on its host.
    Suspended,
    /// Its state and disks are in the datastore, and no host holds it.
    Stopped,
    /// It is ending.
    Shutdown,
    /// Powered off.
    Off,
    /// What it owns is removed.
    Epilog,
    /// Gone.
    Done,
    /// It ended when it should not have, or could not start.
    Failed,
    /// Its host is silent.
    Unknown,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 15] = [
        Self::Pending,
        Self::Hold,
        Self::Prolog,
        Self::Boot,
        Self::Running,
        Self::Paused,
        Self::Migrating,
        Self::Suspended,
        Self::Stopped,
        Self::Shutdown,
        Self::Off,
        Self::Epilog,
        Self::Done,
        Self::Failed,
        Self::Unknown,
    ];

    /// The availability of a VM in this phase; `Unknown` keeps the last one seen, which the caller knows.
    pub const fn availability(self) -> Availability {
        match self {
            Self::Boot | Self::Running | Self::Migrating | Self::Shutdown => Availability::Active,
            Self::Paused => Availability::Paused,
            Self::Suspended | Self::Stopped => Availability::Suspended,
            _ => Availability::Inactive,
        }
    }

    /// Whether a VM may go from this phase to `to` in one step.
    pub fn may_become(self, to: Self) -> bool {
        self == to
            || TRANSITIONS
                .iter()
                .any(|&(from, targets)| from == self && targets.contains(&to))
    }

    /// The commands that lead on, most likely first. Never empty before `Done`.
    pub const fn next_commands(self) -> &'static [&'static str] {
        match self {
            Self::Pending => &["explain", "hold", "delete"],
            Self::Hold => &["release", "delete"],
            Self::Prolog | Self::Boot => &["shutdown --force", "delete"],
            Self::Running => &[
                "shutdown", "reboot", "pause", "suspend", "stop", "migrate", "delete",
            ],
            Self::Paused => &["resume", "shutdown --force", "delete"],
            Self::Migrating => &["migration cancel", "delete"],
            Self::Suspended => &["resume", "shutdown --force", "delete"],
            Self::Stopped => &["resume", "shutdown --force", "delete"],
            Self::Shutdown => &["shutdown --force", "delete"],
            Self::Off => &["start", "delete"],
            Self::Epilog => &["watch"],
            Self::Done => &[],
            Self::Failed => &["retry", "start", "shutdown", "explain", "delete"],
            Self::Unknown => &["host get", "host confirm-dead"],
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Whether a VM can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// Neither running nor saved.
    Inactive,
    /// In use.
    Active,
    /// In memory, its processors stopped.
    Paused,
    /// Its state saved to disk.
    Suspended,
}

use Phase::{
    Boot, Done, Epilog, Failed, Hold, Migrating, Off, Paused, Pending, Prolog, Running, Shutdown, Stopped,
    Suspended, Unknown,
};

/// Every legal transition, by the phase that is left.
pub const TRANSITIONS: [(Phase, &[Phase]); 15] = [
    (Pending, &[Hold, Prolog, Off, Failed, Epilog, Done, Unknown]),
    (Hold, &[Pending, Epilog, Done]),
    (
        Prolog,
        &[
            Boot, Running, Paused, Off, Shutdown, Epilog, Failed, Pending, Unknown,
        ],
    ),
    (
        Boot,
        &[Running, Paused, Shutdown, Off, Epilog, Failed, Pending, Unknown],
    ),
    (
        Running,
        &[
            Paused, Migrating, Suspended, Stopped, Shutdown, Off, Epilog, Failed, Pending, Unknown,
        ],
    ),
    (
        Paused,
        &[
            Running, Migrating, Suspended, Stopped, Shutdown, Off, Epilog, Failed, Pending, Unknown,
        ],
    ),
    (
        Migrating,
        &[
            Running, Paused, Shutdown, Suspended, Off, Epilog, Failed, Pending, Unknown,
        ],
    ),
    (
        Suspended,
        &[
            Prolog, Boot, Running, Paused, Pending, Off, Failed, Epilog, Unknown,
        ],
    ),
    (Stopped, &[Pending, Prolog, Off, Epilog, Failed, Unknown]),
    (
        Shutdown,
        &[
            Off, Suspended, Stopped, Epilog, Done, Failed, Running, Paused, Pending, Unknown,
        ],
    ),
    (Off, &[Pending, Prolog, Hold, Epilog, Done, Failed, Unknown]),
    (Epilog, &[Done, Failed, Unknown]),
    (Done, &[]),
    (
        Failed,
        &[Pending, Prolog, Boot, Running, Hold, Off, Epilog, Done, Unknown],
    ),
    (
        Unknown,
        &[
            Pending, Prolog, Boot, Running, Paused, Migrating, Suspended, Stopped, Shutdown, Off, Epilog,
            Done, Failed,
        ],
    ),
];

/// What the phase is computed from.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The user's part.
    pub spec: &'a VmSpec,
    /// Whether deletion was asked for.
    pub deleted: bool,
    /// The controller's part, if it has seen the VM.
    pub intent: Option<&'a VmIntent>,
    /// The agents' parts.
    pub runs: &'a BTreeMap<Incarnation, RunStatus>,
    /// Whether the VM's host is silent.
    pub host_silent: bool,
    /// The phase of the VM's migration.
    pub migration: Option<MigrationPhase>,
}

/// The phase and the availability. Total: every combination has one.
pub fn project(facts: Facts<'_>) -> (Phase, Availability) {
    let phase = seen_phase(facts);
    let on_host = facts
        .intent
        .is_some_and(|intent| intent.open.is_some() || facts.deleted && intent.has_volumes);
    if facts.host_silent && on_host {
        (Unknown, phase.availability())
    } else {
        (phase, phase.availability())
    }
}

/// The phase as it was last seen, whether or not the host is still heard.
fn seen_phase(facts: Facts<'_>) -> Phase {
    // One that only copies its disk is what it was before.
    let open = facts.intent.and_then(|intent| intent.open.as_ref());
    let Some(open) = open.filter(|open| open.goal != Goal::Copy) else {
        return closed_phase(facts);
    };
    let run = facts.runs.get(&open.incarnation);
    if run.is_some_and(|run| run.state == RunState::Removed) {
        return Done;
    }
    if facts.deleted {
        return if run.is_some_and(|run| run.state.is_closed()) {
            Epilog
        } else {
            Shutdown
        };
    }
    match run {
        None => Prolog,
        Some(run) => open_phase(facts, open.goal, run),
    }
}

/// The phase of an incarnation that its agent has reported.
fn open_phase(facts: Facts<'_>, goal: Goal, run: &RunStatus) -> Phase {
    let migrating = facts
        .migration
        .is_some_and(|phase| !phase.is_final() && phase != MigrationPhase::Activated);
    match run.state {
        RunState::Preparing => Prolog,
        RunState::Booting => Boot,
        RunState::Running | RunState::Paused if migrating => Migrating,
        RunState::Running | RunState::Paused if matches!(goal, Goal::Shutdown { .. } | Goal::Kill) => {
            Shutdown
        }
        RunState::Running => Running,
        RunState::Paused => Paused,
        RunState::Saving | RunState::Stopping => Shutdown,
        RunState::Incoming | RunState::Loaded => Migrating,
        // The controller is about to take note of the end.
        RunState::Closed | RunState::Removed => Shutdown,
    }
}

/// The phase of a VM that has no open incarnation; the controller may not have seen it yet.
fn closed_phase(facts: Facts<'_>) -> Phase {
    if facts.deleted {
        return if facts.intent.is_some_and(|intent| intent.has_volumes) {
            Epilog
        } else {
            Done
        };
    }
    let answered = facts.intent.map_or(0, |intent| intent.answered_request);
    let asked_again = facts.spec.power_request > answered;
    let wants_run = facts.spec.power.needs_host();
    if facts.spec.power == Power::Hold {
        return Hold;
    }
    if asked_again && wants_run {
        return Pending;
    }
    // What was saved or went wrong is given up.
    if asked_again && facts.spec.power == Power::Off {
        return Off;
    }
    match facts
        .intent
        .and_then(|intent| intent.ended.as_ref())
        .map(|ended| ended.outcome)
    {
        Some(Outcome::Failed) => Failed,
        Some(Outcome::Suspended) => Suspended,
        Some(Outcome::Stopped) => Stopped,
        Some(Outcome::Off) => Off,
        Some(Outcome::Fenced) => {
            if wants_run {
                Pending
            } else {
                Off
            }
        }
        None if wants_run => Pending,
        None => Off,
    }
}

/// Whether what the user asked for waits until the guest has gone on.
fn goes_on_first(facts: Facts<'_>) -> bool {
    let Some(intent) = facts.intent else { return false };
    let is_asked = facts.spec.power_request > intent.answered_request;
    let open = intent.open.as_ref().filter(|_| is_asked);
    open.is_some_and(|open| open.has_to_go_on(facts.runs.get(&open.incarnation)))
}

/// Whether what the user asked for waits until copies of its disk are made.
fn copies_first(facts: Facts<'_>) -> bool {
    let Some(intent) = facts.intent else { return false };
    let is_asked = facts.spec.power_request > intent.answered_request;
    let open = intent.open.as_ref().filter(|_| is_asked && !facts.deleted);
    open.is_some_and(|open| open.goal == Goal::Copy || !open.copies.is_empty())
}

/// What is wrong with a VM, if anything is.
pub fn reason(facts: Facts<'_>, phase: Phase) -> Option<Reason> {
    let intent = facts.intent?;
    let run = intent
        .open
        .as_ref()
        .and_then(|open| facts.runs.get(&open.incarnation));
    match phase {
        Phase::Unknown => Some(Reason::new(
            "host-silent",
            "the VM's host is not heard from, so nobody knows whether the VM runs: bring the host back, or switch it \
             off and say so with `sterna host confirm-dead`",
        )),
        _ if copies_first(facts) => Some(Reason::new(
            "disk-being-copied",
            "its disk is being copied to another VM, and what was asked for is done when that is made: delete the copy's \
             VM to have it at once",
        )),
        Phase::Pending => intent
            .placement
            .as_ref()
            .filter(|placement| placement.chosen.is_none())
            .map(|placement| {
                let first = placement.refused.first();
                // A reason of no host's is the VM's own.
                if let Some(own) = first.filter(|group| group.count == 0) {
                    return own.reason.clone();
                }
                let first = first.map_or("there is no host", |group| group.reason.message.as_str());
                Reason::new(
                    "no-host-fits",
                    format!("none of {} hosts fits: {first}", placement.considered),
                )
            }),
        _ => run.and_then(|run| run.reason.clone()).or_else(|| {
            if goes_on_first(facts) {
                return Some(Reason::new(
                    "resuming",
                    "the guest goes on first after its last migration, whose target was lost; what was asked for is \
                     done then",
                ));
            }
            intent
                .ended
                .as_ref()
                .and_then(|ended| ended.reason.clone())
                .filter(|_| intent.open.is_none())
        }),
    }
}
