//! Wakes every millisecond and tells for how long it did not: what a pause looks like from inside the guest.

use std::thread;
use std::time::{Duration, Instant};

use crate::{Outcome, as_ms};

const TICK: Duration = Duration::from_millis(1);
const REPORT: Duration = Duration::from_secs(1);

/// The gaps between wake-ups; times are since the start.
#[derive(Debug, Default)]
struct Gaps {
    ticks: u64,
    last: Duration,
    recent: Duration,
    largest: Duration,
}

impl Gaps {
    fn tick(&mut self, now: Duration) {
        let gap = now.saturating_sub(self.last);
        self.ticks += 1;
        self.last = now;
        self.recent = self.recent.max(gap);
        self.largest = self.largest.max(gap);
    }

    /// The line to print; what is recent begins anew.
    fn report(&mut self) -> String {
        let recent = std::mem::take(&mut self.recent);
        format!(
            "ticks={} gap_ms={} max_gap_ms={}",
            self.ticks,
            as_ms(recent),
            as_ms(self.largest)
        )
    }
}

/// Ticks for ever, or until the limit; reports each second.
pub(crate) fn run(limit: Option<Duration>) -> Outcome {
    let start = Instant::now();
    let mut gaps = Gaps::default();
    let mut next_report = REPORT;
    loop {
        thread::sleep(TICK);
        let now = start.elapsed();
        gaps.tick(now);
        if now >= next_report {
            println!("{}", gaps.report());
            next_report = now + REPORT;
        }
        if limit.is_some_and(|limit| now >= limit) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_gaps_are_forgotten_the_largest_is_not() {
        let mut gaps = Gaps::default();
        for ms in [1, 2, 42] {
            gaps.tick(Duration::from_millis(ms));
        }
        assert_eq!(gaps.report(), "ticks=3 gap_ms=40.0 max_gap_ms=40.0");
        gaps.tick(Duration::from_millis(43));
        assert_eq!(gaps.report(), "ticks=4 gap_ms=1.0 max_gap_ms=40.0");
    }
}
