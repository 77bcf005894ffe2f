//! Owns: looking through a database for what is broken, without changing it.
//! Does not know: what the values mean; whoever does goes on with [`Checked::keys`].
//! Start here: [`check`].
//!
//! Each current key is read by itself, so that a broken page costs the keys on it and no others.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension};
use store::{KeyValue, Revision, StoreError};

use crate::OpenError;
use crate::errors::translate;
use crate::open::{inspect, stored};
use crate::schema::{self, COLUMNS};

/// The most that is asked of SQLite's own check: whoever has more faults than this restores a backup.
const INTEGRITY: &str = "PRAGMA integrity_check(100)";

const NEWEST: &str = "SELECT key, max(id) FROM history INDEXED BY history_key GROUP BY key";

/// Something that is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key, table or file concerned.
    pub object: String,
    /// What is wrong with it.
    pub detail: String,
}

impl Fault {
    /// A fault of an object.
    pub fn new(object: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            object: object.into(),
            detail: detail.into(),
        }
    }
}

/// What was found in a database.
#[derive(Debug, Default)]
pub struct Checked {
    /// The newest revision; 0 if that cannot be read.
    pub revision: Revision,
    /// Every current key that can be read.
    pub keys: Vec<KeyValue>,
    /// What is broken.
    pub faults: Vec<Fault>,
}

/// Looks through a database, which another process may be using. An error means that it cannot be looked at at all.
pub fn check(database: &Path) -> Result<Checked, OpenError> {
    stored(database)?;
    inspect(database)?;
    let connection =
        crate::reader::connect(database).map_err(|error| translate("check", database, &error))?;
    let name = database.display().to_string();
    let mut checked = Checked::default();
    let mut found = |faults: rusqlite::Result<Vec<Fault>>| match faults {
        Ok(faults) => checked.faults.extend(faults),
        Err(error) => checked.faults.push(Fault::new(&name, error.to_string())),
    };
    found(integrity(&connection, &name));
    match schema::newest(&connection) {
        Ok(revision) => checked.revision = revision,
        Err(error) => checked
            .faults
            .push(Fault::new("table history", error.to_string())),
    }
    checked.faults.extend(compaction(&connection, checked.revision));
    each_key(&connection, &mut checked);
    Ok(checked)
}

fn integrity(connection: &Connection, name: &str) -> rusqlite::Result<Vec<Fault>> {
    let mut statement = connection.prepare(INTEGRITY)?;
    let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
    let lines = lines.collect::<rusqlite::Result<Vec<_>>>()?;
    let broken = lines.into_iter().filter(|line| line != "ok");
    Ok(broken.map(|line| Fault::new(name, line)).collect())
}

fn compaction(connection: &Connection, newest: Revision) -> Option<Fault> {
    match schema::meta(connection, "compacted") {
        Ok(compacted) if compacted <= newest => None,
        Ok(compacted) => {
            let detail = format!("it is compacted to revision {compacted}, and its newest is {newest}");
            Some(Fault::new("table meta", detail))
        }
        Err(error) => Some(Fault::new("table meta", error.to_string())),
    }
}

fn each_key(connection: &Connection, checked: &mut Checked) {
    let newest = newest_rows(connection, &mut checked.faults);
    for (key, id) in newest {
        let name = String::from_utf8_lossy(&key).into_owned();
        match row(connection, id) {
            Ok(None) => {}
            Ok(Some(kv)) if kv.key.as_bytes() != key => {
                let detail = format!("the index names it for a row of {}", kv.key);
                checked.faults.push(Fault::new(name, detail));
            }
            Ok(Some(kv)) => {
                checked.faults.extend(lease_fault(connection, &kv));
                checked.keys.push(kv);
            }
            Err(error) => checked.faults.push(Fault::new(name, error.to_string())),
        }
    }
}

/// Every key with its newest row, as far as the index can be read.
fn newest_rows(connection: &Connection, faults: &mut Vec<Fault>) -> Vec<(Vec<u8>, i64)> {
    let mut found = Vec::new();
    let mut read = || -> rusqlite::Result<()> {
        let mut statement = connection.prepare(NEWEST)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            found.push((row.get(0)?, row.get(1)?));
        }
        Ok(())
    };
    if let Err(error) = read() {
        let detail = format!(
            "{error}; keys after the {} that it still names were not read",
            found.len()
        );
        faults.push(Fault::new("index history_key", detail));
    }
    found
}

/// A row; none if it is a deletion.
fn row(connection: &Connection, id: i64) -> rusqlite::Result<Option<KeyValue>> {
    let sql = format!("SELECT {COLUMNS}, deleted FROM history WHERE id = ?1");
    connection
        .prepare_cached(&sql)?
        .query_row([id], |row| match row.get(6)? {
            true => Ok(None),
            false => schema::key_value(row).map(Some),
        })
}

fn lease_fault(connection: &Connection, kv: &KeyValue) -> Option<Fault> {
    let lease = kv.lease?;
    let known = connection
        .prepare_cached("SELECT 1 FROM lease WHERE id = ?1")
        .and_then(|mut statement| {
            statement
                .query_row([schema::signed(lease.0)], |_| Ok(()))
                .optional()
        });
    match known {
        Ok(Some(())) => None,
        Ok(None) => Some(Fault::new(&*kv.key, format!("its lease {lease} is not there"))),
        Err(error) => Some(Fault::new("table lease", error.to_string())),
    }
}

/// The error of a database with faults, for who needs one without.
pub(crate) fn refuse_faults(database: &Path, faults: &[Fault]) -> Result<(), OpenError> {
    let Some(first) = faults.first() else {
        return Ok(());
    };
    let detail = format!(
        "{} faults, the first: {}: {}",
        faults.len(),
        first.object,
        first.detail
    );
    Err(OpenError::Store(StoreError::Damaged {
        object: database.display().to_string(),
        detail,
    }))
}
