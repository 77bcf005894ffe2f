//! Owns: the suite on the in-memory backend, and the proof that the suite can fail: stores that break the contract in one
//! way each.
//! Does not know: other backends; they call [`super::run`] from their own tests.
//! Start here: [`Fault`] and who must find it, below.

use std::sync::Mutex;

use super::broken::{Broken, Fault};
use super::*;
use crate::backend::lock;
use crate::{Clock, MemoryStore};

/// Makes in-memory stores, and spoils them if there is a fault.
#[derive(Default)]
struct Memory {
    now: Arc<Mutex<Duration>>,
    fault: Option<Fault>,
}

impl Subject for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn fresh(&self) -> BoxFuture<'_, Result<Arc<dyn Store>, Failure>> {
        let now = self.now.clone();
        let clock: Clock = Arc::new(move || *lock(&now));
        let good = Arc::new(MemoryStore::new(clock));
        Box::pin(async move {
            Ok(match self.fault {
                Some(fault) => Arc::new(Broken::new(good, fault)) as Arc<dyn Store>,
                None => good,
            })
        })
    }

    fn reopen(&self, _store: Arc<dyn Store>) -> BoxFuture<'_, Result<Option<Arc<dyn Store>>, Failure>> {
        Box::pin(async { Ok(None) })
    }

    fn advance(&self, by: Duration) -> BoxFuture<'_, ()> {
        *lock(&self.now) += by;
        Box::pin(async {})
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    let report = run(&Memory::default(), Options::default()).await;
    println!("{}", report.expect("the in-memory store conforms"));
}

/// What the random histories must find by themselves; the rest is for the named cases.
const FOUND_BY_HISTORIES: &[Fault] = &[
    Fault::IgnoresTheLastCompare,
    Fault::HidesFailedCompares,
    Fault::SkipsTheOtherBranch,
    Fault::DeletesOnlyTheFirstOfAPrefix,
    Fault::ServesTheFutureForAnOldRevision,
    Fault::ServesCompactedHistory,
    Fault::CompactsOneTooFar,
    Fault::SaysMoreTooRarely,
    Fault::SortsWrongly,
    Fault::LosesAnEventOfABatch,
    Fault::LosesABatch,
    Fault::RepeatsABatch,
    Fault::SplitsABatch,
    Fault::SwapsKinds,
    Fault::ForgetsThePast,
    Fault::StartsAWatchLate,
    Fault::TellsProgressTooEarly,
    Fault::DropsTheLease,
    Fault::LetsNoLeaseEnd,
];

const FOUND_BY_NAMED_CASES: &[Fault] = &[
    Fault::NeverTellsProgress,
    Fault::SkipsCompactedHistory,
    Fault::AcceptsTheEmptyKey,
    Fault::AcceptsTooManySteps,
];

fn broken(fault: Fault) -> Memory {
    Memory {
        fault: Some(fault),
        ..Memory::default()
    }
}

#[tokio::test(start_paused = true)]
async fn histories_find_every_fault() {
    for fault in FOUND_BY_HISTORIES {
        let found = property::run(&broken(*fault), Options::default()).await;
        let failure = found.expect_err(&format!("{fault:?} was not found"));
        println!("{fault:?}: {}: {}", failure.case, first_line(&failure));
    }
}

#[tokio::test(start_paused = true)]
async fn named_cases_find_every_fault() {
    for fault in FOUND_BY_HISTORIES.iter().chain(FOUND_BY_NAMED_CASES) {
        let found = named(&broken(*fault)).await;
        let failure = found.expect_err(&format!("{fault:?} was not found"));
        println!("{fault:?}: {}: {}", failure.case, first_line(&failure));
    }
}

fn first_line(failure: &Failure) -> String {
    let line = failure.detail.lines().next().unwrap_or_default();
    line.chars().take(160).collect()
}
