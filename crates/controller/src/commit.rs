//! The one way in which anything is written: read what a plan touches, let the admission add what the write stands for,
//! and commit it compared on everything that was read.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;
use model::audit::Actor;
use planner::Plan;
use planner::admission::{self, Before, Stamp};
use store::{Compare, Op, RangeRequest, Store, StoreError, Txn};

use crate::Env;
use crate::cache::Cache;

/// Why a plan was not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Something that the plan relies on has changed: look again.
    #[error("{key} has changed meanwhile")]
    Conflict {
        /// The key.
        key: String,
    },
    /// The store could not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a commit needs beside the plan.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// Where to.
    pub store: &'a dyn Store,
    /// What the plan was made on.
    pub cache: &'a Cache,
    /// Time and ids.
    pub env: &'a dyn Env,
    /// Who.
    pub actor: &'a Actor,
}

/// Commits a plan and returns the revision that it made.
pub async fn commit(writer: Writer<'_>, mut plan: Plan) -> Result<u64, CommitError> {
    let before = read(writer, &plan).await?;
    for (key, revision) in plan
        .relies_on
        .iter()
        .filter(|(key, _)| plan.writes.contains_key(*key))
    {
        if before.get(key).map_or(0, |was| was.revision) != *revision {
            return Err(CommitError::Conflict { key: key.clone() });
        }
    }
    complete(writer, &mut plan, &before);
    let keys: Vec<String> = plan.relies_on.keys().cloned().collect();
    let answer = writer.store.txn(txn(plan)).await?;
    if answer.succeeded {
        return Ok(answer.revision);
    }
    let changed = answer.failed.first().and_then(|failed| keys.get(failed.index));
    let key = changed.cloned().unwrap_or_else(|| "what it relied on".to_owned());
    Err(CommitError::Conflict { key })
}

/// Lets the admission add what the write stands for.
fn complete(writer: Writer<'_>, plan: &mut Plan, before: &BTreeMap<String, Before>) {
    let mut next_id = || writer.env.next_id();
    let mut stamp = Stamp {
        actor: writer.actor,
        now: writer.env.now(),
        next_id: &mut next_id,
    };
    admission::admit(plan, &writer.cache.view(), before, &mut stamp);
}

/// Reads what the admission has to see: all parts of the objects written, and every other key that is written.
async fn read(writer: Writer<'_>, plan: &Plan) -> Result<BTreeMap<String, Before>, StoreError> {
    let prefixes = {
        let view = writer.cache.view();
        admission::prefixes(plan, &view)
    };
    let lone = plan
        .writes
        .keys()
        .filter(|key| !prefixes.iter().any(|prefix| key.starts_with(prefix.as_str())));
    let requests = prefixes
        .iter()
        .map(RangeRequest::prefix)
        .chain(lone.map(RangeRequest::key));
    let answers = try_join_all(requests.map(|request| writer.store.range(request))).await?;
    let found = answers.into_iter().flat_map(|answer| answer.items).map(|kv| {
        let was = Before {
            value: kv.value.to_vec(),
            revision: kv.mod_revision,
        };
        (kv.key.to_string(), was)
    });
    Ok(found.collect())
}

fn txn(plan: Plan) -> Txn {
    let compares = plan
        .relies_on
        .into_iter()
        .map(|(key, revision)| Compare::mod_revision(key).equals(revision));
    let ops = plan.writes.into_iter().map(|(key, value)| match value {
        Some(value) => Op::put(key, value),
        None => Op::delete(key),
    });
    let txn = compares.fold(Txn::new(), Txn::when);
    ops.fold(txn, Txn::then)
}
