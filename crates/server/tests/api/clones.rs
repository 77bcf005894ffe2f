//! VMs that are copies of others: what they take over, what is their own, and what is refused.

use serde_json::{Value, json};

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
