//! Images from object stores: a server has the signature as long as it needs it, and nobody else ever.

use std::fs;

use api::object_store::{Credentials, ObjectStore, StoredObject};
use serde_json::{Value, json};
use store::RangeRequest;

use super::sources::{Front, Nginx};
use super::{disk, ended, has_failed, is_ready, nothing_is_left};
use crate::world::World;

const OBJECT: &str = "s3://images/a%20disk.raw";

/// Where it is, signed at this time.
fn source(endpoint: &str, signed_at: &str) -> Value {
    let mut store = ObjectStore {
        endpoint: endpoint.to_owned(),
        path_style: true,
        ..ObjectStore::default()
    };
    let object = StoredObject::at(OBJECT, &store).unwrap();
    let credentials = Credentials::new("KEY", "secret");
    store.signature = Some(object.signature(&credentials, &signed_at.parse().unwrap()));
    json!({ "url": OBJECT, "s3": store })
}

/// What of a signature nobody guesses.
fn secret(source: &Value) -> &str {
    let signature = source["s3"]["signature"].as_str().unwrap();
    signature.split_once("X-Amz-Signature=").unwrap().1
}

/// The keys in the store with this text in their values.
async fn keys_with(world: &World, secret: &str) -> Vec<String> {
    let all = world.store.range(RangeRequest::prefix("/")).await.unwrap();
    let has = |value: &[u8]| String::from_utf8_lossy(value).contains(secret);
    let found = all.items.iter().filter(|kv| has(&kv.value));
    found.map(|kv| kv.key.to_string()).collect()
}

async fn tells(world: &World, secret: &str) -> bool {
    let mut told = false;
    for path in [
        "images",
        "images/a",
        "images/a/history?reports=true",
        "changes/images?after=0&timeout_s=0",
    ] {
        let said = world.get(&format!("/v1/{path}")).await;
        assert!(said.status < 500, "{said:?}");
        told |= said.body.to_string().contains(secret);
    }
    for file in fs::read_dir(world.dir.path().join("images")).unwrap() {
        told |= String::from_utf8_lossy(&fs::read(file.unwrap().path()).unwrap()).contains(secret);
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_lasts_as_long_as_the_import_and_nobody_sees_it() {
    let world = World::new().await;
    let disk = disk();
    let nginx = Nginx::start(&[("images/a disk.raw", &disk)]).await;
    let broken = nginx.behind(1 << 20, 2).await;
    let source = source(&broken.url(""), "2026-11-22T14:00:00Z");
    let secret = secret(&source);
    let spec = json!({ "name": "a", "spec": { "source": source } });
    let image = world.post("/v1/images?request_id=once", &spec).await.ok(201);
    let again = world.post("/v1/images?request_id=once", &spec).await.ok(201);
    assert_eq!(image, again);
    assert_eq!(image["spec"]["source"]["s3"]["endpoint"], broken.url(""));
    assert!(!image.to_string().contains(secret), "{image:#}");
    broken.asked(3).await;
    let id = image["id"].as_str().unwrap();
    assert_eq!(keys_with(&world, secret).await, [format!("/signature/{id}")]);
    assert!(!tells(&world, secret).await);
    // It goes on with it after a restart.
    let world = world.restarted().await;
    broken.go_on();
    is_ready(&ended(&world, "a").await, &disk);
    let is_signed = |asked: &str| asked.starts_with("get /images/a%20disk.raw?") && asked.contains(secret);
    assert!(
        broken.said().iter().all(|said| is_signed(&said.asked)),
        "{:#?}",
        broken.said()
    );
    nothing_is_left(&world).await;
    assert!(keys_with(&world, secret).await.is_empty());
    assert!(!tells(&world, secret).await);
    // What is shown is what may be said again.
    let shown = world.get("/v1/images/a").await.ok(200)["spec"].clone();
    world
        .patch("/v1/images/a", &json!({ "spec": shown }))
        .await
        .ok(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_object_store_refuses_says_what_leads_on_and_no_secret() {
    let world = World::new().await;
    let body = "<Error><Code>SignatureDoesNotMatch</Code><StringToSign>hidden</StringToSign></Error>";
    let said = format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let store = Front::saying(vec![said]).await;
    let made = world.get("/v1/images/disk").await.ok(200);
    let now = made["created_at"].as_str().unwrap();
    for (name, signed_at, code, why) in [
        (
            "wrong",
            now,
            "source-refused",
            "SignatureDoesNotMatch: look at the credentials",
        ),
        (
            "late",
            "2020-01-01T00:00:00Z",
            "signature-expired",
            "good until 2020-01-02T00:00:00Z",
        ),
    ] {
        let source = source(&store.url(""), signed_at);
        let spec = json!({ "name": name, "spec": { "source": source } });
        world.post("/v1/images", &spec).await.ok(201);
        let image = ended(&world, name).await;
        has_failed(&image, code, why);
        let text = image.to_string();
        assert!(
            !text.contains("hidden") && !text.contains(secret(&source)),
            "{text}"
        );
        let command = format!(
            "sterna image import {name} --url '{OBJECT}' --endpoint '{}' --region 'us-east-1' --path-style",
            store.url("")
        );
        assert_eq!(image["status"]["next_commands"], json!([command]));
        assert!(keys_with(&world, secret(&source)).await.is_empty());
        // What was signed for it is gone.
        let again = world
            .post(&format!("/v1/images/{name}/actions/import"), &json!({}))
            .await;
        again.refused(422, "signature-missing");
    }
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_is_named_and_signed_for() {
    let world = World::new().await;
    let good = source("http://127.0.0.1:9", "2026-11-22T14:00:00Z");
    let with = |field: &str, value: Value| {
        let mut source = good.clone();
        source["s3"][field] = value;
        source
    };
    for (source, code) in [
        (json!({ "url": OBJECT }), "invalid-url"),
        (json!({ "url": "https://a/b", "s3": good["s3"] }), "invalid-url"),
        (with("endpoint", json!("ftp://a")), "invalid-url"),
        (with("path_style", json!(false)), "invalid-url"),
        (with("signature", json!(null)), "signature-missing"),
        (
            with("signature", json!("X-Amz-Date=20261122T140000Z")),
            "signature-missing",
        ),
        (with("signature", json!("a b#c")), "signature-missing"),
    ] {
        let spec = json!({ "name": "a", "spec": { "source": source } });
        world.post("/v1/images", &spec).await.refused(422, code);
    }
}
