//! Watch → keyed, deduplicating queue → plan → commit.
//!
//! **Owns:** the server's view of the store ([`cache`]), the one way in which anything is written ([`commit`]), and the
//! loop that asks the planner for the next step of whatever changed ([`queue`], [`run`]), with its counts ([`figures`]).
//!
//! **Does not know:** any rule about VMs, hosts or migrations: the planner decides, and this commits.
//!
//! **Start here:** [`run`].

pub mod cache;
pub mod commit;
pub mod figures;
pub mod queue;
pub mod run;

use model::Timestamp;
use uuid::Uuid;

/// Time and ids, passed in from the composition root.
pub trait Env: Send + Sync + 'static {
    /// The wall clock.
    fn now(&self) -> Timestamp;
    /// A new UUID v7.
    fn next_id(&self) -> Uuid;
}
