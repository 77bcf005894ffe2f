//! A counter on disk, synced at each step: after any crash it must be at least what was printed before.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::{Outcome, as_ms};

const REPORT: Duration = Duration::from_secs(1);

/// One line of fixed width, overwritten in place: it lies within one sector, so it is never half new.
fn encode(number: u64) -> String {
    format!("{number:020}\n")
}

/// `None` if the text is not a counter.
fn decode(text: &str) -> Option<u64> {
    let digits = text.strip_suffix('\n')?;
    if digits.len() == 20 {
        digits.parse().ok()
    } else {
        None
    }
}

fn stored(path: &str) -> Result<u64, Box<dyn std::error::Error>> {
    if !Path::new(path).exists() {
        return Ok(0);
    }
    let mut text = String::new();
    File::open(path)?.read_to_string(&mut text)?;
    decode(&text)
        .ok_or_else(|| format!("{path} holds no counter but {text:?}; remove it to begin anew").into())
}

/// Counts on from the stored number for ever. A number is printed only after it is on disk.
pub(crate) fn run(path: &str, interval: Duration, at_least: u64) -> Outcome {
    let mut number = stored(path)?;
    if number < at_least {
        return Err(format!("{path} went back: it holds {number}, and had been at {at_least}").into());
    }
    println!("start={number}");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    let start = Instant::now();
    let (mut next_report, mut max_sync) = (REPORT, Duration::ZERO);
    loop {
        number += 1;
        let before = Instant::now();
        file.write_all_at(encode(number).as_bytes(), 0)?;
        file.sync_all()?;
        max_sync = max_sync.max(before.elapsed());
        if start.elapsed() >= next_report {
            println!("count={number} max_sync_ms={}", as_ms(max_sync));
            next_report = start.elapsed() + REPORT;
        }
        thread::sleep(interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_the_same_length_and_is_read_back() {
        for number in [0, 1, u64::MAX] {
            assert_eq!(encode(number).len(), 21);
            assert_eq!(decode(&encode(number)), Some(number));
        }
    }

    #[test]
    fn half_a_counter_is_none() {
        assert_eq!(decode(&encode(12)[..20]), None);
        assert_eq!(decode("12\n"), None);
        assert_eq!(decode(""), None);
    }
}
