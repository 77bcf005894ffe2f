//! VMs that templates are made of: what may be asked for, what is made with it, and what such a VM is not told.

use std::sync::Arc;

use model::limits::VERSIONS_MAX;
use serde_json::{Value, json};
use store::{MemoryStore, Store};

use super::world::World;

/// How often two servers are asked at once.
const TURNS: u32 = 20;

/// With VM `golden`, whose disk may be copied.
async fn with_golden() -> World {
    let world = World::new().await;
    let guest = json!({ "hostname": "gold", "user_data": "#!/bin/sh\n" });
    let spec = json!({ "template": "small", "vcpus": 2, "power": "running", "guest": guest });
    let golden = json!({ "name": "golden", "spec": spec });
    world.post("/v1/vms", &golden).await.ok(201);
    world
}

fn build(name: &str, builds: &Value) -> Value {
    json!({ "name": name, "spec": { "builds": builds } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_made_of_a_vm_by_one_that_is_nothing_else() {
    let world = with_golden().await;
    let asked =
        json!({ "template": "web", "from_vm": "golden", "refresh": false, "script": "echo secret-word" });
    let made = world.post("/v1/vms", &build("b1", &asked)).await.ok(201);
    assert_eq!(made["spec"]["builds"]["template"], "web");
    assert_eq!(
        (&made["spec"]["vcpus"], &made["spec"]["guest"]["hostname"]),
        (&json!(2), &Value::Null)
    );
    let image = world.get("/v1/images/web-v1").await.ok(200);
    assert_eq!(image["status"]["state"], "importing");
    // The template comes to be at the end.
    world.get("/v1/templates/web").await.refused(404, "not-found");

    let again = world.post("/v1/vms", &build("b2", &asked)).await;
    again.refused(409, "under-way");
    for action in ["start", "pause", "off", "stop", "reboot", "flatten"] {
        let path = format!("/v1/vms/b1/actions/{action}");
        let refused = world.post(&path, &json!({})).await;
        refused.refused(409, "vm-builds-template");
    }
    for spec in [
        json!({ "clone_of": "b1" }),
        json!({ "builds": { "template": "x", "from_vm": "b1" } }),
    ] {
        let refused = world
            .post("/v1/vms", &json!({ "name": "copy", "spec": spec }))
            .await;
        refused.refused(409, "vm-builds-template");
    }
    let grown = world
        .patch("/v1/vms/b1", &json!({ "spec": { "vcpus": 4 } }))
        .await;
    grown.refused(409, "vm-builds-template");
    // Given up, it leaves the name free.
    world.delete("/v1/vms/b1").await.ok(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_built_is_refused_before_anything_is_made() {
    let world = with_golden().await;
    let of = |more: Value| {
        let mut builds = json!({ "template": "web", "from_vm": "golden" });
        for (field, value) in more.as_object().unwrap() {
            builds[field] = value.clone();
        }
        build("b1", &builds)
    };
    for (body, status, code) in [
        (of(json!({ "from_vm": "nobody" })), 422, "not-found"),
        (of(json!({ "from_vm": null })), 422, "build-needs-source"),
        (of(json!({ "from_vm": null, "refresh": true })), 422, "not-found"),
        (of(json!({ "template": "small" })), 409, "template-exists"),
        (of(json!({ "script": "" })), 422, "out-of-range"),
        (
            of(json!({ "script": "x".repeat((256 << 10) + 1) })),
            422,
            "out-of-range",
        ),
        (of(json!({ "script": "[not shown]" })), 422, "user-data-not-shown"),
        (of(json!({ "template": "no good" })), 422, "invalid-name"),
    ] {
        world.post("/v1/vms", &body).await.refused(status, code);
    }
    for (field, value) in [
        ("template", json!("small")),
        ("vcpus", json!(2)),
        ("memory_mib", json!(64)),
        ("image", json!("disk")),
        ("disk_bytes", json!(1 << 30)),
        ("guest", json!({ "hostname": "x" })),
        ("power", json!("off")),
        ("profile", json!("large")),
        ("clone_of", json!("golden")),
        ("clone_full", json!(true)),
        ("start", json!("boot")),
        ("datastore", json!("default")),
    ] {
        let mut body = of(json!({}));
        body["spec"][field] = value;
        let refused = world.post("/v1/vms", &body).await;
        refused.refused(422, "build-has-its-sources");
    }
    let held = json!({ "name": "held", "spec": { "template": "small", "power": "hold" } });
    world.post("/v1/vms", &held).await.ok(201);
    let of_held = world.post("/v1/vms", &of(json!({ "from_vm": "held" }))).await;
    of_held.refused(409, "clone-source-empty");
    world.delete("/v1/vms/held").await.ok(200);
    world
        .until("/v1/vms", |all| {
            all["items"].as_array().is_some_and(|all| all.len() == 1)
        })
        .await;
    let (images, vms) = (
        world.get("/v1/images").await.ok(200),
        world.get("/v1/vms").await.ok(200),
    );
    assert_eq!(images["items"].as_array().unwrap().len(), 1);
    assert_eq!(vms["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_refreshed_by_a_vm_of_its_newest_version() {
    let world = World::new().await;
    let asked = json!({ "template": "small", "refresh": true, "script": "true" });
    let made = world.post("/v1/vms", &build("b1", &asked)).await.ok(201);
    assert_eq!(made["spec"]["image"], "disk");
    world.get("/v1/images/small-v2").await.ok(200);
    // What it begins with is not deleted under it.
    let image = world.delete("/v1/images/disk").await;
    image.refused(409, "in-use");
    world
        .post("/v1/vms", &build("b2", &asked))
        .await
        .refused(409, "under-way");
    // Given up, what there was of it goes, and another one may begin.
    world.delete("/v1/vms/b1").await.ok(200);
    let is_gone = |all: &Value| {
        let all = all["items"].as_array().cloned().unwrap_or_default();
        all.iter().all(|image| image["name"] != "small-v2")
    };
    world.until("/v1/images", is_gone).await;
    world.post("/v1/vms", &build("b2", &asked)).await.ok(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_with_as_many_versions_as_there_can_be_is_refused_before_anything_is_made() {
    let world = World::new().await;
    for memory_mib in (65..).take(VERSIONS_MAX - 1) {
        let patch = json!({ "spec": { "memory_mib": memory_mib } });
        world.patch("/v1/templates/small", &patch).await.ok(200);
    }
    let next = build("b1", &json!({ "template": "small", "refresh": true }));
    world
        .post("/v1/vms", &next)
        .await
        .refused(409, "too-many-versions");
    let images = world.get("/v1/images").await.ok(200);
    assert_eq!(images["items"].as_array().unwrap().len(), 1);
    // What is said to lead on does.
    world.delete("/v1/templates/small/versions/7").await.ok(200);
    world.post("/v1/vms", &next).await.ok(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_servers_that_are_asked_at_once_one_builds() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(store::system_clock()));
    let one = World::on(store.clone()).await;
    one.furnish().await;
    let other = World::on(store).await;
    for turn in 0..TURNS {
        let template = json!({ "name": format!("t{turn}"), "spec": { "image": "disk", "memory_mib": 64 } });
        one.post("/v1/templates", &template).await.ok(201);
        other
            .until(&format!("/v1/templates/t{turn}"), |found| {
                found["name"].is_string()
            })
            .await;
        let asked = json!({ "template": format!("t{turn}"), "refresh": true });
        let (first, second) = (
            build(&format!("a{turn}"), &asked),
            build(&format!("b{turn}"), &asked),
        );
        let (first, second) = tokio::join!(one.post("/v1/vms", &first), other.post("/v1/vms", &second));
        let mut statuses = [first.status, second.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409], "{first:?} {second:?}");
    }
}
