//! Which reports count: a status is kept only for an incarnation that the store still waits to hear of, and only from
//! the host that holds it. All else is late, and is dropped without harm.

use std::collections::BTreeMap;
use std::time::Duration;

use model::report::{Report, RunState, RunStatus};
use model::{HostId, Incarnation, VmId, key};

use uuid::Uuid;

use crate::plan::Plan;
use crate::view::View;

/// How many incarnations one transaction updates: the store takes 128 operations, and each has its audit beside it.
const RUNS_PER_PLAN: usize = 16;
/// How many of a host's earlier sessions are remembered; the oldest, by their ids' time, go first.
const FORMER_SESSIONS: usize = 16;

/// After this long without a report of the session that counts, an earlier one may count again: longer than a session's
/// heartbeats are apart, and shorter than a host that is not heard is silent.
const QUIET: Duration = Duration::from_secs(5);

/// What is done with a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is taken.
    Next,
    /// It says nothing new.
    Over,
    /// Another start of the agent was heard after it: it is taken when that one is not heard any more.
    NotYet,
}

/// Which of a host's reports was taken last. A report that a newer one has overtaken on its way says nothing new.
///
/// Sessions have no order: an agent's clock may be set. One that was never heard of is taken for a new start of the agent. It
/// may be the first report of an agent that is no more, overtaken by those of the next; then that one counts again, since
/// it is heard and the other is not.
#[derive(Debug, Default)]
pub struct ReportOrder {
    last: Option<Taken>,
    /// Earlier sessions, with the last that was taken of each.
    former: BTreeMap<Uuid, u64>,
}

#[derive(Debug, Clone, Copy)]
struct Taken {
    session: Uuid,
    sequence: u64,
    at: Duration,
}

impl ReportOrder {
    /// What is done with a report. Times are of the server's monotonic clock.
    pub fn turn_of(&self, report: &Report, now: Duration) -> Turn {
        let Some(last) = self.last else { return Turn::Next };
        let is_current = last.session == report.session;
        let taken = is_current.then_some(last.sequence);
        match taken.or_else(|| self.former.get(&report.session).copied()) {
            Some(taken) if report.sequence <= taken => Turn::Over,
            Some(_) if !is_current && now.saturating_sub(last.at) < QUIET => Turn::NotYet,
            _ => Turn::Next,
        }
    }

    /// A report was taken.
    pub fn note(&mut self, report: &Report, now: Duration) {
        let taken = Taken {
            session: report.session,
            sequence: report.sequence,
            at: now,
        };
        let before = self.last.replace(taken);
        let before = before.map(|before| (before.session, before.sequence));
        self.former.extend(before);
        self.former.remove(&report.session);
        while self.former.len() > FORMER_SESSIONS {
            self.former.pop_first();
        }
    }
}

/// The writes that a report leads to: none if it says nothing new. Several plans if it says much.
pub fn plans(view: &View, host: HostId, report: &Report) -> Vec<Plan> {
    let mut plans: Vec<Plan> = host_plan(view, host, report).into_iter().collect();
    let changed: Vec<_> = report
        .runs
        .iter()
        .filter(|run| is_news(view, host, run.vm, &run.run))
        .collect();
    for runs in changed.chunks(RUNS_PER_PLAN) {
        let mut plan = Plan::new("report runs");
        for run in runs {
            let incarnation = run.run.incarnation;
            let vm = view.vms.get(&run.vm);
            let revision = vm
                .and_then(|vm| vm.run_revisions.get(&incarnation))
                .copied()
                .unwrap_or(0);
            let intent = vm.and_then(|vm| vm.intent.as_ref()).map_or(0, |at| at.revision);
            // The incarnation must still be awaited when the report is stored.
            plan.rely(key::vm_intent(run.vm), intent);
            let kept = vm.and_then(|vm| vm.runs.get(&incarnation));
            let stored = stored(host, kept, &run.run);
            plan.replace(key::vm_run(run.vm, incarnation), revision, &stored);
        }
        plans.push(plan);
    }
    plans
}

fn host_plan(view: &View, host: HostId, report: &Report) -> Option<Plan> {
    let status = report.host.as_ref()?;
    let kept = view.hosts.get(&host)?.status.as_ref();
    if kept.is_some_and(|kept| kept.value == *status) {
        return None;
    }
    let mut plan = Plan::new("report host");
    plan.replace(
        key::host_status(host),
        kept.map_or(0, |kept| kept.revision),
        status,
    );
    Some(plan)
}

fn is_news(view: &View, host: HostId, vm: VmId, run: &RunStatus) -> bool {
    if !is_awaited(view, host, vm, run.incarnation) {
        return false;
    }
    let kept = view.vms.get(&vm).and_then(|vm| vm.runs.get(&run.incarnation));
    let Some(kept) = kept else { return true };
    // What is on the agent's disk does not go back, whatever arrives late: a closed incarnation never opens again, and
    // one that ran has run. Of one that it had forgotten when it was told to remove it, it does not know that any more.
    let is_removed = run.state == RunState::Removed;
    let goes_back = kept.state.is_closed() && run.state < kept.state || kept.ran && !run.ran && !is_removed;
    if goes_back {
        return false;
    }
    let same = RunStatus {
        document_revision: kept.document_revision,
        ..stored(host, Some(kept), run)
    };
    same != *kept
}

fn stored(host: HostId, kept: Option<&RunStatus>, run: &RunStatus) -> RunStatus {
    RunStatus {
        host,
        ran: run.ran || kept.is_some_and(|kept| kept.ran),
        ..run.clone()
    }
}

/// The incarnations that a host has open and the store knows nothing of. A store that was never restored has none.
pub fn unknown<'r>(
    view: &View,
    host: HostId,
    open: impl IntoIterator<Item = &'r (VmId, Incarnation)>,
) -> Vec<(VmId, Incarnation)> {
    let open = open.into_iter().copied();
    open.filter(|(vm, incarnation)| !is_awaited(view, host, *vm, *incarnation))
        .collect()
}

/// Whether the store waits to hear of an incarnation from a host.
fn is_awaited(view: &View, host: HostId, id: VmId, incarnation: Incarnation) -> bool {
    let Some(vm) = view.vms.get(&id) else { return false };
    let Some(intent) = vm.intent.as_ref().map(|at| &at.value) else {
        return false;
    };
    let is_deleted = vm
        .object
        .as_ref()
        .is_some_and(|at| at.value.meta.deleted_at.is_some());
    let holds = intent.host == Some(host)
        && match &intent.open {
            Some(open) => open.incarnation == incarnation,
            None => is_deleted && intent.has_volumes && incarnation == intent.last_incarnation,
        };
    holds
        || view.active_migrations(id).any(|(_, migration)| {
            let route = migration.intent.as_ref().and_then(|at| at.value.route.as_ref());
            route.is_some_and(|route| {
                (route.source, route.from) == (host, incarnation)
                    || (route.target, route.to) == (host, incarnation)
            })
        })
}
