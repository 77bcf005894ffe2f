//! A guest that counts, on its disk and to the network, and what proves that it is one machine with one history.
//!
//! **Owns:** the scripts of the guest that counts and of the one that listens (the guest's tool `probe` does both), reading
//! what is heard, and the look at the disk when the guest is off.
//!
//! **Does not know:** what was done to the guest.
//!
//! **Start here:** [`Ear::goes_on`], [`Left::behind`].

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::console::Console;
use crate::promise;

/// The guest that counts. Its numbers go to all on its network, for which it has no route of its own.
pub const COUNT: &str = "ip route add 255.255.255.255 dev eth0\nprobe count /data/count 50 7000 &";
/// The guest that listens.
pub const HEAR: &str = "probe hear 7000 &";
/// How long a number may take to be heard, on a busy machine and after a link was cut.
const PATIENCE: Duration = Duration::from_secs(60);
/// So many numbers show that it counts on.
const NUMBERS: u64 = 10;
/// Where the guest's second partition begins.
const PARTITION_BYTES: u64 = 21 << 20;
const BLOCK_BYTES: usize = 4096;
/// The programs that look at file systems are not on every user's path.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What was heard so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// The highest number, which is on the disk since before.
    pub last: u64,
    /// How often a number was not higher than all before it.
    pub back: u64,
    /// How many boots have counted, one after the other.
    pub boots: u64,
}

impl Heard {
    fn read(line: &str) -> Option<Self> {
        let (_, report) = line.split_once("heard=")?;
        let value = |key: &str| {
            let after = report.split_once(key)?.1;
            after.split_whitespace().next()?.parse().ok()
        };
        Some(Self {
            last: value("last=")?,
            back: value("back=")?,
            boots: value("boots=")?,
        })
    }

    fn never_back(self) -> anyhow::Result<Self> {
        if self.back == 0 {
            return Ok(self);
        }
        Err(promise::broken(&format!("the counter went back: {self:?}")))
    }
}

/// Reads what the listening guest says.
#[derive(Debug)]
pub struct Ear(Console);

impl Ear {
    /// By its console.
    pub fn new(console: Console) -> Self {
        Self(console)
    }

    /// The next report, from now on.
    pub async fn next(&mut self) -> anyhow::Result<Heard> {
        self.0.skip();
        let heard = self
            .0
            .until("a report on the counter", PATIENCE, Heard::read)
            .await?;
        heard.never_back()
    }

    /// Waits until higher numbers are heard than until now, and fails if any number was not higher than all before it.
    pub async fn goes_on(&mut self) -> anyhow::Result<Heard> {
        let now = self.next().await?;
        self.reaches("the counter to go on", |heard| heard.last >= now.last + NUMBERS)
            .await
    }

    /// As [`Ear::goes_on`], counted by the next boot.
    pub async fn goes_on_after_a_boot(&mut self, before: Heard) -> anyhow::Result<Heard> {
        let is_it = |heard: Heard| heard.boots > before.boots && heard.last >= before.last + NUMBERS;
        self.reaches("the counter to go on after a boot", is_it).await
    }

    async fn reaches(&mut self, what: &str, is_it: impl Fn(Heard) -> bool) -> anyhow::Result<Heard> {
        let read = |line: &str| Heard::read(line).filter(|heard| heard.back > 0 || is_it(*heard));
        self.0.until(what, PATIENCE, read).await?.never_back()
    }
}

/// What a guest that is off has left on its disk.
#[derive(Debug)]
pub struct Left {
    /// The counts in the file's blocks, in their order; an empty block is a 0.
    counts: Vec<(u64, String)>,
}

impl Left {
    /// Reads a disk past the page cache of this machine, and fails if its file system is not clean.
    pub fn behind(disk: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let flat = directory.path().join("disk.raw");
        // File systems in memory may have nothing else.
        let cache = if opens_direct(disk) { "none" } else { "writeback" };
        let words = ["convert", "-T", cache, "-O", "raw"];
        run(Command::new("qemu-img").args(words).arg(disk).arg(&flat))?;
        let partition = format!("{}?offset={PARTITION_BYTES}", flat.display());
        run(Command::new("e2fsck").args(["-f", "-n", &partition]))?;
        let file = run(Command::new("debugfs").args(["-R", "cat /data/count", &partition]))?;
        Ok(Self {
            counts: file.chunks(BLOCK_BYTES).map(count).collect(),
        })
    }

    /// Fails if the numbers do not follow each other, boot after boot, up to at least what was heard.
    pub fn is_one_history(&self, heard: Heard) -> anyhow::Result<()> {
        self.follows(heard)
            .map_err(|error| promise::broken(&error.to_string()))
    }

    fn follows(&self, heard: Heard) -> anyhow::Result<()> {
        let last = self
            .counts
            .iter()
            .map(|(number, _)| *number)
            .max()
            .unwrap_or_default();
        ensure!(
            last >= heard.last,
            "the disk is at {last}, and {} was heard",
            heard.last
        );
        let mut boots: Vec<&str> = Vec::new();
        let slots = self.counts.len() as u64;
        for number in (last.saturating_sub(slots) + 1..=last).rev() {
            let slot = usize::try_from(number % slots).unwrap_or_default();
            let (found, boot) = &self.counts[slot];
            // The ring's first lap does not fill its first block.
            ensure!(*found == number, "{found} stands where {number} was written");
            if boots.last() != Some(&boot.as_str()) {
                ensure!(
                    !boots.contains(&boot.as_str()),
                    "the boot {boot} counted beside another one"
                );
                boots.push(boot);
            }
        }
        Ok(())
    }
}

/// Whether a file can be read past the page cache.
fn opens_direct(path: &Path) -> bool {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECT;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).is_ok()
}

/// Of a block.
fn count(block: &[u8]) -> (u64, String) {
    let line = block.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let text = String::from_utf8_lossy(line);
    let count = text
        .split_once(' ')
        .and_then(|(number, boot)| Some((number.parse().ok()?, boot.to_owned())));
    count.unwrap_or_default()
}

/// What a program wrote, if it ended well.
fn run(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let ended = command
        .env("PATH", PATH)
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    ensure!(
        ended.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr)
    );
    Ok(ended.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(blocks: &[(u64, &str)]) -> Left {
        let block = |&(number, boot): &(u64, &str)| count(format!("{number:020} {boot}\n\0\0").as_bytes());
        Left {
            counts: blocks.iter().map(block).collect(),
        }
    }

    fn heard(last: u64) -> Heard {
        Heard {
            last,
            back: 0,
            boots: 1,
        }
    }

    #[test]
    fn reports_are_read_also_behind_a_prompt() {
        let report = Heard::read("~ # heard=12 last=15 back=1 boots=2");
        let expected = Heard {
            last: 15,
            back: 1,
            boots: 2,
        };
        assert_eq!(report, Some(expected));
        assert_eq!(Heard::read("lines=12 last=11"), None);
    }

    #[test]
    fn a_history_is_one_if_its_numbers_and_boots_follow_each_other() {
        assert!(
            left(&[(0, ""), (1, "a"), (2, "a"), (3, "b")])
                .is_one_history(heard(3))
                .is_ok()
        );
        assert!(
            left(&[(4, "b"), (5, "b"), (2, "a"), (3, "b")])
                .is_one_history(heard(4))
                .is_ok()
        );
        let wrong = [
            left(&[(0, ""), (1, "a"), (2, "a")]),
            left(&[(0, ""), (1, "a"), (0, ""), (3, "a")]),
            left(&[(4, "a"), (5, "a"), (2, "a"), (3, "b")]),
        ];
        for one in wrong {
            assert!(one.is_one_history(heard(3)).is_err(), "{one:?}");
        }
    }
}
