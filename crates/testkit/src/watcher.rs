//! A VM that watches another one: it holds a numbered TCP stream from it and pings it, and says on its console what it sees.
//!
//! **Owns:** the script that the watching guest runs, and reading its reports (the guest's tool `probe` writes them).
//!
//! **Does not know:** what happens to the VM that is watched.
//!
//! **Start here:** [`script`], [`Watcher::goes_on`].

use std::time::Duration;

use anyhow::{bail, ensure};

use crate::console::Console;

/// How long a report may take that should come every second.
const REPORT_PATIENCE: Duration = Duration::from_secs(30);
/// How long a stream may take to go on after the guests could not reach each other.
const AGAIN_PATIENCE: Duration = Duration::from_secs(120);
/// How many lines of the stream show that it goes on.
const LINES: u64 = 20;

/// What the watching guest runs. Pings begin when the other guest answers them, so that its boot counts as no loss.
pub fn script(address: &str) -> String {
    format!(
        "probe read-lines {address} 2000 &\n\
         (until probe ping {address} 7 50 1 >/dev/null 2>&1; do :; done; probe ping {address} 7 50) &"
    )
}

/// What was seen of the stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stream {
    /// Lines that came.
    pub lines: u64,
    /// Lines that were not the expected ones.
    pub errors: u64,
    /// The longest silence.
    pub max_gap_ms: f64,
}

/// What was seen of the pings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pings {
    /// Requests.
    pub sent: u64,
    /// Requests without an answer within a second.
    pub lost: u64,
    /// The latest answer.
    pub max_rtt_ms: f64,
}

/// One line that a probe wrote.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Report {
    Stream(Stream),
    Pings(Pings),
    Closed,
}

fn report(line: &str) -> Option<Report> {
    let value = |key: &str| {
        let after = line.split_once(key)?.1;
        after.split_whitespace().next()
    };
    let number = |key: &str| value(key)?.parse::<u64>().ok();
    if line.contains("closed cause=") {
        return Some(Report::Closed);
    }
    if line.contains("lines=") {
        let max_gap_ms = value("max_gap_ms=")?.parse().ok()?;
        return Some(Report::Stream(Stream {
            lines: number("lines=")?,
            errors: number("errors=")?,
            max_gap_ms,
        }));
    }
    let max_rtt_ms = value("max_rtt_ms=")?.parse().ok()?;
    Some(Report::Pings(Pings {
        sent: number("sent=")?,
        lost: number("lost=")?,
        max_rtt_ms,
    }))
}

/// Reads what a watching guest says.
#[derive(Debug)]
pub struct Watcher {
    console: Console,
}

impl Watcher {
    /// By its console.
    pub fn new(console: Console) -> Self {
        Self { console }
    }

    /// The next report on the stream, from now on.
    pub async fn stream(&mut self) -> anyhow::Result<Stream> {
        self.console.skip();
        self.stream_that(REPORT_PATIENCE, |_| true).await
    }

    async fn stream_that(
        &mut self,
        patience: Duration,
        is_it: impl Fn(Stream) -> bool,
    ) -> anyhow::Result<Stream> {
        let found = self
            .console
            .until("a report on the stream", patience, |line| match report(line)? {
                Report::Stream(stream) if is_it(stream) => Some(Some(stream)),
                Report::Closed => Some(None),
                _ => None,
            });
        match found.await? {
            Some(stream) => Ok(stream),
            None => bail!("the stream between the guests was closed"),
        }
    }

    /// The next report on the pings, from now on.
    pub async fn pings(&mut self) -> anyhow::Result<Pings> {
        self.console.skip();
        let found = self
            .console
            .until("a report on the pings", REPORT_PATIENCE, |line| {
                match report(line)? {
                    Report::Pings(pings) => Some(pings),
                    _ => None,
                }
            });
        found.await
    }

    /// Waits until the stream has gone on from now, and fails if any line of it was not the expected one.
    pub async fn goes_on(&mut self) -> anyhow::Result<Stream> {
        self.goes_on_within(REPORT_PATIENCE).await
    }

    /// As [`Watcher::goes_on`], after the guests could not reach each other for a while: the sender tries again after a time
    /// that doubles.
    pub async fn goes_on_again(&mut self) -> anyhow::Result<Stream> {
        self.goes_on_within(AGAIN_PATIENCE).await
    }

    async fn goes_on_within(&mut self, patience: Duration) -> anyhow::Result<Stream> {
        let now = self.stream().await?;
        let later = self
            .stream_that(patience, |stream| stream.lines >= now.lines + LINES)
            .await?;
        ensure!(
            later.errors == 0,
            "{} lines of the stream were not the expected ones",
            later.errors
        );
        Ok(later)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_also_behind_a_prompt() {
        let stream = Stream {
            lines: 12,
            errors: 0,
            max_gap_ms: 15.5,
        };
        assert_eq!(
            report("~ # lines=12 errors=0 last=11 max_gap_ms=15.5"),
            Some(Report::Stream(stream))
        );
        let pings = Pings {
            sent: 20,
            lost: 1,
            max_rtt_ms: 30.0,
        };
        assert_eq!(
            report("sent=20 received=19 lost=1 max_rtt_ms=30.0"),
            Some(Report::Pings(pings))
        );
        assert_eq!(
            report("closed cause=eof lines=12 errors=0 last=11 max_gap_ms=1.0"),
            Some(Report::Closed)
        );
        assert_eq!(report("ready: web"), None);
        assert_eq!(report("lines=1"), None);
    }
}
