//! Owns: running a random history on a store and on the model side by side, and cutting a failing one down.
//! Does not know: how histories are made; see `script.rs`.
//! Start here: [`run`].

use std::sync::Arc;

use bytes::Bytes;

use super::model::Model;
use super::script::{CompareKind, ComparePlan, OpPlan, Step, TxnPlan, When, script};
use super::{Failure, Options, Outcome, Subject, equal, item, refused};
use crate::{
    Compare, Condition, Event, Field, KeyRange, LeaseId, Op, RangeRequest, Revision, Store, StoreError, Txn,
    WatchItem, WatchRequest, WatchStream,
};

/// Runs all histories; answers the number of steps.
pub(super) async fn run(subject: &dyn Subject, options: Options) -> Result<usize, Failure> {
    let mut steps = 0;
    for number in 0..options.histories as u64 {
        let seed = options.seed.wrapping_add(number);
        let history = script(seed, options.steps);
        steps += history.len();
        if let Err(failure) = play(subject, &history).await {
            return Err(cut_down(subject, seed, history, failure).await);
        }
    }
    Ok(steps)
}

/// Leaves out steps as long as the history still fails.
async fn cut_down(subject: &dyn Subject, seed: u64, mut history: Vec<Step>, mut failure: Failure) -> Failure {
    let mut chunk = history.len() / 2;
    while chunk > 0 {
        let mut start = 0;
        while start < history.len() {
            let mut shorter = history.clone();
            shorter.drain(start..history.len().min(start + chunk));
            match play(subject, &shorter).await {
                Err(smaller) => (history, failure) = (shorter, smaller),
                Ok(()) => start += chunk,
            }
        }
        chunk /= 2;
    }
    let case = format!("random history of seed {seed}");
    let detail = format!(
        "{}; {} steps are enough: {history:#?}",
        failure.detail,
        history.len()
    );
    Failure { case, detail }
}

async fn play(subject: &dyn Subject, history: &[Step]) -> Outcome {
    let store = subject.fresh().await?;
    let status = store.status().await?;
    let mut run = Run {
        subject,
        store,
        model: Model::new(status.revision, status.compacted),
        leases: Vec::new(),
        watches: Vec::new(),
    };
    for step in history {
        run.step(step).await?;
    }
    run.finish().await
}

struct Run<'s> {
    subject: &'s dyn Subject,
    store: Arc<dyn Store>,
    model: Model,
    leases: Vec<LeaseId>,
    watches: Vec<Following>,
}

/// An open watch, and the first revision whose events have not been read from it.
struct Following {
    stream: WatchStream,
    range: KeyRange,
    next: Revision,
    /// Progress was asked for, and none has come yet.
    awaits_progress: bool,
}

impl Run<'_> {
    async fn step(&mut self, step: &Step) -> Outcome {
        match step {
            Step::Txn(plan) => self.txn(plan).await,
            Step::Range(request, when) => self.range(request, *when).await,
            Step::Compact(when) => self.compact(*when).await,
            Step::Watch(range, when) => self.watch(range, *when).await,
            Step::Drain(number) => self.drain(*number).await,
            Step::DropWatch(number) => {
                if !self.watches.is_empty() {
                    self.watches.remove(number % self.watches.len());
                }
                Ok(())
            }
            Step::Grant => self.grant().await,
            Step::Revoke(number) => self.revoke(*number).await,
            Step::Reopen => self.reopen().await,
        }
    }

    async fn txn(&mut self, plan: &TxnPlan) -> Outcome {
        let txn = self.txn_of(plan);
        let got = self.store.txn(txn.clone()).await?;
        let wanted = self.model.apply(&txn);
        equal("the answer to a txn", &got, &wanted)
    }

    fn txn_of(&self, plan: &TxnPlan) -> Txn {
        let op = |plan: &OpPlan| match plan {
            OpPlan::Plain(op) => op.clone(),
            OpPlan::Leased(key, value, number) => Op::Put {
                key: key.clone(),
                value: value.clone(),
                lease: nth(&self.leases, *number).copied(),
            },
        };
        Txn {
            compares: plan.compares.iter().map(|plan| self.compare_of(plan)).collect(),
            then: plan.then.iter().map(op).collect(),
            otherwise: plan.otherwise.iter().map(op).collect(),
        }
    }

    fn compare_of(&self, plan: &ComparePlan) -> Compare {
        let keys = self.model.at(self.model.revision());
        let stored = keys.and_then(|keys| keys.get(&plan.key));
        let relation = plan.relation;
        let condition = match plan.kind {
            CompareKind::Number(field) => Condition::Number {
                field,
                relation,
                given: stored
                    .map_or(0, |kv| match field {
                        Field::ModRevision => kv.mod_revision,
                        Field::CreateRevision => kv.create_revision,
                        Field::Version => kv.version,
                    })
                    .saturating_add_signed(plan.off),
            },
            CompareKind::Value(0) => Condition::Value {
                relation,
                given: Bytes::new(),
            },
            CompareKind::Value(_) => Condition::Value {
                relation,
                given: stored.map(|kv| kv.value.clone()).unwrap_or_default(),
            },
        };
        Compare {
            key: plan.key.clone(),
            condition,
        }
    }

    async fn range(&mut self, request: &RangeRequest, when: Option<When>) -> Outcome {
        let (oldest, newest) = (self.model.compacted, self.model.revision());
        let at = when.map(|when| when.resolve(oldest, newest));
        let mut request = request.clone();
        request.revision = at;
        let got = self.store.range(request.clone()).await;
        let at = at.unwrap_or(newest);
        if at > newest {
            let right = StoreError::FutureRevision {
                requested: at,
                current: newest,
            };
            return refused("a range in the future", got, |error| *error == right);
        }
        if at < oldest {
            let right = StoreError::Compacted {
                requested: at,
                compacted: oldest,
            };
            return refused("a range in compacted history", got, |error| *error == right);
        }
        let got = got?;
        let wanted = self.model.range(&request, at);
        let what = format!("the answer to {request:?}");
        equal(&what, &(got.items, got.more), &wanted)?;
        equal("the revision of a range", &got.revision, &newest)
    }

    async fn compact(&mut self, when: When) -> Outcome {
        let (oldest, newest) = (self.model.compacted, self.model.revision());
        let at = when.resolve(oldest, newest);
        let got = self.store.compact(at).await;
        if at > newest {
            let right = |error: &StoreError| matches!(error, StoreError::FutureRevision { .. });
            return refused("a compaction in the future", got, right);
        }
        if at <= oldest {
            let right = |error: &StoreError| matches!(error, StoreError::Compacted { .. });
            return refused("a compaction of the compacted", got, right);
        }
        got?;
        self.model.compacted = at;
        Ok(())
    }

    async fn watch(&mut self, range: &KeyRange, when: Option<When>) -> Outcome {
        let (oldest, newest) = (self.model.compacted, self.model.revision());
        let from = when.map(|when| when.resolve(oldest, newest));
        let progress = newest.is_multiple_of(2);
        let request = WatchRequest {
            range: range.clone(),
            from,
            progress,
        };
        let stream = self.store.watch(request).await?;
        self.watches.push(Following {
            stream,
            range: range.clone(),
            next: from.unwrap_or(newest + 1),
            awaits_progress: progress,
        });
        Ok(())
    }

    async fn drain(&mut self, number: usize) -> Outcome {
        if self.watches.is_empty() {
            return Ok(());
        }
        let number = number % self.watches.len();
        let mut following = self.watches.remove(number);
        if following.drain(&self.model).await? {
            self.watches.insert(number, following);
        }
        Ok(())
    }

    async fn grant(&mut self) -> Outcome {
        let hour = std::time::Duration::from_secs(3_600);
        let lease = self.store.grant_lease(hour).await?;
        self.leases.push(lease.id);
        Ok(())
    }

    async fn revoke(&mut self, number: usize) -> Outcome {
        let Some(lease) = nth(&self.leases, number).copied() else {
            return Ok(());
        };
        let got = self.store.revoke_lease(lease).await?;
        self.model.end_lease(lease);
        self.leases.retain(|other| *other != lease);
        let wanted = self.model.revision();
        equal("the revision after a revocation", &got, &wanted)
    }

    async fn reopen(&mut self) -> Outcome {
        self.watches.clear();
        if let Some(store) = self.subject.reopen(self.store.clone()).await? {
            self.store = store;
        }
        let status = self.store.status().await?;
        let wanted = (self.model.revision(), self.model.compacted);
        let got = (status.revision, status.compacted);
        equal("revision and compaction after reopening", &got, &wanted)
    }

    /// At the end every open watch has delivered everything, and every readable revision is as it was.
    async fn finish(mut self) -> Outcome {
        for mut following in std::mem::take(&mut self.watches) {
            following.drain(&self.model).await?;
        }
        for revision in self.model.compacted..=self.model.revision() {
            let request = RangeRequest::prefix("").at(revision);
            let got = self.store.range(request.clone()).await?;
            let wanted = self.model.range(&request, revision);
            let what = format!("everything at revision {revision}");
            equal(&what, &(got.items, got.more), &wanted)?;
        }
        Ok(())
    }
}

fn nth<T>(items: &[T], number: usize) -> Option<&T> {
    items.get(number % items.len().max(1))
}

impl Following {
    /// Reads all that is due; answers whether the watch goes on.
    async fn drain(&mut self, model: &Model) -> Result<bool, Failure> {
        if self.next < model.compacted {
            return self.drain_compacted(model).await;
        }
        while let Some((revision, wanted)) = self.due(model) {
            match item(&mut self.stream).await? {
                WatchItem::Progress { revision: told } => self.progress(told, revision, model)?,
                WatchItem::Batch {
                    revision: got,
                    events,
                } => {
                    equal("the revision of a batch", &got, &revision)?;
                    check_events(&events, &wanted, revision == model.compacted)?;
                    self.next = revision + 1;
                }
                other @ WatchItem::Compacted { .. } => {
                    let detail = format!("{other:?} came while revision {revision} was readable");
                    return Err(Failure::new(detail));
                }
            }
        }
        if self.awaits_progress && self.next <= model.revision() + 1 {
            match item(&mut self.stream).await? {
                WatchItem::Progress { revision: told } => {
                    self.progress(told, model.revision() + 1, model)?;
                }
                other => return Err(Failure::new(format!("progress was due, {other:?} came"))),
            }
        }
        Ok(true)
    }

    /// What was buffered before the compaction may still come; after it, the watch says that history is gone.
    async fn drain_compacted(&mut self, model: &Model) -> Result<bool, Failure> {
        while let Some((revision, wanted)) = self.due(model) {
            match item(&mut self.stream).await? {
                WatchItem::Progress { revision: told } => self.progress(told, revision, model)?,
                WatchItem::Compacted { compacted } => {
                    equal("the compacted revision", &compacted, &model.compacted)?;
                    return Ok(false);
                }
                WatchItem::Batch {
                    revision: got,
                    events,
                } => {
                    equal("the revision of a batch", &got, &revision)?;
                    check_events(&events, &wanted, true)?;
                    self.next = revision + 1;
                }
            }
        }
        Ok(true)
    }

    fn due(&self, model: &Model) -> Option<(Revision, Vec<Event>)> {
        (self.next..=model.revision())
            .map(|revision| (revision, model.events(&self.range, revision)))
            .find(|(_, events)| !events.is_empty())
    }

    fn progress(&mut self, told: Revision, due: Revision, model: &Model) -> Outcome {
        self.awaits_progress = false;
        super::ensure(told < due && told <= model.revision(), || {
            format!(
                "progress to {told} was told before revision {due}, with the store at {}",
                model.revision()
            )
        })
    }
}

fn check_events(got: &[Event], wanted: &[Event], past_may_be_gone: bool) -> Outcome {
    let mut wanted = wanted.to_vec();
    if past_may_be_gone {
        for (wanted, got) in wanted.iter_mut().zip(got) {
            if got.prev.is_none() {
                wanted.prev = None;
            }
        }
    }
    equal("a batch of events", &got.to_vec(), &wanted)
}
