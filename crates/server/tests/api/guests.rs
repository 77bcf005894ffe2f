//! What guests are told: up to a megabyte from the request to the host, and who sees it besides.

use model::key;
use reqwest::Method;
use serde_json::{Value, json};
use store::RangeRequest;

use super::agents::{Agent, id};
use super::tokens::{make, with};
use super::world::World;

/// The largest text that is taken.
const MAX_BYTES: usize = 1 << 20;
const SCRIPT: &str = "#!/bin/sh\necho planted-password\n";

fn vm(name: &str, guest: &Value) -> Value {
    json!({ "name": name, "spec": { "template": "small", "guest": guest } })
}

/// A script of this length.
fn script(bytes: usize) -> String {
    let line = "true planted-password\n";
    let mut text = "#!/bin/sh\n".to_owned() + &line.repeat(bytes / line.len() + 1);
    text.truncate(bytes);
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_megabyte_is_taken_end_to_end() {
    let world = World::new().await;
    let mut host = Agent::join(&world, "h1").await;
    host.hello(&world, 4096).await;
    let text = script(MAX_BYTES);
    let body = vm("web", &json!({ "user_data": text }));
    let made = world.post("/v1/vms?request_id=r1", &body).await.ok(201);
    assert_eq!(made["spec"]["guest"]["user_data"], text);
    let again = world.post("/v1/vms?request_id=r1", &body).await.ok(201);
    assert!(made == again, "a repeat gets the same answer");
    let patch = json!({ "labels": { "a": "b" } });
    let changed = world.patch("/v1/vms/web?request_id=r2", &patch).await.ok(200);
    assert_eq!(changed["spec"]["guest"]["user_data"], text);
    let document = host
        .document(&world, |document| document.vms.contains_key(&id(&made)))
        .await;
    let told = document.vms[&id(&made)].machine.guest.user_data.clone();
    assert_eq!(told.unwrap().merged(), text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_the_store_keeps_is_refused_with_its_reason() {
    let world = World::new().await;
    let half = script(MAX_BYTES / 2);
    let both = json!({ "user_data": [half, SCRIPT], "vendor_data": half });
    let said = world.post("/v1/vms", &vm("web", &both)).await;
    said.refused(422, "out-of-range");
    let quotes = "\"".repeat(MAX_BYTES * 3 / 4);
    let dense = json!({ "name": "dense", "spec": { "image": "disk", "memory_mib": 64, "guest": { "user_data": quotes } } });
    let said = world.post("/v1/templates", &dense).await;
    said.refused(422, "guest-too-large");
    assert!(
        said.body["detail"].as_str().unwrap().contains("1310720"),
        "{said:?}"
    );
    // A template's text and the VM's own count together.
    let template = json!({ "name": "base", "spec": { "image": "disk", "memory_mib": 64, "guest": { "vendor_data": half } } });
    world.post("/v1/templates", &template).await.ok(201);
    let mut body = vm("web", &json!({ "user_data": format!("{half}{SCRIPT}") }));
    body["spec"]["template"] = json!("base");
    world.post("/v1/vms", &body).await.refused(422, "out-of-range");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_are_shown_as_they_were_given_and_merged_for_the_guest() {
    let world = World::new().await;
    let mut host = Agent::join(&world, "h1").await;
    host.hello(&world, 4096).await;
    let template = json!({ "name": "base", "spec": { "image": "disk", "memory_mib": 64,
        "guest": { "vendor_data": "#cloud-config\n{}\n", "seed": "configdrive" } } });
    world.post("/v1/templates", &template).await.ok(201);
    let parts = json!([SCRIPT, "#cloud-config\n{}\n"]);
    let mut body = vm("web", &json!({ "user_data": parts }));
    body["spec"]["template"] = json!("base");
    let made = world.post("/v1/vms", &body).await.ok(201);
    let guest = &made["spec"]["guest"];
    assert_eq!(guest["user_data"], parts);
    assert_eq!(guest["vendor_data"], "#cloud-config\n{}\n");
    assert_eq!(guest["seed"], "configdrive");
    let document = host
        .document(&world, |document| document.vms.contains_key(&id(&made)))
        .await;
    let told = serde_json::to_value(&document.vms[&id(&made)].machine.guest).unwrap();
    let merged = told["user_data"]
        .as_str()
        .expect("an agent of before reads a text");
    assert!(merged.starts_with("Content-Type: multipart/mixed"), "{merged}");
    assert_eq!(told["seed"], "configdrive");
    for (wrong, code) in [
        (json!([SCRIPT, "echo hi"]), "user-data-part-unknown"),
        (json!("[not shown]"), "user-data-not-shown"),
        (json!([7]), "invalid-spec"),
        (json!({}), "invalid-spec"),
    ] {
        let said = world
            .post("/v1/vms", &vm("other", &json!({ "user_data": wrong })))
            .await;
        said.refused(422, code);
    }
    let one = world
        .post("/v1/vms", &vm("one", &json!({ "user_data": [SCRIPT] })))
        .await
        .ok(201);
    assert_eq!(one["spec"]["guest"]["user_data"], SCRIPT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_does_not_see_the_texts() {
    let world = World::new().await;
    let guest =
        json!({ "user_data": [SCRIPT, SCRIPT], "vendor_data": SCRIPT, "ssh_keys": ["ssh-ed25519 A"] });
    let template = json!({ "name": "base", "spec": { "image": "disk", "memory_mib": 64, "guest": guest } });
    world.post("/v1/templates", &template).await.ok(201);
    world.post("/v1/vms", &vm("web", &guest)).await.ok(201);
    world
        .patch(
            "/v1/vms/web",
            &json!({ "spec": { "guest": { "vendor_data": null } } }),
        )
        .await
        .ok(200);
    let reader = make(&world, "eyes", "reader").await;
    let operator = make(&world, "hands", "operator").await;
    for path in [
        "/v1/vms",
        "/v1/vms/web",
        "/v1/vms?sort=name",
        "/v1/vms/web/history",
        "/v1/changes/vms?from=1",
        "/v1/vms?filter=name=web&fields=spec.guest",
        "/v1/templates",
        "/v1/templates/base",
    ] {
        let seen = with(&world, &reader, Method::GET, path, None).await.ok(200);
        assert!(!seen.to_string().contains("planted"), "{path}: {seen}");
        assert!(seen.to_string().contains("[not shown"), "{path}: {seen}");
        let seen = with(&world, &operator, Method::GET, path, None).await.ok(200);
        let is_kept = !path.ends_with("history");
        assert_eq!(seen.to_string().contains("planted"), is_kept, "{path}: {seen}");
    }
    // Whoever cannot see it cannot find out either by asking for those that have it.
    let asked = "/v1/vms?filter=spec.guest.vendor_data~planted";
    let seen = with(&world, &reader, Method::GET, asked, None).await;
    assert!(seen.status != 200 || seen.body["items"] == json!([]), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_good_has_no_texts() {
    let world = World::new().await;
    let guest = json!({ "user_data": SCRIPT, "vendor_data": SCRIPT });
    world
        .post("/v1/vms?request_id=r1", &vm("web", &guest))
        .await
        .ok(201);
    let other = json!({ "spec": { "guest": { "user_data": format!("{SCRIPT}#") } } });
    world.patch("/v1/vms/web?request_id=r2", &other).await.ok(200);
    for prefix in [key::AUDIT_PREFIX, key::REQUEST_PREFIX] {
        let kept = world.store.range(RangeRequest::prefix(prefix)).await.unwrap();
        let texts = kept.items.iter().map(|kv| String::from_utf8_lossy(&kv.value));
        let texts: Vec<_> = texts.collect();
        assert!(texts.iter().any(|text| text.contains("[not shown]")), "{prefix}");
        assert!(!texts.iter().any(|text| text.contains("planted")), "{prefix}");
    }
    let history = world.get("/v1/vms/web/history").await.ok(200);
    assert!(history.to_string().contains("[not shown, changed]"), "{history}");
}
