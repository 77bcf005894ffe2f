//! Bugs that are put in on purpose: a check that finds none of them is no check.
//!
//! **Owns:** their list. Each is a switch where the simulation meets the product, so that the product has none.
//!
//! **Does not know:** how they are found: see [`crate::check`].
//!
//! **Start here:** [`Bug`].

/// Something that is wrong with the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// Writes are made whatever has changed since they were decided.
    ComparesLeftOut,
    /// A server does not see every change.
    WakeUpLost,
    /// A host counts as dead because somebody says so, though it runs on.
    FenceIgnored,
    /// A promise is said to be on disk, and is not.
    PromiseNotKept,
    /// A target lets its guest run when it has loaded, before its source is known to have ended.
    GoBeforeTheEnd,
    /// The audit record of a write is left out.
    AuditLeftOut,
    /// A process that shall be ended goes on.
    KillIgnored,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::ComparesLeftOut,
        Self::WakeUpLost,
        Self::FenceIgnored,
        Self::PromiseNotKept,
        Self::GoBeforeTheEnd,
        Self::AuditLeftOut,
        Self::KillIgnored,
    ];
}
