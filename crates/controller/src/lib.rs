//! Watch → keyed, deduplicating queue → plan → commit.
//!
//! **Owns:** the server's view of the store ([`cache`]), the one way in which anything is written ([`commit`]), and the
//! loop that asks the planner for the next step of whatever changed ([`queue`], [`run`]), with its counts ([`figures`]).
//!
//! **Does not know:** any rule about VMs, hosts or migrations: the planner decides, and this commits.
//!
//! Nothing here reads a clock, waits or starts a task but through [`Env`]: the simulator runs the same code.
//!
//! **Start here:** [`run`].

pub mod cache;
pub mod commit;
pub mod figures;
pub mod queue;
pub mod run;

use std::time::Duration;

use model::Timestamp;
use store::BoxFuture;
use uuid::Uuid;

/// Time and ids, passed in from the composition root.
pub trait Env: Send + Sync + 'static {
    /// The wall clock: for what people read, and for what is stored.
    fn now(&self) -> Timestamp;
    /// A clock that never goes back, from any beginning: for how long something took or may take.
    fn monotonic(&self) -> Duration;
    /// Ends when so much time has passed.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
    /// A new UUID v7.
    fn next_id(&self) -> Uuid;
}
