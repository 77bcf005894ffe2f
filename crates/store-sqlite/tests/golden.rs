//! Databases of every schema version that was ever released: this release opens each, and finds what was written.
//!
//! A new version of the schema gets its file by `cargo test -p store-sqlite --test golden -- --ignored`, once, before it is
//! released; the files of older versions never change.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use store::{LeaseId, Op, RangeRequest, Store, StoreError, Txn};
use store_sqlite::{DATABASE, Options, SqliteStore, check};
use tempfile::TempDir;

/// The version that this release writes.
const VERSION: u32 = 1;

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{version}.db"))
}

async fn values(store: &SqliteStore, at: Option<u64>) -> Result<Vec<(String, String)>, StoreError> {
    let mut request = RangeRequest::prefix("");
    request.revision = at;
    let items = store.range(request).await?.items.into_iter();
    Ok(items
        .map(|kv| (kv.key.to_string(), String::from_utf8(kv.value.to_vec()).unwrap()))
        .collect())
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[tokio::test]
async fn every_released_schema_is_read_and_written_on() {
    for version in 1..=VERSION {
        let dir = TempDir::new().unwrap();
        std::fs::copy(golden(version), dir.path().join(DATABASE)).unwrap();
        let store = SqliteStore::open(Options::new(dir.path())).unwrap();
        let status = store.status().await.unwrap();
        assert_eq!((status.revision, status.compacted), (6, 3), "version {version}");
        let now = values(&store, None).await.unwrap();
        assert_eq!(now, owned(&[("/a", "3"), ("/leased", "by 1")]));
        let before = values(&store, Some(4)).await.unwrap();
        assert_eq!(before, owned(&[("/a", "2"), ("/b", "1"), ("/leased", "by 1")]));
        let gone = values(&store, Some(2)).await;
        assert!(
            matches!(gone, Err(StoreError::Compacted { compacted: 3, .. })),
            "{gone:?}"
        );
        let lease = store.keep_alive(LeaseId(1)).await.unwrap();
        assert_eq!(lease.ttl, Duration::from_secs(3_600));
        assert_eq!(store.txn(Txn::new().put("/a", "4")).await.unwrap().revision, 7);
        drop(store);
        assert_eq!(check(&dir.path().join(DATABASE)).unwrap().faults, []);
    }
}

#[tokio::test]
#[ignore = "makes the golden database of a new version of the schema"]
async fn makes_the_golden_database() {
    if golden(VERSION).exists() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let store = SqliteStore::open(Options::new(dir.path())).unwrap();
    let lease = store.grant_lease(Duration::from_secs(3_600)).await.unwrap().id;
    for txn in [
        Txn::new().put("/a", "1"),
        Txn::new().put("/b", "1"),
        Txn::new().put("/a", "2"),
        Txn::new().then(Op::put_leased("/leased", "by 1", lease)),
        Txn::new().delete("/b"),
        Txn::new().put("/a", "3"),
    ] {
        store.txn(txn).await.unwrap();
    }
    store.compact(3).await.unwrap();
    store.backup(&golden(VERSION)).await.unwrap();
}
