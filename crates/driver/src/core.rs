//! The core of one incarnation: inputs in, effects out, one effect under way at a time.
//!
//! ```text
//!            ┌──────────── Done / Failed: marks, memory, pace ────────────┐
//!            ▼                                                           │
//!  input → take → is QEMU's state known? ─ no ─→ Look ──────────────→ shell
//!                      │ yes                                             ▲
//!                      ▼                                                 │
//!        column → row of the table → plan (one effect, or a wait) ───────┤
//!                                     └→ status, if it changed: Report ──┘
//! ```
//!
//! **Owns:** the order in which effects follow from rows, tries and their pace, what is remembered between them
//! ([`memory`]), and the status that is reported ([`status`]).
//!
//! **Does not know:** how effects are carried out.
//!
//! Level-triggered: nothing is concluded from an effect's success about QEMU. An effect that touches QEMU makes its state
//! unknown, and the next row is found only after a look. Two pairs are bound, with no row between them: launched(N) and
//! the start of the process, sent(M) and `migrate`.
//!
//! A restart of the agent makes a new core from the marks. It looks first, and does nothing before a document came.

mod cdrom;
mod copies;
mod memory;
mod pace;
mod reboot;
mod run;
mod source;
mod start;
mod status;
mod stop;
mod target;
#[cfg(test)]
mod tests;
mod timeless;
mod warm;

use std::collections::BTreeSet;

use model::document::{MigrateTo, Order, Target, VmDocument};
use model::report::RunStatus;
use model::vm::SavedIn;
use model::{Incarnation, Reason};

use crate::column::Column;
use crate::table::{Document, Row, Situation, Table};
use crate::types::{
    Effect, EffectId, Failure, Identity, Input, Lease, Mark, Marks, Now, Outcome, Qemu, QemuState,
    RunStatusWord,
};
use memory::Memory;
use pace::Pace;

/// The state machine of one incarnation on its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    id: Identity,
    table: Table,
    marks: Marks,
    /// Of the newest document.
    revision: u64,
    desired: Desired,
    lease: Lease,
    /// The last document that came was older than one before it, so what is held was not read in this connection.
    is_outdated: bool,
    /// What QEMU said, until something is done to it.
    qemu: Option<Qemu>,
    /// The source's agent says that its QEMU completed. Never stored.
    go: bool,
    under_way: Option<(EffectId, Effect)>,
    /// Follows its mark without a row in between.
    bound: Option<Effect>,
    /// A mark that may or may not have been written. Those that only forbid are written again before anything else is
    /// done, since after a restart they may hold.
    doubt: Option<Mark>,
    look_again: bool,
    last_effect: u64,
    timer_us: Option<u64>,
    pace: Pace,
    memory: Memory,
    reported: Option<Reported>,
}

/// The newest document, as far as this incarnation is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Desired {
    /// None came yet.
    Unknown,
    Unreadable(Reason),
    Nothing,
    Ordered(Box<VmDocument>),
}

/// The last report.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reported {
    status: RunStatus,
    /// A document for this incarnation came since, and its revision has to be answered.
    is_overtaken: bool,
}

/// What a row leads to now.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    effect: Option<Effect>,
    /// Follows the effect, a mark, without a row in between.
    bound: Option<Effect>,
    /// How long the state may go without a look if nothing is done; never if `None`.
    wait_us: Option<u64>,
}

impl Plan {
    fn act(effect: Effect) -> Self {
        Self {
            effect: Some(effect),
            bound: None,
            wait_us: None,
        }
    }

    fn mark(mark: Mark) -> Self {
        Self::act(Effect::Journal(mark))
    }

    /// A mark, and the effect that it announces.
    fn bind(mark: Mark, effect: Effect) -> Self {
        Self {
            bound: Some(effect),
            ..Self::mark(mark)
        }
    }

    const fn wait_ms(ms: u64) -> Self {
        Self {
            effect: None,
            bound: None,
            wait_us: Some(ms * 1000),
        }
    }

    const fn rest() -> Self {
        Self {
            effect: None,
            bound: None,
            wait_us: None,
        }
    }
}

/// How long a steady state goes without a look.
const STEADY_MS: u64 = 2_000;

/// How long the report of a switch-over's inside may wait for its end.
const SWITCH_PATIENCE_MS: u64 = 100;

/// What a step asks for.
type Effects = Vec<(EffectId, Effect)>;

impl Core {
    /// A core for an incarnation with what the journal holds of it.
    pub fn new(id: Identity, marks: Marks) -> Self {
        Self::with_table(id, marks, Table::default())
    }

    /// One that obeys another table than the protocol's: for a search that shows what each row and rule is good for.
    pub fn with_table(id: Identity, marks: Marks, table: Table) -> Self {
        Self {
            id,
            table,
            marks,
            revision: 0,
            desired: Desired::Unknown,
            lease: Lease::default(),
            is_outdated: false,
            qemu: None,
            go: false,
            under_way: None,
            bound: None,
            doubt: None,
            look_again: false,
            last_effect: 0,
            timer_us: None,
            pace: Pace::new(id),
            memory: Memory::default(),
            reported: None,
        }
    }

    /// Which incarnation it is for.
    pub const fn identity(&self) -> Identity {
        self.id
    }

    /// The marks, as far as the journal has confirmed them.
    pub const fn marks(&self) -> &Marks {
        &self.marks
    }

    /// The status that was reported last.
    pub fn status(&self) -> Option<&RunStatus> {
        self.reported.as_ref().map(|reported| &reported.status)
    }

    /// Takes one input and answers what shall be done. The answers' order is theirs: what stands first is done first.
    pub fn step(&mut self, now: Now, input: Input) -> Effects {
        let mut out = Vec::new();
        let is_seen_now = matches!(input, Input::Observed(_));
        self.take(now, input);
        if self.under_way.is_none() && !self.memory.is_forgotten {
            self.decide(now, is_seen_now, &mut out);
        }
        out
    }

    fn take(&mut self, now: Now, input: Input) {
        match input {
            Input::Desired { revision, document } => self.take_document(revision, document),
            Input::Unreadable(reason) => self.desired = Desired::Unreadable(reason),
            Input::Lease(lease) => {
                self.look_again |= lease != self.lease;
                self.lease = lease;
            }
            Input::Observed(qemu) => self.take_observation(now, qemu),
            Input::Ended(how) => self.memory.ended = Some(how),
            Input::Go { from, to } => self.take_go(from, to),
            Input::Done(id, outcome) => {
                if let Some(effect) = self.answered(id) {
                    self.pace.succeeded(&effect, now.monotonic_us);
                    self.succeeded(now, effect, outcome);
                }
            }
            Input::Failed(id, failure) => {
                if let Some(effect) = self.answered(id) {
                    self.bound = None;
                    self.pace.failed(&effect, &failure, now.monotonic_us);
                    self.failed(now, &effect, failure);
                }
            }
            Input::NotBegun(id) => {
                self.look_again |= self.answered(id).is_some();
            }
            Input::LookAgain => {
                self.timer_us = self.timer_us.filter(|at_us| *at_us > now.monotonic_us);
                self.look_again = true;
            }
        }
    }

    fn take_document(&mut self, revision: u64, document: Option<Box<VmDocument>>) {
        self.is_outdated = revision < self.revision;
        if self.is_outdated {
            return;
        }
        self.revision = revision;
        let desired = match document.filter(|document| document.incarnation == self.id.incarnation) {
            None => Desired::Nothing,
            Some(document) => Desired::Ordered(document),
        };
        if desired == self.desired {
            return;
        }
        self.desired = desired;
        self.look_again = true;
        if let Some(reported) = &mut self.reported {
            reported.is_overtaken = true;
        }
        let order = match &self.desired {
            Desired::Ordered(document) => Some(&document.order),
            _ => None,
        };
        self.memory.follow(order);
        self.forget_copies();
    }

    fn take_observation(&mut self, now: Now, qemu: Qemu) {
        // What was seen before an effect says nothing about what is after it.
        let Some((_, Effect::Look)) = self.under_way else {
            self.look_again = true;
            return;
        };
        self.under_way = None;
        self.pace.succeeded(&Effect::Look, now.monotonic_us);
        if let Qemu::Answers(state) = &qemu {
            self.memory.observe(now, state);
        }
        self.qemu = Some(qemu);
    }

    /// Never unlearned: `go` outranks a revocation that comes after it.
    fn take_go(&mut self, from: Incarnation, to: Incarnation) {
        let is_meant = self.target().is_some_and(|order| order.from == from) && to == self.id.incarnation;
        if is_meant && !self.go {
            self.go = true;
            let column = self.qemu.as_ref().map(|qemu| self.column(qemu));
            // A loaded target changes by our hand only, and its guest waits.
            self.look_again |= column != Some(Column::Loaded);
        }
    }

    /// The effect that the answer is for, if it is the one awaited.
    fn answered(&mut self, id: EffectId) -> Option<Effect> {
        let (_, effect) = self.under_way.take_if(|(awaited, _)| *awaited == id)?;
        Some(effect)
    }

    fn succeeded(&mut self, now: Now, effect: Effect, outcome: Outcome) {
        if let Effect::Journal(mark) = &effect {
            self.doubt = None;
            self.set_mark(mark);
        }
        self.memory.succeeded(now, &effect, outcome);
    }

    fn failed(&mut self, now: Now, effect: &Effect, failure: Failure) {
        let (failures, for_us) = self.pace.failures(effect, now.monotonic_us);
        let is_final = !failure.is_retryable || failures >= 3 || for_us >= 60_000_000;
        if let Effect::Journal(mark) = effect {
            // These two permit, and without what they permit they forbid no more than they must.
            let permits = matches!(mark, Mark::Launched | Mark::Sent { .. });
            self.doubt = Some(mark.clone()).filter(|_| !permits);
        }
        self.memory.failed(effect, failure, is_final);
    }

    fn set_mark(&mut self, mark: &Mark) {
        self.marks.set(mark);
        // The promise is given from what QEMU says after the mark.
        self.look_again |= matches!(mark, Mark::NoSwitch { .. });
    }

    fn decide(&mut self, now: Now, is_seen_now: bool, out: &mut Effects) {
        if let Some(effect) = self.bound.take() {
            self.memory.starting(now, &effect);
            return self.start(effect, out);
        }
        let known = self
            .qemu
            .clone()
            .map(|qemu| (self.table.row(&self.situation(&qemu)), qemu));
        let Some((row, qemu)) =
            known.filter(|(row, _)| !self.look_again || self.is_urgent(*row, is_seen_now))
        else {
            return self.look(now, out);
        };
        let plan = self.plan(now, row, &qemu);
        let plan = self.resolve(plan);
        let status = self.status_of(row, &qemu, &plan);
        let within_ms = patience_ms(row, &plan);
        let wake_us = self.perform(now, plan, out);
        self.report(status, within_ms, out);
        match wake_us {
            Some(_) if self.look_again => self.look(now, out),
            Some(at_us) => self.wake_at(at_us, out),
            None => {}
        }
    }

    /// What is in doubt goes first. A process may be ended all the same.
    fn resolve(&self, plan: Plan) -> Plan {
        match &self.doubt {
            Some(mark) if plan.effect != Some(Effect::Kill) => Plan::mark(mark.clone()),
            _ => plan,
        }
    }

    /// Starts what is planned, or says when to look again.
    fn perform(&mut self, now: Now, plan: Plan, out: &mut Effects) -> Option<u64> {
        let now_us = now.monotonic_us;
        let Some(effect) = plan.effect else {
            return plan.wait_us.map(|wait_us| now_us + wait_us);
        };
        if let Some(at_us) = self.pace.blocked_until_us(&effect, now_us) {
            return Some(at_us.min(now_us + STEADY_MS * 1000));
        }
        self.memory.starting(now, &effect);
        self.bound = plan.bound;
        self.start(effect, out);
        None
    }

    fn look(&mut self, now: Now, out: &mut Effects) {
        match self.pace.blocked_until_us(&Effect::Look, now.monotonic_us) {
            Some(at_us) => self.wake_at(at_us, out),
            None => {
                self.look_again = false;
                self.start(Effect::Look, out);
            }
        }
    }

    fn start(&mut self, effect: Effect, out: &mut Effects) {
        if touches_qemu(&effect) {
            self.qemu = None;
        }
        let id = self.emit(effect.clone(), out);
        self.under_way = Some((id, effect));
    }

    fn emit(&mut self, effect: Effect, out: &mut Effects) -> EffectId {
        self.last_effect += 1;
        let id = EffectId(self.last_effect);
        out.push((id, effect));
        id
    }

    fn wake_at(&mut self, at_us: u64, out: &mut Effects) {
        if self.timer_us != Some(at_us) {
            self.timer_us = Some(at_us);
            self.emit(Effect::Timer { at_us }, out);
        }
    }

    /// Reports the status if it says anything new, or if a document for this incarnation has to be answered. How long a
    /// step took is told with what it led to.
    fn report(&mut self, status: Option<RunStatus>, within_ms: u64, out: &mut Effects) {
        let Some(status) = status else { return };
        let is_known = self.reported.as_ref().is_some_and(|reported| {
            let known = RunStatus {
                document_revision: status.document_revision,
                steps: status.steps.clone(),
                ..reported.status.clone()
            };
            !reported.is_overtaken && known == status
        });
        if !is_known {
            let report = Effect::Report {
                status: Box::new(status.clone()),
                within_ms,
            };
            self.emit(report, out);
            self.reported = Some(Reported {
                status,
                is_overtaken: false,
            });
        }
    }

    /// Whether the guest stands still until the row is acted on, so that what was heard since the look can wait. What
    /// was just seen is left by our hand only, or for good; with ran(M) written nothing that a look could tell would
    /// keep M from running.
    fn is_urgent(&self, row: Row, is_seen_now: bool) -> bool {
        match row {
            Row::Go => true,
            Row::TargetRan => !self.is_paused_by_spec(),
            Row::Switch | Row::Completed | Row::TargetRunning => is_seen_now,
            _ => false,
        }
    }

    fn situation(&self, qemu: &Qemu) -> Situation {
        let order = self.order();
        let to = self.migration().map(|order| order.to);
        let is_marked = |marks: &BTreeSet<Incarnation>| to.is_some_and(|to| marks.contains(&to));
        Situation {
            document: match &self.desired {
                Desired::Unknown | Desired::Unreadable(_) => Document::Unreadable,
                Desired::Nothing | Desired::Ordered(_) => Document::of(order),
            },
            qemu: self.column(qemu),
            lease: Lease {
                live: self.lease.live,
                fresh: self.lease.live && self.lease.fresh && !self.is_outdated,
            },
            launched: self.marks.launched,
            closed: self.marks.closed,
            ran: self.marks.ran,
            sent: is_marked(&self.marks.sent),
            no_switch: is_marked(&self.marks.no_switch),
            go: self.go,
        }
    }

    /// The column *QEMU*. After a save QEMU shows what it shows after a migration; nothing of the guest is elsewhere then.
    fn column(&self, qemu: &Qemu) -> Column {
        match Column::of(qemu, &self.marks, self.order()) {
            Column::Completed | Column::Odd if self.marks.saving && is_after_migration(qemu) => {
                if self
                    .migration()
                    .is_some_and(|order| order.granted || order.cancel)
                {
                    Column::Running
                } else {
                    Column::Paused
                }
            }
            column => column,
        }
    }

    fn plan(&mut self, now: Now, row: Row, qemu: &Qemu) -> Plan {
        match (row, qemu) {
            (Row::Unreadable | Row::Older, _) => Plan::rest(),
            (Row::Nothing, _) => self.plan_nothing(now, qemu),
            (Row::Stop, _) => self.plan_stop(now, qemu),
            (Row::Silent, _) => Plan::wait_ms(100),
            (Row::Unforeseen, _) => Plan::wait_ms(STEADY_MS),
            (Row::Leftover, _) => Plan::act(Effect::Kill),
            (_, Qemu::Answers(state)) => self.plan_with(now, row, state),
            _ => self.plan_without(row),
        }
    }

    /// What a row leads to where there is no process.
    fn plan_without(&self, row: Row) -> Plan {
        match row {
            Row::Boot => self.plan_launch(false),
            Row::Target => self.plan_launch(true),
            Row::Gone => self.wind_up(self.exit_reason()),
            Row::Revoked => self.wind_up(None),
            _ => Plan::wait_ms(STEADY_MS),
        }
    }

    /// What a row leads to where QEMU answered.
    fn plan_with(&mut self, now: Now, row: Row, state: &QemuState) -> Plan {
        match row {
            Row::Ended => run::end(state),
            Row::Booting => self.plan_booting(state),
            Row::Keep => self.plan_reboot(now, state).unwrap_or_else(|| self.keep(state)),
            Row::Paused => self.plan_paused(now, state),
            Row::RunUnderWay | Row::Stray | Row::CancelAgain => Plan::act(Effect::MigrateCancel),
            Row::RunDevice | Row::Device => self.plan_device(now, row),
            Row::RunFailed => self.go_on_after_failure(state),
            Row::Resume => self.continue_as_specified(),
            Row::Start => self.plan_start(state),
            Row::PreCopy => self.plan_pre_copy(now, state),
            Row::Switch => self.plan_switch(),
            Row::SwitchOffline | Row::Cancel => self.plan_no_switch(now, row),
            Row::Completed => self.plan_completed(now),
            Row::Promise | Row::PromiseUnsent | Row::Failed => self.plan_promise(now, row, state),
            Row::Incoming => self.plan_incoming(now, state),
            Row::Go => Plan::mark(Mark::Ran),
            Row::TargetRan => self.plan_ran(),
            Row::TargetRunning => self.plan_arrived(state),
            Row::Revoked => Plan::mark(Mark::Closed {
                reason: None,
                saved_bytes: None,
                saved_in: SavedIn::Host,
            }),
            Row::Loaded => Plan::wait_ms(target::AWAIT_MS),
            _ => Plan::wait_ms(STEADY_MS),
        }
    }

    fn order(&self) -> Option<&Order> {
        match &self.desired {
            Desired::Ordered(document) => Some(&document.order),
            _ => None,
        }
    }

    fn migration(&self) -> Option<&MigrateTo> {
        match self.order() {
            Some(Order::MigrateTo(order)) => Some(order),
            _ => None,
        }
    }

    fn target(&self) -> Option<&Target> {
        match self.order() {
            Some(Order::Target(order)) => Some(order),
            _ => None,
        }
    }

    fn is_paused_by_spec(&self) -> bool {
        match self.order() {
            Some(Order::Run { paused, .. }) => *paused,
            Some(Order::MigrateTo(order)) => order.paused,
            Some(Order::Target(order)) => order.paused,
            Some(Order::Stop(_)) | None => false,
        }
    }
}

/// How long a report may wait. Those that the guest would wait for are of no use to anybody until it runs: the work that
/// they make for servers and agents would be downtime.
fn patience_ms(row: Row, plan: &Plan) -> u64 {
    let is_inside_downtime = match row {
        Row::Switch | Row::Device | Row::Loaded | Row::Go | Row::TargetRan => true,
        Row::Completed => matches!(plan.effect, Some(Effect::SendGo { .. })),
        _ => false,
    };
    if is_inside_downtime { SWITCH_PATIENCE_MS } else { 0 }
}

fn is_after_migration(qemu: &Qemu) -> bool {
    matches!(qemu, Qemu::Answers(state) if state.run == RunStatusWord::PostMigrate)
}

/// Whether QEMU may be in another state after it, so that only a look tells.
fn touches_qemu(effect: &Effect) -> bool {
    match effect {
        Effect::Spawn { .. }
        | Effect::Listen
        | Effect::LoadSaved { .. }
        | Effect::LoadWarm { .. }
        | Effect::Warm
        | Effect::Continue
        | Effect::Pause
        | Effect::Save { .. }
        | Effect::AskShutdown
        | Effect::AskReboot
        | Effect::Reset
        | Effect::ChangeMedium
        | Effect::SetBoot
        | Effect::Copy { .. }
        | Effect::CopyAtRest { .. }
        | Effect::DropCopy { .. }
        | Effect::Kill
        | Effect::Migrate { .. }
        | Effect::MigrateContinue { .. }
        | Effect::MigrateCancel
        | Effect::Look => true,
        Effect::Journal(_)
        | Effect::Identify
        | Effect::Settle
        | Effect::Build
        | Effect::Prepare { .. }
        | Effect::OpenPorts
        | Effect::Announce
        | Effect::Release
        | Effect::RemoveVolumes
        | Effect::RemoveSaved { .. }
        | Effect::SetDowntimeLimit { .. }
        | Effect::SendGo { .. }
        | Effect::Timer { .. }
        | Effect::Report { .. }
        | Effect::Forget => false,
    }
}
