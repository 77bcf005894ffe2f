//! Owns: the read connections, and what is read through them: old revisions, stretches of history, backups.
//! Does not know: the current revision's keys, which are in memory.
//! Start here: [`Readers::range`] and the [`History`] of watches. Each read is one snapshot of the database, in which
//! what was compacted is looked up first: rows are removed only after a compaction was stored.

use std::fs::OpenOptions;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use store::backend::{Commit, History, HistoryPage, lock};
use store::{
    Backup, BoxFuture, Event, EventKind, KeyRange, KeyValue, RangeRequest, RangeResponse, Revision,
    StoreError,
};
use tokio::sync::Semaphore;

use crate::errors::{translate, translate_io};
use crate::schema::{self, COLUMNS, row_id};

const CONNECTIONS: usize = 4;

/// A page of history ends after this many events, rows looked at, or bytes.
const PAGE_EVENTS: usize = 1_024;
const PAGE_ROWS: usize = 16_384;
const PAGE_BYTES: usize = 8 << 20;

/// No key is greater: this byte is in no UTF-8 text.
const AFTER_ALL: &[u8] = &[0xff];

pub(crate) struct Readers {
    path: PathBuf,
    room: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Connection>>>,
}

enum ReadError {
    Sqlite(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Readers {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            room: Arc::new(Semaphore::new(CONNECTIONS)),
            idle: Arc::default(),
        }
    }

    /// Reads at a revision before the current one.
    pub(crate) async fn range(
        &self,
        request: RangeRequest,
        at: Revision,
        current: Revision,
    ) -> Result<RangeResponse, StoreError> {
        self.read("range", move |connection| {
            in_snapshot(connection, at, |snapshot| {
                keys_at(snapshot, &request, at, current)
            })
        })
        .await
    }

    /// The same for a revision since which little has happened: `unchanged` are the keys that have not changed since, as
    /// many as can be needed; the others are those with rows of later revisions, and few.
    pub(crate) async fn range_near(
        &self,
        request: RangeRequest,
        at: Revision,
        current: Revision,
        unchanged: Unchanged,
    ) -> Result<RangeResponse, StoreError> {
        self.read("range", move |connection| {
            in_snapshot(connection, at, |snapshot| {
                let mut found = unchanged.whole(snapshot)?;
                found.extend(changed_between(snapshot, &request, at, current)?);
                found.sort_by(|one, two| one.key.cmp(&two.key));
                Ok(request.answer(found.iter(), current))
            })
        })
        .await
    }

    /// Fetches the values of the items at these places. `None`: one of them was replaced and purged meanwhile.
    pub(crate) async fn fill(
        &self,
        mut answer: RangeResponse,
        places: Vec<usize>,
    ) -> Result<Option<RangeResponse>, StoreError> {
        self.read("range", move |connection| {
            for place in places {
                let Some(kv) = answer.items.get_mut(place) else {
                    continue;
                };
                match schema::value(connection, kv)? {
                    Some(value) => kv.value = value,
                    None => return Ok(None),
                }
            }
            Ok(Some(answer))
        })
        .await
    }

    /// Copies the database as it is now into a new file.
    pub(crate) async fn backup(&self, target: PathBuf) -> Result<Backup, StoreError> {
        self.read("backup", move |connection| backup(connection, &target))
            .await
    }

    /// What of the database is free for what will be written.
    pub(crate) async fn free_bytes(&self) -> Result<u64, StoreError> {
        self.read("status", |connection| Ok(schema::free_bytes(connection)?))
            .await
    }

    async fn read<T: Send + 'static>(
        &self,
        attempt: &'static str,
        read: impl FnOnce(&Connection) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let room = self.room.clone().acquire_owned().await;
        let room = room.map_err(|_| StoreError::Closed { attempt })?;
        let (path, idle) = (self.path.clone(), self.idle.clone());
        let done = tokio::task::spawn_blocking(move || {
            let _room = room;
            let sqlite = |error| translate(attempt, &path, &error);
            let found = lock(&idle).pop();
            let connection = found.map_or_else(|| connect(&path), Ok).map_err(sqlite)?;
            let value = read(&connection).map_err(|error| match error {
                ReadError::Sqlite(error) => sqlite(error),
                ReadError::Store(error) => error,
            })?;
            // One that met an error is not used again.
            lock(&idle).push(connection);
            Ok(value)
        });
        done.await.unwrap_or_else(|error| {
            Err(StoreError::Unavailable {
                attempt,
                detail: format!("the reading task ended: {error}"),
                retryable: false,
            })
        })
    }
}

/// Reads in one snapshot, and only what was not compacted in it.
fn in_snapshot<T>(
    connection: &Connection,
    oldest: Revision,
    read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> Result<T, ReadError> {
    let snapshot = connection.unchecked_transaction()?;
    check_compacted(&snapshot, oldest)?;
    let value = read(&snapshot)?;
    snapshot.finish()?;
    Ok(value)
}

pub(crate) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    Ok(connection)
}

fn check_compacted(connection: &Connection, requested: Revision) -> Result<(), ReadError> {
    let compacted = schema::meta(connection, "compacted")?;
    if requested < compacted {
        return Err(ReadError::Store(StoreError::Compacted { requested, compacted }));
    }
    Ok(())
}

/// Keys as the state in memory has them.
pub(crate) struct Unchanged {
    pub(crate) found: Vec<KeyValue>,
    /// Which of them have their values in the file.
    pub(crate) to_fill: Vec<usize>,
}

impl Unchanged {
    fn whole(mut self, connection: &Connection) -> rusqlite::Result<Vec<KeyValue>> {
        for place in self.to_fill {
            if let Some(kv) = self.found.get_mut(place) {
                let value = schema::value(connection, kv)?;
                kv.value = value.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            }
        }
        Ok(self.found)
    }
}

/// What the keys of a range that changed after `at`, up to `current`, were at `at`.
fn changed_between(
    connection: &Connection,
    request: &RangeRequest,
    at: Revision,
    current: Revision,
) -> rusqlite::Result<Vec<KeyValue>> {
    // The plus keeps SQLite from going through the index of keys instead.
    let mut changed = connection.prepare_cached(
        "SELECT DISTINCT key FROM history WHERE id >= ?1 AND id < ?2 AND +key >= ?3 AND +key < ?4",
    )?;
    let end = request.range.end().unwrap_or_else(|| AFTER_ALL.to_vec());
    let (lower, from) = (request.lower_bound(), row_id(at + 1));
    let (Bound::Included(start) | Bound::Excluded(start)) = lower else {
        return Ok(Vec::new());
    };
    let mut version = Version::prepare(connection)?;
    let mut rows = changed.query(params![from, row_id(current + 1), start.as_bytes(), end])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let key: Vec<u8> = row.get(0)?;
        if lower != Bound::Excluded(start) || key != start.as_bytes() {
            found.extend(version.before(&key, from)?);
        }
    }
    Ok(found)
}

/// Goes from key to key through the index, whatever the number of versions between.
fn keys_at(
    connection: &Connection,
    request: &RangeRequest,
    at: Revision,
    current: Revision,
) -> rusqlite::Result<RangeResponse> {
    let mut next_key = connection
        .prepare_cached("SELECT key FROM history WHERE key > ?1 AND key < ?2 ORDER BY key LIMIT 1")?;
    let end = request.range.end().unwrap_or_else(|| AFTER_ALL.to_vec());
    let (mut key, mut found) = (first_key(connection, request, &end)?, Vec::new());
    let mut version = Version::prepare(connection)?;
    let wanted = match request.limit {
        0 => usize::MAX,
        limit => limit.saturating_add(1),
    };
    while let Some(this) = key {
        found.extend(version.before(&this, row_id(at + 1))?);
        if found.len() >= wanted {
            break;
        }
        key = next_key
            .query_row(params![this, end], |row| row.get(0))
            .optional()?;
    }
    Ok(request.answer(found.iter(), current))
}

fn first_key(
    connection: &Connection,
    request: &RangeRequest,
    end: &[u8],
) -> rusqlite::Result<Option<Vec<u8>>> {
    let (relation, start) = match request.lower_bound() {
        Bound::Excluded(start) => (">", start),
        Bound::Included(start) => (">=", start),
        Bound::Unbounded => (">=", ""),
    };
    let sql = format!("SELECT key FROM history WHERE key {relation} ?1 AND key < ?2 ORDER BY key LIMIT 1");
    let mut statement = connection.prepare_cached(&sql)?;
    statement
        .query_row(params![start.as_bytes(), end], |row| row.get(0))
        .optional()
}

/// Finds what a key was before a row.
struct Version<'c> {
    statement: rusqlite::CachedStatement<'c>,
}

impl<'c> Version<'c> {
    fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        let sql = format!(
            "SELECT {COLUMNS}, deleted FROM history WHERE key = ?1 AND id < ?2 ORDER BY id DESC LIMIT 1"
        );
        let statement = connection.prepare_cached(&sql)?;
        Ok(Self { statement })
    }

    fn before(&mut self, key: &[u8], id: i64) -> rusqlite::Result<Option<KeyValue>> {
        let alive = |row: &Row<'_>| match row.get(6)? {
            true => Ok(None),
            false => schema::key_value(row).map(Some),
        };
        let found = self.statement.query_row(params![key, id], alive);
        Ok(found.optional()?.flatten())
    }
}

impl History for Readers {
    fn page<'a>(
        &'a self,
        range: &'a KeyRange,
        from: Revision,
        to: Revision,
    ) -> BoxFuture<'a, Result<HistoryPage, StoreError>> {
        let range = range.clone();
        Box::pin(self.read("watch", move |connection| {
            in_snapshot(connection, from, |snapshot| history(snapshot, &range, from, to))
        }))
    }
}

fn history(
    connection: &Connection,
    range: &KeyRange,
    from: Revision,
    to: Revision,
) -> rusqlite::Result<HistoryPage> {
    let compacted = schema::meta(connection, "compacted")?;
    let sql = format!("SELECT {COLUMNS}, deleted FROM history WHERE id >= ?1 AND id < ?2 ORDER BY id");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut version = Version::prepare(connection)?;
    let mut rows = statement.query(params![row_id(from), row_id(to.saturating_add(1))])?;
    let mut page = Page::default();
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        if !page.begin_row(schema::revision_of(id)) {
            break;
        }
        let key = schema::key(row, 1)?;
        if range.contains(&key) {
            let known = schema::revision_of(id) > compacted;
            let prev = match known {
                true => version.before(key.as_bytes(), row_id(schema::revision_of(id)))?,
                false => None,
            };
            page.events.push(event(row, prev)?);
        }
    }
    Ok(page.finish(to))
}

fn event(row: &Row<'_>, prev: Option<KeyValue>) -> rusqlite::Result<Event> {
    let kind = match row.get(6)? {
        true => EventKind::Delete,
        false => EventKind::Put,
    };
    let kv = schema::key_value(row)?;
    Ok(Event { kind, kv, prev })
}

/// A page of history while it is read.
#[derive(Default)]
struct Page {
    commits: Vec<Commit>,
    revision: Revision,
    events: Vec<Event>,
    rows: usize,
    matched: usize,
    bytes: usize,
    full: bool,
}

impl Page {
    /// Whether the next row, of `revision`, still belongs to the page.
    fn begin_row(&mut self, revision: Revision) -> bool {
        if revision != self.revision {
            self.end_revision();
            let started = self.rows > 0;
            self.full = started
                && (self.rows >= PAGE_ROWS || self.matched >= PAGE_EVENTS || self.bytes >= PAGE_BYTES);
            if self.full {
                return false;
            }
            self.revision = revision;
        }
        self.rows += 1;
        true
    }

    fn end_revision(&mut self) {
        if self.events.is_empty() {
            return;
        }
        let mut events = std::mem::take(&mut self.events);
        events.sort_by(|one, two| one.kv.key.cmp(&two.kv.key));
        let commit = Commit {
            revision: self.revision,
            events: events.into(),
        };
        self.matched += commit.events.len();
        self.bytes += commit.size_bytes();
        self.commits.push(commit);
    }

    fn finish(mut self, to: Revision) -> HistoryPage {
        self.end_revision();
        HistoryPage {
            through: if self.full { self.revision } else { to },
            commits: self.commits,
        }
    }
}

fn backup(connection: &Connection, target: &Path) -> Result<Backup, ReadError> {
    let io = |error: std::io::Error| ReadError::Store(translate_io("backup", target, &error));
    check_room(connection, target)?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(target)
        .map_err(io)?;
    let copied = copy(connection, target).and_then(|revision| {
        file.sync_all().map_err(io)?;
        let size_bytes = file.metadata().map_err(io)?.len();
        Ok(Backup { revision, size_bytes })
    });
    if copied.is_err() {
        // The copy is of no use; that it cannot be removed either would only hide why.
        drop(std::fs::remove_file(target));
    }
    copied
}

/// Refuses what the disk has no room for before it is begun: a disk that fills up hurts more than a backup that is late.
fn check_room(connection: &Connection, target: &Path) -> Result<(), ReadError> {
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let pages = number("PRAGMA page_count")?.saturating_mul(number("PRAGMA page_size")?);
    let needed = pages
        .unsigned_abs()
        .saturating_sub(schema::free_bytes(connection)?);
    let dir = target.parent().unwrap_or(Path::new("."));
    // What cannot be asked is found out by trying.
    let Ok(room) = rustix::fs::statvfs(dir) else {
        return Ok(());
    };
    if needed > room.f_bavail.saturating_mul(room.f_frsize) {
        return Err(ReadError::Store(StoreError::Full {
            attempt: "backup",
            object: format!("a copy of {needed} bytes in {}", dir.display()),
        }));
    }
    Ok(())
}

fn copy(connection: &Connection, target: &Path) -> Result<Revision, ReadError> {
    let name = target.to_str().ok_or_else(|| {
        ReadError::Store(StoreError::Unavailable {
            attempt: "backup",
            detail: format!("{} is not UTF-8; choose another name", target.display()),
            retryable: false,
        })
    })?;
    connection.execute("VACUUM INTO ?1", [name])?;
    Ok(schema::newest(&connect(target)?)?)
}
