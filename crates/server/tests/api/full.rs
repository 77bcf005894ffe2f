//! The directory of images' contents is full, on a small file system of its own: nothing is left of what had no room, it says so,
//! and comes in when there is room. Only root can mount such a file system; anybody else's run says so and ends.

use std::path::PathBuf;
use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};

use super::imports::{begin, disk, ended, is_ready, nothing_is_left};
use super::world::World;

/// Less than the disk has.
const LITTLE: &str = "2m";
/// Enough for it, and not for a second one beside it.
const ENOUGH_FOR_ONE: &str = "4m";
const MUCH: &str = "64m";

/// The images' directory of a world, which has so much room.
struct Small(PathBuf);

impl Small {
    fn mount(world: &World) -> Option<Self> {
        let path = world.dir.path().join("images");
        mount(&["-t", "tmpfs", "sterna-test"], LITTLE, &path).then_some(Self(path))
    }

    fn has(&self, room: &str) {
        assert!(mount(&[], &format!("{room},remount"), &self.0));
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn mount(what: &[&str], room: &str, path: &PathBuf) -> bool {
    let options = format!("size={room}");
    let mounted = Command::new("mount")
        .args(what)
        .args(["-o", &options])
        .arg(path)
        .output();
    mounted.unwrap().status.success()
}

#[track_caller]
fn is_full(image: &Value) {
    let status = &image["status"];
    assert_eq!(
        (&status["state"], &status["reason"]["code"]),
        (&json!("failed"), &json!("image-store-full")),
        "{image:#?}"
    );
    assert!(
        !status["next_commands"].as_array().unwrap().is_empty(),
        "{image:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_room_is_gone_says_so_and_comes_when_there_is_room() {
    let world = World::new().await;
    let disk = disk();
    let work = tempfile::tempdir().unwrap();
    std::fs::write(work.path().join("disk.raw"), &disk).unwrap();
    let run = |program: &str, words: &[&str]| {
        let ended = Command::new(program)
            .args(words)
            .current_dir(work.path())
            .status();
        assert!(ended.unwrap().success(), "{program} {words:?}");
    };
    run("gzip", &["--keep", "disk.raw"]);
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "vmdk", "disk.raw", "disk.vmdk"],
    );
    let here = json!({ "name": "here", "spec": { "path": work.path(), "coherent": true } });
    world.post("/v1/datastores", &here).await.ok(201);
    let url = |file: &str| format!("datastore://here/{file}");
    let Some(room) = Small::mount(&world) else {
        println!("skipped: this user cannot mount a file system");
        return;
    };
    // In the midst of what comes, of what is unpacked from it, and of what is made of it.
    for (name, file, has) in [
        ("raw", "disk.raw", LITTLE),
        ("packed", "disk.raw.gz", LITTLE),
        ("foreign", "disk.vmdk", ENOUGH_FOR_ONE),
    ] {
        room.has(has);
        begin(&world, name, &url(file)).await;
        is_full(&ended(&world, name).await);
        nothing_is_left(&world).await;
    }
    room.has(LITTLE);
    world
        .post("/v1/images", &json!({ "name": "sent", "spec": {} }))
        .await
        .ok(201);
    let send = || {
        world
            .request(Method::PUT, "/v1/images/sent/content")
            .body(disk.clone())
    };
    world.send(send()).await.refused(503, "image-store-full");
    is_full(&world.get("/v1/images/sent").await.ok(200));
    nothing_is_left(&world).await;

    room.has(MUCH);
    is_ready(&world.send(send()).await.ok(200), &disk);
    for (name, file) in [
        ("raw", "disk.raw"),
        ("packed", "disk.raw.gz"),
        ("foreign", "disk.vmdk"),
    ] {
        let again = format!("/v1/images/{name}/actions/import");
        let source = json!({ "source": { "url": url(file) } });
        world.post(&again, &source).await.ok(200);
        let image = ended(&world, name).await;
        assert_eq!(image["status"]["state"], "ready", "{image:#?}");
    }
    nothing_is_left(&world).await;
}
