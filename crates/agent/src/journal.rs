//! The host's journal: what must be on disk before an effect, for every incarnation that the host knows.
//!
//! **Owns:** the file `journal`, its frames and checksums, the grouping of concurrent appends into one sync, and its
//! rewriting when it is full.
//!
//! **Does not know:** what a mark permits or forbids; that is the driver's table.
//!
//! **Start here:** [`Journal::open`], then [`read`] for what is a torn tail and what is damage.
//!
//! The file is a sequence of lines, each a group of entries that was synced at once, followed by zeros:
//!
//! ```text
//! J <sequence, 16 hex digits> <length of the payload, 8> <checksum, 16> <payload: a JSON array of entries>\n
//! ```
//!
//! No byte of a line is zero, so that a write cut short by a power failure shows as zeros where bytes were to be. A line
//! that is whole and does not fit its checksum is damage, wherever it is.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

pub use driver::journal::{Entry, State};
use model::digest::hex;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

/// Zeros are written this far ahead, so that a sync writes data and no metadata.
const PREALLOCATED_BYTES: usize = 256 << 10;
/// Length of what precedes the payload.
const HEADER_BYTES: usize = 45;
/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;
/// Entries that share one sync at most.
const MAX_GROUP: usize = 1024;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A part that was synced reads differently now. Nothing may be decided without it.
    #[error(
        "the journal {path} is unreadable at byte {offset}: nothing is decided on this host until it is restored, or \
         the host is confirmed dead and joins anew"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Where it begins.
        offset: usize,
    },
    /// There are VMs and no journal.
    #[error(
        "the journal {0} is missing though the host has VMs: restore it, or confirm the host dead and join anew"
    )]
    Missing(PathBuf),
    /// The disk refuses.
    #[error("cannot {what} the journal {path}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The thread that writes has ended.
    #[error("the journal is closed")]
    Closed,
}

struct Append {
    entry: Entry,
    done: oneshot::Sender<Result<(), JournalError>>,
}

/// A handle for appending. Concurrent appends share a sync.
#[derive(Debug, Clone)]
pub struct Journal {
    appends: mpsc::SyncSender<Append>,
}

impl Journal {
    /// Reads what is there, rewrites it compactly, and starts the thread that appends.
    pub fn open(path: &Path) -> Result<(Self, State), JournalError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(source) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => {
                return Err(JournalError::Io {
                    what: "read",
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let state = read(&bytes).map_err(|Damaged { offset }| JournalError::Unreadable {
            path: path.to_owned(),
            offset,
        })?;
        let mut writer = Writer::new(path.to_owned(), state.clone());
        writer.rewrite()?;
        let (appends, queue) = mpsc::sync_channel(MAX_GROUP);
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(|source| JournalError::Io {
                what: "start the thread of",
                path: path.to_owned(),
                source,
            })?;
        Ok((Self { appends }, state))
    }

    /// Appends an entry; done when it is durable.
    pub async fn append(&self, entry: Entry) -> Result<(), JournalError> {
        let (done, answer) = oneshot::channel();
        let mut append = Append { entry, done };
        while let Err(error) = self.appends.try_send(append) {
            match error {
                mpsc::TrySendError::Full(back) => append = back,
                mpsc::TrySendError::Disconnected(_) => return Err(JournalError::Closed),
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        answer.await.map_err(|_| JournalError::Closed)?
    }
}

/// The side that writes. It ends when the last handle is dropped.
struct Writer {
    path: PathBuf,
    state: State,
    /// `None` after a failure: what is on disk is unknown then, and it is rewritten before anything else.
    file: Option<File>,
    sequence: u64,
    end: usize,
    allocated: usize,
}

impl Writer {
    fn new(path: PathBuf, state: State) -> Self {
        Self {
            path,
            state,
            file: None,
            sequence: 0,
            end: 0,
            allocated: 0,
        }
    }

    fn run(mut self, queue: &mpsc::Receiver<Append>) {
        while let Ok(first) = queue.recv() {
            let mut group = vec![first];
            group.extend(queue.try_iter().take(MAX_GROUP - 1));
            let (entries, waiting): (Vec<_>, Vec<_>) = group
                .into_iter()
                .map(|append| (append.entry, append.done))
                .unzip();
            let result = self.append(&entries);
            for done in waiting {
                // Who does not wait any more needs no answer.
                let _ = done.send(result.as_ref().map(|&()| ()).map_err(|error| self.repeat(error)));
            }
        }
    }

    fn append(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        // Also when the disk refuses: what was meant to be durable may become so.
        for entry in entries {
            self.state.apply(entry.clone());
        }
        let result = match self.write(entries) {
            Ok(true) => Ok(()),
            Ok(false) => self.rewrite(),
            Err(source) => Err(self.io("append to", source)),
        };
        if result.is_err() {
            self.file = None;
        }
        result
    }

    /// Whether there was room.
    fn write(&mut self, entries: &[Entry]) -> io::Result<bool> {
        let line = frame(self.sequence, entries)?;
        let Some(file) = self
            .file
            .as_ref()
            .filter(|_| self.end + line.len() <= self.allocated)
        else {
            return Ok(false);
        };
        file.write_all_at(&line, self.end as u64)?;
        file.sync_data()?;
        self.end += line.len();
        self.sequence += 1;
        Ok(true)
    }

    /// Writes what counts to a new file, with room to append, and puts it in the old one's place.
    fn rewrite(&mut self) -> Result<(), JournalError> {
        self.try_rewrite().map_err(|source| self.io("rewrite", source))
    }

    fn try_rewrite(&mut self) -> io::Result<()> {
        self.file = None;
        let temporary = self.path.with_extension("new");
        let mut bytes = Vec::new();
        self.sequence = 0;
        for entries in self.state.entries().chunks(MAX_GROUP) {
            bytes.extend(frame(self.sequence, entries)?);
            self.sequence += 1;
        }
        self.end = bytes.len();
        self.allocated = (2 * bytes.len() + PREALLOCATED_BYTES).next_multiple_of(PREALLOCATED_BYTES);
        bytes.resize(self.allocated, 0);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        self.file = Some(file);
        Ok(())
    }

    fn io(&self, what: &'static str, source: io::Error) -> JournalError {
        JournalError::Io {
            what,
            path: self.path.clone(),
            source,
        }
    }

    /// The same error for everyone who waited for the same sync.
    fn repeat(&self, error: &JournalError) -> JournalError {
        match error {
            JournalError::Io { what, source, .. } => {
                self.io(what, io::Error::new(source.kind(), source.to_string()))
            }
            _ => JournalError::Closed,
        }
    }
}

fn checksum(head: &[u8], payload: &[u8]) -> String {
    let digest = Sha256::new().chain_update(head).chain_update(payload).finalize();
    let mut text = hex(&digest);
    text.truncate(16);
    text
}

fn frame(sequence: u64, entries: &[Entry]) -> io::Result<Vec<u8>> {
    let payload = serde_json::to_vec(entries)?;
    let head = format!("J {sequence:016x} {:08x} ", payload.len());
    let sum = checksum(head.as_bytes(), &payload);
    Ok([head.as_bytes(), sum.as_bytes(), b" ", &payload, b"\n"].concat())
}

/// Where something that was synced reads differently.
#[derive(Debug, PartialEq, Eq)]
struct Damaged {
    offset: usize,
}

/// Reads all whole lines. What follows them must be zeros, or one line that was being written when the power went.
fn read(bytes: &[u8]) -> Result<State, Damaged> {
    let mut state = State::default();
    let mut offset = 0;
    let mut sequence = 0;
    let used = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    while offset < used {
        let Some((entries, length)) = parse(&bytes[offset..used], sequence) else {
            let is_torn = is_torn(bytes, offset, used) && !has_line_after(&bytes[offset..used], sequence);
            return if is_torn {
                Ok(state)
            } else {
                Err(Damaged { offset })
            };
        };
        for entry in entries {
            state.apply(entry);
        }
        offset += length;
        sequence += 1;
    }
    Ok(state)
}

/// The entries of the line that the bytes begin with, and its length.
fn parse(bytes: &[u8], sequence: u64) -> Option<(Vec<Entry>, usize)> {
    let payload_bytes = payload_length(bytes)?;
    let payload = bytes.get(HEADER_BYTES..HEADER_BYTES.checked_add(payload_bytes)?)?;
    let head = format!("J {sequence:016x} {payload_bytes:08x} ");
    let expected = [
        head.as_bytes(),
        checksum(head.as_bytes(), payload).as_bytes(),
        b" ",
    ]
    .concat();
    let length = HEADER_BYTES + payload_bytes + 1;
    let is_whole = bytes.starts_with(&expected) && bytes.get(length - 1) == Some(&b'\n');
    is_whole
        .then(|| serde_json::from_slice(payload).ok())
        .flatten()
        .map(|entries| (entries, length))
}

fn payload_length(bytes: &[u8]) -> Option<usize> {
    let digits = std::str::from_utf8(bytes.get(19..27)?).ok()?;
    usize::from_str_radix(digits, 16).ok()
}

/// Whether the line at `offset` lacks bytes: its end, or a whole sector.
fn is_torn(bytes: &[u8], offset: usize, used: usize) -> bool {
    let present = &bytes[offset..used];
    let announced = payload_length(present).map(|payload| HEADER_BYTES + payload + 1);
    let has_end = present.last() == Some(&b'\n') || announced == Some(present.len());
    let first = offset.next_multiple_of(SECTOR_BYTES).min(used);
    let has_hole = std::iter::once(&bytes[offset..first])
        .chain(bytes[first..used].chunks(SECTOR_BYTES))
        .any(|sector| !sector.is_empty() && sector.iter().all(|byte| *byte == 0));
    !has_end || has_hole
}

/// Whether a whole later line follows, which was begun only after the one before it had been synced.
fn has_line_after(bytes: &[u8], sequence: u64) -> bool {
    (1..bytes.len())
        .filter(|at| bytes[*at..].starts_with(b"J "))
        .any(|at| {
            let later = bytes
                .get(at + 2..at + 18)
                .and_then(|digits| std::str::from_utf8(digits).ok())
                .and_then(|digits| u64::from_str_radix(digits, 16).ok());
            later.is_some_and(|later| later > sequence && parse(&bytes[at..], later).is_some())
        })
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
