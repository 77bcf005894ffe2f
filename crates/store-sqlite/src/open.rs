//! Owns: getting from a directory to an open database: the lock, the checks, the tables, the current keys.
//! Does not know: what happens to it afterwards.
//! Start here: [`open`]; the order of its steps matters: nothing is written before everything was checked.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use rustix::fs::FlockOperation;
use store::backend::{Loading, State};
use store::{Lease, LeaseId, StoreError};

use crate::errors::{translate, translate_io};
use crate::reader::connect;
use crate::{DATABASE, LOCK, Options, schema};

/// Why a store was not opened. Its files were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another handle in this one, has the store open.
    #[error(
        "the store in {} is in use by {}: stop that process, or use another directory",
        dir.display(),
        holder_name(*.holder)
    )]
    Locked {
        /// The store's directory.
        dir: PathBuf,
        /// The process that holds the lock, if it said so.
        holder: Option<u32>,
    },
    /// A newer release of this program wrote the database.
    #[error(
        "{} has schema {found}, this release knows up to {known}: use the release that wrote it, or a newer one",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema version.
        found: i64,
        /// The newest that this release knows.
        known: i64,
    },
    /// The file is a database, but not one of this program.
    #[error("{} is the database of another program: move it away, or use another directory", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// There is no database.
    #[error("there is no store at {}: check the path", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// There is a database where a new one shall be.
    #[error("{} is there already: a store is only restored where there is none; move that file away first", path.display())]
    Occupied {
        /// The database.
        path: PathBuf,
    },
    /// The files could not be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn holder_name(holder: Option<u32>) -> String {
    match holder {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

/// An open database.
pub(crate) struct Opened {
    pub(crate) path: PathBuf,
    pub(crate) writer: Connection,
    pub(crate) state: State,
    /// Held as long as the database is written.
    pub(crate) lock: File,
}

pub(crate) fn open(options: &Options) -> Result<Opened, OpenError> {
    let dir = &options.dir;
    let io = |path: &Path, error| translate_io("open", path, &error);
    make_dir(dir)?;
    let lock = lock(dir)?;
    let path = dir.join(DATABASE);
    let sqlite = |error: rusqlite::Error| translate("open", &path, &error);
    take_back(&path).map_err(sqlite)?;
    let known = inspect(&path)?;
    create_file(&path).map_err(|error| io(&path, error))?;
    let mut writer = Connection::open(&path).map_err(sqlite)?;
    configure(&writer, options.max_bytes).map_err(sqlite)?;
    if !known {
        create_tables(&mut writer).map_err(sqlite)?;
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| io(dir, error))?;
    }
    let mut state = load(&path, &options.left_in_file).map_err(sqlite)?;
    load_leases(&writer, &mut state, (options.clock)()).map_err(sqlite)?;
    Ok(Opened {
        path,
        writer,
        state,
        lock,
    })
}

pub(crate) fn make_dir(dir: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| translate_io("open", dir, &error))
}

/// Whether there is a database at all; opening one would make it.
pub fn stored(database: &Path) -> Result<(), OpenError> {
    match std::fs::metadata(database) {
        Ok(metadata) if metadata.is_file() && metadata.len() > 0 => Ok(()),
        _ => Err(OpenError::Missing {
            path: database.to_owned(),
        }),
    }
}

pub(crate) fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let io = |error: std::io::Error| translate_io("lock", &path, &error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(io)?;
            return Err(OpenError::Locked {
                dir: dir.to_owned(),
                holder: pid.trim().parse().ok(),
            });
        }
        Err(error) => return Err(io(error.into()).into()),
    }
    file.set_len(0).map_err(io)?;
    file.rewind().map_err(io)?;
    writeln!(file, "{}", std::process::id()).map_err(io)?;
    Ok(file)
}

/// A crash while the database was made, before it had a write-ahead log, leaves a journal, by which SQLite takes back what
/// was half done. It has to write for that.
fn take_back(path: &Path) -> rusqlite::Result<()> {
    let mut journal = path.as_os_str().to_owned();
    journal.push("-journal");
    if !Path::new(&journal).exists() || !path.exists() {
        return Ok(());
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
}

/// Looks at the database without writing to it; says whether it has our tables.
pub(crate) fn inspect(path: &Path) -> Result<bool, OpenError> {
    let empty = std::fs::metadata(path).map_or(true, |metadata| metadata.len() == 0);
    if empty {
        return Ok(false);
    }
    let sqlite = |error: rusqlite::Error| translate("open", path, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let application = number("PRAGMA application_id").map_err(sqlite)?;
    let found = number("PRAGMA user_version").map_err(sqlite)?;
    let tables = number("SELECT count(*) FROM sqlite_schema").map_err(sqlite)?;
    // A crash before the tables were made leaves a database with nothing in it.
    if (application, found, tables) == (0, 0, 0) {
        return Ok(false);
    }
    if application != schema::APPLICATION_ID {
        return Err(OpenError::Foreign {
            path: path.to_owned(),
        });
    }
    if found > schema::VERSION {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            known: schema::VERSION,
        });
    }
    Ok(true)
}

/// SQLite gives its `-wal` and `-shm` the mode of the database.
pub(crate) fn create_file(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))
}

fn configure(connection: &Connection, max_bytes: Option<u64>) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(32);
    connection.busy_timeout(Duration::from_secs(5))?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        tracing::warn!(
            mode,
            "the store's database has no write-ahead log; reads wait for writes"
        );
    }
    connection.execute_batch(
        "PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -16384;",
    )?;
    if let Some(max_bytes) = max_bytes {
        let page: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        let pages = schema::signed(max_bytes) / page.max(1);
        connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
    }
    Ok(())
}

fn create_tables(connection: &mut Connection) -> rusqlite::Result<()> {
    let tx = connection.transaction()?;
    tx.execute_batch(schema::CREATE)?;
    tx.pragma_update(None, "application_id", schema::APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", schema::VERSION)?;
    tx.commit()
}

/// Goes through all rows in the order in which they were written, which is faster than asking for the last one of each
/// key. On a connection of its own, so that what it caches is not kept.
fn load(path: &Path, left_in_file: &[String]) -> rusqlite::Result<State> {
    let connection = connect(path)?;
    let mut statement = connection.prepare(&format!(
        "SELECT {}, deleted FROM history ORDER BY id",
        schema::COLUMNS
    ))?;
    let mut loading = Loading::new(left_in_file.into());
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        match row.get(6)? {
            true => loading.delete(&schema::key(row, 1)?),
            false => loading.put(schema::key_value(row)?),
        }
    }
    let compacted = schema::meta(&connection, "compacted")?;
    Ok(loading.done(schema::newest(&connection)?, compacted))
}

fn load_leases(connection: &Connection, state: &mut State, now: Duration) -> rusqlite::Result<()> {
    let mut statement = connection.prepare("SELECT id, ttl_ms FROM lease")?;
    let leases = statement.query_map([], |row| {
        Ok(Lease {
            id: LeaseId(row.get::<_, i64>(0)?.unsigned_abs()),
            ttl: Duration::from_millis(row.get::<_, i64>(1)?.unsigned_abs()),
        })
    })?;
    for lease in leases {
        state.leases_mut().insert(lease?, now);
    }
    Ok(())
}
