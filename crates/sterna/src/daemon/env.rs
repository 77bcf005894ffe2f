//! The real clock and the real ids. Everything else gets them passed in.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use controller::Env;
use model::Timestamp;
use store::BoxFuture;
use uuid::{ContextV7, Uuid};

/// From where the monotonic clock counts.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);
static IDS: LazyLock<Ids> = LazyLock::new(Ids::default);

/// The machine's clock, and UUIDs v7 that rise.
pub(crate) struct System;

impl Env for System {
    #[expect(clippy::disallowed_methods, reason = "this is the one real clock")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        BEGINNING.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn next_id(&self) -> Uuid {
        IDS.next()
    }
}

/// From now on all ids are above this one, whatever the clock says: what is kept in their order, as the audit trail, stays in
/// the order of its making when the clock was set back between two runs.
pub(crate) fn rise_above(id: Uuid) {
    IDS.rise_above(id);
}

/// A generator whose ids rise, also while the clock goes back.
struct Ids(Mutex<ContextV7>);

impl Default for Ids {
    fn default() -> Self {
        Self(Mutex::new(ContextV7::new()))
    }
}

impl Ids {
    fn next(&self) -> Uuid {
        let context = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Uuid::new_v7(uuid::Timestamp::now(&*context))
    }

    fn rise_above(&self, id: Uuid) {
        let Some(time) = id.get_timestamp() else { return };
        let (seconds, nanoseconds) = time.to_unix();
        // Within the next millisecond, which all that the context gives from now on is of, or of a later one.
        let after = Duration::new(seconds, nanoseconds) + Duration::from_millis(1);
        let context = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uuid::Timestamp::from_unix(&*context, after.as_secs(), after.subsec_nanos());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_rise_above_those_of_a_clock_that_was_ahead() {
        let ids = Ids::default();
        let before = ids.next();
        let tomorrow = System.now().as_millisecond().unsigned_abs() + 86_400_000;
        let last = Uuid::from_u128(u128::from(tomorrow) << 80 | 0x7fff_bfff_ffff_ffff_ffff);
        ids.rise_above(last);
        let mut above = last;
        for _ in 0..1000 {
            let next = ids.next();
            assert!(next > above && next > before);
            above = next;
        }
        // One of a clock that was behind changes nothing.
        ids.rise_above(before);
        assert!(ids.next() > above);
    }
}
