//! Warm forms of templates, as people may ask for them and for what is made of them.

use serde_json::{Value, json};

use super::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_form_is_only_read_and_has_its_templates_machine() {
    let world = World::new().await;
    let quick = json!({ "name": "quick", "spec": { "template": "small", "start": "instant" } });
    world
        .post("/v1/vms", &quick)
        .await
        .refused(409, "template-not-warm");
    let without =
        json!({ "name": "quick", "spec": { "image": "disk", "memory_mib": 64, "start": "instant" } });
    world
        .post("/v1/vms", &without)
        .await
        .refused(422, "start-needs-template");
    let warm = json!({ "name": "small-warm-1", "spec": { "warms": "small" } });
    let made = world.post("/v1/vms", &warm).await.ok(201);
    assert_eq!(made["spec"]["warms"], "small");
    for action in ["start", "pause", "off", "stop", "reboot"] {
        let path = format!("/v1/vms/small-warm-1/actions/{action}");
        let refused = world.post(&path, &json!({})).await;
        refused.refused(409, "vm-is-warm-form");
    }
    let clone = json!({ "name": "test", "spec": { "clone_of": "small-warm-1" } });
    world
        .post("/v1/vms", &clone)
        .await
        .refused(409, "vm-is-warm-form");
    let image = json!({ "name": "captured", "spec": { "from_vm": "small-warm-1" } });
    world
        .post("/v1/images", &image)
        .await
        .refused(409, "vm-is-warm-form");
    for (field, value) in [("vcpus", json!(2)), ("clone_full", json!(true))] {
        let other = json!({ "name": "other", "spec": { "warms": "small", field: value } });
        world
            .post("/v1/vms", &other)
            .await
            .refused(422, "warm-form-has-its-templates");
    }
    let uefi = json!({ "name": "uefi", "spec": { "image": "disk", "memory_mib": 64, "firmware": "uefi" } });
    world.post("/v1/templates", &uefi).await.ok(201);
    let warm = json!({ "name": "uefi-warm-1", "spec": { "warms": "uefi" } });
    let made = world.post("/v1/vms", &warm).await.ok(201);
    assert_eq!(made["spec"]["firmware"], "uefi");
    world.delete("/v1/vms/small-warm-1").await.ok(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_a_template_is_kept_warm_is_no_part_of_what_it_gives() {
    let world = World::new().await;
    let profile = json!({ "name": "own", "spec": { "vcpus": 1, "memory_mib": 64 } });
    world.post("/v1/profiles", &profile).await.ok(201);
    let template = json!({ "name": "web", "spec": { "image": "disk", "profile": "own" } });
    world.post("/v1/templates", &template).await.ok(201);
    let larger = json!({ "spec": { "memory_mib": 128 } });
    world.patch("/v1/profiles/own", &larger).await.ok(200);
    // The controller may have begun already.
    let is_begun = |state: Option<&Value>| state.is_some_and(|state| state == "due" || state == "making");
    for (keep_warm, is_kept) in [(json!({}), true), (json!(null), false)] {
        let patch = json!({ "spec": { "keep_warm": keep_warm } });
        let kept = world.patch("/v1/templates/web", &patch).await.ok(200);
        let status = &kept["status"];
        assert_eq!(
            (&status["version"], &status["memory_mib"]),
            (&json!(1), &json!(64)),
            "the profile's sizes were taken anew"
        );
        assert_eq!(is_begun(status["warm"].get("state")), is_kept, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_made_to_keep_a_template_warm_ends_with_it_and_what_people_made_stays() {
    let world = World::new().await;
    let spec = json!({ "image": "disk", "memory_mib": 64, "keep_warm": {} });
    let template = json!({ "name": "web", "spec": spec });
    world.post("/v1/templates", &template).await.ok(201);
    let is_made = |found: &Value| found["spec"]["warms"] == "web";
    world.until("/v1/vms/web-warm-1", is_made).await;
    let own = json!({ "name": "own", "spec": { "warms": "web" } });
    world.post("/v1/vms", &own).await.ok(201);
    world.delete("/v1/templates/web").await.ok(200);
    let is_gone = |found: &Value| found["code"] == "not-found";
    world.until("/v1/vms/web-warm-1", is_gone).await;
    let own = world.get("/v1/vms/own").await.ok(200);
    assert_eq!(own["deleted_at"], Value::Null);
}
