//! Owns: the removal of rows that compaction made unreadable, a few at a time between writes.
//! Does not know: what may be read; that is decided by `meta.compacted`, before any row goes.
//! Start here: [`Writer::purge_some`].
//!
//! A row goes if it is older than the compacted revision and not the newest of its key up to it, or if it is a deletion
//! older than the compacted revision. Rows go in the order of their ids, so a deletion never goes before what it deleted.

use rusqlite::{Connection, OptionalExtension, params};
use store::Revision;

use crate::schema;
use crate::writer::Writer;

const ROWS: i64 = 1_000;

const LAST_OF_STRETCH: &str =
    "SELECT id FROM history WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT 1 OFFSET ?3";

const DELETE: &str = "DELETE FROM history WHERE id >= ?1 AND id < ?2 AND (
    (deleted AND id < ?3)
    OR EXISTS (SELECT 1 FROM history AS newer
        WHERE newer.key = history.key AND newer.id > history.id AND newer.id < ?4))";

/// How far the purge has come.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Purge {
    target: Revision,
    /// The first row that was not looked at; none if there is nothing to do.
    next: Option<i64>,
}

impl Purge {
    /// Goes on after a start; a purge that was cut off begins anew.
    pub(crate) fn resume(connection: &Connection) -> rusqlite::Result<Self> {
        let compacted = schema::meta(connection, "compacted")?;
        let mut purge = Self::default();
        if schema::meta(connection, "purged")? < compacted {
            purge.begin(compacted);
        }
        Ok(purge)
    }

    pub(crate) fn begin(&mut self, target: Revision) {
        self.target = target;
        self.next = Some(0);
    }

    pub(crate) fn is_due(&self) -> bool {
        self.next.is_some()
    }
}

impl Writer {
    /// Looks at the next stretch of rows, if a purge is under way.
    pub(crate) fn purge_some(&mut self) {
        let Purge { target, next } = self.purge;
        let Some(from) = next else {
            return;
        };
        let (oldest, end) = (schema::row_id(target), schema::row_id(target + 1));
        let done = self.write("purge", |tx| {
            let last: Option<i64> = tx
                .prepare_cached(LAST_OF_STRETCH)?
                .query_row(params![from, end, ROWS - 1], |row| row.get(0))
                .optional()?;
            let to = last.map_or(end, |last| last + 1);
            tx.prepare_cached(DELETE)?
                .execute(params![from, to, oldest, end])?;
            if last.is_none() {
                schema::set_meta(tx, "purged", target)?;
            }
            Ok(last.map(|last| last + 1))
        });
        self.purge.next = match done {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "compacted history could not be removed; the next compaction or start tries again");
                None
            }
        };
    }
}
