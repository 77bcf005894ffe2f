//! A loss of power in a storm of writes: whatever was answered is there afterwards, and nothing is half there.
//!
//! One storm is recorded, write by write; then its disk loses power at many points of it, each time in another way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may fail the test"
)]

mod disk;
mod recorder;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use store::{RangeRequest, Store, StoreError, Txn};
use store_sqlite::{DATABASE, Options, SqliteStore, check};
use tempfile::TempDir;

use disk::{Disk, Event};

const SEED: u64 = 7;
const WRITERS: usize = 8;
const TXNS_EACH: u64 = 60;
/// What one transaction writes alike.
const PARTS: [&str; 3] = ["object", "name", "audit"];
/// Enough for a write of several pages.
const PADDING: &str = "the rest of an object, which has some length. ";
/// How often power is lost.
const LOSSES: usize = 100;

fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(Options::new(dir)).unwrap()
}

/// By writer, the number that it was answered last.
type Answered = [u64; WRITERS];

/// Writes from all sides, with checkpoints and compactions in between.
async fn storm(dir: &Path) {
    let store = Arc::new(open(dir));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (store, database) = (Arc::clone(&store), dir.join(DATABASE));
        writers.spawn(async move {
            for number in 1..=TXNS_EACH {
                let value = format!("{number} {}", PADDING.repeat(1 + writer * 4));
                let put = |txn: Txn, part: &&str| txn.put(format!("/{part}/{writer}"), value.clone());
                let done = store.txn(PARTS.iter().fold(Txn::new(), put)).await.unwrap();
                recorder::answered(writer, number);
                match (writer, number % 12) {
                    (0, 5) => checkpoint(&database, "PASSIVE"),
                    (0, 11) => checkpoint(&database, "TRUNCATE"),
                    (1, 7) => store.compact(done.revision).await.unwrap(),
                    _ => {}
                }
            }
        });
    }
    writers.join_all().await;
}

/// What SQLite does by itself after many more writes. One that finds the store busy does less.
fn checkpoint(database: &Path, how: &str) {
    let connection = Connection::open(database).unwrap();
    let sql = format!("PRAGMA wal_checkpoint({how})");
    connection.query_row(&sql, [], |_| Ok(())).unwrap();
}

async fn stored(store: &SqliteStore, part: &str, writer: usize) -> u64 {
    let range = RangeRequest::key(format!("/{part}/{writer}"));
    let found = store.range(range).await.unwrap().items.into_iter().next();
    found.map_or(0, |kv| {
        let text = String::from_utf8(kv.value.to_vec()).unwrap();
        text.split_once(' ').unwrap().0.parse().unwrap()
    })
}

/// Opens what is left, and says what of it is not as it was promised.
async fn verdict(left: &BTreeMap<String, Vec<u8>>, answered: &Answered) -> Result<(), String> {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in left {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let opened = SqliteStore::open(Options::new(dir.path()));
    let store = opened.map_err(|error| format!("it cannot be opened: {error}"))?;
    for (writer, answered) in answered.iter().enumerate() {
        let mut found = Vec::new();
        for part in PARTS {
            found.push(stored(&store, part, writer).await);
        }
        if found[0] < *answered || found.iter().any(|number| *number != found[0]) {
            return Err(format!(
                "writer {writer} was answered {answered}, there is {found:?}"
            ));
        }
    }
    let goes_on = store.txn(Txn::new().put("next", "")).await;
    goes_on.map_err(|error: StoreError| format!("it cannot be written: {error}"))?;
    drop(store);
    let faults = check(&dir.path().join(DATABASE)).unwrap().faults;
    faults.is_empty().then_some(()).ok_or(format!("{faults:?}"))
}

/// Loses power now and then, and says the first time that it cost something.
async fn losses(events: &[Event], is_true: impl Fn(&Event) -> bool) -> Result<(), String> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let chance = LOSSES as f64 / events.len() as f64;
    let (mut disk, mut answered) = (Disk::default(), Answered::default());
    for (place, event) in events.iter().enumerate() {
        // Before a sync most is uncertain.
        let often = if matches!(event, Event::Sync { .. }) {
            4.0
        } else {
            1.0
        };
        if rng.random_bool((chance * often).min(1.0)) {
            let left = disk.after_a_loss_of_power(&mut rng);
            let found = verdict(&left, &answered).await;
            found.map_err(|why| format!("seed {SEED}, power lost before event {place}: {why}"))?;
        }
        if let Event::Answered { writer, number } = event {
            answered[*writer] = *number;
        }
        if is_true(event) {
            disk.happened(event);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_a_loss_of_power() {
    let dir = TempDir::new().unwrap();
    recorder::install(dir.path());
    storm(dir.path()).await;
    let events = recorder::take();
    let count = |is_it: fn(&Event) -> bool| events.iter().filter(|event| is_it(event)).count();
    let syncs = count(|event| matches!(event, Event::Sync { .. }));
    let pages = count(|event| matches!(event, Event::Write { file, .. } if file == DATABASE));
    println!(
        "{} events, {syncs} syncs, {pages} pages brought home",
        events.len()
    );
    assert!(syncs > 20 && pages > 20, "the storm was too calm");
    losses(&events, |_| true).await.unwrap();
    // What would be found on a disk that says that it has synced, and has not.
    let lies = losses(&events, |event| !matches!(event, Event::Sync { .. })).await;
    println!("on a disk that lies: {}", lies.unwrap_err());
}
