//! The guest's console, always read, kept in a file of bounded size.
//!
//! **Owns:** the only reader of the console's socket, and the rotation of its log. A console that is connected and not
//! read stalls the guest; so reading never waits for anything but the disk's cache, and goes on when writing fails.
//!
//! **Does not know:** what the guest writes.
//!
//! **Start here:** [`drain`].

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// The size at which a log is put aside.
const MAX_BYTES: u64 = 1 << 20;
/// How many logs there are, the present one included.
const FILES: usize = 3;

/// Reads until QEMU closes the console.
pub async fn drain(mut console: UnixStream, log: PathBuf) {
    let mut log = Log::open(log);
    let mut buffer = vec![0; 16 << 10];
    loop {
        match console.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => log.write(&buffer[..read]),
        }
    }
}

struct Log {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    is_failing: bool,
}

impl Log {
    fn open(path: PathBuf) -> Self {
        let mut log = Self {
            path,
            file: None,
            bytes: 0,
            is_failing: false,
        };
        let opened = log.append();
        log.note(opened);
        log
    }

    fn append(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) {
        let written = self.try_write(bytes);
        self.note(written);
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes >= MAX_BYTES {
            self.rotate()?;
        }
        if self.file.is_none() {
            self.append()?;
        }
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
            self.bytes += bytes.len() as u64;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        self.bytes = 0;
        for age in (1..FILES).rev() {
            let younger = aged(&self.path, age - 1);
            if younger.exists() {
                std::fs::rename(younger, aged(&self.path, age))?;
            }
        }
        Ok(())
    }

    /// Says once that the log is not written.
    fn note(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.is_failing = false,
            Err(error) if !self.is_failing => {
                tracing::warn!(path = %self.path.display(), %error, "what the guest writes on its console is lost");
                self.is_failing = true;
                self.file = None;
            }
            Err(_) => self.file = None,
        }
    }
}

/// `console.log`, `console.log.1`, `console.log.2`.
fn aged(path: &Path, age: usize) -> PathBuf {
    match age {
        0 => path.to_owned(),
        age => {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{age}"));
            name.into()
        }
    }
}

/// All logs of a console.
pub fn logs(path: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    (0..FILES).map(|age| aged(path, age))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_logs_of_bounded_size_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut log = Log::open(path.clone());
        for n in 0..(5 * MAX_BYTES / 1024) {
            log.write(&[u8::try_from(n % 251).unwrap(); 1024]);
        }
        let sizes: Vec<u64> = logs(&path)
            .map(|path| std::fs::metadata(path).unwrap().len())
            .collect();
        assert_eq!(sizes, [MAX_BYTES; FILES]);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), FILES);
    }

    #[test]
    fn a_log_that_cannot_be_written_stops_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gone").join("console.log");
        let mut log = Log::open(path.clone());
        log.write(b"lost");
        std::fs::create_dir(directory.path().join("gone")).unwrap();
        log.write(b"kept");
        assert_eq!(std::fs::read(path).unwrap(), b"kept");
    }
}
