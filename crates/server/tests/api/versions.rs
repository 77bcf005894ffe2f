//! The versions of templates: what makes one, what is made from one, and what one keeps.

use serde_json::{Value, json};

use super::world::World;

async fn make(world: &World, plural: &str, name: &str, spec: Value) -> Value {
    let body = json!({ "name": name, "spec": spec });
    world.post(&format!("/v1/{plural}"), &body).await.ok(201)
}

async fn change(world: &World, spec: Value) -> Value {
    let patch = json!({ "spec": spec });
    world.patch("/v1/templates/web", &patch).await.ok(200)
}

/// Number, maker and memory of each, and how many VMs are made from it.
async fn versions(world: &World) -> Vec<Value> {
    let all = world.get("/v1/templates/web/versions").await.ok(200);
    let all = all["items"].as_array().unwrap().clone();
    let row = |it: &Value| json!([it["version"], it["made_by"], it["memory_mib"], it["vms"]]);
    all.iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_what_a_template_gives_is_a_new_version() {
    let world = World::new().await;
    let guest = json!({ "user_data": "#!/bin/sh\nsecret\n" });
    let web = make(
        &world,
        "templates",
        "web",
        json!({ "image": "disk", "memory_mib": 64, "guest": guest }),
    )
    .await;
    assert_eq!(web["status"]["version"], 1);
    make(&world, "vms", "one", json!({ "template": "web" })).await;

    // A repeat makes none, nor does a label.
    assert_eq!(change(&world, web["spec"].clone()).await["status"]["version"], 1);
    let labelled = json!({ "labels": { "a": "b" } });
    let labelled = world.patch("/v1/templates/web", &labelled).await.ok(200);
    assert_eq!(labelled["status"]["version"], 1);
    let changed = change(
        &world,
        json!({ "memory_mib": 80, "guest": { "hostname": "www" } }),
    )
    .await;
    assert_eq!(changed["status"]["version"], 2);
    make(&world, "vms", "two", json!({ "template": "web" })).await;
    let old = make(&world, "vms", "old", json!({ "template": "web@1" })).await;
    assert_eq!(
        (&old["spec"]["template"], &old["status"]["template_version"]),
        (&json!("web"), &json!(1))
    );
    assert_eq!(
        (&old["spec"]["memory_mib"], &old["spec"]["guest"]["hostname"]),
        (&json!(64), &Value::Null)
    );
    assert_eq!(
        versions(&world).await,
        [json!([2, "admin", 80, 1]), json!([1, "admin", 64, 2])]
    );
    let first = world.get("/v1/templates/web/versions/1").await.ok(200);
    assert_eq!(first["spec"], web["spec"]);

    // What made a VM leaves it unchanged, with the version and without; another version is another VM.
    for (template, expected) in [("web", "unchanged"), ("web@1", "unchanged"), ("web@2", "refused")] {
        let documents =
            json!({ "documents": [{ "kind": "vm", "name": "old", "spec": { "template": template } }] });
        let checked = world.post("/v1/check", &documents).await.ok(200);
        assert_eq!(checked["results"][0]["outcome"], expected, "{checked:#}");
    }
    for (template, code) in [
        ("web@3", "not-found"),
        ("web@x", "invalid-version"),
        ("wbe@1", "not-found"),
    ] {
        let body = json!({ "name": "x", "spec": { "template": template } });
        world.post("/v1/vms", &body).await.refused(422, code);
    }
    let history = world.get("/v1/templates/web/history").await.ok(200);
    assert!(!history.to_string().contains("secret"), "{history:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_version_keeps_its_image_until_it_is_deleted() {
    let world = World::new().await;
    make(
        &world,
        "templates",
        "web",
        json!({ "image": "disk", "memory_mib": 64 }),
    )
    .await;
    world.delete("/v1/templates/small").await.ok(200);
    make(&world, "images", "next", json!({})).await;
    change(&world, json!({ "image": "next" })).await;
    world.delete("/v1/images/disk").await.refused(409, "in-use");
    let refused = world.delete("/v1/templates/web/versions/2").await;
    refused.refused(409, "newest-version");
    let left = world.delete("/v1/templates/web/versions/1").await.ok(200);
    assert_eq!(
        (&left["name"], &left["status"]["version"]),
        (&json!("web"), &json!(2))
    );
    let again = world.delete("/v1/templates/web/versions/1").await;
    again.refused(404, "not-found");
    world.delete("/v1/images/disk").await.ok(200);
    // The number of one that is gone does not come again.
    assert_eq!(
        change(&world, json!({ "memory_mib": 80 })).await["status"]["version"],
        3
    );
    let history = world.get("/v1/templates/web/history").await.ok(200);
    let fields = |entry: &Value| {
        let changes = entry["changes"].as_array().unwrap().iter();
        let fields: Vec<&str> = changes.map(|change| change["field"].as_str().unwrap()).collect();
        fields.join(" ")
    };
    let shown: Vec<String> = history["items"].as_array().unwrap().iter().map(fields).collect();
    assert_eq!(
        shown,
        [
            "object",
            "spec.image spec.version",
            "version.1",
            "spec.memory_mib spec.version"
        ]
    );
    // With the template all of them go, and its name is free.
    world.delete("/v1/templates/web").await.ok(200);
    world.delete("/v1/images/next").await.ok(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_a_bound_on_versions() {
    let world = World::new().await;
    make(
        &world,
        "templates",
        "web",
        json!({ "image": "disk", "memory_mib": 64 }),
    )
    .await;
    for memory_mib in 65..64 + 32 {
        change(&world, json!({ "memory_mib": memory_mib })).await;
    }
    let patch = json!({ "spec": { "memory_mib": 128 } });
    let refused = world.patch("/v1/templates/web", &patch).await;
    refused.refused(409, "too-many-versions");
    world.delete("/v1/templates/web/versions/7").await.ok(200);
    assert_eq!(
        change(&world, json!({ "memory_mib": 128 })).await["status"]["version"],
        33
    );
}
