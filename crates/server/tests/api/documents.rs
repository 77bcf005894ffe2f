//! What is said of documents before any is written, and what is kept of writes.

use reqwest::Method;
use serde_json::{Value, json};

use super::world::World;

async fn check(world: &World, documents: Value) -> Vec<Value> {
    let said = world
        .post("/v1/check", &json!({ "documents": documents }))
        .await
        .ok(200);
    said["results"].as_array().unwrap().clone()
}

fn outcomes(results: &[Value]) -> Vec<&str> {
    results
        .iter()
        .map(|result| result["outcome"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_may_need_each_other_and_nothing_is_written() {
    let world = World::new().await;
    let documents = json!([
        { "kind": "network", "name": "front", "spec": { "cidr": "10.1.0.0/24" } },
        { "kind": "template", "name": "front", "spec": { "image": "disk", "memory_mib": 64, "networks": ["front"] } },
        { "kind": "vm", "name": "a", "spec": { "template": "front" } },
        { "kind": "vm", "name": "b", "spec": { "template": "front" } },
        { "kind": "vm", "name": "c", "spec": { "template": "frnot" } },
        { "kind": "template", "name": "small", "spec": { "image": "disk", "memory_mib": 64 } },
        { "kind": "template", "name": "small", "labels": { "a": "b" }, "spec": { "image": "disk", "memory_mib": 128 } },
    ]);
    let results = check(&world, documents).await;
    assert_eq!(
        outcomes(&results),
        [
            "created",
            "created",
            "created",
            "created",
            "refused",
            "unchanged",
            "changed"
        ],
        "{results:#?}"
    );
    // Addresses are taken by those before.
    let address = |result: &Value| result["after"]["spec"]["nics"][0]["address"].clone();
    assert_ne!(address(&results[2]), address(&results[3]));
    let detail = results[4]["problem"]["detail"].as_str().unwrap();
    assert!(detail.contains("did you mean \"front\""), "{detail}");
    assert_eq!(
        (
            &results[6]["before"]["spec"]["memory_mib"],
            &results[6]["after"]["spec"]["memory_mib"]
        ),
        (&json!(64), &json!(128))
    );
    for path in ["/v1/networks/front", "/v1/templates/front", "/v1/vms/a"] {
        world.get(path).await.refused(404, "not-found");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_made_an_object_leaves_it_unchanged() {
    let world = World::new().await;
    let guest = json!({ "ssh_keys": ["ssh-ed25519 AAAA me"] });
    let template = json!({ "name": "keyed", "spec": { "image": "disk", "memory_mib": 64, "disk_bytes": 4096, "guest": guest } });
    world.post("/v1/templates", &template).await.ok(201);
    let vm = json!({ "name": "web", "spec": {
        "template": "keyed", "nics": [{ "network": "default" }], "guest": { "hostname": "www" },
    } });
    let made = world.post("/v1/vms", &vm).await.ok(201);
    let mut document = vm.clone();
    document["kind"] = json!("vm");
    let mut whole = document.clone();
    whole["spec"] = made["spec"].clone();
    whole["labels"] = json!({});
    for document in [document, whole] {
        let results = check(&world, json!([document])).await;
        assert_eq!(outcomes(&results), ["unchanged"], "{results:#?}");
    }
    // A put of the spec with interfaces as they were asked for is no change of theirs either.
    let request = world.request(Method::PUT, "/v1/vms/web").json(&json!({ "spec": {
        "template": "keyed", "disk_bytes": 4096, "nics": [{ "network": "default" }],
    } }));
    world.send(request).await.ok(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_there_already_or_refused() {
    let world = World::new().await;
    let image = world.get("/v1/images/disk").await.ok(200);
    let document = |name: &str, digest: &str| json!({ "kind": "image", "name": name, "spec": { "expected_sha256": digest } });
    let digest = image["status"]["sha256"].as_str().unwrap();
    let results = check(
        &world,
        json!([
            document("disk", digest),
            document("disk", &"0".repeat(64)),
            document("none", digest),
            { "kind": "event", "name": "x", "spec": {} },
            { "kind": "host", "name": "h9", "spec": {} },
        ]),
    )
    .await;
    assert_eq!(
        outcomes(&results),
        ["unchanged", "refused", "refused", "refused", "refused"]
    );
    let codes: Vec<_> = results[1..]
        .iter()
        .map(|result| result["problem"]["code"].as_str().unwrap())
        .collect();
    assert_eq!(
        codes,
        ["image-differs", "image-not-there", "not-a-document", "hosts-join"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_names_who_changed_what_of_the_living_and_the_gone() {
    let world = World::new().await;
    world.vm("web").await;
    let patch = json!({ "labels": { "app": "web" }, "spec": { "memory_mib": 128 } });
    world.patch("/v1/vms/web", &patch).await.ok(200);
    world.vm("other").await;
    let history = world.get("/v1/vms/web/history").await.ok(200);
    let items = history["items"].as_array().unwrap();
    let by_user: Vec<&Value> = items
        .iter()
        .filter(|item| item["actor"] == "user:admin")
        .collect();
    assert_eq!(by_user.len(), 2, "{history:#}");
    assert_eq!(
        (&by_user[0]["action"], &by_user[0]["changes"][0]["field"]),
        (&json!("create vm web"), &json!("object"))
    );
    let changes = json!([
        { "field": "meta.labels.app", "before": null, "after": "web" },
        { "field": "spec.memory_mib", "before": 64, "after": 128 },
    ]);
    assert_eq!(by_user[1]["changes"], changes, "{history:#}");
    let one = world.get("/v1/vms/web/history?limit=1").await.ok(200);
    assert_eq!(
        (one["items"].as_array().unwrap().len(), &one["has_older"]),
        (1, &json!(true))
    );

    let front = json!({ "name": "front", "spec": { "cidr": "10.1.0.0/24" } });
    world.post("/v1/networks", &front).await.ok(201);
    let patch = json!({ "spec": { "networks": ["front"] } });
    world.patch("/v1/templates/small", &patch).await.ok(200);
    let history = world.get("/v1/templates/small/history?limit=1").await.ok(200);
    let change = &history["items"][0]["changes"][0];
    assert_eq!(
        (&change["before"], &change["after"]),
        (&json!(["default"]), &json!(["front"]))
    );

    let template = json!({ "name": "gone", "spec": { "image": "disk", "memory_mib": 64 } });
    world.post("/v1/templates", &template).await.ok(201);
    let gone = world.delete("/v1/templates/gone").await.ok(200);
    for name in ["gone", gone["id"].as_str().unwrap()] {
        let history = world.get(&format!("/v1/templates/{name}/history")).await.ok(200);
        let actions: Vec<_> = history["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| &item["action"])
            .collect();
        assert_eq!(actions, ["create template gone", "delete template gone"]);
    }
    world
        .get("/v1/templates/never/history")
        .await
        .refused(404, "not-found");
}
