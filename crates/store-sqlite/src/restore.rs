//! Owns: making a store's database from a backup.
//! Does not know: what has to be changed in it before it is used; that is done through [`Restore::store`].
//! Start here: [`Restore::begin`]; until [`Restore::finish`] nothing of it counts.
//!
//! A restored store goes on at a revision behind all that were ever seen, which the caller knows, and nothing before that can
//! be read or watched: whoever has seen a revision that the backup does not know would otherwise take an old state for a
//! new one.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, params};
use store::{Revision, StoreError};

use crate::check::{check, refuse_faults};
use crate::errors::{translate, translate_io};
use crate::open::{self, create_file, inspect, stored};
use crate::schema::{self, row_id};
use crate::{DATABASE, OpenError, Options, SqliteStore};

/// The directory, within the store's, in which a restored store is made.
const WORK: &str = "restoring";

/// How many pages are copied at a time.
const COPIED_PAGES: i32 = 1_024;

/// A key that is never written: its deletion marks the leap.
const MARK: &str = "/leap";

/// A store that is being made from a backup.
pub struct Restore {
    dir: PathBuf,
    work: PathBuf,
    /// The revision that the backup holds.
    pub from: Revision,
    _lock: File,
}

impl Restore {
    /// Copies a backup beside the place where the store will be; `floor` says from the backup's revision where it goes on.
    /// Refused if there is a store, or if the backup cannot be used; then nothing was changed.
    pub fn begin(
        backup: &Path,
        dir: &Path,
        floor: impl FnOnce(Revision) -> Revision,
    ) -> Result<Self, OpenError> {
        stored(backup)?;
        inspect(backup)?;
        let checked = check(backup)?;
        refuse_faults(backup, &checked.faults)?;
        open::make_dir(dir)?;
        let lock = open::lock(dir)?;
        let database = dir.join(DATABASE);
        if fs::metadata(&database).is_ok_and(|metadata| metadata.len() > 0) {
            return Err(OpenError::Occupied { path: database });
        }
        let restore = Self {
            dir: dir.to_owned(),
            work: dir.join(WORK),
            from: checked.revision,
            _lock: lock,
        };
        restore.copy(backup, floor(restore.from).max(restore.from + 1))?;
        Ok(restore)
    }

    fn copy(&self, backup: &Path, revision: Revision) -> Result<(), OpenError> {
        let io = |path: &Path, error| translate_io("restore", path, &error);
        // What a restore that was cut off has left.
        if self.work.exists() {
            fs::remove_dir_all(&self.work).map_err(|error| io(&self.work, error))?;
        }
        let made = DirBuilder::new().mode(0o700).create(&self.work);
        made.map_err(|error| io(&self.work, error))?;
        let copy = self.work.join(DATABASE);
        create_file(&copy).map_err(|error| io(&copy, error))?;
        let sqlite = |error| translate("restore", &copy, &error);
        let source = crate::reader::connect(backup).map_err(sqlite)?;
        let mut target = Connection::open(&copy).map_err(sqlite)?;
        copy_all(&source, &mut target).map_err(sqlite)?;
        leap(&mut target, revision).map_err(sqlite)?;
        Ok(())
    }

    /// The store that is being made, to change what has to be changed. Close it before [`Restore::finish`].
    pub fn store(&self) -> Result<SqliteStore, OpenError> {
        SqliteStore::open(Options::new(&self.work))
    }

    /// Puts the store in its place, in one step.
    pub fn finish(self) -> Result<(), OpenError> {
        let io = |path: &Path, error| OpenError::Store(translate_io("restore", path, &error));
        let (from, to) = (self.work.join(DATABASE), self.dir.join(DATABASE));
        let mut log = from.clone().into_os_string();
        log.push("-wal");
        if fs::metadata(&log).is_ok_and(|metadata| metadata.len() > 0) {
            return Err(OpenError::Store(StoreError::Unavailable {
                attempt: "restore",
                detail: format!("{} is still open", from.display()),
                retryable: false,
            }));
        }
        File::open(&from)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&from, &to))
            .and_then(|()| File::open(&self.dir)?.sync_all())
            .map_err(|error| io(&to, error))
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        // It is of no use; what cannot be removed now is removed by the next restore.
        drop(fs::remove_dir_all(&self.work));
    }
}

fn copy_all(source: &Connection, target: &mut Connection) -> rusqlite::Result<()> {
    let copy = rusqlite::backup::Backup::new(source, target)?;
    copy.run_to_completion(COPIED_PAGES, Duration::ZERO, None)
}

/// Makes `revision` the newest and the oldest that can be read.
fn leap(connection: &mut Connection, revision: Revision) -> rusqlite::Result<()> {
    let tx = connection.transaction()?;
    tx.execute(
        "INSERT INTO history (id, key, value, create_revision, version, deleted) VALUES (?1, ?2, x'', 0, 0, 1)",
        params![row_id(revision), MARK.as_bytes()],
    )?;
    schema::set_meta(&tx, "compacted", revision)?;
    tx.commit()
}
