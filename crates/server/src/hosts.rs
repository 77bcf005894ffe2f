//! What hosts are told and what they tell, whatever the connection is.
//!
//! **Owns:** when a document is news, and how a report becomes transactions.
//!
//! **Does not know:** HTTP and certificates: see [`crate::agents`].
//!
//! **Start here:** [`Documents`], [`take_report`].

use std::time::Duration;

use api::Problem;
use controller::commit::{CommitError, commit};
use model::HostId;
use model::audit::Actor;
use model::document::HostDocument;
use model::report::Report;
use planner::{Plan, View};

use crate::answer::{commit_problem, store_problem};
use crate::shared::{Cloud, LastHeard};

/// How often a report is tried again when others overtake it.
const ATTEMPTS: u32 = 20;

/// What one connection of an agent was told last.
#[derive(Debug)]
pub struct Documents {
    host: HostId,
    last: Option<HostDocument>,
}

/// What a connection is told next.
#[derive(Debug)]
pub enum Said {
    /// This, since it says something else than what was told last.
    Document(Box<HostDocument>),
    /// Nothing for now.
    Nothing,
    /// Nothing any more: the host is no longer one of the cloud's.
    Ended,
}

impl Documents {
    /// A connection that was told nothing yet.
    pub fn new(host: HostId) -> Self {
        Self { host, last: None }
    }

    /// What there is to tell now.
    pub fn next(&mut self, view: &View) -> Said {
        if view
            .hosts
            .get(&self.host)
            .is_none_or(planner::view::Host::is_dead)
        {
            return Said::Ended;
        }
        // A restored store may not know what the host runs: told what the store knows, it would end that.
        if view.is_held() && !view.restored.as_ref().is_some_and(|at| at.value.ends_unknown) {
            return Said::Nothing;
        }
        let document = planner::document::build(view, self.host);
        if self
            .last
            .as_ref()
            .is_some_and(|last| last.asks_the_same(&document))
        {
            return Said::Nothing;
        }
        self.last = Some(document.clone());
        Said::Document(Box::new(document))
    }
}

/// Stores what a report says anew, compared on what the store waits to hear.
pub async fn take_report(cloud: &Cloud, host: HostId, actor: &Actor, report: Report) -> Result<(), Problem> {
    let order = cloud.heard.order(host);
    let mut order = order.lock().await;
    if !order.admits(&report) {
        return Ok(());
    }
    hold_if_put_back(cloud, host, actor, &report).await?;
    for _ in 0..ATTEMPTS {
        let plans = planner::reports::plans(&cloud.cache.view(), host, &report);
        match store_all(cloud, actor, plans).await {
            Ok(()) => {
                order.note(&report);
                let at = cloud.env.monotonic();
                cloud.heard.note(host, LastHeard::of(report, at));
                return Ok(());
            }
            Err(CommitError::Conflict { .. }) => {
                let at = cloud.cache.revision();
                cloud
                    .cache
                    .reach(at.saturating_add(1), Duration::from_millis(10))
                    .await;
            }
            Err(error) => return Err(commit_problem(error)),
        }
    }
    Err(commit_problem(CommitError::Conflict {
        key: "the host's VMs".to_owned(),
    }))
}

/// A database that is older than what a host was told is not to be obeyed, and not to decide.
async fn hold_if_put_back(
    cloud: &Cloud,
    host: HostId,
    actor: &Actor,
    report: &Report,
) -> Result<(), Problem> {
    let obeyed = planner::restored::obeyed_revision(report);
    if obeyed <= cloud.cache.revision() {
        return Ok(());
    }
    // Another server may have told the host, and what it wrote is on its way here.
    let status = cloud.store.status().await;
    if obeyed <= status.map_err(|error| store_problem(&error))?.revision {
        return Ok(());
    }
    let plan = planner::restored::put_back(&cloud.cache.view(), host, obeyed, cloud.env.now());
    if let Some(plan) = plan {
        tracing::error!(
            %host,
            obeyed,
            "this database is older than what the host has obeyed: nothing is decided; see `sterna store resume`"
        );
        store_all(cloud, actor, vec![plan])
            .await
            .map_err(commit_problem)?;
    }
    Ok(())
}

async fn store_all(cloud: &Cloud, actor: &Actor, plans: Vec<Plan>) -> Result<(), CommitError> {
    let mut last = 0;
    for plan in plans {
        last = commit(cloud.writer(actor), plan).await?;
    }
    cloud.cache.reach(last, Duration::from_secs(2)).await;
    Ok(())
}
