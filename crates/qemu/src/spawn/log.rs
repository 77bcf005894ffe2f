//! QEMU's log: its standard output and error, in a file of bounded size.
//!
//! *Owns:* [`LOG_FILE`] and the one before it. *Does not know:* what is in it. *Start here:* [`trim_log`].
//!
//! QEMU writes to the file itself, since it outlives the agent; so the bound is kept by whoever calls [`trim_log`] from time
//! to time, and at each start. QEMU appends, so emptying the file under it is safe.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// QEMU's log in the VM's directory; what was cut off is in the same name with `.1`.
pub const LOG_FILE: &str = "qemu.log";
/// A log longer than this is cut by [`trim_log`].
pub const LOG_BYTES_MAX: u64 = 1024 * 1024;
/// What a cut keeps in the older file.
const LOG_BYTES_KEPT: u64 = 256 * 1024;
const TAIL_BYTES: u64 = 2048;
const TAIL_LINES: usize = 5;
const LINE_CHARS_MAX: usize = 300;

pub(super) fn open(directory: &Path) -> io::Result<File> {
    let path = directory.join(LOG_FILE);
    File::options().create(true).append(true).open(path)
}

/// Cuts the log if it has grown too long, keeping its end in the older file. Safe while QEMU writes; lines written between
/// copying and cutting are lost.
pub fn trim_log(directory: &Path) -> io::Result<()> {
    let path = directory.join(LOG_FILE);
    let bytes = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if bytes <= LOG_BYTES_MAX {
        return Ok(());
    }
    fs::write(path.with_extension("log.1"), end(&path, LOG_BYTES_KEPT)?)?;
    File::options().write(true).open(&path)?.set_len(0)
}

fn end(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(bytes_max);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The log's last lines, for an error message. A log that cannot be read gives a text that says so.
pub fn log_tail(directory: &Path) -> String {
    let path = directory.join(LOG_FILE);
    let bytes = match end(&path, TAIL_BYTES) {
        Ok(bytes) => bytes,
        Err(error) => return format!("its log {} cannot be read: {error}", path.display()),
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if last.is_empty() {
        return format!("its log {} is empty", path.display());
    }
    last.join("; ")
}

/// The log's last line, cut to a length for an error message; `None` if there is none.
pub fn last_line(directory: &Path) -> Option<String> {
    let bytes = end(&directory.join(LOG_FILE), TAIL_BYTES).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.chars().take(LINE_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_long_log_is_cut_under_its_writer() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = open(directory.path()).unwrap();
        for number in 0..200_000 {
            writeln!(log, "line {number}").unwrap();
        }
        assert!(log_tail(directory.path()).ends_with("; line 199999"));
        trim_log(directory.path()).unwrap();
        writeln!(log, "after").unwrap();
        assert_eq!(log_tail(directory.path()), "after");
        assert_eq!(last_line(directory.path()).as_deref(), Some("after"));
        assert_eq!(log.metadata().unwrap().len(), 6);
        let older = fs::metadata(directory.path().join("qemu.log.1")).unwrap();
        assert_eq!(older.len(), LOG_BYTES_KEPT);
    }
}
