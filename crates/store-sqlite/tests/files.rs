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

use futures_util::StreamExt;
use rusqlite::Connection;
use store::{Compare, KeyValue, Op, RangeRequest, Store, StoreError, Txn, WatchItem, WatchRequest};
use store_sqlite::{DATABASE, OpenError, Options, Restore, SqliteStore, check};
use tempfile::TempDir;

/// How long what is done beside may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(30);

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
            Err(error) if start.elapsed() > PATIENCE => panic!("{error}"),
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
    let deadline = Instant::now() + PATIENCE;
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

fn leap(in_backup: u64) -> u64 {
    in_backup + 1_000_000_000
}

async fn backup_of(dir: &TempDir, name: &str) -> std::path::PathBuf {
    let target = dir.path().join(name);
    open(dir).backup(&target).await.unwrap();
    target
}

#[tokio::test]
async fn a_restored_store_goes_on_far_behind_its_backup() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = open(&dir);
    let first = put(&store, "k", 10).await.unwrap();
    let last = store
        .txn(Txn::new().put("k", "2").delete("none"))
        .await
        .unwrap()
        .revision;
    drop(store);
    let backup = backup_of(&dir, "backup.db").await;
    let restore = Restore::begin(&backup, other.path(), leap).unwrap();
    assert_eq!(restore.from, last);
    put(&restore.store().unwrap(), "held", 1).await.unwrap();
    restore.finish().unwrap();
    assert!(!other.path().join("restoring").exists());
    let restored = open(&other);
    let restored_keys = all(&restored).await;
    let keys: Vec<_> = restored_keys.iter().map(|kv| kv.key.as_ref()).collect();
    assert_eq!(keys, ["held", "k"]);
    let status = restored.status().await.unwrap();
    assert!(
        status.revision > last + 1_000_000 && status.compacted > last,
        "{status:?}"
    );
    let old = restored.range(RangeRequest::key("k").at(first)).await;
    assert!(matches!(old, Err(StoreError::Compacted { .. })), "{old:?}");
    let mut watch = restored
        .watch(WatchRequest::prefix("").from(last + 1))
        .await
        .unwrap();
    let said = watch.next().await.unwrap().unwrap();
    assert!(matches!(said, WatchItem::Compacted { .. }), "{said:?}");
    drop((restored, watch));
    assert_eq!(check(&other.path().join(DATABASE)).unwrap().faults, []);
    let again = Restore::begin(&backup, other.path(), leap).map(|_| ());
    assert!(matches!(again, Err(OpenError::Occupied { .. })), "{again:?}");
}

#[tokio::test]
async fn a_restore_that_is_cut_off_or_refused_leaves_no_store() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    put(&open(&dir), "k", 1).await.unwrap();
    let backup = backup_of(&dir, "backup.db").await;
    drop(Restore::begin(&backup, other.path(), leap).unwrap());
    assert!(!other.path().join(DATABASE).exists());
    // What a killed one leaves does not stop the next.
    std::fs::create_dir(other.path().join("restoring")).unwrap();
    std::fs::write(other.path().join("restoring/store.db"), "half").unwrap();
    drop(Restore::begin(&backup, other.path(), leap).unwrap());
    let connection = Connection::open(&backup).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let before = std::fs::read(&backup).unwrap();
    let newer = Restore::begin(&backup, other.path(), leap).map(|_| ());
    assert!(
        matches!(newer, Err(OpenError::Newer { found: 99, .. })),
        "{newer:?}"
    );
    assert_eq!(std::fs::read(&backup).unwrap(), before);
    let used = Restore::begin(&dir.path().join(DATABASE), dir.path(), leap).map(|_| ());
    assert!(matches!(used, Err(OpenError::Occupied { .. })), "{used:?}");
}

/// A page is overwritten; the keys on it are named, and all others are read.
#[tokio::test]
async fn a_broken_page_is_named_and_the_rest_is_read() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    for number in 0..60 {
        let value = format!("value-{number:02}-").repeat(300);
        store
            .txn(Txn::new().put(format!("k/{number:02}"), value))
            .await
            .unwrap();
    }
    drop(store);
    let backup = backup_of(&dir, "backup.db").await;
    assert_eq!(check(&backup).unwrap().faults, []);
    let mut bytes = std::fs::read(&backup).unwrap();
    let place = bytes
        .windows(9)
        .position(|window| window == b"value-30-")
        .unwrap();
    let page = place / 4096 * 4096;
    bytes[page..page + 4096].fill(0xee);
    std::fs::write(&backup, bytes).unwrap();
    let checked = check(&backup).unwrap();
    let named = checked.faults.iter().any(|fault| fault.object == "k/30");
    assert!(named, "{:#?}", checked.faults);
    let read: Vec<_> = checked.keys.iter().map(|kv| kv.key.as_ref()).collect();
    assert!(
        read.contains(&"k/10") && read.contains(&"k/50") && !read.contains(&"k/30"),
        "{read:?}"
    );
    assert!(read.len() >= 55, "{read:?}");
}

#[tokio::test]
async fn an_index_that_disagrees_is_named() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    put(&store, "k", 1).await.unwrap();
    let lease = store.grant_lease(Duration::from_secs(60)).await.unwrap().id;
    store
        .txn(Txn::new().then(Op::put_leased("leased", "", lease)))
        .await
        .unwrap();
    drop(store);
    let path = dir.path().join(DATABASE);
    let connection = Connection::open(&path).unwrap();
    connection.execute("DELETE FROM lease", []).unwrap();
    connection
        .execute("UPDATE meta SET value = 99 WHERE name = 'compacted'", [])
        .unwrap();
    drop(connection);
    let faults = check(&path).unwrap().faults;
    let objects: Vec<_> = faults.iter().map(|fault| fault.object.as_str()).collect();
    assert_eq!(objects, ["table meta", "leased"], "{faults:#?}");
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

/// What is left in the file is not in memory, and nobody sees a difference.
#[tokio::test]
async fn a_value_that_is_left_in_the_file_is_read_compared_and_replaced_like_any_other() {
    let dir = TempDir::new().unwrap();
    let mut options = Options::new(dir.path());
    options.left_in_file = vec!["/seldom/".to_owned()];
    let store = SqliteStore::open(options.clone()).unwrap();
    let first = put(&store, "/seldom/a", 3).await.unwrap();
    put(&store, "/often/a", 4).await.unwrap();
    let lengths = |items: Vec<KeyValue>| items.iter().map(|kv| kv.value.len()).collect::<Vec<_>>();
    assert_eq!(lengths(all(&store).await), [4, 3]);
    let holds = Compare::value("/seldom/a", store::Relation::Equal, "xxx");
    let txn = Txn::new()
        .when(holds.clone())
        .put("/seldom/a", "yy")
        .then(Op::get("/seldom/a"));
    assert!(store.txn(txn).await.unwrap().succeeded);
    let refused = store.txn(Txn::new().when(holds)).await.unwrap();
    assert_eq!(refused.failed[0].actual.as_ref().unwrap().value, "yy");
    let mut changes = store
        .watch(WatchRequest::prefix("/seldom/").from(first + 1))
        .await
        .unwrap();
    let Some(Ok(WatchItem::Batch { events, .. })) = changes.next().await else {
        panic!("no change");
    };
    assert_eq!(events[0].prev.as_ref().unwrap().value, "xxx");
    drop((changes, store));
    let store = SqliteStore::open(options).unwrap();
    assert_eq!(lengths(all(&store).await), [4, 2]);
    let before = store.range(RangeRequest::prefix("").at(first + 1)).await.unwrap();
    assert_eq!(lengths(before.items), [4, 3]);
}
