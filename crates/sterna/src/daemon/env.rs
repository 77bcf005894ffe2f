//! The real clock and the real ids. Everything else gets them passed in.

use controller::Env;
use model::Timestamp;
use uuid::Uuid;

/// The machine's clock, and UUIDs v7 that rise within a process.
pub(crate) struct System;

impl Env for System {
    #[expect(clippy::disallowed_methods, reason = "this is the one real clock")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one real generator of ids")]
    fn next_id(&self) -> Uuid {
        Uuid::now_v7()
    }
}
