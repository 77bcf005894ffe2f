//! Owns: what is on a disk, and what a loss of power may leave there.
//! Does not know: who wrote it.
//! Start here: [`Disk::after_a_loss_of_power`].
//!
//! Only a sync makes certain what was written before it. Of what was written since, a disk has kept all, nothing, or any
//! part: whole writes in any order, and of each write any sectors.

use std::collections::BTreeMap;

use rand::{Rng, RngExt};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// What happened, in order.
pub(crate) enum Event {
    /// Bytes were written to a file.
    Write { file: String, at: usize, bytes: Vec<u8> },
    /// A file was cut to a length.
    Truncate { file: String, len: usize },
    /// A file was synced.
    Sync { file: String },
    /// A file was deleted, and maybe the directory synced.
    Delete { file: String, synced: bool },
    /// The writer heard that this number of its is stored.
    Answered { writer: usize, number: u64 },
}

/// What happened to one file.
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Truncate(usize),
    Delete,
}

#[derive(Default)]
struct File {
    /// None: it is not there.
    certain: Option<Vec<u8>>,
    since: Vec<Change>,
}

/// The files of a directory.
#[derive(Default)]
pub(crate) struct Disk {
    files: BTreeMap<String, File>,
}

impl Disk {
    /// Takes in what happened.
    pub(crate) fn happened(&mut self, event: &Event) {
        match event {
            Event::Write { file, at, bytes } => self.change(
                file,
                Change::Write {
                    at: *at,
                    bytes: bytes.clone(),
                },
            ),
            Event::Truncate { file, len } => self.change(file, Change::Truncate(*len)),
            Event::Delete { file, synced: false } => self.change(file, Change::Delete),
            Event::Delete { file, synced: true } => drop(self.files.remove(file)),
            Event::Sync { file } => self.sync(file),
            Event::Answered { .. } => {}
        }
    }

    fn sync(&mut self, file: &str) {
        let synced = self.files.entry(file.to_owned()).or_default();
        let is_new = synced.certain.is_none();
        synced.settle();
        // With a file that it has made, SQLite syncs the directory too.
        if is_new {
            self.files.values_mut().for_each(File::settle_deletion);
        }
    }

    fn change(&mut self, file: &str, change: Change) {
        self.files.entry(file.to_owned()).or_default().since.push(change);
    }

    /// What is found after power is back.
    pub(crate) fn after_a_loss_of_power(&self, rng: &mut impl Rng) -> BTreeMap<String, Vec<u8>> {
        let left = |(name, file): (&String, &File)| Some((name.clone(), file.left(rng)?));
        self.files.iter().filter_map(left).collect()
    }
}

impl File {
    fn settle(&mut self) {
        for change in std::mem::take(&mut self.since) {
            change.apply(&mut self.certain);
        }
    }

    fn settle_deletion(&mut self) {
        let deletion = self
            .since
            .iter()
            .rposition(|change| matches!(change, Change::Delete));
        if let Some(place) = deletion {
            self.certain = None;
            self.since.drain(..=place);
        }
    }

    fn left(&self, rng: &mut impl Rng) -> Option<Vec<u8>> {
        let mut left = self.certain.clone();
        let all = rng.random_range(0..4);
        for change in &self.since {
            match all {
                0 => {}
                1 => change.apply(&mut left),
                _ => change.apply_in_part(&mut left, rng),
            }
        }
        left
    }
}

impl Change {
    fn apply(&self, file: &mut Option<Vec<u8>>) {
        match self {
            Self::Write { at, bytes } => put(file, *at, bytes),
            Self::Truncate(len) => file.get_or_insert_default().resize(*len, 0),
            Self::Delete => *file = None,
        }
    }

    fn apply_in_part(&self, file: &mut Option<Vec<u8>>, rng: &mut impl Rng) {
        match (self, rng.random_range(0..3)) {
            (_, 0) => {}
            (Self::Write { at, bytes }, 1) => {
                let sectors = bytes.chunks(SECTOR_BYTES).enumerate();
                for (number, sector) in sectors.filter(|_| rng.random()) {
                    put(file, at + number * SECTOR_BYTES, sector);
                }
            }
            _ => self.apply(file),
        }
    }
}

fn put(file: &mut Option<Vec<u8>>, at: usize, bytes: &[u8]) {
    let file = file.get_or_insert_default();
    let end = at + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[at..end].copy_from_slice(bytes);
}
