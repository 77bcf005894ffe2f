//! The real clock and the real ids. Everything else gets them passed in.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use controller::Env;
use model::Timestamp;
use store::BoxFuture;
use uuid::Uuid;

/// From where the monotonic clock counts.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The machine's clock, and UUIDs v7 that rise within a process.
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

    #[expect(clippy::disallowed_methods, reason = "this is the one real generator of ids")]
    fn next_id(&self) -> Uuid {
        Uuid::now_v7()
    }
}
