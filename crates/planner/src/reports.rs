//! Which reports count: a status is kept only for an incarnation that the store still waits to hear of, and only from
//! the host that holds it. All else is late, and is dropped without harm.

use std::collections::BTreeSet;

use model::report::{Report, RunState, RunStatus};
use model::{HostId, Incarnation, VmId, key};

use uuid::Uuid;

use crate::plan::Plan;
use crate::view::View;

/// How many incarnations one transaction updates: the store takes 128 operations, and each has its audit beside it.
const RUNS_PER_PLAN: usize = 16;
/// How many of a host's earlier sessions are remembered; the oldest, by their ids' time, go first.
const FORMER_SESSIONS: usize = 16;

/// Which of a host's reports was taken last. A report that a newer one has overtaken on its way says nothing new.
#[derive(Debug, Default)]
pub struct ReportOrder {
    last: Option<(Uuid, u64)>,
    former: BTreeSet<Uuid>,
}

impl ReportOrder {
    /// Whether a report is newer than every one that was taken.
    pub fn admits(&self, report: &Report) -> bool {
        let is_later = self
            .last
            .is_none_or(|(session, sequence)| session != report.session || report.sequence > sequence);
        is_later && !self.former.contains(&report.session)
    }

    /// A report was taken.
    pub fn note(&mut self, report: &Report) {
        let before = self.last.replace((report.session, report.sequence));
        self.former.extend(
            before
                .map(|(session, _)| session)
                .filter(|session| *session != report.session),
        );
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
