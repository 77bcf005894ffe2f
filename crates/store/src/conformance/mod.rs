//! Owns: the suite that every backend must pass: named cases, and random histories against a simple model.
//! Does not know: any backend; it gets stores from a [`Subject`].
//! Start here: [`run`]. The model is `model.rs`, the random histories are `script.rs` and `property.rs`.
//!
//! The suite assumes that nobody else writes to the store under test, and nothing about the number of its first revision.

#[cfg(test)]
mod broken;
mod leases;
mod limits;
mod model;
mod property;
mod script;
#[cfg(test)]
mod tests;
mod txns;
mod watches;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use crate::{BoxFuture, Revision, Store, StoreError, WatchItem, WatchStream};

/// A backend under test.
pub trait Subject: Send + Sync {
    /// The backend's name, for the report.
    fn name(&self) -> &'static str;

    /// Makes an empty store.
    fn fresh(&self) -> BoxFuture<'_, Result<Arc<dyn Store>, Failure>>;

    /// Closes a store and opens it again with what it had; none if the backend cannot.
    fn reopen(&self, store: Arc<dyn Store>) -> BoxFuture<'_, Result<Option<Arc<dyn Store>>, Failure>>;

    /// Lets time pass for the leases of every store made here.
    fn advance(&self, by: Duration) -> BoxFuture<'_, ()>;
}

/// How much to try.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Where the random histories start from; a failure names the seed of its history.
    pub seed: u64,
    /// How many random histories.
    pub histories: usize,
    /// How many steps in each.
    pub steps: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            histories: 200,
            steps: 60,
        }
    }
}

/// What was tried, all of it with success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The backend's name.
    pub backend: &'static str,
    /// The number of cases: the named ones and the random histories.
    pub cases: usize,
    /// How many of them were random histories.
    pub histories: usize,
    /// The steps of all random histories.
    pub steps: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            backend,
            cases,
            histories,
            steps,
        } = self;
        let named = cases - histories;
        write!(
            f,
            "conformance of the {backend} store: {cases} cases passed ({named} named, {histories} random histories of {steps} steps in all)"
        )
    }
}

/// Where a backend broke the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{case}: {detail}")]
pub struct Failure {
    /// The named case, or the random history with its seed.
    pub case: String,
    /// What was expected, and what came.
    pub detail: String,
}

impl Failure {
    /// A failure of a case that [`run`] fills in.
    pub fn new(detail: impl Into<String>) -> Self {
        Self {
            case: String::new(),
            detail: detail.into(),
        }
    }

    fn of(mut self, case: impl Into<String>) -> Self {
        self.case = case.into();
        self
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(format!("unexpected error: {error}"))
    }
}

type Outcome = Result<(), Failure>;
type Case = for<'s> fn(&'s dyn Subject) -> BoxFuture<'s, Outcome>;

macro_rules! cases {
    ($($module:ident::$case:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($case)), |subject| Box::pin($module::$case(subject)))),*]
    };
}

const NAMED: &[(&str, Case)] = cases![
    txns::a_fresh_store_is_empty,
    txns::revisions_count_changes,
    txns::versions_follow_a_key,
    txns::every_compare_decides,
    txns::the_else_branch_happens,
    txns::failed_compares_say_what_is,
    txns::steps_see_earlier_steps,
    txns::deleting_nothing_makes_no_revision,
    txns::a_prefix_is_deleted,
    txns::old_revisions_stay,
    txns::pages_are_consistent,
    txns::intervals_and_key_order,
    txns::keys_only_leaves_values_out,
    txns::compaction_is_explicit,
    txns::deleted_keys_survive_their_compaction_as_deleted,
    txns::writers_exclude_each_other,
    txns::what_was_answered_is_there_after_reopening,
    limits::operations_are_counted,
    limits::bytes_are_counted,
    limits::keys_are_bounded,
    limits::a_branch_changes_a_key_once,
    limits::refused_requests_change_nothing,
    limits::large_values_come_back,
    watches::changes_come_in_order,
    watches::a_revision_is_one_batch,
    watches::a_watch_starts_in_the_past,
    watches::a_watch_starts_in_the_future,
    watches::a_list_and_a_watch_leave_no_gap,
    watches::events_carry_the_past,
    watches::other_keys_are_not_seen,
    watches::progress_comes,
    watches::compacted_history_is_said,
    watches::the_compacted_revision_itself_is_watched,
    watches::a_slow_watch_loses_nothing,
    watches::a_slow_watch_of_large_values_loses_nothing,
    watches::a_slow_watch_hears_of_compaction,
    watches::watches_join_under_load,
    watches::reopened_history_is_watched,
    leases::keys_end_with_their_lease,
    leases::an_ended_lease_stays_ended_after_reopening,
    leases::a_lease_runs_out,
    leases::keeping_alive_keeps,
    leases::a_put_moves_a_key_between_leases,
    leases::unknown_leases_are_refused,
    leases::a_reopened_store_grants_the_full_time,
];

/// Runs the whole suite; stops at the first failure.
pub async fn run(subject: &dyn Subject, options: Options) -> Result<Report, Failure> {
    named(subject).await?;
    let steps = property::run(subject, options).await?;
    Ok(Report {
        backend: subject.name(),
        cases: NAMED.len() + options.histories,
        histories: options.histories,
        steps,
    })
}

async fn named(subject: &dyn Subject) -> Outcome {
    for (name, case) in NAMED {
        case(subject).await.map_err(|failure| failure.of(*name))?;
    }
    Ok(())
}

fn ensure(holds: bool, detail: impl FnOnce() -> String) -> Outcome {
    if holds {
        Ok(())
    } else {
        Err(Failure::new(detail()))
    }
}

fn equal<T: PartialEq + fmt::Debug>(what: &str, got: &T, wanted: &T) -> Outcome {
    ensure(got == wanted, || {
        format!("{what} is {got:?}, should be {wanted:?}")
    })
}

fn refused<T: fmt::Debug>(
    what: &str,
    got: Result<T, StoreError>,
    right: impl Fn(&StoreError) -> bool,
) -> Outcome {
    match got {
        Err(error) if right(&error) => Ok(()),
        other => Err(Failure::new(format!(
            "{what} should be refused, came to {other:?}"
        ))),
    }
}

/// How long an answer may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);

async fn in_time<T>(what: &str, answer: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout(PATIENCE, answer)
        .await
        .map_err(|_| Failure::new(format!("{what} did not come within {PATIENCE:?}")))
}

async fn item(stream: &mut WatchStream) -> Result<WatchItem, Failure> {
    let next = in_time("a watch item", stream.next()).await?;
    let next = next.ok_or_else(|| Failure::new("the watch ended"))?;
    Ok(next?)
}

/// The next batch; progress in between is skipped.
async fn batch(stream: &mut WatchStream) -> Result<(Revision, Vec<crate::Event>), Failure> {
    loop {
        match item(stream).await? {
            WatchItem::Batch { revision, events } => return Ok((revision, events)),
            WatchItem::Progress { .. } => {}
            other => return Err(Failure::new(format!("a batch was due, {other:?} came"))),
        }
    }
}

async fn silent(stream: &mut WatchStream) -> Outcome {
    let soon = Duration::from_millis(20);
    match tokio::time::timeout(soon, stream.next()).await {
        Err(_) => Ok(()),
        Ok(other) => Err(Failure::new(format!(
            "the watch should be silent, {other:?} came"
        ))),
    }
}
