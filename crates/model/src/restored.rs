//! A store that was restored from a backup, or put back by hand: hosts may run what it does not know.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How many revisions a second a store makes at most, on the average between two restores. Revisions counted like this
/// since 1970 fit into a store until the year 2144.
const REVISIONS_PER_S: u64 = 400;

/// The incarnation after which those of a VM go on in a restored store. Fewer are granted to a VM than seconds pass, so it
/// lies behind all that were granted since the backup, also by a store that was restored from the same backup before.
pub fn incarnation_floor(in_backup: u64, now: Timestamp) -> u64 {
    in_backup.max(seconds(now)).saturating_add(1)
}

/// The revision at which a restored store goes on, likewise behind all that have been seen.
pub fn revision_floor(in_backup: u64, now: Timestamp) -> u64 {
    in_backup
        .max(seconds(now).saturating_mul(REVISIONS_PER_S))
        .saturating_add(1)
}

fn seconds(now: Timestamp) -> u64 {
    u64::try_from(now.as_second()).unwrap_or(0)
}

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
    /// It was not restored: a host showed that its database is an old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub put_back: Option<PutBack>,
}

/// What shows that a database was put back by hand, or is a copy of one that went on elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutBack {
    /// The name of the host.
    pub host: String,
    /// The revision of a document that it has obeyed. The store has not reached it yet.
    pub obeyed_revision: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_restore_of_a_backup_goes_on_behind_the_first() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let (first, second) = (at(1_800_000_000), at(1_800_000_600));
        // What the first one has granted and written within ten minutes.
        let granted = incarnation_floor(7, first) + 20;
        let written = revision_floor(5_000, first) + 50_000;
        assert!(incarnation_floor(7, second) > granted);
        assert!(revision_floor(5_000, second) > written);
        // And one of a backup that was taken from the first.
        assert!(incarnation_floor(granted, second) > granted);
        assert!(revision_floor(written, at(0)) > written);
    }
}
