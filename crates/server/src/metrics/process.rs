//! What this process takes, under the names that every Prometheus client gives it.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::{Maker, set_seconds};

/// The kernel tells times in hundredths of a second, on every architecture that matters here.
const TICKS_PER_S: f64 = 100.0;

/// The figures of the process.
pub(super) struct Process {
    cpu: Counter<f64, AtomicU64>,
    resident: Gauge,
    threads: Gauge,
    open_files: Gauge,
    max_files: Gauge,
    started_at: Gauge<f64, AtomicU64>,
}

impl Process {
    pub(super) fn new(all: &mut Maker) -> Self {
        Self {
            cpu: all.make(
                Counter::default(),
                "process_cpu_seconds",
                "Processor time, user and system",
            ),
            resident: all.make(
                Gauge::default(),
                "process_resident_memory_bytes",
                "Resident memory",
            ),
            threads: all.make(Gauge::default(), "process_threads", "Threads"),
            open_files: all.make(Gauge::default(), "process_open_fds", "Open file descriptors"),
            max_files: all.make(Gauge::default(), "process_max_fds", "How many may be open"),
            started_at: all.make(
                Gauge::default(),
                "process_start_time_seconds",
                "When the process began, since the epoch",
            ),
        }
    }

    /// Reads what is so now. What cannot be read keeps its last value.
    pub(super) fn read(&self) {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        if let Some(stat) = Stat::parse(&text("/proc/self/stat")) {
            set_seconds(&self.cpu, stat.cpu_s);
            self.threads.set(stat.threads);
            let booted = field(&text("/proc/stat"), "btime").unwrap_or(0);
            self.started_at.set(booted as f64 + stat.started_s);
        }
        if let Some(kib) = field(&text("/proc/self/status"), "VmRSS:") {
            self.resident.set(kib * 1024);
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            self.open_files
                .set(i64::try_from(open.count()).unwrap_or(i64::MAX));
        }
        let limits = text("/proc/self/limits");
        let soft = limits.lines().find_map(|line| {
            let rest = line.strip_prefix("Max open files")?;
            rest.split_whitespace().next()?.parse().ok()
        });
        if let Some(soft) = soft {
            self.max_files.set(soft);
        }
    }
}

/// The number behind a word at the beginning of a line.
fn field(text: &str, word: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix(word))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What proc(5) says of a process's times.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_s: f64,
    threads: i64,
    /// Since the machine's start.
    started_s: f64,
}

impl Stat {
    /// The program's name is in brackets and may hold anything, brackets too.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |at: usize| words.get(at)?.parse::<f64>().ok();
        Some(Self {
            cpu_s: (ticks(11)? + ticks(12)?) / TICKS_PER_S,
            threads: words.get(17)?.parse().ok()?,
            started_s: ticks(19)? / TICKS_PER_S,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_move_the_fields() {
        let text = "7 (a ) b) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 6 0 12345 1000000 500 18446744073709551615";
        let expected = Stat {
            cpu_s: 3.0,
            threads: 6,
            started_s: 123.45,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (cut off) S 1"), None);
        assert_eq!(field("VmHWM: 1 kB\nVmRSS:\t  812 kB\n", "VmRSS:"), Some(812));
    }
}
