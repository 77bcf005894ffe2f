//! Owns: the tables, the numbering of rows, and how a row becomes a key.
//! Does not know: when anything is read or written.
//! Start here: [`CREATE`] and [`row_id`].
//!
//! `history` has a row for each change of a key. Its id is the revision and, below it, the place within the revision, so
//! that rows are appended and a stretch of revisions is a stretch of rows. The index on `key` holds the ids in order,
//! so the version of a key at a revision is one step in it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use store::backend::Commit;
use store::{Event, EventKind, KeyValue, LeaseId, Revision};

/// "Strn", in the header of the database.
pub(crate) const APPLICATION_ID: i64 = 0x5374_726e;

/// The schema that this program writes.
pub(crate) const VERSION: i64 = 1;

pub(crate) const CREATE: &str = "
    CREATE TABLE history (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL,
        value BLOB NOT NULL,
        create_revision INTEGER NOT NULL,
        version INTEGER NOT NULL,
        lease INTEGER,
        deleted INTEGER NOT NULL
    );
    CREATE INDEX history_key ON history (key);
    CREATE TABLE lease (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ms INTEGER NOT NULL);
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES ('compacted', 0), ('purged', 0);
";

const PLACE_BITS: u32 = 22;

/// The id of the first row of a revision; rows of the revision follow it. Larger revisions than fit (2^41) do not occur.
pub(crate) fn row_id(revision: Revision) -> i64 {
    i64::try_from(revision)
        .unwrap_or(i64::MAX)
        .checked_mul(1 << PLACE_BITS)
        .unwrap_or(i64::MAX)
}

/// The revision of a row.
pub(crate) fn revision_of(id: i64) -> Revision {
    (id.max(0) >> PLACE_BITS).unsigned_abs()
}

/// The columns that [`key_value`] reads, in its order.
pub(crate) const COLUMNS: &str = "id, key, value, create_revision, version, lease";

/// Reads the columns [`COLUMNS`].
pub(crate) fn key_value(row: &Row<'_>) -> rusqlite::Result<KeyValue> {
    let lease: Option<i64> = row.get(5)?;
    Ok(KeyValue {
        key: key(row, 1)?,
        value: Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?),
        create_revision: row.get::<_, i64>(3)?.unsigned_abs(),
        mod_revision: revision_of(row.get(0)?),
        version: row.get::<_, i64>(4)?.unsigned_abs(),
        lease: lease.map(|id| LeaseId(id.unsigned_abs())),
    })
}

pub(crate) fn key(row: &Row<'_>, column: usize) -> rusqlite::Result<Arc<str>> {
    let bytes = row.get_ref(column)?.as_blob()?;
    std::str::from_utf8(bytes).map(Arc::from).map_err(|error| {
        let id: i64 = row.get(0).unwrap_or_default();
        let named = format!("the key in row {id} of history: {error}");
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, named.into())
    })
}

/// The value of a version of a key; none if its row is purged.
pub(crate) fn value(connection: &Connection, kv: &KeyValue) -> rusqlite::Result<Option<Bytes>> {
    let mut statement =
        connection.prepare_cached("SELECT value FROM history WHERE id >= ?1 AND id < ?2 AND key = ?3")?;
    let (from, to) = (row_id(kv.mod_revision), row_id(kv.mod_revision + 1));
    let value = statement.query_row(params![from, to, kv.key.as_bytes()], |row| {
        Ok(Bytes::copy_from_slice(row.get_ref(0)?.as_blob()?))
    });
    value.optional()
}

const INSERT: &str = "INSERT INTO history (id, key, value, create_revision, version, lease, deleted)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/// Appends the rows of revisions.
pub(crate) fn insert(tx: &Transaction<'_>, commits: &[Commit]) -> rusqlite::Result<()> {
    let mut statement = tx.prepare_cached(INSERT)?;
    for commit in commits {
        for (id, event) in (row_id(commit.revision)..).zip(commit.events.iter()) {
            let Event { kind, kv, .. } = event;
            statement.execute(params![
                id,
                kv.key.as_bytes(),
                kv.value.as_ref(),
                signed(kv.create_revision),
                signed(kv.version),
                kv.lease.map(|lease| signed(lease.0)),
                *kind == EventKind::Delete,
            ])?;
        }
    }
    Ok(())
}

/// SQLite's integers are signed; none of ours comes near the end of them.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn meta(connection: &Connection, name: &str) -> rusqlite::Result<Revision> {
    let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
    let value: i64 = statement.query_row([name], |row| row.get(0))?;
    Ok(value.unsigned_abs())
}

pub(crate) fn set_meta(connection: &Connection, name: &str, revision: Revision) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("UPDATE meta SET value = ?2 WHERE name = ?1")?;
    statement.execute(params![name, signed(revision)])?;
    Ok(())
}

/// The newest revision in the file. The row of the newest revision is never purged, so it is there to tell.
pub(crate) fn newest(connection: &Connection) -> rusqlite::Result<Revision> {
    let id: Option<i64> = connection.query_row("SELECT max(id) FROM history", [], |row| row.get(0))?;
    Ok(id.map_or(0, revision_of))
}

/// What of the database is free, as its last writer left it.
pub(crate) fn free_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let (pages, size) = (number("PRAGMA freelist_count")?, number("PRAGMA page_size")?);
    Ok(pages.saturating_mul(size).unsigned_abs())
}

/// What the database and its log take on the disk.
pub(crate) fn size_bytes(path: &Path) -> u64 {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    [path, Path::new(&wal)]
        .into_iter()
        .filter_map(|path| std::fs::metadata(path).ok())
        .map(|metadata| metadata.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_revision_stand_together() {
        assert_eq!(revision_of(row_id(7)), 7);
        assert_eq!(revision_of(row_id(8) - 1), 7);
        assert_eq!(row_id(0), 0);
        assert!(row_id(1 << 40) < i64::MAX);
        const { assert!(store::MAX_TXN_EVENTS < 1 << PLACE_BITS) };
    }
}
