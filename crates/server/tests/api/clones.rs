//! VMs that are copies of others: what they take over, what is their own, and what is refused.

use model::vm::VmSpec;
use model::{Kind, Object, key, record};
use serde_json::{Value, json};
use store::Txn;

use super::agents::id;
use super::world::World;

fn clone(name: &str, source: &str, more: &[(&str, Value)]) -> Value {
    let mut spec = json!({ "clone_of": source });
    for (field, value) in more {
        spec[*field] = value.clone();
    }
    json!({ "name": name, "spec": spec })
}

async fn with_web(power: &str) -> World {
    let world = World::new().await;
    let guest =
        json!({ "hostname": "front", "ssh_keys": ["ssh-ed25519 AAAA a"], "user_data": "#!/bin/sh\n" });
    let spec = json!({ "template": "small", "vcpus": 2, "power": power, "guest": guest });
    world
        .post("/v1/vms", &json!({ "name": "web", "spec": spec }))
        .await
        .ok(201);
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_as_its_source_and_has_an_identity_of_its_own() {
    let world = with_web("running").await;
    let web = world.get("/v1/vms/web").await.ok(200);
    let test = world.post("/v1/vms", &clone("test", "web", &[])).await.ok(201);
    assert_eq!(test["spec"]["clone_of"], "web");
    for field in [
        "template",
        "vcpus",
        "memory_mib",
        "image",
        "disk_bytes",
        "datastore",
        "boot",
    ] {
        assert_eq!(test["spec"][field], web["spec"][field], "{field}");
    }
    for field in ["ssh_keys", "user_data", "seed"] {
        assert_eq!(
            test["spec"]["guest"][field], web["spec"]["guest"][field],
            "{field}"
        );
    }
    assert_eq!(test["spec"]["guest"]["hostname"], Value::Null);
    let nic = |vm: &Value, field: &str| vm["spec"]["nics"][0][field].clone();
    assert_eq!(nic(&test, "network"), nic(&web, "network"));
    assert_ne!(nic(&test, "mac"), nic(&web, "mac"));
    assert_ne!(nic(&test, "address"), nic(&web, "address"));
    assert_eq!(
        (&test["status"]["phase"], &test["status"]["copied"]),
        (&json!("Pending"), &Value::Null)
    );

    let other = [
        ("memory_mib", json!(512)),
        ("vcpus", json!(1)),
        ("nics", json!([])),
        ("power", json!("prepared")),
        ("guest", json!({ "hostname": "lab" })),
    ];
    let lab = world.post("/v1/vms", &clone("lab", "web", &other)).await.ok(201);
    for (field, value) in &other[..4] {
        assert_eq!(lab["spec"][*field], *value);
    }
    assert_eq!(lab["spec"]["guest"]["hostname"], "lab");
    assert_eq!(
        lab["spec"]["guest"]["user_data"],
        web["spec"]["guest"]["user_data"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_the_disk_is_the_sources() {
    let world = with_web("running").await;
    for (field, value) in [
        ("template", json!("small")),
        ("image", json!("disk")),
        ("datastore", json!("default")),
        ("cdrom", json!({ "image": null })),
        ("boot", json!(["disk"])),
        ("firmware", json!("uefi")),
        ("profile", json!("large")),
        ("start", json!("instant")),
    ] {
        let said = world
            .post("/v1/vms", &clone("test", "web", &[(field, value)]))
            .await;
        said.refused(422, "clone-has-its-sources");
        assert!(said.body["detail"].as_str().unwrap().contains(field));
    }
    let smaller = clone("test", "web", &[("disk_bytes", json!(512))]);
    world
        .post("/v1/vms", &smaller)
        .await
        .refused(422, "disk-too-small");
    let larger = clone("large", "web", &[("disk_bytes", json!(1 << 30))]);
    let larger = world.post("/v1/vms", &larger).await.ok(201);
    assert_eq!(larger["spec"]["disk_bytes"], 1 << 30);
    world
        .post("/v1/vms", &clone("test", "none", &[]))
        .await
        .refused(422, "not-found");
    world.post("/v1/vms", &clone("test", "web", &[])).await.ok(201);
    let patch = json!({ "spec": { "clone_of": null } });
    world
        .patch("/v1/vms/test", &patch)
        .await
        .refused(422, "immutable");
    let patch = json!({ "spec": { "clone_of": "test" } });
    world.patch("/v1/vms/web", &patch).await.refused(422, "immutable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_has_a_disk_and_is_not_deleted_under_its_copies() {
    let world = with_web("hold").await;
    let said = world.post("/v1/vms", &clone("test", "web", &[])).await;
    said.refused(409, "clone-source-empty");
    assert!(
        said.body["detail"]
            .as_str()
            .unwrap()
            .contains("`sterna vm start web --wait`")
    );

    let world = with_web("running").await;
    world.post("/v1/vms", &clone("test", "web", &[])).await.ok(201);
    let said = world.delete("/v1/vms/web").await;
    said.refused(409, "vm-being-copied");
    assert!(
        said.body["detail"]
            .as_str()
            .unwrap()
            .contains("`sterna vm delete test`")
    );
    world.delete("/v1/vms/test").await.ok(200);
    world.delete("/v1/vms/web").await.ok(200);
}

/// What of two servers the one that has not heard of the image may do.
async fn deleted_elsewhere(world: &World, vm: &Value) {
    let object = key::object(Kind::Vm, id(vm).0);
    let found = world.store.range(store::RangeRequest::key(object.clone())).await;
    let mut stored: Object<VmSpec> = record::decode(&found.unwrap().items[0].value).unwrap();
    stored.meta.deleted_at = Some(stored.meta.created_at);
    let txn = Txn::new().put(object, record::encode(&stored));
    world.store.txn(txn).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_whose_vm_was_deleted_elsewhere_says_so_and_is_made_of_another() {
    let world = with_web("running").await;
    let spec = json!({ "name": "base", "spec": { "from_vm": "web" } });
    world.post("/v1/images", &spec).await.ok(201);
    deleted_elsewhere(&world, &world.get("/v1/vms/web").await.ok(200)).await;
    world.until("/v1/vms", |all| all["items"] == json!([])).await;
    let base = world.get("/v1/images/base").await.ok(200);
    assert_eq!(base["status"]["state"], "failed");
    assert_eq!(base["status"]["reason"]["code"], "clone-source-gone");
    let next = &base["status"]["next_commands"];
    let commands = [
        "sterna image create base --from-vm VM",
        "sterna image delete base",
    ];
    assert_eq!(*next, json!(commands));

    let other = json!({ "name": "other", "spec": { "image": "disk", "template": "small" } });
    world.post("/v1/vms", &other).await.ok(201);
    let again = json!({ "from_vm": "other" });
    world.post("/v1/images/base/actions/import", &again).await.ok(200);
    let base = world.get("/v1/images/base").await.ok(200);
    assert_eq!(base["status"]["state"], "importing", "{base:#?}");
    assert_eq!(base["status"]["reason"]["code"], "clone-source-starts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_whose_source_was_deleted_elsewhere_can_only_be_deleted() {
    let world = with_web("running").await;
    world.post("/v1/vms", &clone("test", "web", &[])).await.ok(201);
    deleted_elsewhere(&world, &world.get("/v1/vms/web").await.ok(200)).await;
    let is_failed = |test: &Value| test["status"]["phase"] == "Failed";
    let test = world.until("/v1/vms/test", is_failed).await;
    assert_eq!(test["status"]["reason"]["code"], "clone-source-gone");
    assert_eq!(test["status"]["next_commands"], json!(["sterna vm delete test"]));
}
