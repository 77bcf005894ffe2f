//! A store that was restored from a backup: hosts may run what it does not know.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How much higher than in the backup the next incarnation of each VM is: more than were granted since.
pub const INCARNATION_LEAP: u64 = 1_000_000;

/// Stored under [`crate::key::RESTORED`] from the restore on until what hosts run agrees with the store. Until then no
/// incarnation is granted, and hosts are told nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// When.
    pub at: Timestamp,
    /// The revision that the backup held.
    pub from_revision: u64,
    /// Whether hosts are told what the store knows of, so that they end all else.
    #[serde(default)]
    pub ends_unknown: bool,
}
