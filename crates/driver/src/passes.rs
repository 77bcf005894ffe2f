//! When the downtime limit of a transfer is raised: only when its passes stop shrinking.
//!
//! A low limit makes QEMU go on copying until little is left. A guest that writes as fast as the link carries never gets
//! there, so the limit follows in steps, and the transfer ends with a longer stop instead of never.

use model::migration::Progress;

/// The limits in milliseconds, from the first to the last.
pub const LIMITS_MS: [u64; 4] = [20, 50, 100, 300];

/// What is remembered of the passes of one transfer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Passes {
    last: Option<Pass>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pass {
    round: u64,
    /// What remained when the pass was first seen.
    remaining_bytes: u64,
}

impl Passes {
    /// Takes note of the progress, and says which limit QEMU should get if it should get another one.
    ///
    /// The first pass copies everything, so the second is the first that can be compared. A pass that leaves less than
    /// seven eighths of the one before is worth its time.
    pub fn observe(&mut self, progress: &Progress, limit_ms: u64) -> Option<u64> {
        let pass = Pass {
            round: progress.round,
            remaining_bytes: progress.remaining_bytes,
        };
        let last = *self.last.get_or_insert(pass);
        if pass.round <= last.round {
            return None;
        }
        self.last = Some(pass);
        let shrinks = pass.remaining_bytes < last.remaining_bytes.saturating_sub(last.remaining_bytes / 8);
        if last.round <= 1 || shrinks {
            return None;
        }
        LIMITS_MS.into_iter().find(|limit| *limit > limit_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(round: u64, remaining_bytes: u64) -> Progress {
        Progress {
            round,
            remaining_bytes,
            total_bytes: 1000,
            sent_bytes: 0,
            dirty_pages_per_s: 0,
            bytes_per_s: 0,
        }
    }

    #[test]
    fn shrinking_passes_keep_the_limit() {
        let mut passes = Passes::default();
        for (round, remaining) in [(1, 1000), (2, 400), (2, 300), (3, 200), (4, 100)] {
            assert_eq!(passes.observe(&at(round, remaining), 20), None, "pass {round}");
        }
    }

    #[test]
    fn each_pass_that_does_not_shrink_raises_it_one_step_up_to_the_last() {
        let mut passes = Passes::default();
        let mut limit_ms = 20;
        let mut limits = Vec::new();
        for round in 1..=7 {
            let next = passes.observe(&at(round, 400), limit_ms);
            limit_ms = next.unwrap_or(limit_ms);
            limits.push(limit_ms);
        }
        // The first pass copies everything, so nothing is learned from what remains after it.
        assert_eq!(limits, [20, 20, 50, 100, 300, 300, 300]);
    }

    #[test]
    fn looking_twice_in_one_pass_says_nothing() {
        let mut passes = Passes::default();
        for _ in 0..5 {
            assert_eq!(passes.observe(&at(3, 400), 20), None);
        }
    }
}
