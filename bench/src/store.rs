//! The store: durable transactions of many writers beside a bare loop that commits the same batches, and a long list.
//!
//! **Owns:** both loops, and what of them becomes a row.
//!
//! **Does not know:** anything of a cloud: keys and values are of the size that a cloud's have.
//!
//! **Start here:** [`measure`].

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ::store::{RangeRequest, Store, Txn};
use anyhow::{Context, ensure};
use rusqlite::{Connection, params};
use store_sqlite::{Options, SqliteStore};
use tokio::task::JoinSet;

use crate::row;
use crate::stats::Series;

const WRITERS: usize = 64;
/// How many each writer makes in a run.
const TXNS_EACH: usize = 300;
/// The keys of one transaction: an object, its name, its audit record.
const KINDS: [&str; 3] = ["vm", "name", "audit"];
/// How many different keys of a kind a writer has.
const KEYS_EACH: usize = 100;
const VALUE: &[u8] = &[b'v'; 256];

const LISTED_KEYS: usize = 20_000;
const LISTED_BYTES: usize = 1_024;
const KEYS_PER_TXN: usize = 100;

/// All rows about the store.
pub(crate) async fn measure(root: &Path, runs: usize) -> anyhow::Result<()> {
    let (mut ours, mut theirs, mut syncs) = (Series::default(), Series::default(), Series::default());
    for run in 0..=runs {
        let made = many_writers(&root.join(format!("store-{run}"))).await?;
        let bare = bare_loop(&root.join(format!("bare-{run}.db")), made.batch()).await?;
        // The first run warms caches.
        if run > 0 {
            ours.push(made.per_second());
            theirs.push(bare);
            syncs.push(made.commits as f64 / TXNS as f64);
        }
    }
    row(
        "durable three-key transactions a second, 64 writers (more is better)",
        &ours,
        &theirs,
    );
    println!(
        "| syncs of the log a transaction (a checkpoint adds two every 1,000 pages) | {syncs} | {syncs} | – |"
    );
    let listed = list(&root.join("list"), runs).await?;
    println!("| 20,000 keys of 1 KiB listed, ms | {listed} | – | – |");
    Ok(())
}

const TXNS: usize = WRITERS * TXNS_EACH;

fn key(kind: &str, writer: usize, number: usize) -> String {
    format!("/{kind}/{writer}/{}", number % KEYS_EACH)
}

/// What many writers came to.
struct Made {
    seconds: f64,
    commits: u64,
}

impl Made {
    fn per_second(&self) -> f64 {
        TXNS as f64 / self.seconds
    }

    /// How many transactions shared a commit.
    fn batch(&self) -> usize {
        TXNS / usize::try_from(self.commits.max(1)).unwrap_or(usize::MAX)
    }
}

async fn many_writers(dir: &Path) -> anyhow::Result<Made> {
    let store = Arc::new(SqliteStore::open(Options::new(dir))?);
    let begun = Instant::now();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for number in 0..TXNS_EACH {
                let put = |txn: Txn, kind: &&str| txn.put(key(kind, writer, number), VALUE);
                store.txn(KINDS.iter().fold(Txn::new(), put)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let commits = store.commits();
    Ok(Made { seconds, commits })
}

/// The same rows into the same tables, so many transactions a commit, by a loop that does nothing else. A second.
async fn bare_loop(path: &Path, batch: usize) -> anyhow::Result<f64> {
    let path = path.to_owned();
    let batch = batch.max(1);
    tokio::task::spawn_blocking(move || {
        let mut connection = bare_database(&path)?;
        let begun = Instant::now();
        let mut id = 0_i64;
        for first in (0..TXNS).step_by(batch) {
            let tx = connection.transaction()?;
            for txn in first..(first + batch).min(TXNS) {
                for kind in KINDS {
                    id += 1;
                    let key = key(kind, txn % WRITERS, txn / WRITERS);
                    tx.prepare_cached("INSERT INTO history VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
                        .execute(params![id, key.as_bytes(), VALUE, id, 1, None::<i64>, false])?;
                }
            }
            tx.commit()?;
        }
        Ok(TXNS as f64 / begun.elapsed().as_secs_f64())
    })
    .await?
}

fn bare_database(path: &Path) -> anyhow::Result<Connection> {
    let connection = Connection::open(path).context("making a bare database")?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.execute_batch(
        "PRAGMA synchronous = FULL;
         CREATE TABLE history (id INTEGER PRIMARY KEY, key BLOB NOT NULL, value BLOB NOT NULL,
            create_revision INTEGER NOT NULL, version INTEGER NOT NULL, lease INTEGER, deleted INTEGER NOT NULL);
         CREATE INDEX history_key ON history (key);",
    )?;
    Ok(connection)
}

async fn list(dir: &Path, runs: usize) -> anyhow::Result<Series> {
    let store = SqliteStore::open(Options::new(dir))?;
    for part in 0..LISTED_KEYS / KEYS_PER_TXN {
        let put = |txn: Txn, number| txn.put(format!("/vm/{part:03}{number:02}"), vec![b'v'; LISTED_BYTES]);
        store.txn((0..KEYS_PER_TXN).fold(Txn::new(), put)).await?;
    }
    let mut listed = Series::default();
    for _ in 0..runs {
        let begun = Instant::now();
        let got = store.range(RangeRequest::prefix("/vm/")).await?;
        listed.push(begun.elapsed().as_secs_f64() * 1000.0);
        ensure!(got.items.len() == LISTED_KEYS, "the list is not complete");
    }
    Ok(listed)
}
