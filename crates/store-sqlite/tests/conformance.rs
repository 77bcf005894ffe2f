//! The store's conformance suite on the SQLite backend, with reopening in the middle.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use store::conformance::{Failure, Options, Subject, run};
use store::{BoxFuture, Clock, Store};
use store_sqlite::SqliteStore;
use tempfile::TempDir;

/// The suite uses one store at a time.
#[derive(Default)]
struct Sqlite {
    left_in_file: Vec<String>,
    now: Arc<Mutex<Duration>>,
    current: Mutex<Option<(TempDir, Arc<SqliteStore>)>>,
}

impl Sqlite {
    fn open(&self, dir: &TempDir) -> Result<Arc<SqliteStore>, Failure> {
        let now = self.now.clone();
        let clock: Clock = Arc::new(move || *now.lock().unwrap());
        let mut options = store_sqlite::Options::new(dir.path());
        options.clock = clock;
        options.left_in_file.clone_from(&self.left_in_file);
        // Old revisions are read both ways.
        options.near_revisions = 3;
        let store = SqliteStore::open(options);
        Ok(Arc::new(store.map_err(|error| Failure::new(error.to_string()))?))
    }

    fn begin(&self) -> Result<Arc<dyn Store>, Failure> {
        let dir = TempDir::new().map_err(|error| Failure::new(error.to_string()))?;
        let store = self.open(&dir)?;
        *self.current.lock().unwrap() = Some((dir, store.clone()));
        Ok(store)
    }

    fn again(&self) -> Result<Option<Arc<dyn Store>>, Failure> {
        let mut current = self.current.lock().unwrap();
        let (dir, store) = current.take().ok_or_else(|| Failure::new("nothing is open"))?;
        store.close();
        let store = self.open(&dir)?;
        *current = Some((dir, store.clone()));
        Ok(Some(store))
    }
}

impl Subject for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn fresh(&self) -> BoxFuture<'_, Result<Arc<dyn Store>, Failure>> {
        Box::pin(async { self.begin() })
    }

    fn reopen(&self, store: Arc<dyn Store>) -> BoxFuture<'_, Result<Option<Arc<dyn Store>>, Failure>> {
        drop(store);
        Box::pin(async { self.again() })
    }

    fn advance(&self, by: Duration) -> BoxFuture<'_, ()> {
        *self.now.lock().unwrap() += by;
        let store = self
            .current
            .lock()
            .unwrap()
            .as_ref()
            .map(|(_, store)| store.clone());
        Box::pin(async move {
            if let Some(store) = store {
                store.tick().await.unwrap();
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_conforms() {
    let options = Options {
        histories: 70,
        ..Options::default()
    };
    let report = run(&Sqlite::default(), options).await;
    println!("{}", report.expect("the SQLite store conforms"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_that_leaves_values_in_its_file_conforms() {
    let subject = Sqlite {
        left_in_file: vec![String::new()],
        ..Sqlite::default()
    };
    let options = Options {
        histories: 30,
        ..Options::default()
    };
    let report = run(&subject, options).await;
    println!("{}", report.expect("the store conforms wherever values are"));
}
