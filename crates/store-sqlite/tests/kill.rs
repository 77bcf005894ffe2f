//! A process that is killed in a storm of writes: whatever it had answered is there afterwards, and nothing is half there.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use store::{RangeRequest, Store, Txn};
use store_sqlite::{DATABASE, Options, SqliteStore, check};
use tempfile::TempDir;

/// Where the process that is killed writes. Without it the storm does nothing.
const DIR: &str = "STORE_STORM_DIR";
const WRITERS: usize = 8;
/// What one transaction writes alike.
const PARTS: [&str; 3] = ["object", "name", "audit"];
/// After how many answers a process is killed.
const KILLED_AFTER: [usize; 4] = [1, 50, 200, 700];

fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(Options::new(dir)).unwrap()
}

/// Not a test: the process that is killed. It says each number once it was answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is started by the test beside it"]
async fn storm() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let store = Arc::new(open(Path::new(&dir)));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for number in 1.. {
                let put = |txn: Txn, part: &&str| txn.put(format!("/{part}/{writer}"), format!("{number}"));
                store.txn(PARTS.iter().fold(Txn::new(), put)).await.unwrap();
                println!("answered {writer} {number}");
            }
        });
    }
    writers.join_all().await;
}

/// Starts a storm, kills it after so many answers, and says the last number that each writer was answered.
fn killed_after(dir: &Path, answers: usize) -> [u64; WRITERS] {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "storm", "--ignored", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut last = [0; WRITERS];
    let mut seen = 0;
    let mut note = |line: std::io::Result<String>| {
        let line = line.unwrap();
        let Some(said) = line.split_once("answered ").map(|(_, said)| said) else {
            return;
        };
        // The last line may have been cut off by the kill, and then says less than was answered.
        let Some((writer, number)) = said.split_once(' ') else {
            return;
        };
        let (writer, number): (usize, u64) = (writer.parse().unwrap(), number.parse().unwrap());
        last[writer] = last[writer].max(number);
        seen += 1;
        if seen == answers {
            child.kill().unwrap();
        }
    };
    lines.by_ref().for_each(&mut note);
    child.wait().unwrap();
    assert!(seen >= answers, "the storm ended by itself after {seen} answers");
    last
}

#[tokio::test]
async fn what_was_answered_survives_a_kill_in_a_storm() {
    for answers in KILLED_AFTER {
        let dir = TempDir::new().unwrap();
        let answered = killed_after(dir.path(), answers);
        let store = open(dir.path());
        for (writer, answered) in answered.into_iter().enumerate() {
            let mut found = Vec::new();
            for part in PARTS {
                let range = RangeRequest::key(format!("/{part}/{writer}"));
                let kv = store.range(range).await.unwrap().items.into_iter().next();
                found.push(kv.map_or(0, |kv| {
                    std::str::from_utf8(&kv.value).unwrap().parse::<u64>().unwrap()
                }));
            }
            assert!(
                found[0] >= answered,
                "writer {writer} was answered {answered}, there is {found:?}"
            );
            assert!(
                found.iter().all(|number| *number == found[0]),
                "half is there: {found:?}"
            );
        }
        drop(store);
        assert_eq!(check(&dir.path().join(DATABASE)).unwrap().faults, []);
    }
}
