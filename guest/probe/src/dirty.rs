//! Writes to memory at a set rate, which a migration has to chase.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use crate::Outcome;

const PAGE: usize = 4096;
const BATCH: Duration = Duration::from_millis(10);
const REPORT: Duration = Duration::from_secs(1);

/// How many writes are due: the rate times the time, less what is done. What was missed for longer than a second (this
/// machine stood still) is let go, since a burst afterwards would not be the rate that was asked for.
#[derive(Debug)]
struct Pace {
    rate_per_s: u64,
    origin: Duration,
    done: u64,
}

impl Pace {
    fn due(&mut self, now: Duration) -> u64 {
        let wanted = |since: Duration| (since.as_secs_f64() * self.rate_per_s as f64) as u64;
        let due = wanted(now.saturating_sub(self.origin)).saturating_sub(self.done);
        if due <= self.rate_per_s {
            self.done += due;
            return due;
        }
        self.origin = now;
        self.done = 0;
        self.rate_per_s
    }
}

/// Touches all of the memory, then rewrites page after page for ever; prints the rate that was reached.
pub(crate) fn run(mib: usize, pages_per_s: u64) -> Outcome {
    let mut memory = vec![1_u8; mib << 20];
    let pages = memory.len() / PAGE;
    if pages == 0 {
        return Err("there must be at least 1 MiB to write to".into());
    }
    println!("touched mib={mib} pages={pages}");
    let start = Instant::now();
    let mut pace = Pace {
        rate_per_s: pages_per_s,
        origin: Duration::ZERO,
        done: 0,
    };
    let (mut next_page, mut written, mut reported_at) = (0, 0_u64, Duration::ZERO);
    loop {
        for _ in 0..pace.due(start.elapsed()) {
            let byte = &mut black_box(&mut memory)[next_page * PAGE];
            *byte = byte.wrapping_add(1);
            next_page = (next_page + 1) % pages;
            written += 1;
        }
        let since = start.elapsed() - reported_at;
        if since >= REPORT {
            println!("pages_per_s={:.0}", written as f64 / since.as_secs_f64());
            written = 0;
            reported_at = start.elapsed();
        }
        thread::sleep(BATCH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_rate_over_uneven_batches() {
        let mut pace = Pace {
            rate_per_s: 1000,
            origin: Duration::ZERO,
            done: 0,
        };
        let total: u64 = [3, 14, 15, 92, 653, 1000]
            .map(|ms| pace.due(Duration::from_millis(ms)))
            .iter()
            .sum();
        assert_eq!(total, 1000);
    }

    #[test]
    fn does_not_make_up_for_a_standstill() {
        let mut pace = Pace {
            rate_per_s: 1000,
            origin: Duration::ZERO,
            done: 0,
        };
        assert_eq!(pace.due(Duration::from_secs(60)), 1000);
        assert_eq!(pace.due(Duration::from_millis(60_010)), 10);
    }
}
