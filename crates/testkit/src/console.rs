//! A guest's console, followed in its log.
//!
//! **Owns:** reading the log from where it was read last. **Does not know:** what guests write.
//!
//! **Start here:** [`Console::until`].

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep};

/// How often the log is looked at.
const PAUSE: Duration = Duration::from_millis(20);

/// A console's log, and how far it was read.
#[derive(Debug, Clone)]
pub struct Console {
    path: PathBuf,
    offset: u64,
}

impl Console {
    /// From the beginning of the log, which need not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, offset: 0 }
    }

    /// Skips what is there already.
    pub fn skip(&mut self) {
        while self.take().is_some() {}
    }

    /// How many lines of the whole log contain a text.
    pub fn count(&self, text: &str) -> usize {
        let log = std::fs::read(&self.path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        log.lines().filter(|line| line.contains(text)).count()
    }

    /// The next whole line.
    fn take(&mut self) -> Option<String> {
        let mut file = File::open(&self.path).ok()?;
        file.seek(SeekFrom::Start(self.offset)).ok()?;
        let mut bytes = vec![0; 4096];
        let read = file.read(&mut bytes).ok()?;
        let end = bytes[..read].iter().position(|byte| *byte == b'\n')?;
        self.offset += end as u64 + 1;
        Some(String::from_utf8_lossy(&bytes[..end]).trim().to_owned())
    }

    /// The first line from here on of which something is made; `what` is named when none comes in time.
    pub async fn until<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut make: impl FnMut(&str) -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + patience;
        let mut last = String::new();
        loop {
            while let Some(line) = self.take() {
                if let Some(made) = make(&line) {
                    return Ok(made);
                }
                last = line;
            }
            if Instant::now() > deadline {
                let path = self.path.display();
                bail!("{what} did not appear within {patience:?} in {path}; its last line is {last:?}");
            }
            sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn lines_are_read_once_and_only_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut console = Console::new(path.clone());
        let mut log = File::create(&path).unwrap();
        log.write_all(b"one\r\ntw").unwrap();
        let found = console.until("a line", PAUSE, |line| Some(line.to_owned())).await;
        assert_eq!(found.unwrap(), "one");
        assert!(
            console
                .until("a line", PAUSE, |line| Some(line.to_owned()))
                .await
                .is_err()
        );
        log.write_all(b"o\nthree\n").unwrap();
        console.skip();
        log.write_all(b"four\n").unwrap();
        let found = console.until("a line", PAUSE, |line| Some(line.to_owned())).await;
        assert_eq!(found.unwrap(), "four");
    }
}
