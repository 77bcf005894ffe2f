//! A file that content is written into: sparsely, counted, hashed, bounded.
//!
//! **Owns:** the file while it grows.
//!
//! **Does not know:** where the content comes from, and what it is.
//!
//! **Start here:** [`Sink::write`]. It blocks: it has a thread of its own, so that the next bytes come while these are written.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use formats::disk::{HEAD_BYTES, Sample, TAIL_BYTES, bytes_max};
use formats::sparse;
use sha2::{Digest, Sha256};

use crate::auth::hex;

/// What is read and written at once.
pub(super) const PIECE_BYTES: usize = 256 * 1024;

/// Why content was not written.
#[derive(Debug)]
pub(super) enum Unwritten {
    /// The file system refused.
    File(io::Error),
    /// It is more than its own header declares, or than a disk may have.
    TooMuch(u64),
}

/// The file.
#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    /// How much of it was there before: it passes again to be looked at, and is not written again.
    held_bytes: u64,
    look: Look,
    /// The most that it may become, once that is known for good.
    limit: Option<u64>,
}

/// What is learned of content as it passes.
#[derive(Debug, Default)]
struct Look {
    digest: Sha256,
    head: Vec<u8>,
    tail: Vec<u8>,
    bytes: u64,
}

/// What it has become.
#[derive(Debug)]
pub(super) struct Written {
    /// The digest of all of it.
    pub(super) sha256: String,
    /// Its size.
    pub(super) bytes: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Written {
    /// What is looked at to tell its format.
    pub(super) fn sample(&self) -> Sample<'_> {
        Sample {
            head: &self.head,
            tail: &self.tail,
            bytes: self.bytes,
        }
    }
}

impl Look {
    fn see(&mut self, piece: &[u8]) {
        self.digest.update(piece);
        let wanted = HEAD_BYTES.saturating_sub(self.head.len()).min(piece.len());
        self.head
            .extend_from_slice(piece.get(..wanted).unwrap_or_default());
        let last = piece
            .get(piece.len().saturating_sub(TAIL_BYTES)..)
            .unwrap_or_default();
        self.tail.extend_from_slice(last);
        let old = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..old);
        self.bytes = self.bytes.saturating_add(piece.len() as u64);
    }

    fn end(self) -> Written {
        Written {
            sha256: hex(&self.digest.finalize()),
            bytes: self.bytes,
            head: self.head,
            tail: self.tail,
        }
    }
}

impl Sink {
    /// A new file.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self::of(File::create_new(path)?, 0))
    }

    /// A file that has its first bytes already.
    pub(super) fn go_on(path: &Path, held_bytes: u64) -> io::Result<Self> {
        let file = File::options().write(true).open(path)?;
        file.set_len(held_bytes)?;
        Ok(Self::of(file, held_bytes))
    }

    fn of(file: File, held_bytes: u64) -> Self {
        Self {
            file,
            held_bytes,
            look: Look::default(),
            limit: None,
        }
    }

    /// Appends.
    pub(super) fn write(&mut self, piece: &[u8]) -> Result<(), Unwritten> {
        let held = self.held_bytes.saturating_sub(self.look.bytes);
        let held = usize::try_from(held).unwrap_or(usize::MAX).min(piece.len());
        let begin = self.look.bytes.saturating_add(held as u64);
        self.look.see(piece);
        let limit = self.limit();
        if self.look.bytes > limit {
            return Err(Unwritten::TooMuch(limit));
        }
        let mut data = sparse::data(piece.get(held..).unwrap_or_default(), begin);
        let written = data.try_for_each(|(at, block)| self.file.write_all_at(block, at));
        written.map_err(Unwritten::File)
    }

    fn limit(&mut self) -> u64 {
        if let Some(limit) = self.limit {
            return limit;
        }
        let limit = bytes_max(&self.look.head);
        let is_whole = self.look.head.len() >= HEAD_BYTES;
        self.limit = is_whole.then_some(limit);
        limit
    }

    /// Makes it durable.
    pub(super) fn finish(self) -> Result<Written, Unwritten> {
        let sized = self
            .file
            .set_len(self.look.bytes)
            .and_then(|()| self.file.sync_all());
        sized.map_err(Unwritten::File)?;
        Ok(self.look.end())
    }
}

/// What stands in a file that somebody else wrote, which is made durable.
pub(super) fn read(mut file: File) -> Result<Written, Unwritten> {
    let mut look = Look::default();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = file.read(&mut piece).map_err(Unwritten::File)?;
        match piece.get(..read) {
            Some(piece) if !piece.is_empty() => look.see(piece),
            _ => break,
        }
    }
    file.sync_all().map_err(Unwritten::File)?;
    Ok(look.end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zeroes_take_no_room_and_nothing_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut content = vec![0; 3 << 20];
        content[510..512].copy_from_slice(&[0x55, 0xaa]);
        content[1 << 20] = 7;
        let mut sink = Sink::create(&path).unwrap();
        for piece in content.chunks(256 * 1024) {
            sink.write(piece).unwrap();
        }
        let written = sink.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), content);
        assert_eq!(written.sha256, hex(&Sha256::digest(&content)));
        assert_eq!(written.sample().bytes, content.len() as u64);
        assert_eq!(written.sample().tail, &content[content.len() - TAIL_BYTES..]);
        assert!(path.metadata().unwrap().blocks() * 512 < 256 * 1024);
    }

    #[test]
    fn what_a_file_has_already_is_looked_at_and_not_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let content: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let mut sink = Sink::go_on(&path, 100_001).unwrap();
        // If it were written, it would be seen.
        sink.write(&vec![1; 100_000]).unwrap();
        let mut across = vec![1];
        across.extend(&content[100_001..200_000]);
        sink.write(&across).unwrap();
        sink.write(&content[200_000..]).unwrap();
        assert_eq!(sink.finish().unwrap().bytes, content.len() as u64);
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }

    #[test]
    fn what_outgrows_its_own_header_is_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let mut sink = Sink::create(&directory.path().join("file")).unwrap();
        let mut header = vec![0; 512];
        header[..4].copy_from_slice(b"QFI\xfb");
        header[7] = 3;
        header[24..32].copy_from_slice(&1_u64.to_be_bytes());
        sink.write(&header).unwrap();
        let piece = vec![0; 1 << 20];
        let stopped = (0..1000).find_map(|_| sink.write(&piece).err());
        assert!(
            matches!(stopped, Some(Unwritten::TooMuch(limit)) if limit < 100 << 20),
            "{stopped:?}"
        );
    }
}
