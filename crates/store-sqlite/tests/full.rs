//! A disk that is full: writes are refused with the cause, reads go on, and so do writes when there is room.
//!
//! The disk is a small file system in memory, in a mount namespace of its own.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may fail the test"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use store::{RangeRequest, Store, StoreError, Txn};
use store_sqlite::{DATABASE, Options, SqliteStore, check};
use tempfile::TempDir;

/// Where the small file system is. Without it the story does nothing.
const DIR: &str = "STORE_SMALL_DISK";
const DISK: &str = "size=4m";
/// What somebody else takes of it.
const OTHERS_BYTES: usize = 2 << 20;
const VALUE: &[u8] = &[b'v'; 50_000];
const PATIENCE: Duration = Duration::from_secs(20);

/// How this user gets a mount namespace, if at all.
fn namespace() -> Option<Command> {
    let tried = [&["--user", "--map-root-user", "--mount"][..], &["--mount"]];
    let works = |options: &&&[&str]| {
        let mounted = ["sh", "-c", "mount -t tmpfs none /tmp"];
        let ended = Command::new("unshare").args(**options).args(mounted).output();
        ended.is_ok_and(|ended| ended.status.success())
    };
    let options = tried.iter().find(works)?;
    let mut command = Command::new("unshare");
    command.args(*options);
    Some(command)
}

#[test]
fn writes_go_on_when_there_is_room_again() {
    let Some(mut command) = namespace() else {
        println!("skipped: this user cannot mount a file system");
        return;
    };
    let dir = TempDir::new().unwrap();
    let script = format!("mount -t tmpfs -o {DISK} none \"${DIR}\" && exec \"$@\"");
    let ended = command
        .args(["sh", "-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "story", "--ignored", "--nocapture"])
        .env(DIR, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    let why = String::from_utf8_lossy(&ended.stderr);
    assert!(
        ended.status.success() && said.contains("1 passed"),
        "{said}\n{why}"
    );
}

/// Not a test: what happens on the small file system.
#[tokio::test]
#[ignore = "is started by the test beside it"]
async fn story() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        return;
    };
    let others = dir.join("others");
    std::fs::write(&others, vec![0; OTHERS_BYTES]).unwrap();
    let store = SqliteStore::open(Options::new(dir.join("store"))).unwrap();
    let first = put(&store, 0).await.unwrap();
    let (last, error) = until_refused(&store, first).await;
    println!("after {last} writes: {error}");
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(error.is_retryable());
    // Again, and nothing of it was done.
    assert!(matches!(
        put(&store, last + 1).await,
        Err(StoreError::Full { .. })
    ));
    assert_eq!(newest(&store, None).await, last);
    assert_eq!(newest(&store, Some(first)).await, first);
    std::fs::remove_file(&others).unwrap();
    let next = when_there_is_room(&store, last + 1).await;
    assert_eq!(next, last + 1, "a refused write made a revision");
    drop(store);
    let store = SqliteStore::open(Options::new(dir.join("store"))).unwrap();
    assert_eq!(newest(&store, None).await, next);
    drop(store);
    assert_eq!(check(&database(&dir)).unwrap().faults, []);
}

fn database(dir: &Path) -> PathBuf {
    dir.join("store").join(DATABASE)
}

async fn put(store: &SqliteStore, number: u64) -> Result<u64, StoreError> {
    let txn = Txn::new().put("number", number.to_string()).put("large", VALUE);
    Ok(store.txn(txn).await?.revision)
}

/// The last revision that was made, and why there was no more.
async fn until_refused(store: &SqliteStore, first: u64) -> (u64, StoreError) {
    let mut last = first;
    loop {
        match put(store, last + 1).await {
            Ok(revision) => last = revision,
            Err(error) => return (last, error),
        }
        assert!(last < 1_000, "the disk is never full");
    }
}

async fn when_there_is_room(store: &SqliteStore, number: u64) -> u64 {
    let begun = Instant::now();
    loop {
        match put(store, number).await {
            Ok(revision) => return revision,
            Err(error) if begun.elapsed() > PATIENCE => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// The revision in which the two keys were written last, as it is seen at a revision.
async fn newest(store: &SqliteStore, at: Option<u64>) -> u64 {
    let mut request = RangeRequest::prefix("");
    request.revision = at;
    let items = store.range(request).await.unwrap().items;
    assert_eq!(items.len(), 2);
    assert_eq!(items[0].mod_revision, items[1].mod_revision);
    items[0].mod_revision
}
