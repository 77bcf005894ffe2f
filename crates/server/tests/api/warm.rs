//! Warm forms of templates, as people may ask for them and for what is made of them.

use serde_json::json;

use super::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_form_is_only_read_and_only_of_what_can_be_warmed() {
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
    let other = json!({ "name": "other", "spec": { "warms": "small", "vcpus": 2 } });
    world
        .post("/v1/vms", &other)
        .await
        .refused(422, "warm-form-has-its-templates");
    let uefi = json!({ "name": "uefi", "spec": { "image": "disk", "memory_mib": 64, "firmware": "uefi" } });
    world.post("/v1/templates", &uefi).await.ok(201);
    let warm = json!({ "name": "uefi-warm-1", "spec": { "warms": "uefi" } });
    world
        .post("/v1/vms", &warm)
        .await
        .refused(422, "warm-form-needs-bios");
    world.delete("/v1/vms/small-warm-1").await.ok(200);
}
