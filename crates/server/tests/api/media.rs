//! Installation media: what is one, where it may go, and what of a VM's drive can be changed when.

use reqwest::Method;
use serde_json::{Value, json};

use super::world::World;

/// A medium of 40 blocks with something of its own in it.
fn medium(mark: u8) -> Vec<u8> {
    let mut file = vec![mark; 40 * 2048];
    file[16 * 2048..][..7].copy_from_slice(b"\x01CD001\x01");
    file[16 * 2048 + 80..][..4].copy_from_slice(&40_u32.to_le_bytes());
    file[16 * 2048 + 128..][..2].copy_from_slice(&2048_u16.to_le_bytes());
    file
}

/// A world with two media.
async fn world() -> World {
    let world = World::new().await;
    for (name, mark) in [("installer", 1), ("tools", 2)] {
        world
            .post("/v1/images", &json!({ "name": name, "spec": {} }))
            .await
            .ok(201);
        let sent = world.request(Method::PUT, &format!("/v1/images/{name}/content"));
        world.send(sent.body(medium(mark))).await.ok(200);
    }
    world
}

fn installing(name: &str) -> Value {
    let cdrom = json!({ "image": "installer" });
    json!({ "name": name, "spec": { "memory_mib": 64, "disk_bytes": 1 << 20, "cdrom": cdrom, "power": "hold" } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_medium_goes_into_a_drive_and_a_disk_does_not() {
    let world = world().await;
    let image = world.get("/v1/images/installer").await.ok(200);
    assert_eq!(
        (&image["status"]["is_medium"], &image["status"]["format"]),
        (&json!(true), &json!("raw")),
        "{image:#?}"
    );
    let with = |changes: &[(&str, Value)]| {
        let mut body = installing("x");
        for (field, value) in changes {
            body["spec"][*field] = value.clone();
        }
        body
    };
    let null = || ("cdrom", Value::Null);
    for (body, code, mentions) in [
        (
            with(&[("image", json!("installer")), null()]),
            "image-is-medium",
            "--iso installer",
        ),
        (
            with(&[("cdrom", json!({ "image": "disk" }))]),
            "image-is-no-medium",
            "--image disk",
        ),
        (
            with(&[("cdrom", json!({ "image": "none" }))]),
            "not-found",
            "none",
        ),
        (
            with(&[("disk_bytes", Value::Null)]),
            "disk-size-missing",
            "--disk",
        ),
        (with(&[null()]), "image-missing", "cdrom"),
        (
            with(&[("boot", json!(["disk", "cdrom", "disk"]))]),
            "invalid-boot",
            "twice",
        ),
        (with(&[("boot", json!(["floppy"]))]), "invalid-spec", "floppy"),
    ] {
        let said = world.post("/v1/vms", &body).await;
        said.refused(422, code);
        let detail = said.body["detail"].as_str().unwrap();
        assert!(detail.contains(mentions), "{mentions}: {detail}");
    }
    let body = with(&[null(), ("template", json!("small")), ("boot", json!(["cdrom"]))]);
    world.post("/v1/vms", &body).await.refused(409, "no-drive");
    let template = json!({ "name": "t", "spec": { "image": "tools", "memory_mib": 64 } });
    world
        .post("/v1/templates", &template)
        .await
        .refused(422, "image-is-medium");

    let vm = world.post("/v1/vms", &installing("new")).await.ok(201);
    assert_eq!(vm["spec"]["image"], Value::Null);
    assert_eq!(
        vm["spec"]["cdrom"],
        json!({ "image": "installer", "force": false })
    );
    assert_eq!(vm["spec"]["boot"], json!(["disk", "cdrom"]));
    world.delete("/v1/images/installer").await.refused(409, "in-use");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drive_takes_another_medium_and_keeps_it() {
    let world = world().await;
    world.post("/v1/vms", &installing("new")).await.ok(201);
    for image in [None, Some("tools"), Some("installer")] {
        let patch = json!({ "spec": { "cdrom": { "image": image } } });
        let vm = world.patch("/v1/vms/new", &patch).await.ok(200);
        assert_eq!(vm["spec"]["cdrom"]["image"], json!(image));
    }
    let patch = json!({ "spec": { "cdrom": { "image": "disk" }, "boot": ["cdrom", "disk"] } });
    world
        .patch("/v1/vms/new", &patch)
        .await
        .refused(422, "image-is-no-medium");
    let patch = json!({ "spec": { "boot": ["cdrom", "disk"] } });
    let vm = world.patch("/v1/vms/new", &patch).await.ok(200);
    assert_eq!(
        (&vm["spec"]["cdrom"]["image"], &vm["spec"]["boot"]),
        (&json!("installer"), &json!(["cdrom", "disk"]))
    );
    world.delete("/v1/images/tools").await.ok(200);
    // One that has none gets one.
    let body = json!({ "name": "web", "spec": { "template": "small", "power": "hold" } });
    let vm = world.post("/v1/vms", &body).await.ok(201);
    assert_eq!(vm["spec"]["cdrom"], Value::Null);
    let patch = json!({ "spec": { "cdrom": { "image": "installer" } } });
    let vm = world.patch("/v1/vms/web", &patch).await.ok(200);
    assert_eq!(vm["spec"]["cdrom"]["image"], "installer");
}
