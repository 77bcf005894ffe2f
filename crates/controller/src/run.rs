//! The loop: what changed is looked at, the planner says what to do, and it is committed. Several servers may run it at
//! once: what two of them decide at the same time, only one commits.

use std::sync::Arc;
use std::time::Duration;

use model::audit::Actor;
use model::document::Cause;
use model::{Kind, Timestamp};
use planner::Decision;
use store::Store;

use crate::Env;
use crate::cache::{Cache, Changed, Since};
use crate::commit::{CommitError, Writer, commit};
use crate::figures::{Figures, Outcome};
use crate::queue::{Item, Queue};

/// How long the view may take to show what was committed before the item is looked at all the same.
const CATCH_UP: Duration = Duration::from_secs(2);
/// How long to wait when the store cannot write.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// How many of the items that are looked at next the planner is told of: what is alike may be done by one plan.
const BESIDE_MAX: usize = 15;
/// The longest sleep; a guard against a clock that jumps.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);

/// Runs until the task is dropped.
pub async fn run(store: Arc<dyn Store>, cache: Arc<Cache>, env: Arc<dyn Env>, figures: Arc<Figures>) {
    let actor = Actor::controller();
    let mut revisions = cache.subscribe();
    let mut seen = cache.revision();
    let mut queue = Queue::of(&cache.view());
    loop {
        seen = wake_changed(&cache, &mut queue, seen);
        let next = queue.ring(env.now());
        figures.queued(queue.len());
        // What has to be looked at waits until a restored store goes on.
        let is_held = cache.view().is_held();
        if let Some(item) = (!is_held).then(|| queue.pop()).flatten() {
            let writer = Writer {
                store: store.as_ref(),
                cache: &cache,
                env: env.as_ref(),
                actor: &actor,
            };
            let outcome = step(writer, &mut queue, item).await;
            figures.decided(item, outcome);
            continue;
        }
        let sleep = next.map_or(LONGEST_SLEEP, |at| until(at, env.now()));
        tokio::select! {
            biased;
            changed = revisions.changed() => if changed.is_err() { return },
            () = env.sleep(sleep) => {}
        }
    }
}

fn until(at: Timestamp, now: Timestamp) -> Duration {
    let left = at.duration_since(now);
    Duration::try_from(left)
        .unwrap_or(Duration::ZERO)
        .min(LONGEST_SLEEP)
}

/// Names what changed after a revision, and says up to which one that was.
fn wake_changed(cache: &Cache, queue: &mut Queue, seen: u64) -> u64 {
    let up_to = cache.revision();
    if up_to == seen {
        return seen;
    }
    let view = cache.view();
    match cache.since(seen) {
        Since::Changes(changes) => {
            for changed in &changes {
                queue.wake(&view, changed.kind, changed.id);
            }
            // What a user changes of a VM may matter to the rules of others; what its agent reports does not.
            let is_users = |changed: &&Changed| {
                let vm = view
                    .vms
                    .get(&changed.id.into())
                    .filter(|_| changed.kind == Kind::Vm);
                let object = vm.and_then(|vm| vm.object.as_ref());
                object.is_some_and(|at| at.revision > seen)
            };
            if changes.iter().any(|changed| is_users(&changed)) {
                queue.wake_waiting();
            }
        }
        Since::Compacted(_) => *queue = Queue::of(&view),
    }
    up_to
}

/// Looks at one item, and commits what the planner wants.
async fn step(writer: Writer<'_>, queue: &mut Queue, item: Item) -> Outcome {
    let mut decision = decide(writer, item, queue.next(BESIDE_MAX));
    let Some(plan) = decision.plan.take() else {
        queue.wait(item, &decision);
        return Outcome::Nothing;
    };
    let action = plan.action.clone();
    let cause = cause(writer, item);
    match commit(writer, plan).await {
        Ok(revision) => {
            let operation = cause.as_ref().map(|cause| cause.operation.to_string());
            let request = cause.and_then(|cause| cause.request);
            tracing::info!(revision, operation, request, "{action}");
            writer.cache.reach(revision, CATCH_UP).await;
            queue.push(item);
            Outcome::Committed
        }
        Err(CommitError::Conflict { key }) => {
            // The change that overtook the plan is on its way to the view.
            tracing::debug!(%key, "{action}: overtaken, looking again");
            let at = writer.cache.view().revision;
            writer
                .cache
                .reach(at.saturating_add(1), Duration::from_millis(50))
                .await;
            queue.push(item);
            Outcome::Overtaken
        }
        Err(CommitError::Store(error)) => {
            tracing::error!(%error, "{action}: not committed, tried again");
            writer.env.sleep(STORE_PAUSE).await;
            queue.push(item);
            Outcome::Failed
        }
    }
}

/// What the item is looked at for.
fn cause(writer: Writer<'_>, item: Item) -> Option<Cause> {
    let view = writer.cache.view();
    let vm = match item {
        Item::Vm(id) => id,
        Item::Migration(id) => view.migrations.get(&id)?.object.as_ref()?.value.spec.vm,
        Item::Host(_) | Item::Template(_) => return None,
    };
    planner::operation::cause(&view, vm)
}

fn decide(writer: Writer<'_>, item: Item, next: impl Iterator<Item = Item>) -> Decision {
    let view = writer.cache.view();
    let now = writer.env.now();
    match item {
        Item::Vm(id) => {
            let others = next.filter_map(|item| match item {
                Item::Vm(other) => Some(other),
                _ => None,
            });
            planner::vm::plan_beside(&view, id, &others.collect::<Vec<_>>(), now)
        }
        Item::Migration(id) => planner::migration::plan(&view, id, now),
        Item::Host(id) => {
            let others = next.filter_map(|item| match item {
                Item::Host(other) => Some(other),
                _ => None,
            });
            let mut next_id = || writer.env.next_id();
            planner::host::plan_beside(&view, id, &others.collect::<Vec<_>>(), now, &mut next_id)
        }
        Item::Template(id) => planner::keep_warm::plan(&view, id, now, &mut || writer.env.next_id()),
    }
}
