//! The store as a whole: backups, and a restored store that waits until it is known what hosts run.

use std::sync::Arc;
use std::time::Duration;

use model::report::RunState;
use model::restored::Restored;
use model::{Incarnation, Timestamp, key, record};
use serde_json::json;
use store::{MemoryStore, Txn};
use tempfile::TempDir;

use super::agents::{Agent, id};
use super::imports::digest;
use super::world::{World, raw_disk, sqlite};

async fn hold(world: &World) {
    let restored = Restored {
        at: Timestamp::UNIX_EPOCH,
        from_revision: 7,
        ends_unknown: false,
        put_back: None,
    };
    let txn = Txn::new().put(key::RESTORED, record::encode(&restored));
    world.store.txn(txn).await.unwrap();
    world
        .until("/v1/store", |status| status["restored"].is_object())
        .await;
}

/// A host that runs `web` as incarnation 2, of which a held store knows 1, on another host.
async fn held() -> (World, Agent, Agent, model::VmId) {
    let world = World::new().await;
    let (h1, vm) = Agent::with_a_vm(&world).await;
    let h2 = Agent::join(&world, "h2").await;
    hold(&world).await;
    (world, h1, h2, vm)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_store_tells_hosts_nothing_and_grants_nothing() {
    let (world, mut h1, _h2, vm) = held().await;
    let waits = tokio::time::timeout(Duration::from_millis(300), h1.document(&world, |_| true));
    assert!(waits.await.is_err(), "a host was told something");
    // Its incarnation ends; without the hold the next one would be granted.
    let ended = h1.report(None, vec![h1.run(vm, RunState::Closed)]);
    h1.send(&world, &ended).await.ok(204);
    world.post("/v1/vms/web/actions/start", &json!({})).await;
    let other = world.vm("other").await;
    assert_eq!(other["status"]["reason"]["code"], "store-held", "{other:#?}");
    let other = id(&other);
    tokio::time::sleep(Duration::from_millis(300)).await;
    for vm in [vm, other] {
        let grants = world
            .store
            .range(store::RangeRequest::key(key::vm_intent(vm)))
            .await
            .unwrap();
        let granted = grants
            .items
            .first()
            .map(|kv| record::decode::<model::vm::VmIntent>(&kv.value).unwrap());
        assert!(granted.is_none_or(|intent| intent.last_incarnation <= Incarnation(1)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_store_goes_on_when_all_that_runs_is_known() {
    let (world, mut h1, mut h2, vm) = held().await;
    let resume = |end: bool| json!({ "end_unknown": end });
    let said = world.post("/v1/store/resume", &resume(true)).await;
    said.refused(409, "hosts-silent");
    assert!(said.body["detail"].as_str().unwrap().contains("h2"), "{said:#?}");
    let mut unknown = h2.run(vm, RunState::Running);
    unknown.run.incarnation = Incarnation(2);
    let incomplete = h2.report(None, Vec::new());
    let incomplete = model::report::Report {
        is_complete: false,
        ..incomplete
    };
    h2.send(&world, &incomplete).await.ok(204);
    world
        .post("/v1/store/resume", &resume(false))
        .await
        .refused(409, "hosts-silent");
    let report = h2.report(None, vec![unknown.clone()]);
    h2.send(&world, &report).await.ok(204);
    let report = h1.report(None, vec![h1.run(vm, RunState::Closed)]);
    h1.send(&world, &report).await.ok(204);
    let said = world.post("/v1/store/resume", &resume(false)).await;
    said.refused(409, "runs-unknown");
    assert!(
        said.body["detail"].as_str().unwrap().contains("incarnation 2"),
        "{said:#?}"
    );
    // The host is told of what the store knows, and ends all else. Until it has, nothing is granted.
    let ending = world.post("/v1/store/resume", &resume(true)).await.ok(200);
    assert_eq!(ending["restored"]["ends_unknown"], true);
    assert_eq!(ending["restored"]["unknown"][0]["name"], "web");
    let told = h2.document(&world, |_| true).await;
    assert!(!told.vms.contains_key(&vm));
    let again = world.post("/v1/store/resume", &resume(false)).await.ok(200);
    assert!(again["restored"].is_object());
    unknown.run.state = RunState::Closed;
    let report = h2.report(None, vec![unknown]);
    h2.send(&world, &report).await.ok(204);
    let done = world.post("/v1/store/resume", &resume(false)).await.ok(200);
    assert!(done["restored"].is_null(), "{done:#?}");
    let again = world.post("/v1/store/resume", &resume(false)).await.ok(200);
    assert!(again["restored"].is_null());
    // What waited is looked at now.
    world.vm("next").await;
    world
        .until("/v1/vms/next", |vm| vm["status"]["host"].is_string())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_for_administrators_and_arrives_whole() {
    let dir = TempDir::new().unwrap();
    let world = World::on(sqlite(dir.path())).await;
    world.furnish().await;
    let mut backup = world.typed().backup().await.unwrap();
    let mut got = Vec::new();
    while let Some(chunk) = futures_util::StreamExt::next(&mut backup.chunks).await {
        got.extend_from_slice(chunk.unwrap().as_ref());
    }
    assert_eq!(backup.bytes, Some(got.len() as u64));
    assert!(backup.digest.starts_with("sha-256=:"));
    assert!(backup.revision > 0);
    let copy = dir.path().join("copy.db");
    std::fs::write(&copy, got).unwrap();
    let checked = store_sqlite::check(&copy).unwrap();
    assert_eq!((checked.revision, checked.faults), (backup.revision, Vec::new()));
    let anonymous = world.http.get(format!("{}/v1/store/backup", world.url));
    world.send(anonymous).await.refused(401, "no-token");
    let token = record::encode(&model::token::TokenRecord {
        user: "eve".to_owned(),
        name: "hers".to_owned(),
        role: model::token::Role::Operator,
        revoked_at: None,
        created_at: Timestamp::UNIX_EPOCH,
        expires_at: None,
    });
    let hash = server::auth::sha256_hex(b"eves");
    world
        .store
        .txn(Txn::new().put(key::token(&hash), token))
        .await
        .unwrap();
    for (method, path) in [("GET", "/v1/store/backup"), ("POST", "/v1/store/resume")] {
        let request = world
            .http
            .request(method.parse().unwrap(), format!("{}{path}", world.url));
        world
            .send(request.bearer_auth("eves"))
            .await
            .refused(403, "not-admin");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_backups_says_so() {
    let world = World::on(Arc::new(MemoryStore::new(store::system_clock()))).await;
    let said = world.get("/v1/store/backup").await;
    said.refused(500, "store-failed");
    let status = world.get("/v1/store").await.ok(200);
    assert_eq!(
        (&status["backend"], &status["size_bytes"]),
        (&json!("memory"), &json!(null))
    );
}

async fn history(world: &World) -> Vec<serde_json::Value> {
    let history = world.get("/v1/vms/web/history").await.ok(200);
    history["items"].as_array().unwrap().clone()
}

/// What is written is seen by a watch that was cut off, and the audit trail stays, however often the store is compacted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_costs_neither_the_audit_trail_nor_those_who_watch() {
    let world = World::new().await;
    let held = json!({ "name": "web", "spec": { "template": "small", "power": "hold" } });
    world.post("/v1/vms", &held).await.ok(201);
    let history = history(&world).await;
    let written = world.store.status().await.unwrap().revision;
    let mut compaction = server::compaction::Compaction::default();
    let hour = jiff::SignedDuration::from_hours(1);
    for now in [Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH + hour] {
        server::compaction::look(world.store.as_ref(), &mut compaction, now).await;
    }
    // The controller may have written meanwhile, and that stays.
    assert!(world.store.status().await.unwrap().compacted >= written);
    let later = self::history(&world).await;
    let missing: Vec<_> = history.iter().filter(|one| !later.contains(one)).collect();
    assert!(!history.is_empty() && missing.is_empty(), "{missing:#?}");
    // The server's own watch went on: what comes next is shown.
    world.vm("next").await;
    world.get("/v1/vms/next").await.ok(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_put_back_by_hand_is_held_as_soon_as_a_host_shows_it() {
    let world = World::new().await;
    let (mut agent, vm) = Agent::with_a_vm(&world).await;
    let mut run = agent.run(vm, RunState::Running);
    run.run.document_revision = world.store.status().await.unwrap().revision;
    let told = agent.report(None, vec![run.clone()]);
    agent.send(&world, &told).await.ok(204);
    let status = world.get("/v1/store").await.ok(200);
    assert!(
        status["restored"].is_null(),
        "what it was told is no fault: {status:#?}"
    );
    // Told so by a store that has gone on since it was copied.
    run.run.document_revision = 1_000_000;
    let later = agent.report(None, vec![run]);
    agent.send(&world, &later).await.ok(204);
    world
        .until("/v1/store", |status| status["restored"].is_object())
        .await;
    let said = world
        .post("/v1/store/resume", &json!({ "end_unknown": true }))
        .await;
    said.refused(409, "store-put-back");
    let detail = said.body["detail"].as_str().unwrap();
    assert!(detail.contains("h1") && detail.contains("1000000"), "{detail}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_told_what_images_have_and_nothing_of_it_while_that_is_not_known() {
    let world = World::new().await;
    let agent = Agent::join(&world, "h1").await;
    let told = || async { agent.ask(&world, "images").await.ok(200) };
    let of_disk = digest(&raw_disk());
    let all = json!({ "datastores": ["/tmp/sterna-test"], "sha256": [of_disk] });
    assert_eq!(told().await, all);
    // What has no content yet needs none, and what is used is not deleted.
    let other = json!({ "name": "other", "spec": {} });
    let other = world.post("/v1/images", &other).await.ok(201);
    world.delete("/v1/images/disk").await.refused(409, "in-use");
    assert_eq!(told().await, all);
    world.delete("/v1/templates/small").await.ok(200);
    world.delete("/v1/images/disk").await.ok(200);
    assert_eq!(told().await["sha256"], json!([]));
    let nobody = world.get("/agent/v1/images").await.status;
    assert!(matches!(nobody, 401 | 403), "{nobody}");
    // An image that cannot be read may have any content.
    let other = format!("/image/{}", other["id"].as_str().unwrap());
    world
        .store
        .txn(Txn::new().put(other.clone(), "{}"))
        .await
        .unwrap();
    assert_eq!(told().await, json!(null));
    world.store.txn(Txn::new().delete(other)).await.unwrap();
    assert_eq!(told().await["sha256"], json!([]));
    hold(&world).await;
    assert_eq!(told().await, json!(null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_named_and_left_as_it_is() {
    let world = World::new().await;
    let (h1, vm) = Agent::with_a_vm(&world).await;
    let intent = key::vm_intent(vm);
    let stored = async || {
        let found = world.store.range(store::RangeRequest::key(intent.clone())).await;
        found.unwrap().items[0].value.to_vec()
    };
    let before = stored().await;
    let put = async |value: &[u8]| {
        let txn = Txn::new().put(intent.clone(), value.to_vec());
        world.store.txn(txn).await.unwrap();
    };
    put(b"damaged").await;
    let damaged = world
        .until("/v1/vms/web", |web| {
            web["status"]["reason"]["code"] == "unreadable"
        })
        .await;
    let why = damaged["status"]["reason"]["message"].as_str().unwrap();
    assert!(why.contains("sterna store check"), "{why}");
    assert_eq!(damaged["status"]["phase"], "Unknown");
    let next = &damaged["status"]["next_commands"];
    assert_eq!(*next, json!(["sterna store check --data DIR"]));
    let told = h1
        .document(&world, |document| !document.unreadable.is_empty())
        .await;
    assert!(told.unreadable.contains(&vm) && told.vms.is_empty());
    world.delete("/v1/vms/web").await.ok(200);
    // Another VM is started meanwhile, and this one is not touched.
    let other = id(&world.vm("other").await);
    h1.document(&world, |document| document.vms.contains_key(&other))
        .await;
    assert_eq!(stored().await, b"damaged");
    let still = world.get("/v1/vms/web").await.ok(200);
    assert_eq!(still["status"]["reason"]["code"], "unreadable", "{still:#?}");
    put(&before).await;
    let told = h1
        .document(&world, |document| document.vms.contains_key(&vm))
        .await;
    assert!(told.unreadable.is_empty());
}
