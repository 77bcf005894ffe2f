//! What must be refused, each with a status, a code and a sentence that says what to do.

use model::{Timestamp, key, record};
use reqwest::Method;
use serde_json::{Value, json};
use store::{Op, Txn};

use super::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn specs_that_cannot_be_meant_are_refused_by_the_field() {
    let world = World::new().await;
    let spec = |field: &str, value: Value| {
        let mut body = json!({ "name": "x", "spec": { "template": "small" } });
        body["spec"][field] = value;
        body
    };
    let whole = |field: &str, value: Value| {
        let mut body = spec("vcpus", json!(1));
        body[field] = value;
        body
    };
    let cases = [
        (spec("cpus", json!(2)), "invalid-spec", "cpus"),
        (whole("colour", json!(1)), "invalid-body", "colour"),
        (spec("memory", json!("256MiB")), "invalid-spec", "memory"),
        (spec("memory_mib", json!("256")), "invalid-spec", "256"),
        (spec("memory_mib", json!(-1)), "invalid-spec", "-1"),
        (spec("memory_mib", json!(u64::MAX)), "out-of-range", "memory"),
        (spec("memory_mib", json!(1e30)), "invalid-spec", "1e"),
        (spec("vcpus", json!(0)), "out-of-range", "vcpus"),
        (spec("disk_bytes", json!(513)), "disk-too-small", "1024"),
        (whole("name", json!("a/b")), "invalid-name", "a/b"),
        (whole("name", Value::Null), "name-missing", "name"),
        (spec("template", json!("none")), "not-found", "none"),
        (spec("placement", json!({ "host": "h9" })), "not-found", "h9"),
        (whole("labels", json!({ "a b": "c" })), "invalid-label", "a b"),
        (
            whole("spec", json!({ "memory_mib": 64 })),
            "image-missing",
            "template",
        ),
    ];
    for (body, code, mentions) in cases {
        let said = world.post("/v1/vms", &body).await;
        said.refused(422, code);
        assert!(
            said.body["detail"].as_str().unwrap().contains(mentions),
            "{mentions}: {said:#?}"
        );
    }
    let all = world.get("/v1/vms").await.ok(200);
    assert_eq!(all["items"], json!([]), "nothing was made");
}

/// The answer comes before all is sent, and the connection is closed: who is still writing then may not get to read it.
async fn too_much_is_refused(world: &World) {
    for _ in 0..20 {
        let large = super::world::client(&world.ca, None)
            .post(format!("{}/v1/tokens", world.url))
            .bearer_auth(world.token())
            .body(vec![b' '; 2 << 20]);
        if let Ok(answer) = large.send().await {
            assert_eq!(answer.status().as_u16(), 413);
            let problem: serde_json::Value = answer.json().await.unwrap();
            assert_eq!(problem["code"], "too-large");
            return;
        }
    }
    panic!("no try was answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_request_itself_is_checked() {
    let world = World::new().await;
    let post = |body: Vec<u8>| world.send(world.request(Method::POST, "/v1/vms").body(body));
    post(b"{".to_vec()).await.refused(400, "bad-json");
    too_much_is_refused(&world).await;
    world.get("/v1/vms?colour=red").await.refused(400, "bad-query");
    world.get("/v1/vms?label=red").await.refused(400, "bad-query");
    world.get("/v1/vms?after=x").await.refused(400, "bad-query");
    world
        .post("/v1/vms?request_id=a/b", &json!({ "spec": {} }))
        .await
        .refused(422, "invalid-request-id");
    world.get("/v1/nothing").await.refused(404, "no-route");
    world.get("/").await.refused(404, "no-route");
    world.get("/v1/vms/web").await.refused(404, "not-found");
    world.get("/v1/vms/%ff").await.refused(400, "bad-path");
    world
        .send(world.request(Method::PUT, "/v1/vms"))
        .await
        .refused(405, "no-method");
    world
        .send(world.request(Method::POST, "/v1/events"))
        .await
        .refused(405, "no-method");
    world
        .post("/v1/hosts", &json!({ "name": "h", "spec": {} }))
        .await
        .refused(405, "hosts-join");
    world.vm("web").await;
    world
        .post("/v1/vms/web/actions/fly", &json!({}))
        .await
        .refused(404, "no-such-action");
    world
        .post("/v1/vms/web/actions/pause", &json!({}))
        .await
        .refused(409, "wrong-phase");
    world
        .post("/v1/vms/web/actions/start", &json!({ "hard": true }))
        .await
        .refused(422, "invalid-body");
    world
        .patch("/v1/vms/web", &json!([]))
        .await
        .refused(422, "invalid-patch");
    world
        .patch("/v1/vms/web", &json!({ "status": {} }))
        .await
        .refused(422, "invalid-patch");
    world
        .patch("/v1/vms/web", &json!({ "name": "other" }))
        .await
        .refused(422, "immutable");
    world
        .patch("/v1/vms/web", &json!({ "spec": { "image": "other" } }))
        .await
        .refused(422, "immutable");
    world
        .post("/v1/migrations", &json!({ "spec": { "vm": "web" } }))
        .await
        .refused(409, "not-running");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_must_show_a_token_that_counts() {
    let world = World::new().await;
    let url = format!("{}/v1/vms", world.url);
    world.send(world.http.get(&url)).await.refused(401, "no-token");
    world
        .send(world.http.get(&url).bearer_auth("wrong"))
        .await
        .refused(401, "bad-token");
    world
        .send(world.http.get(&url).header("authorization", "Basic eDp5"))
        .await
        .refused(401, "no-token");
    let expired = model::token::TokenRecord {
        user: "ann".to_owned(),
        name: "old".to_owned(),
        role: model::token::Role::Admin,
        revoked_at: None,
        created_at: Timestamp::UNIX_EPOCH,
        expires_at: Some(Timestamp::UNIX_EPOCH),
    };
    let key = key::token(&server::auth::sha256_hex(b"old"));
    world
        .store
        .txn(Txn::new().then(Op::put(key, record::encode(&expired))))
        .await
        .unwrap();
    world
        .send(world.http.get(&url).bearer_auth("old"))
        .await
        .refused(401, "bad-token");
    // Agents' routes take no tokens.
    world
        .get("/agent/v1/document")
        .await
        .refused(401, "no-certificate");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_that_are_none_are_refused_and_say_so() {
    let world = World::new().await;
    world
        .post(
            "/v1/images",
            &json!({ "name": "i", "spec": { "expected_sha256": "x" } }),
        )
        .await
        .refused(422, "invalid-digest");
    let spec = json!({ "name": "i", "spec": { "expected_sha256": "0".repeat(64) } });
    world.post("/v1/images", &spec).await.ok(201);
    let send = |bytes: Vec<u8>| world.send(world.request(Method::PUT, "/v1/images/i/content").body(bytes));
    send(b"hello".to_vec()).await.refused(422, "not-an-image");
    let image = world.get("/v1/images/i").await.ok(200);
    assert_eq!(
        (&image["status"]["state"], &image["status"]["reason"]["code"]),
        (&json!("failed"), &json!("not-an-image"))
    );
    send(super::world::raw_disk())
        .await
        .refused(422, "digest-differs");
    let body = json!({ "name": "x", "spec": { "image": "i", "memory_mib": 64 } });
    world.post("/v1/vms", &body).await.refused(409, "image-not-ready");
    world
        .send(world.request(Method::PUT, "/v1/images/disk/content").body("x"))
        .await
        .refused(409, "image-has-content");
    world
        .send(world.request(Method::PUT, "/v1/images/none/content").body("x"))
        .await
        .refused(404, "not-found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_addresses_and_datastores_are_checked() {
    let world = World::new().await;
    let network = |cidr: &str, vni: u32| json!({ "name": "n", "spec": { "cidr": cidr, "vni": vni } });
    world
        .post("/v1/networks", &network("10.0.0.1/24", 5))
        .await
        .refused(422, "invalid-cidr");
    world
        .post("/v1/networks", &network("10.0.0.0/24", 0))
        .await
        .refused(422, "out-of-range");
    world
        .post("/v1/networks", &network("10.0.0.0/24", 1 << 24))
        .await
        .refused(422, "out-of-range");
    world
        .post("/v1/networks", &network("10.0.0.0/24", 1000))
        .await
        .refused(409, "vni-taken");
    let store = json!({ "name": "d", "spec": { "path": "relative" } });
    world
        .post("/v1/datastores", &store)
        .await
        .refused(422, "invalid-path");
    let nic = |nic: Value| json!({ "name": "x", "spec": { "template": "small", "nics": [nic] } });
    for (wrong, code) in [
        (
            json!({ "network": "default", "address": "10.8.0.5" }),
            "address-not-in-network",
        ),
        (
            json!({ "network": "default", "address": "10.9.0.255" }),
            "address-not-in-network",
        ),
        (
            json!({ "network": "default", "mac": "01:00:00:00:00:00" }),
            "invalid-mac",
        ),
        (json!({ "network": "none" }), "not-found"),
    ] {
        world.post("/v1/vms", &nic(wrong)).await.refused(422, code);
    }
    let made = world
        .post(
            "/v1/vms",
            &nic(json!({ "network": "default", "address": "10.9.0.7" })),
        )
        .await
        .ok(201);
    assert_eq!(made["spec"]["nics"][0]["address"], "10.9.0.7");
    let mut again = nic(json!({ "network": "default", "address": "10.9.0.7" }));
    again["name"] = json!("y");
    world.post("/v1/vms", &again).await.refused(409, "address-taken");
}
