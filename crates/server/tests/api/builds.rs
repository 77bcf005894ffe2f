//! VMs that templates are made of, as people may ask for them.

use serde_json::{Value, json};

use super::world::{Said, World};

async fn build(world: &World, spec: Value) -> Said {
    let body = json!({ "name": "build", "spec": spec });
    world.post("/v1/vms", &body).await
}

fn detail(said: &Said) -> &str {
    said.body["detail"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_made_of_something_that_is_there() {
    let world = World::new().await;
    let of = |vm: &str| json!({ "builds": { "template": "new", "from_vm": vm } });
    build(&world, of("nobody")).await.refused(422, "not-found");
    let nothing = json!({ "builds": { "template": "new" } });
    let said = build(&world, nothing).await;
    said.refused(422, "build-needs-source");
    assert!(detail(&said).contains("--from-vm"), "{said:#?}");
    let unknown = json!({ "builds": { "template": "new", "refresh": true } });
    build(&world, unknown).await.refused(422, "not-found");
    let held = json!({ "name": "held", "spec": { "template": "small", "power": "hold" } });
    world.post("/v1/vms", &held).await.ok(201);
    build(&world, of("held")).await.refused(409, "clone-source-empty");
    world.vm("web").await;
    let taken = json!({ "builds": { "template": "small", "from_vm": "web" } });
    let said = build(&world, taken).await;
    said.refused(409, "template-exists");
    assert!(
        detail(&said).contains("sterna template refresh small"),
        "{said:#?}"
    );
    // Nothing of all that was made.
    world.get("/v1/vms/build").await.refused(404, "not-found");
    world.get("/v1/images/new-v1").await.refused(404, "not-found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_build_begins_with_says_all_else() {
    let world = World::new().await;
    world.vm("web").await;
    let builds = json!({ "template": "new", "from_vm": "web" });
    for (field, value) in [
        ("template", json!("small")),
        ("vcpus", json!(1)),
        ("memory_mib", json!(64)),
        ("image", json!("disk")),
        ("disk_bytes", json!(1 << 30)),
        ("guest", json!({})),
        ("power", json!("running")),
        ("profile", json!("x")),
        ("cdrom", json!({})),
        ("clone_of", json!("web")),
        ("clone_full", json!(true)),
        ("datastore", json!("default")),
    ] {
        let said = build(&world, json!({ "builds": builds, field: value })).await;
        said.refused(422, "build-has-its-sources");
        assert!(detail(&said).contains(&format!("`{field}`")), "{said:#?}");
    }
    let hidden = json!({ "template": "new", "from_vm": "web", "script": model::user_data::NOT_SHOWN });
    let hidden = build(&world, json!({ "builds": hidden })).await;
    hidden.refused(422, "user-data-not-shown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_is_made_by_one_at_a_time_and_given_up_with_its_vm() {
    let world = World::new().await;
    let refresh = json!({ "builds": { "template": "small", "refresh": true } });
    build(&world, refresh.clone()).await.ok(201);
    let other = json!({ "name": "other", "spec": refresh });
    let said = world.post("/v1/vms", &other).await;
    said.refused(409, "under-way");
    assert!(detail(&said).contains("`sterna vm delete build`"), "{said:#?}");
    // Nothing else is done with its VM, and what it begins with stays.
    for action in ["stop", "reboot", "flatten"] {
        let path = format!("/v1/vms/build/actions/{action}");
        let said = world.post(&path, &json!({})).await;
        said.refused(409, "vm-builds-template");
    }
    for image in ["disk", "small-v2"] {
        let said = world.delete(&format!("/v1/images/{image}")).await;
        said.refused(409, "in-use");
    }
    world.delete("/v1/vms/build").await.ok(200);
    world
        .until("/v1/images", |all| {
            let all = all["items"].as_array().cloned().unwrap_or_default();
            all.iter().all(|image| image["name"] != "small-v2")
        })
        .await;
    world.post("/v1/vms", &other).await.ok(201);
}
