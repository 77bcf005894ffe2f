//! Profiles: the default family and one's own, and what VMs and templates are given by them; and what starts their guests.

use reqwest::Method;
use serde_json::{Value, json};

use super::world::World;

async fn make(world: &World, plural: &str, name: &str, spec: Value) -> Value {
    let body = json!({ "name": name, "spec": spec });
    world.post(&format!("/v1/{plural}"), &body).await.ok(201)
}

fn sizes(spec: &Value) -> [Value; 3] {
    ["vcpus", "memory_mib", "disk_bytes"].map(|field| spec[field].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_default_family_is_there_and_stays_as_it_is() {
    let world = World::new().await;
    let list = world
        .get("/v1/profiles?filter=spec.vcpus=16&fields=name,spec.memory_mib")
        .await
        .ok(200);
    assert_eq!(
        list["items"],
        json!([
            { "name": "4xlarge", "spec": { "memory_mib": 65536 } },
            { "name": "cpu-4xlarge", "spec": { "memory_mib": 32768 } },
            { "name": "memory-4xlarge", "spec": { "memory_mib": 131_072 } },
        ])
    );
    let patch = json!({ "spec": { "vcpus": 3 } });
    let refused = world.patch("/v1/profiles/large", &patch).await;
    refused.refused(409, "default-profile");
    let refused = world.delete("/v1/profiles/large").await;
    refused.refused(409, "default-profile");
    let history = world.get("/v1/profiles/large/history").await.ok(200);
    assert_eq!(history["items"], json!([]));
    let said = world.get("/v1/profiles/lagre").await;
    assert!(
        said.body["detail"]
            .as_str()
            .unwrap()
            .contains("did you mean \"large\""),
        "{said:?}"
    );

    // One's own of that name takes its place, and gives it back.
    let own = make(
        &world,
        "profiles",
        "large",
        json!({ "vcpus": 3, "memory_mib": 96 }),
    )
    .await;
    assert_eq!(own["status"]["is_default"], false);
    let listed = world.get("/v1/profiles?filter=name=large").await.ok(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    assert_eq!(listed["items"][0]["spec"]["vcpus"], 3);
    world.delete("/v1/profiles/large").await.ok(200);
    let back = world.get("/v1/profiles/large").await.ok(200);
    assert_eq!(
        (&back["spec"]["vcpus"], &back["status"]["is_default"]),
        (&json!(2), &json!(true))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_has_its_profiles_sizes_and_keeps_them() {
    let world = World::new().await;
    let spec = json!({ "vcpus": 3, "memory_mib": 96, "disk_bytes": 1 << 22, "host_labels": { "disk": "ssd", "rack": "1" } });
    make(&world, "profiles", "wide", spec).await;
    let placement = json!({ "host_labels": { "rack": "2" } });
    let web = make(
        &world,
        "vms",
        "web",
        json!({ "template": "small", "profile": "wide", "placement": placement }),
    )
    .await;
    assert_eq!(web["spec"]["profile"], "wide");
    assert_eq!(sizes(&web["spec"]), [json!(3), json!(96), json!(1 << 22)]);
    let labels = &web["spec"]["placement"]["host_labels"];
    assert_eq!(*labels, json!({ "disk": "ssd", "rack": "2" }));
    // What the request says itself goes before, and no template is needed.
    let own = make(
        &world,
        "vms",
        "own",
        json!({ "image": "disk", "profile": "wide", "vcpus": 2 }),
    )
    .await;
    assert_eq!(sizes(&own["spec"]), [json!(2), json!(96), json!(1 << 22)]);

    let patch = json!({ "spec": { "vcpus": 4, "memory_mib": 128 } });
    world.patch("/v1/profiles/wide", &patch).await.ok(200);
    let web = world.get("/v1/vms/web").await.ok(200);
    assert_eq!(sizes(&web["spec"]), [json!(3), json!(96), json!(1 << 22)]);
    let refused = world
        .patch("/v1/vms/web", &json!({ "spec": { "profile": "large" } }))
        .await;
    refused.refused(422, "immutable");
    // A VM that is made says what it has already, and its profile may go.
    world.delete("/v1/profiles/wide").await.ok(200);
    let patch = json!({ "spec": { "vcpus": 1 } });
    world.patch("/v1/vms/web", &patch).await.ok(200);
    let none = json!({ "name": "x", "spec": { "template": "small", "profile": "wide" } });
    world.post("/v1/vms", &none).await.refused(422, "not-found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_takes_from_a_profile_what_it_does_not_say() {
    let world = World::new().await;
    let wide = json!({ "vcpus": 3, "memory_mib": 96, "host_labels": { "disk": "ssd" } });
    make(&world, "profiles", "wide", wide).await;
    let spec = json!({ "image": "disk", "profile": "wide", "memory_mib": 80 });
    let template = make(&world, "templates", "web", spec.clone()).await;
    assert_eq!(sizes(&template["spec"]), [json!(null), json!(80), json!(null)]);
    assert_eq!(sizes(&template["status"]), [json!(3), json!(80), json!(null)]);
    let web = make(&world, "vms", "web", json!({ "template": "web" })).await;
    assert_eq!(
        (&web["spec"]["vcpus"], &web["spec"]["memory_mib"]),
        (&json!(3), &json!(80))
    );
    assert_eq!(web["spec"]["profile"], "wide");
    assert_eq!(web["spec"]["placement"]["host_labels"], json!({ "disk": "ssd" }));
    // A profile that is asked for goes before all that the template says.
    make(
        &world,
        "profiles",
        "other",
        json!({ "vcpus": 5, "memory_mib": 72 }),
    )
    .await;
    let big = make(
        &world,
        "vms",
        "big",
        json!({ "template": "web", "profile": "other" }),
    )
    .await;
    assert_eq!(
        (&big["spec"]["vcpus"], &big["spec"]["memory_mib"]),
        (&json!(5), &json!(72))
    );
    assert_eq!(big["spec"]["placement"]["host_labels"], json!({}));

    let in_use = world.delete("/v1/profiles/wide").await;
    in_use.refused(409, "in-use");
    // It keeps what it was given until it is changed; then it takes what the profile says now.
    let patch = json!({ "spec": { "vcpus": 4 } });
    world.patch("/v1/profiles/wide", &patch).await.ok(200);
    let again = world
        .request(Method::PUT, "/v1/templates/web")
        .json(&json!({ "spec": template["spec"] }));
    assert_eq!(world.send(again).await.ok(200)["status"]["vcpus"], 3);
    let patch = json!({ "spec": { "profile": "other" } });
    let changed = world.patch("/v1/templates/web", &patch).await.ok(200);
    assert_eq!(sizes(&changed["status"]), [json!(5), json!(80), json!(null)]);
    world.delete("/v1/profiles/wide").await.ok(200);
    let lacking = json!({ "name": "x", "spec": { "image": "disk" } });
    world
        .post("/v1/templates", &lacking)
        .await
        .refused(422, "memory-missing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_keeps_the_firmware_that_its_template_or_its_maker_gave() {
    let world = World::new().await;
    let spec = json!({ "image": "disk", "memory_mib": 64, "firmware": "uefi" });
    make(&world, "templates", "modern", spec).await;
    let web = make(&world, "vms", "web", json!({ "template": "modern" })).await;
    assert_eq!(web["spec"]["firmware"], "uefi");
    let old = make(
        &world,
        "vms",
        "old",
        json!({ "template": "modern", "firmware": "bios" }),
    )
    .await;
    assert_eq!(old["spec"]["firmware"], "bios");
    let plain = make(&world, "vms", "plain", json!({ "template": "small" })).await;
    assert_eq!(plain["spec"]["firmware"], "bios");
    let copy = make(&world, "vms", "copy", json!({ "clone_of": "web" })).await;
    assert_eq!(copy["spec"]["firmware"], "uefi");
    let patch = json!({ "spec": { "firmware": "bios" } });
    world.patch("/v1/vms/web", &patch).await.refused(422, "immutable");
    let patch = json!({ "spec": { "vcpus": 2 } });
    world.patch("/v1/vms/web", &patch).await.ok(200);
}
