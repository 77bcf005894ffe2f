//! The cores of incarnations: the real driver, stepped once for each state and input that are met.
//!
//! Time is left out: after every step a core forgets it. An input comes either *soon*, when nothing that was begun is over
//! its time, or *late*, when everything is.

use std::sync::Arc;

use driver::Core;
use driver::journal::State;
use driver::qemu_model::Machine;
use driver::types::{Effect, EffectId, Failure, Identity, Input, Lease, Mark, Marks, Now, Outcome};
use model::report::{OutgoingState, RunState, RunStatus};
use model::{Incarnation, Reason};

use super::intern::{Interner, Map};
use super::qemu;
use super::rules::{Lost, Rules};
use super::store::{Stores, host, late, now, slot_of, vm};

/// An input, as small as the search needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum In {
    /// The document, and whether it is newer than the one that is held.
    Desired(u32, bool),
    Offline,
    Stale,
    Fresh,
    /// What QEMU said, and whether that comes late.
    Observed(Option<Machine>, bool),
    Go(u8, u8),
    Done,
    Failed,
    LookAgain,
}

/// What a step led to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    pub(crate) core: u32,
    /// The last report; 0 if there was none.
    pub(crate) report: u32,
}

/// What the search has to know of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) is_closed: bool,
    pub(crate) runs: bool,
    /// The promise not to switch over to this slot.
    pub(crate) promises: Option<u8>,
    pub(crate) is_unforeseen: bool,
}

/// Every core that was met.
pub(crate) struct Agents {
    rules: Rules,
    cores: Interner<Core>,
    pending: Vec<Option<Arc<Effect>>>,
    pub(crate) marks: Interner<Marks>,
    steps: Map<(u32, In), Out>,
    new: Map<(usize, usize, u32), u32>,
    durable: Map<(u32, u32), u32>,
    told: Vec<Told>,
}

impl Agents {
    pub(crate) fn new(rules: Rules) -> Self {
        let mut marks = Interner::default();
        assert_eq!(marks.id(Marks::default()), BLANK);
        assert_eq!(marks.id(forgotten()), FORGOTTEN);
        Self {
            rules,
            cores: Interner::default(),
            pending: Vec::new(),
            marks,
            steps: Map::default(),
            new: Map::default(),
            durable: Map::default(),
            told: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.cores.len()
    }

    /// A core for an incarnation, as an agent that starts makes it.
    pub(crate) fn start(&mut self, slot: usize, at: usize, marks: u32) -> u32 {
        if let Some(core) = self.new.get(&(slot, at, marks)) {
            return *core;
        }
        let id = Identity {
            vm: vm(),
            incarnation: Incarnation(slot as u64 + 1),
            host: host(at),
        };
        let core = Core::with_table(id, self.marks.get(marks).clone(), self.rules.table);
        let core = self.id(core);
        self.new.insert((slot, at, marks), core);
        core
    }

    fn id(&mut self, mut core: Core) -> u32 {
        core.forget_time();
        let effect = core.under_way().map(|(_, effect)| Arc::new(effect.clone()));
        let id = self.cores.id(core);
        if id as usize > self.pending.len() {
            self.pending.push(effect);
        }
        id
    }

    /// The effect that the core waits for.
    pub(crate) fn pending(&self, core: u32) -> Option<Arc<Effect>> {
        self.pending[core as usize - 1].clone()
    }

    pub(crate) fn status(&self, core: u32) -> Option<&RunStatus> {
        self.cores.get(core).status()
    }

    pub(crate) fn step(&mut self, stores: &mut Stores, core: u32, input: In) -> Out {
        if let Some(out) = self.steps.get(&(core, input)) {
            return *out;
        }
        let mut next = self.cores.get(core).clone();
        let is_late = matches!(input, In::Observed(_, true));
        let input_full = full(stores, self.cores.get(core), input);
        let mut report = None;
        take(&mut next, clock(is_late), input_full, &mut report);
        while is_local(&next) {
            take(&mut next, clock(is_late), done(Outcome::Ok), &mut report);
        }
        let report = report.map_or(0, |status| self.note(stores, status));
        let out = Out {
            core: self.id(next),
            report,
        };
        self.steps.insert((core, input), out);
        out
    }

    fn note(&mut self, stores: &mut Stores, mut status: RunStatus) -> u32 {
        let told = Told::of(&status);
        forget_words(&mut status);
        let id = stores.statuses.id(status);
        if id as usize > self.told.len() {
            self.told.push(told);
        }
        id
    }

    pub(crate) fn told(&self, status: u32) -> Told {
        self.told[status as usize - 1]
    }

    /// What is durable when the mark that the core waits for has been written.
    pub(crate) fn written(&mut self, core: u32, marks: u32) -> u32 {
        if let Some(marks) = self.durable.get(&(core, marks)) {
            return *marks;
        }
        let next = match self.pending(core).as_deref() {
            Some(Effect::Journal(mark)) if !self.loses(mark) => {
                let known = self.cores.get(core).marks().clone();
                let mut next = joined(self.marks.get(marks).clone(), known);
                next.set(mark);
                self.marks.id(next)
            }
            _ => marks,
        };
        self.durable.insert((core, marks), next);
        next
    }

    fn loses(&self, mark: &Mark) -> bool {
        let kind = match mark {
            Mark::Launched => Lost::Launched,
            Mark::Ran => Lost::Ran,
            Mark::Closed { .. } => Lost::Closed,
            Mark::Sent { .. } => Lost::Sent,
            Mark::NoSwitch { .. } => Lost::NoSwitch,
            Mark::Saving => Lost::Saving,
            _ => return false,
        };
        self.rules.lost == Some(kind)
    }
}

/// Nothing was ever written of an incarnation.
pub(crate) const BLANK: u32 = 1;
/// Nothing is left of it, and so it will never be launched again.
pub(crate) const FORGOTTEN: u32 = 2;

fn forgotten() -> Marks {
    let mut journal = State::default();
    journal.forget(vm(), Incarnation(1));
    journal.marks_of(vm(), Incarnation(1))
}

/// What is in the journal stays in it, also what the core was told had failed; what a rule that was taken away lost of it is
/// there with the next mark.
fn joined(before: Marks, known: Marks) -> Marks {
    Marks {
        launched: before.launched || known.launched,
        ran: before.ran || known.ran,
        closed: before.closed || known.closed,
        sent: before.sent.union(&known.sent).copied().collect(),
        no_switch: before.no_switch.union(&known.no_switch).copied().collect(),
        saving: before.saving || known.saving,
        saved_bytes: known.saved_bytes.or(before.saved_bytes),
        removed: before.removed || known.removed,
        reason: known.reason.or(before.reason),
        ..known
    }
}

impl Told {
    pub(crate) fn of(status: &RunStatus) -> Self {
        let promised =
            { status.outgoing.as_ref() }.filter(|outgoing| outgoing.state == OutgoingState::Promised);
        Self {
            is_closed: status.state.is_closed(),
            runs: status.ran && matches!(status.state, RunState::Running | RunState::Paused),
            promises: promised.map(|outgoing| slot_of(outgoing.to) as u8),
            is_unforeseen: status
                .reason
                .as_ref()
                .is_some_and(|reason| reason.code == "unforeseen"),
        }
    }
}

/// What only people read is no part of a state. Of reasons the planner knows these two.
fn forget_words(status: &mut RunStatus) {
    status.document_revision = 0;
    status.steps.clear();
    status.reason = status.reason.take().map(|reason| match reason.code.as_str() {
        code @ ("guest-shutdown" | "suspend-failed") => Reason::new(code, ""),
        _ => Reason::new("failed", ""),
    });
    if let Some(outgoing) = &mut status.outgoing {
        (outgoing.downtime_us, outgoing.transfer_ms) = (None, None);
        (outgoing.bytes, outgoing.error) = (None, None);
    }
}

fn clock(is_late: bool) -> Now {
    if is_late {
        Now {
            monotonic_us: 1 << 50,
            wall: late(),
        }
    } else {
        Now {
            monotonic_us: 0,
            wall: now(),
        }
    }
}

fn take(core: &mut Core, now: Now, input: Input, report: &mut Option<RunStatus>) {
    for (_, effect) in core.step(now, input) {
        if let Effect::Report { status, .. } = effect {
            *report = Some(*status);
        }
    }
    core.forget_time();
}

/// Whether the core waits for something that neither QEMU, nor the other host, nor a crash's aftermath shows.
fn is_local(core: &Core) -> bool {
    let effect = core.under_way().map(|(_, effect)| effect);
    matches!(
        effect,
        Some(
            Effect::Prepare { .. }
                | Effect::OpenPorts
                | Effect::Announce
                | Effect::Release
                | Effect::RemoveVolumes
                | Effect::SetDowntimeLimit { .. }
        )
    )
}

fn done(outcome: Outcome) -> Input {
    Input::Done(EffectId(0), outcome)
}

fn full(stores: &Stores, core: &Core, input: In) -> Input {
    match input {
        In::Desired(document, is_newer) => Input::Desired {
            revision: if is_newer { 2 } else { 1 },
            document: stores.documents.get(document).clone().map(Box::new),
        },
        In::Offline => Input::Lease(Lease::default()),
        In::Stale => Input::Lease(Lease {
            live: true,
            fresh: false,
        }),
        In::Fresh => Input::Lease(Lease {
            live: true,
            fresh: true,
        }),
        In::Observed(said, _) => Input::Observed(qemu::seen(said)),
        In::Go(from, to) => Input::Go {
            from: Incarnation(u64::from(from) + 1),
            to: Incarnation(u64::from(to) + 1),
        },
        In::Done => done(outcome_of(core)),
        In::Failed => Input::Failed(
            EffectId(0),
            Failure {
                reason: Reason::new("failed", "it failed"),
                is_retryable: true,
            },
        ),
        In::LookAgain => Input::LookAgain,
    }
}

fn outcome_of(core: &Core) -> Outcome {
    match core.under_way() {
        Some((_, Effect::Listen)) => Outcome::Listening {
            stream: "tcp:192.0.2.2:4000".to_owned(),
        },
        Some((_, Effect::Save { .. })) => Outcome::Saved { bytes: 1 },
        Some((_, Effect::SendGo { .. })) => Outcome::TargetRuns { downtime_us: None },
        _ => Outcome::Ok,
    }
}
