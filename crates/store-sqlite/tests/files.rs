//! What concerns the files: who may open them, what a full disk, a crash or a strange file does.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may fail the test"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use store::{Compare, KeyValue, Op, RangeRequest, Store, StoreError, Txn, WatchRequest};
use store_sqlite::{DATABASE, OpenError, Options, SqliteStore};
use tempfile::TempDir;

fn open(dir: &TempDir) -> SqliteStore {
    SqliteStore::open(Options::new(dir.path())).unwrap()
}

fn refusal(dir: &TempDir) -> OpenError {
    match SqliteStore::open(Options::new(dir.path())) {
        Ok(_) => panic!("the store was opened"),
        Err(error) => error,
    }
}

async fn put(store: &SqliteStore, key: &str, bytes: usize) -> Result<u64, StoreError> {
    let txn = Txn::new().put(key, vec![b'x'; bytes]);
    Ok(store.txn(txn).await?.revision)
}

async fn all(store: &SqliteStore) -> Vec<KeyValue> {
    store.range(RangeRequest::prefix("")).await.unwrap().items
}

fn rows(dir: &Path) -> i64 {
    let connection = Connection::open(dir.join(DATABASE)).unwrap();
    let count = connection.query_row("SELECT count(*) FROM history", [], |row| row.get(0));
    count.unwrap()
}

#[tokio::test]
async fn files_are_private() {
    let dir = TempDir::new().unwrap();
    let inner = dir.path().join("made");
    let store = SqliteStore::open(Options::new(&inner)).unwrap();
    put(&store, "k", 1).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    let mut seen = 0;
    for entry in std::fs::read_dir(&inner).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        seen += 1;
    }
    assert_eq!(seen, 4, "database, -wal, -shm and lock");
}

#[tokio::test]
async fn a_second_opening_is_refused_and_names_the_holder() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let error = refusal(&dir);
    let wanted = OpenError::Locked {
        dir: dir.path().to_owned(),
        holder: Some(std::process::id()),
    };
    assert_eq!(error, wanted);
    let said = error.to_string();
    let pid = format!("in use by process {}", std::process::id());
    assert!(said.contains(&pid), "{said}");
    drop(store);
    open(&dir);
}

#[tokio::test]
async fn a_newer_schema_is_refused_untouched() {
    let dir = TempDir::new().unwrap();
    put(&open(&dir), "k", 1).await.unwrap();
    let path = dir.path().join(DATABASE);
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let before = std::fs::read(&path).unwrap();
    let wanted = OpenError::Newer {
        path: path.clone(),
        found: 99,
        known: 1,
    };
    assert_eq!(refusal(&dir), wanted);
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn other_files_are_refused_untouched() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(DATABASE);
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("CREATE TABLE t (a)").unwrap();
    drop(connection);
    let before = std::fs::read(&path).unwrap();
    assert_eq!(refusal(&dir), OpenError::Foreign { path: path.clone() });
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let noise = b"no database, but long enough to look at".repeat(50);
    std::fs::write(&path, &noise).unwrap();
    let error = refusal(&dir);
    let damaged = matches!(error, OpenError::Store(StoreError::Damaged { .. }));
    assert!(damaged, "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), noise);
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    let dir = TempDir::new().unwrap();
    let mut options = Options::new(dir.path());
    options.max_bytes = Some(4 << 20);
    let store = SqliteStore::open(options).unwrap();
    let kept = put(&store, "kept", 10).await.unwrap();
    let (mut last, mut refused) = (kept, None);
    for _ in 0..200 {
        match put(&store, "grows", 100_000).await {
            Ok(revision) => last = revision,
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let refused = refused.expect("the limit was not felt");
    assert!(matches!(refused, StoreError::Full { .. }), "{refused}");
    assert!(refused.is_retryable());
    assert_eq!(all(&store).await.len(), 2);
    let old = store.range(RangeRequest::prefix("").at(kept)).await.unwrap();
    assert_eq!(old.items.len(), 1);
    assert_eq!(old.revision, last, "a refused write made a revision");
    store.compact(last).await.unwrap();
    let resumed = eventually(|| put(&store, "grows", 100_000)).await;
    assert_eq!(resumed, last + 1);
}

async fn eventually<F: Future<Output = Result<u64, StoreError>>>(attempt: impl Fn() -> F) -> u64 {
    let start = Instant::now();
    loop {
        match attempt().await {
            Ok(revision) => return revision,
            Err(error) if start.elapsed() > Duration::from_secs(10) => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Copies the files while the store writes to them, which is what a killed process leaves, and opens the copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_a_kill() {
    let dir = TempDir::new().unwrap();
    let store = Arc::new(open(&dir));
    for number in 0..300 {
        let txn = Txn::new()
            .put(format!("k/{}", number % 40), number.to_string())
            .put("last", number.to_string());
        store.txn(txn).await.unwrap();
        if number % 100 == 50 {
            let copy = TempDir::new().unwrap();
            for name in [DATABASE, "store.db-wal"] {
                std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
            }
            assert_eq!(all(&open(&copy)).await, all(&store).await);
        }
    }
}

#[tokio::test]
async fn compacted_rows_go_also_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    for number in 0..3_000 {
        put(&store, &format!("k/{}", number % 10), 1).await.unwrap();
    }
    let last = store.txn(Txn::new().delete("k/0")).await.unwrap().revision;
    store.compact(last).await.unwrap();
    drop(store);
    let store = open(&dir);
    let deadline = Instant::now() + Duration::from_secs(10);
    // Nine keys, and the deletion, which is the newest revision.
    while rows(dir.path()) != 10 {
        assert!(Instant::now() < deadline, "{} rows are left", rows(dir.path()));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(all(&store).await.len(), 9);
    assert_eq!(store.status().await.unwrap().revision, last);
}

#[tokio::test]
async fn a_backup_opens_as_a_store() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = open(&dir);
    let first = put(&store, "k", 1_000).await.unwrap();
    put(&store, "k", 1).await.unwrap();
    let target = other.path().join(DATABASE);
    let backup = store.backup(&target).await.unwrap();
    assert_eq!(backup.revision, first + 1);
    put(&store, "after", 1).await.unwrap();
    let again = store.backup(&target).await;
    assert!(again.is_err(), "a backup was overwritten");
    let copy = open(&other);
    assert_eq!(all(&copy).await.len(), 1);
    let old = copy.range(RangeRequest::key("k").at(first)).await.unwrap();
    assert_eq!(old.items[0].value.len(), 1_000);
    assert_eq!(put(&copy, "k", 1).await.unwrap(), first + 2);
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    store.close();
    let closed = |error: StoreError| matches!(error, StoreError::Closed { .. });
    assert!(closed(put(&store, "k", 1).await.unwrap_err()));
    assert!(closed(store.range(RangeRequest::key("k")).await.unwrap_err()));
    assert!(closed(store.compact(1).await.unwrap_err()));
    let watch = store.watch(WatchRequest::key("k")).await.map(|_| ());
    assert!(closed(watch.unwrap_err()));
}

/// Txns of one group see each other, and one that is refused leaves nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn txns_of_a_group_are_decided_one_after_the_other() {
    let dir = TempDir::new().unwrap();
    let store = Arc::new(open(&dir));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200 {
        let store = store.clone();
        tasks.spawn(async move {
            let txn = Txn::new()
                .when(Compare::absent("winner"))
                .put("winner", number.to_string())
                .otherwise(Op::put(format!("loser/{number:03}"), ""));
            store.txn(txn).await.unwrap()
        });
    }
    let answers = tasks.join_all().await;
    assert_eq!(answers.iter().filter(|one| one.succeeded).count(), 1);
    let mut revisions: Vec<_> = answers.iter().map(|one| one.revision).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=200).collect::<Vec<_>>());
    assert_eq!(all(&store).await.len(), 200);
}
