//! Durable three-key txns of 64 writers against a bare loop that commits the same batches, and the time of a long list.
//!
//! `cargo run --release -p store-sqlite --example throughput`

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use store::{RangeRequest, Store, Txn};
use store_sqlite::{Options, SqliteStore};

const WRITERS: usize = 64;
const TXNS: usize = 600;
const VALUE: &[u8] = &[b'v'; 256];

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let dir = std::env::temp_dir().join(format!("store-throughput-{}", std::process::id()));
    for round in 0..3 {
        let bare = bare(&dir.join(format!("bare-{round}.db")))?;
        let ours = ours(&dir.join(format!("ours-{round}"))).await?;
        let ratio = ours / bare;
        println!("{ours:.0} txns/s, bare loop {bare:.0} txns/s, ratio {ratio:.2}");
    }
    let took = list(&dir.join("list")).await?;
    println!("20000 keys of 1 KiB listed in {took:?}");
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn per_second(count: usize, start: Instant) -> f64 {
    count as f64 / start.elapsed().as_secs_f64()
}

async fn ours(dir: &std::path::Path) -> Outcome<f64> {
    let store = Arc::new(SqliteStore::open(Options::new(dir))?);
    let start = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            for number in 0..TXNS {
                let key = |kind: &str| format!("/{kind}/{writer}/{}", number % 100);
                let txn = Txn::new()
                    .put(key("vm"), VALUE)
                    .put(key("name"), VALUE)
                    .put(key("event"), VALUE);
                store.txn(txn).await?;
            }
            Outcome::Ok(())
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    Ok(per_second(WRITERS * TXNS, start))
}

fn bare(path: &std::path::Path) -> Outcome<f64> {
    std::fs::create_dir_all(path.parent().ok_or("no parent")?)?;
    let mut connection = Connection::open(path)?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.execute_batch(
        "PRAGMA synchronous = FULL;
         CREATE TABLE history (id INTEGER PRIMARY KEY, key BLOB, value BLOB, create_revision INTEGER,
            version INTEGER, lease INTEGER, deleted INTEGER);
         CREATE INDEX history_key ON history (key);",
    )?;
    let start = Instant::now();
    let mut id = 0_i64;
    for number in 0..TXNS {
        let tx = connection.transaction()?;
        for writer in 0..WRITERS {
            for kind in ["vm", "name", "event"] {
                id += 1;
                let key = format!("/{kind}/{writer}/{}", number % 100);
                tx.prepare_cached("INSERT INTO history VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
                    .execute(params![id, key.as_bytes(), VALUE, id, 1, None::<i64>, false])?;
            }
        }
        tx.commit()?;
    }
    Ok(per_second(WRITERS * TXNS, start))
}

async fn list(dir: &std::path::Path) -> Outcome<Duration> {
    let store = SqliteStore::open(Options::new(dir))?;
    for part in 0..200 {
        let txn = (0..100).fold(Txn::new(), |txn, number| {
            txn.put(format!("/vm/{part:03}{number:02}"), vec![b'v'; 1_024])
        });
        store.txn(txn).await?;
    }
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        let got = store.range(RangeRequest::prefix("/vm/")).await?;
        best = best.min(start.elapsed());
        if got.items.len() != 20_000 {
            return Err("the list is not complete".into());
        }
    }
    Ok(best)
}
