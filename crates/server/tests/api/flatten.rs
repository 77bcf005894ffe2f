//! Disks that shall be made whole, as people may ask for them.

use serde_json::{Value, json};

use super::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_is_asked_to_be_whole_once_and_only_where_there_is_one() {
    let world = World::new().await;
    let make = async |name: &str, spec: Value| {
        let body = json!({ "name": name, "spec": spec });
        world.post("/v1/vms", &body).await.ok(201)
    };
    let flatten = async |name: &str| {
        let path = format!("/v1/vms/{name}/actions/flatten");
        world.post(&path, &json!({})).await
    };
    make("held", json!({ "template": "small", "power": "hold" })).await;
    flatten("held").await.refused(409, "vm-has-no-disk");

    make("web", json!({ "template": "small" })).await;
    let asked = flatten("web").await.ok(200);
    let disk = &asked["status"]["disk"];
    assert_eq!(
        (&disk["whole"], &disk["flattening"]),
        (&json!(false), &json!(true))
    );
    let again = flatten("web").await.ok(200);
    assert_eq!(again["status"]["disk"], *disk);
    let operation = world.get("/v1/operations/web-flatten-1").await.ok(200);
    assert_eq!(
        (&operation["spec"]["action"], &operation["status"]["phase"]),
        (&json!("flatten"), &json!("Running"))
    );
}
