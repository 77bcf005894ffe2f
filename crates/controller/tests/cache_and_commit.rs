//! The view that follows the store, and the one way in which anything is written.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use controller::Env;
use controller::cache::{Cache, Since};
use controller::commit::{CommitError, Writer, commit};
use model::audit::Actor;
use model::datastore::DatastoreSpec;
use model::{Kind, Meta, Object, Timestamp, key, record};
use planner::Plan;
use store::{MemoryStore, Op, RangeRequest, Store, Txn};
use uuid::Uuid;

#[derive(Default)]
struct Counted(AtomicU64);

impl Env for Counted {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn monotonic(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }

    fn sleep(&self, duration: std::time::Duration) -> store::BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn next_id(&self) -> Uuid {
        Uuid::from_u128(1000 + u128::from(self.0.fetch_add(1, Ordering::Relaxed)))
    }
}

fn env() -> Arc<Counted> {
    Arc::default()
}

fn memory() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new(store::system_clock()))
}

fn datastore(n: u128, name: &str, path: &str) -> Object<DatastoreSpec> {
    let meta = Meta {
        id: Uuid::from_u128(n),
        name: name.to_owned(),
        project: None,
        owner: "ann".to_owned(),
        labels: BTreeMap::new(),
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
        deleted_at: None,
    };
    Object {
        meta,
        spec: DatastoreSpec {
            path: path.to_owned(),
            coherent: false,
        },
    }
}

fn path_of(n: u128) -> String {
    key::object(Kind::Datastore, Uuid::from_u128(n))
}

async fn put(store: &MemoryStore, n: u128, path: &str) -> u64 {
    let value = record::encode(&datastore(n, &format!("d{n}"), path));
    store
        .txn(Txn::new().then(Op::put(path_of(n), value)))
        .await
        .unwrap()
        .revision
}

async fn follows(cache: &Cache, revision: u64) {
    assert!(
        cache.reach(revision, Duration::from_secs(10)).await,
        "the view stands at {}",
        cache.revision()
    );
}

fn seen(cache: &Cache, n: u128) -> Option<String> {
    cache
        .view()
        .datastores
        .get(&Uuid::from_u128(n))
        .map(|at| at.value.spec.path.clone())
}

#[tokio::test]
async fn the_view_follows_and_changes_can_be_followed_from_any_kept_revision() {
    let store = memory();
    let first = put(&store, 1, "/a").await;
    let cache = Cache::start(store.clone(), env()).await.unwrap();
    assert_eq!(seen(&cache, 1).as_deref(), Some("/a"));
    put(&store, 2, "/b").await;
    let last = put(&store, 1, "/c").await;
    follows(&cache, last).await;
    assert_eq!(seen(&cache, 1).as_deref(), Some("/c"));
    let Since::Changes(changes) = cache.since(first) else {
        panic!("it is kept")
    };
    let found: Vec<_> = changes
        .iter()
        .map(|changed| (changed.id.as_u128(), changed.revision))
        .collect();
    assert_eq!(found, [(2, last - 1), (1, last)], "each once, at its last change");
    assert!(matches!(cache.since(last), Since::Changes(none) if none.is_empty()));
}

#[tokio::test]
async fn what_is_gone_is_shown_as_it_was_last() {
    let store = memory();
    let before = put(&store, 1, "/a").await;
    let cache = Cache::start(store.clone(), env()).await.unwrap();
    let revision = store
        .txn(Txn::new().then(Op::delete(path_of(1))))
        .await
        .unwrap()
        .revision;
    follows(&cache, revision).await;
    assert_eq!(seen(&cache, 1), None);
    let Since::Changes(changes) = cache.since(before) else {
        panic!("it is kept")
    };
    let former = changes[0].gone.as_ref().expect("it is gone");
    assert_eq!(former.datastores[&Uuid::from_u128(1)].value.spec.path, "/a");
}

#[tokio::test]
async fn a_restarted_cache_can_be_followed_from_before_its_start_unless_that_was_compacted() {
    let store = memory();
    let first = put(&store, 1, "/a").await;
    let second = put(&store, 1, "/b").await;
    let cache = Cache::start(store.clone(), env()).await.unwrap();
    let Since::Changes(changes) = cache.since(first) else {
        panic!("it is kept")
    };
    assert_eq!(changes.len(), 1);
    store.compact(second).await.unwrap();
    let restarted = Cache::start(store, env()).await.unwrap();
    assert!(matches!(restarted.since(first), Since::Compacted(oldest) if oldest == second));
    assert_eq!(seen(&restarted, 1).as_deref(), Some("/b"));
}

#[tokio::test]
async fn an_unreadable_object_is_named_and_the_rest_goes_on() {
    let store = memory();
    let bad = Txn::new().then(Op::put(path_of(1), b"{\"schema\":9}".to_vec()));
    store.txn(bad).await.unwrap();
    let revision = put(&store, 2, "/b").await;
    let cache = Cache::start(store.clone(), env()).await.unwrap();
    follows(&cache, revision).await;
    assert_eq!(seen(&cache, 2).as_deref(), Some("/b"));
    assert!(cache.view().unreadable.contains_key(&path_of(1)));
    let mended = put(&store, 1, "/a").await;
    follows(&cache, mended).await;
    assert!(cache.view().unreadable.is_empty());
}

struct Setting {
    store: Arc<MemoryStore>,
    cache: Arc<Cache>,
    env: Counted,
    actor: Actor,
}

impl Setting {
    async fn new() -> Self {
        let store = memory();
        let cache = Cache::start(store.clone(), env()).await.unwrap();
        Self {
            store,
            cache,
            env: Counted::default(),
            actor: Actor::controller(),
        }
    }

    async fn commit(&self, plan: Plan) -> Result<u64, CommitError> {
        let writer = Writer {
            store: self.store.as_ref(),
            cache: &self.cache,
            env: &self.env,
            actor: &self.actor,
        };
        commit(writer, plan).await
    }

    async fn audits(&self) -> Vec<serde_json::Value> {
        let found = self
            .store
            .range(RangeRequest::prefix(key::AUDIT_PREFIX))
            .await
            .unwrap()
            .items;
        found
            .iter()
            .map(|kv| serde_json::from_slice(&kv.value).unwrap())
            .collect()
    }
}

#[tokio::test]
async fn a_commit_is_compared_and_leaves_one_audit_record_with_before_and_after() {
    let setting = Setting::new().await;
    let mut plan = Plan::new("create d1");
    plan.create(path_of(1), &datastore(1, "d1", "/a"));
    let revision = setting.commit(plan.clone()).await.unwrap();
    assert!(matches!(setting.commit(plan).await, Err(CommitError::Conflict { key }) if key == path_of(1)));
    let mut change = Plan::new("change d1");
    change.replace(path_of(1), revision, &datastore(1, "d1", "/b"));
    let stale = change.clone();
    setting.commit(change).await.unwrap();
    assert!(matches!(
        setting.commit(stale).await,
        Err(CommitError::Conflict { .. })
    ));
    let audits = setting.audits().await;
    assert_eq!(audits.len(), 2, "what was not committed leaves no record");
    let change = &audits[1]["data"]["changes"][0];
    assert_eq!(change["before"]["data"]["spec"]["path"], "/a");
    assert_eq!(change["after"]["data"]["spec"]["path"], "/b");
}

#[tokio::test]
async fn a_plan_is_refused_when_something_changed_that_it_only_read() {
    let setting = Setting::new().await;
    let revision = put(&setting.store, 1, "/a").await;
    let mut plan = Plan::new("create d2 because of d1");
    plan.rely(path_of(1), revision);
    plan.create(path_of(2), &datastore(2, "d2", "/b"));
    put(&setting.store, 1, "/changed").await;
    assert!(matches!(setting.commit(plan).await, Err(CommitError::Conflict { key }) if key == path_of(1)));
    assert!(
        setting
            .store
            .range(RangeRequest::key(path_of(2)))
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

#[tokio::test]
async fn of_many_commits_on_one_revision_one_succeeds() {
    let setting = Setting::new().await;
    let revision = put(&setting.store, 1, "/a").await;
    let mut succeeded = 0;
    for n in 0..10 {
        let mut plan = Plan::new("change d1");
        plan.replace(path_of(1), revision, &datastore(1, "d1", &format!("/{n}")));
        succeeded += usize::from(setting.commit(plan).await.is_ok());
    }
    assert_eq!(succeeded, 1);
}
