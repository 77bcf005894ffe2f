//! Old revisions are forgotten after a while. What they are kept for is to be read once more: by watches that were cut
//! off, and by a server that starts again. What must stay is never only in an old revision: the audit trail has keys of
//! its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use controller::Env;
use jiff::SignedDuration;
use model::Timestamp;
use store::{Revision, Status, Store, StoreError};

/// How long revisions are kept.
const KEPT_FOR: SignedDuration = SignedDuration::from_hours(1);
/// The most revisions that are kept, however young.
const KEPT_MAX: Revision = 100_000;
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often it is noted how far the store was.
const NOTED_EVERY: SignedDuration = SignedDuration::from_mins(1);

/// Compacts until the task is dropped.
pub async fn run(store: Arc<dyn Store>, env: Arc<dyn Env>) {
    let mut compaction = Compaction::default();
    loop {
        look(store.as_ref(), &mut compaction, env.now()).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Compacts what is due now.
pub async fn look(store: &dyn Store, compaction: &mut Compaction, now: Timestamp) {
    let done = async {
        let status = store.status().await?;
        match compaction.step(now, &status) {
            Some(revision) => store.compact(revision).await.map(|()| Some(revision)),
            None => Ok(None),
        }
    };
    match done.await {
        Ok(None) => {}
        // Another server was faster.
        Err(StoreError::Compacted { .. }) => {}
        Ok(Some(revision)) => tracing::info!(revision, "the store was compacted"),
        Err(error) => tracing::warn!(%error, "the store was not compacted; it is tried again"),
    }
}

/// Which revisions are old.
#[derive(Debug, Default)]
pub struct Compaction {
    /// How far the store was when, oldest first.
    noted: VecDeque<(Timestamp, Revision)>,
}

impl Compaction {
    /// The revision to compact to now, if there is one.
    pub fn step(&mut self, now: Timestamp, status: &Status) -> Option<Revision> {
        // A clock that was set back makes what was noted look younger than it is, and so is kept for longer.
        let is_due = |(at, _): &(Timestamp, Revision)| now.duration_since(*at).abs() >= NOTED_EVERY;
        if self.noted.back().is_none_or(is_due) {
            self.noted.push_back((now, status.revision));
        }
        let mut old = 0;
        while let Some((at, revision)) = self.noted.front()
            && now.duration_since(*at) >= KEPT_FOR
        {
            old = *revision;
            self.noted.pop_front();
        }
        let to = old.max(status.revision.saturating_sub(KEPT_MAX));
        (to > status.compacted).then_some(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes)
    }

    fn status(revision: Revision, compacted: Revision) -> Status {
        Status {
            backend: "memory",
            revision,
            compacted,
            keys: 0,
            size_bytes: None,
            free_bytes: None,
        }
    }

    #[test]
    fn what_is_older_than_an_hour_goes_and_no_more() {
        let mut compaction = Compaction::default();
        for minute in 0..60 {
            let now = status(100 + u64::try_from(minute).unwrap(), 0);
            assert_eq!(compaction.step(at(minute), &now), None);
        }
        assert_eq!(compaction.step(at(60), &status(200, 0)), Some(100));
        // It was not done: it is asked for again, with what became old meanwhile.
        assert_eq!(compaction.step(at(62), &status(200, 0)), Some(102));
        assert_eq!(compaction.step(at(62), &status(200, 102)), None);
        // An idle store comes to an end.
        assert_eq!(compaction.step(at(300), &status(200, 102)), Some(200));
        assert_eq!(compaction.step(at(400), &status(200, 200)), None);
    }

    #[test]
    fn a_storm_is_bounded_and_a_clock_that_jumps_back_compacts_nothing() {
        let mut compaction = Compaction::default();
        assert_eq!(compaction.step(at(1000), &status(250_000, 0)), Some(150_000));
        assert_eq!(compaction.step(at(0), &status(250_001, 150_001)), None);
        assert_eq!(compaction.step(at(59), &status(250_001, 150_001)), None);
    }
}
