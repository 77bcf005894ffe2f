//! What a process takes: its memory, its processor time.
//!
//! **Start here:** [`Process`].

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

/// In which the kernel counts processor time.
const TICKS_PER_S: f64 = 100.0;

/// A process, by its number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process(pub(crate) u32);

impl Process {
    /// Its resident memory, in MiB.
    pub(crate) fn resident_mib(self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(self.file("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: f64 = line
            .and_then(|line| line.split_whitespace().next())
            .context("no VmRSS")?
            .parse()?;
        Ok(kib / 1024.0)
    }

    /// The processor time that it has taken, in seconds.
    pub(crate) fn processor_s(self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(self.file("stat"))?;
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let ticks = |at: usize| {
            fields
                .get(at)
                .context("a short stat")
                .and_then(|it| Ok(it.parse::<f64>()?))
        };
        Ok((ticks(11)? + ticks(12)?) / TICKS_PER_S)
    }

    /// What it takes of a processor when nobody asks anything, in hundredths.
    pub(crate) async fn idle_percent(self, for_s: u64) -> anyhow::Result<f64> {
        let before = self.processor_s()?;
        tokio::time::sleep(Duration::from_secs(for_s)).await;
        Ok((self.processor_s()? - before) / for_s as f64 * 100.0)
    }

    fn file(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.0))
    }
}
