//! The protocol's table "What an agent may do", as data: which row holds in which [`Situation`].
//!
//! **Owns:** the rows and their conditions. Where the protocol's page writes "a / b" there are two rows here. Rows that
//! the page leaves to words (how a boot goes on, a guest that ends by itself) are rows too, so that exactly one row
//! matches whatever can be reached; a test goes through the whole product.
//!
//! **Does not know:** what a row leads to: that is [`crate::core`]'s.
//!
//! Not here: post-copy, and VMs that are protected (their deadline, and the rows by which a loaded target waits for a
//! live lease). For a VM that is not protected a loaded target needs no connection.

use std::fmt;

use model::document::{Order, StartFrom, TargetState};

use crate::column::Column;
use crate::types::Lease;

#[cfg(test)]
mod tests;

/// The column *document*, with what of the order the rows tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Document {
    /// It cannot be read, or none was read yet.
    Unreadable,
    /// Of an older revision than one that was obeyed.
    Older,
    /// It names nothing, or another incarnation.
    Nothing,
    /// Run N.
    Run(Run),
    /// Stop N, in whichever way.
    Stop,
    /// Migrate to M.
    Migrate(Stage),
    /// Target M.
    Target(TargetState),
}

/// What *run N* is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Run {
    /// It may be launched if it was not yet.
    Start,
    /// It came by a migration: it is never started afresh.
    Adopted,
    /// RESUME: its migration completed, and the target closed without running.
    Resume,
}

/// How far the migration to M is, for its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The grant is not stored.
    Ungranted,
    /// The grant is stored.
    Granted,
    /// The end of it is asked for.
    Cancelled,
}

impl Document {
    /// What the rows need of an order; `None`: the document names nothing, or another incarnation.
    pub fn of(order: Option<&Order>) -> Self {
        match order {
            None => Self::Nothing,
            Some(Order::Run { resume: true, .. }) => Self::Run(Run::Resume),
            Some(Order::Run { start, .. }) if *start == StartFrom::Never => Self::Run(Run::Adopted),
            Some(Order::Run { .. }) => Self::Run(Run::Start),
            Some(Order::Stop(_)) => Self::Stop,
            Some(Order::MigrateTo(order)) if order.cancel => Self::Migrate(Stage::Cancelled),
            Some(Order::MigrateTo(order)) if order.granted => Self::Migrate(Stage::Granted),
            Some(Order::MigrateTo(_)) => Self::Migrate(Stage::Ungranted),
            Some(Order::Target(order)) => Self::Target(order.state),
        }
    }
}

/// All that the rows look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Situation {
    /// The column *document*.
    pub document: Document,
    /// The column *QEMU*.
    pub qemu: Column,
    /// The column *lease*.
    pub lease: Lease,
    /// launched(N).
    pub launched: bool,
    /// closed(N).
    pub closed: bool,
    /// ran(N).
    pub ran: bool,
    /// sent(M), M being the document's.
    pub sent: bool,
    /// no-switch(M), M being the document's.
    pub no_switch: bool,
    /// Whether `go` was received.
    pub go: bool,
}

impl Situation {
    /// The document has an order under which the guest is meant to live on, here or elsewhere.
    fn is_kept(&self) -> bool {
        matches!(
            self.document,
            Document::Run(_) | Document::Migrate(_) | Document::Target(_)
        )
    }

    /// "run N", and "migrate to M, no grant", which is the same but for a name.
    fn is_run(&self) -> bool {
        matches!(
            self.document,
            Document::Run(_) | Document::Migrate(Stage::Ungranted)
        )
    }

    fn is_granted(&self) -> bool {
        self.document == Document::Migrate(Stage::Granted)
    }

    fn is_cancelled(&self) -> bool {
        self.document == Document::Migrate(Stage::Cancelled)
    }

    /// "migrate to M, granted or cancel".
    fn is_handing_over(&self) -> bool {
        self.is_granted() || self.is_cancelled()
    }

    fn is_target(&self) -> bool {
        matches!(self.document, Document::Target(_))
    }

    fn is_revoked(&self) -> bool {
        self.document == Document::Target(TargetState::Revoked)
    }

    /// "target M, prepare or granted".
    fn is_awaited(&self) -> bool {
        matches!(
            self.document,
            Document::Target(TargetState::Prepare | TargetState::Granted)
        )
    }

    /// "any with `go`, or decided".
    fn is_called(&self) -> bool {
        self.is_target() && (self.go || self.document == Document::Target(TargetState::Decided))
    }

    /// "none; neither launched nor closed".
    fn is_untouched(&self) -> bool {
        self.qemu == Column::None && !self.launched && !self.closed
    }

    fn may_boot(&self) -> bool {
        self.document == Document::Run(Run::Start) && self.is_untouched()
    }

    fn is_loaded(&self) -> bool {
        self.is_target() && self.qemu == Column::Loaded
    }

    fn is_before_switch(&self) -> bool {
        matches!(self.qemu, Column::PreCopy | Column::PreSwitchover)
    }
}

/// A row of the table: what the agent may do. The page's words stand with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// *unreadable*: change nothing, report the error.
    Unreadable,
    /// *of an older revision*: ignore the document.
    Older,
    /// *nothing, or another incarnation*: kill, close, remove what is marked owned.
    Nothing,
    /// *stop N; any of N*: ACPI, then kill, close N.
    Stop,
    /// There is a process, but it does not answer: patience.
    Silent,
    /// Closed, and a process is left: kill.
    Leftover,
    /// *run N, migrate to M, or target N; none; N launched or closed*: write closed(N), report; never launch N again.
    Gone,
    /// The guest ended by itself and its QEMU is kept for us to see: close, kill, report why.
    Ended,
    /// *run N; none; neither launched nor closed; fresh*: mark launched, boot N.
    Boot,
    /// The same, *not fresh*: nothing.
    BootStale,
    /// *run N*, launched and never continued, *fresh*: go on with the boot.
    Booting,
    /// The same, *not fresh*: nothing.
    BootingStale,
    /// *run N; or migrate to M, no grant; running N, nothing under way*: keep, report.
    Keep,
    /// *run N; paused by the user; live*: as the spec says, `cont` or keep.
    Paused,
    /// The same, *not live*: keep.
    PausedOffline,
    /// *run N; pre-copy, pre-switchover*: `migrate_cancel`.
    RunUnderWay,
    /// *run N; device*: wait; at its own deadline `migrate_cancel`.
    RunDevice,
    /// *run N; failed and paused; fresh*: `cont` as the spec says.
    RunFailed,
    /// The same, *not fresh*: nothing.
    RunFailedStale,
    /// *run N, RESUME; completed; fresh*: `cont`.
    Resume,
    /// The same, *not fresh*: nothing.
    ResumeStale,
    /// *migrate to M, granted; running N, never sent(M), no no-switch(M); live*: write sent(M), start.
    Start,
    /// The same, *not live*: keep.
    StartOffline,
    /// *migrate to M, granted; pre-copy, no no-switch(M)*: keep, report; at its own deadline write no-switch(M),
    /// `migrate_cancel`.
    PreCopy,
    /// *migrate to M, granted; pre-switchover, no no-switch(M); live*: `migrate-continue`.
    Switch,
    /// The same, *not live*: write no-switch(M), `migrate_cancel`.
    SwitchOffline,
    /// *migrate to M, granted or cancel; pre-copy or pre-switchover, no-switch(M)*: `migrate_cancel` again.
    CancelAgain,
    /// *migrate to M, granted or cancel; device*: wait; at its own deadline write no-switch(M), `migrate_cancel`.
    Device,
    /// *migrate to M, granted or cancel; completed*: send `go(M)`, repeat it, report completed; never `cont`.
    Completed,
    /// *migrate to M, granted or cancel; running N, sent(M), nothing under way*: write no-switch(M), give the promise.
    Promise,
    /// *migrate to M, granted or cancel; failed and paused; live*: write no-switch(M), `cont` as the spec says, give the
    /// promise.
    Failed,
    /// The same, *not live*: wait.
    FailedOffline,
    /// *migrate to M, cancel; or granted with no-switch(M); running N, never sent(M)*: write no-switch(M), give the
    /// promise.
    PromiseUnsent,
    /// *migrate to M, cancel; pre-copy or pre-switchover, no no-switch(M)*: write no-switch(M), `migrate_cancel`.
    Cancel,
    /// *migrate to M*, and something that is not M's is under way (an earlier migration's, or a save's): `migrate_cancel`.
    Stray,
    /// *target M, prepare or granted; none; neither launched nor closed; fresh*: mark launched, start incoming.
    Target,
    /// The same, *not fresh*: nothing.
    TargetStale,
    /// *target M, not revoked; incoming (also failed)*: keep; when failed or at its own deadline kill, close never-ran.
    Incoming,
    /// *target M, prepare or granted; loaded, never ran(M), no `go`*: report loaded, wait.
    Loaded,
    /// *target M, any with `go`, or decided; loaded, never ran(M)*: write ran(M), `cont`, announce, report running.
    Go,
    /// *target M, any; loaded, ran(M)*: `cont`, announce, report.
    TargetRan,
    /// *target M, any; running M*: keep, report running.
    TargetRunning,
    /// *target M, revoked; none never launched, incoming, or loaded without `go`*: kill, close never-ran, report.
    Revoked,
    /// None of the above, which cannot be reached unless marks or records were lost: change nothing, report it.
    Unforeseen,
}

/// When a row holds.
pub type Condition = fn(&Situation) -> bool;

/// Every row with its condition. [`Row::Unforeseen`] is what is left.
pub const ROWS: &[(Row, Condition)] = &[
    (Row::Unreadable, |s| s.document == Document::Unreadable),
    (Row::Older, |s| s.document == Document::Older),
    (Row::Nothing, |s| s.document == Document::Nothing),
    (Row::Stop, |s| s.document == Document::Stop),
    (Row::Silent, |s| s.is_kept() && s.qemu == Column::Silent),
    (Row::Leftover, |s| s.is_kept() && s.qemu == Column::Leftover),
    (Row::Gone, |s| {
        s.is_kept() && s.qemu == Column::None && (s.launched || s.closed)
    }),
    (Row::Ended, |s| s.is_kept() && s.qemu == Column::Ended),
    (Row::Boot, |s| s.may_boot() && s.lease.fresh),
    (Row::BootStale, |s| s.may_boot() && !s.lease.fresh),
    (Row::Booting, |s| {
        s.is_run() && s.qemu == Column::Booting && s.lease.fresh
    }),
    (Row::BootingStale, |s| {
        s.is_run() && s.qemu == Column::Booting && !s.lease.fresh
    }),
    (Row::Keep, |s| s.is_run() && s.qemu == Column::Running),
    (Row::Paused, |s| {
        s.is_run() && s.qemu == Column::Paused && s.lease.live
    }),
    (Row::PausedOffline, |s| {
        s.is_run() && s.qemu == Column::Paused && !s.lease.live
    }),
    (Row::RunUnderWay, |s| {
        matches!(s.document, Document::Run(_)) && s.is_before_switch()
    }),
    (Row::RunDevice, |s| s.is_run() && s.qemu == Column::Device),
    (Row::RunFailed, |s| {
        s.is_run() && s.qemu == Column::Failed && s.lease.fresh
    }),
    (Row::RunFailedStale, |s| {
        s.is_run() && s.qemu == Column::Failed && !s.lease.fresh
    }),
    (Row::Resume, |s| {
        s.document == Document::Run(Run::Resume) && s.qemu == Column::Completed && s.lease.fresh
    }),
    (Row::ResumeStale, |s| {
        s.document == Document::Run(Run::Resume) && s.qemu == Column::Completed && !s.lease.fresh
    }),
    (Row::Start, |s| {
        s.is_granted() && s.qemu == Column::Running && !s.sent && !s.no_switch && s.lease.live
    }),
    (Row::StartOffline, |s| {
        s.is_granted() && s.qemu == Column::Running && !s.sent && !s.no_switch && !s.lease.live
    }),
    (Row::PreCopy, |s| {
        s.is_granted() && s.qemu == Column::PreCopy && !s.no_switch
    }),
    (Row::Switch, |s| {
        s.is_granted() && s.qemu == Column::PreSwitchover && !s.no_switch && s.lease.live
    }),
    (Row::SwitchOffline, |s| {
        s.is_granted() && s.qemu == Column::PreSwitchover && !s.no_switch && !s.lease.live
    }),
    (Row::CancelAgain, |s| {
        s.is_handing_over() && s.is_before_switch() && s.no_switch
    }),
    (Row::Device, |s| s.is_handing_over() && s.qemu == Column::Device),
    (Row::Completed, |s| {
        s.is_handing_over() && s.qemu == Column::Completed
    }),
    (Row::Promise, |s| {
        s.is_handing_over() && s.qemu == Column::Running && s.sent
    }),
    (Row::Failed, |s| {
        s.is_handing_over() && s.qemu == Column::Failed && s.lease.live
    }),
    (Row::FailedOffline, |s| {
        s.is_handing_over() && s.qemu == Column::Failed && !s.lease.live
    }),
    (Row::PromiseUnsent, |s| {
        (s.is_cancelled() || s.is_granted() && s.no_switch) && s.qemu == Column::Running && !s.sent
    }),
    (Row::Cancel, |s| {
        s.is_cancelled() && s.is_before_switch() && !s.no_switch
    }),
    (Row::Stray, |s| {
        matches!(s.document, Document::Migrate(_)) && s.qemu == Column::Stray
    }),
    (Row::Target, |s| {
        s.is_awaited() && s.is_untouched() && s.lease.fresh
    }),
    (Row::TargetStale, |s| {
        s.is_awaited() && s.is_untouched() && !s.lease.fresh
    }),
    (Row::Incoming, |s| {
        s.is_target() && !s.is_revoked() && s.qemu == Column::Incoming
    }),
    (Row::Loaded, |s| {
        s.is_awaited() && s.is_loaded() && !s.ran && !s.go
    }),
    (Row::Go, |s| s.is_called() && s.is_loaded() && !s.ran),
    (Row::TargetRan, |s| s.is_loaded() && s.ran),
    (Row::TargetRunning, |s| s.is_target() && s.qemu == Column::Running),
    (Row::Revoked, |s| {
        s.is_revoked() && (s.is_untouched() || s.qemu == Column::Incoming || s.is_loaded() && !s.ran && !s.go)
    }),
];

/// The row that holds.
pub fn row(situation: &Situation) -> Row {
    let found = ROWS.iter().find(|(_, condition)| condition(situation));
    found.map_or(Row::Unforeseen, |(row, _)| *row)
}

/// Which row holds, as a core asks for it: the protocol's [`row`], unless a search has taken something away.
#[derive(Clone, Copy)]
pub struct Table(&'static (dyn Fn(&Situation) -> Row + Send + Sync));

impl Table {
    /// Another table.
    pub const fn new(row: &'static (dyn Fn(&Situation) -> Row + Send + Sync)) -> Self {
        Self(row)
    }

    /// The row that holds.
    pub fn row(&self, situation: &Situation) -> Row {
        (self.0)(situation)
    }
}

impl Default for Table {
    fn default() -> Self {
        Self(&row)
    }
}

/// It is given once and never changes, so it is no part of a core's state.
impl PartialEq for Table {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Table {}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Table")
    }
}
