//! Images' contents on the server: sent in parts, kept once, named by who needs them, and gone when nobody does.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::imports::sources::Nginx;
use super::imports::{begin, digest, disk, ended, is_ready, nothing_is_left};
use super::world::{PATIENCE, Said, World};

const MIB: usize = 1 << 20;

async fn image(world: &World, name: &str) {
    let spec = json!({ "name": name, "spec": {} });
    world.post("/v1/images", &spec).await.ok(201);
}

/// Sends content behind what was sent before.
async fn send(world: &World, name: &str, before: &[u8], rest: &[u8]) -> Said {
    let from = match before.len() {
        0 => String::new(),
        bytes => format!("?from={bytes}&held_sha256={}", digest(before)),
    };
    let path = format!("/v1/images/{name}/content{from}");
    let request = world.request(Method::PUT, &path).body(rest.to_vec());
    world.send(request).await
}

/// Begins to send two MiB, and then says nothing until it is told to leave.
struct Client {
    leave: oneshot::Sender<()>,
    answer: JoinHandle<Option<u16>>,
}

impl Client {
    fn begin(world: &World, name: &str, content: &[u8]) -> Self {
        let pieces = content[..2 * MIB].chunks(64 * 1024).map(<[u8]>::to_vec);
        let pieces: Vec<_> = pieces.collect();
        let (leave, leaves) = oneshot::channel();
        let end = stream::once(async move {
            let _ = leaves.await;
            Err(std::io::Error::other("the client is gone"))
        });
        let body = reqwest::Body::wrap_stream(stream::iter(pieces).map(Ok).chain(end));
        let path = format!("/v1/images/{name}/content");
        let request = world.request(Method::PUT, &path).body(body);
        let answer = tokio::spawn(async move { Some(request.send().await.ok()?.status().as_u16()) });
        Self { leave, answer }
    }

    /// Leaves when a MiB has come. How much has.
    async fn leave(self, world: &World, name: &str) -> usize {
        has_come(world, name, MIB).await;
        self.leave.send(()).unwrap();
        self.answer.await.unwrap();
        let is_broken = |image: &Value| image["status"]["reason"]["code"] == "upload-broken";
        world.until(&format!("/v1/images/{name}"), is_broken).await;
        has_come(world, name, MIB).await
    }
}

/// Waits until so much of it lies there.
async fn has_come(world: &World, name: &str, bytes: usize) -> usize {
    let path = format!("/v1/images/{name}/upload");
    let status = world
        .until(&path, |status| {
            status["bytes"].as_u64().unwrap_or(0) >= bytes as u64
        })
        .await;
    usize::try_from(status["bytes"].as_u64().unwrap()).unwrap()
}

fn kept(world: &World, content: &[u8]) -> PathBuf {
    world.dir.path().join("images").join(digest(content))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_broke_goes_on_where_it_was() {
    let world = World::new().await;
    let disk = disk();
    image(&world, "a").await;
    Client::begin(&world, "a", &disk).leave(&world, "a").await;
    // Also by a server that was started meanwhile.
    let world = world.restarted().await;
    let held = has_come(&world, "a", MIB).await;
    let said = send(&world, "a", &disk[..held], &disk[held..]).await.ok(200);
    is_ready(&said, &disk);
    assert_eq!(fs::read(kept(&world, &disk)).unwrap(), disk);
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_the_same_is_not_gone_on_with() {
    let world = World::new().await;
    let disk = disk();
    image(&world, "a").await;
    Client::begin(&world, "a", &disk).leave(&world, "a").await;
    // More is said to be there than is: that stays.
    send(&world, "a", &disk[..3 * MIB], b"rest")
        .await
        .refused(409, "upload-differs");
    has_come(&world, "a", MIB).await;
    let query = world.request(Method::PUT, "/v1/images/a/content?from=5");
    world
        .send(query.body("rest"))
        .await
        .refused(422, "invalid-digest");
    // The digest is another: it is gone.
    send(&world, "a", &disk[1..=MIB], b"rest")
        .await
        .refused(409, "upload-differs");
    assert_eq!(world.get("/v1/images/a/upload").await.ok(200)["bytes"], 0);
    is_ready(&send(&world, "a", &[], &disk).await.ok(200), &disk);
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_begins_later_takes_over_from_a_connection_that_is_silent() {
    let world = World::new().await;
    let disk = disk();
    image(&world, "a").await;
    let silent = Client::begin(&world, "a", &disk);
    let held = has_come(&world, "a", MIB).await;
    let said = send(&world, "a", &disk[..held], &disk[held..]).await.ok(200);
    is_ready(&said, &disk);
    assert_eq!(silent.answer.await.unwrap(), Some(409));
    nothing_is_left(&world).await;
}

/// Waits until the content is gone.
async fn goes(world: &World, content: &[u8]) {
    let begun = Instant::now();
    while kept(world, content).exists() {
        assert!(begun.elapsed() < PATIENCE, "it stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_goes_with_the_last_image_that_has_it() {
    let world = World::new().await;
    let (shared, other) = (disk(), [disk(), disk()].concat());
    for (name, content) in [("a", &shared), ("b", &shared), ("c", &other)] {
        image(&world, name).await;
        is_ready(&send(&world, name, &[], content).await.ok(200), content);
    }
    // That the other one's is gone shows that it was looked.
    for name in ["a", "c"] {
        world.delete(&format!("/v1/images/{name}")).await.ok(200);
    }
    goes(&world, &other).await;
    assert!(kept(&world, &shared).exists());
    // The server was killed when content had its name and no image had the content yet; and an upload's image is gone.
    let orphan = world.dir.path().join("images").join("0".repeat(64));
    let upload = format!("incoming-{}.sent", uuid::Uuid::nil());
    let upload = world.dir.path().join("images").join(upload);
    for path in [&orphan, &upload] {
        fs::write(path, "x").unwrap();
    }
    let world = world.restarted().await;
    world.delete("/v1/images/b").await.ok(200);
    goes(&world, &shared).await;
    assert!(!upload.exists());
    // Another store may know it: it stays for a day.
    assert!(orphan.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_is_not_collected() {
    let world = World::new().await;
    let disk = disk();
    let nginx = Nginx::start(&[("disk.raw", &disk)]).await;
    let held = nginx.behind(MIB, 1).await;
    image(&world, "a").await;
    image(&world, "b").await;
    is_ready(&send(&world, "a", &[], &disk).await.ok(200), &disk);
    begin(&world, "import", &held.url("disk.raw")).await;
    held.asked(2).await;
    let upload = Client::begin(&world, "b", &disk);
    let sent = has_come(&world, "b", MIB).await;
    // The same content, which nobody has yet.
    world.delete("/v1/images/a").await.ok(200);
    goes(&world, &disk).await;
    held.go_on();
    is_ready(&ended(&world, "import").await, &disk);
    let said = send(&world, "b", &disk[..sent], &disk[sent..]).await.ok(200);
    is_ready(&said, &disk);
    assert_eq!(upload.answer.await.unwrap(), Some(409));
    assert_eq!(fs::read(kept(&world, &disk)).unwrap(), disk);
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_says_who_uses_it() {
    let world = World::new().await;
    let used_by = async || world.get("/v1/images/disk").await.ok(200)["status"]["used_by"].clone();
    assert_eq!(
        used_by().await,
        json!({ "count": 1, "first": ["template small"] })
    );
    for n in 0..11 {
        world.vm(&format!("web-{n:02}")).await;
    }
    let many = used_by().await;
    assert_eq!(
        (&many["count"], &many["first"][9]),
        (&json!(12), &json!("vm web-09"))
    );
    let refusal = world.delete("/v1/images/disk").await;
    refusal.refused(409, "in-use");
    let detail = refusal.body["detail"].as_str().unwrap();
    for part in ["vm web-00, vm web-01", "and 2 more", "`sterna vm delete web-00`"] {
        assert!(detail.contains(part), "{detail}");
    }
    let labelled = world
        .patch("/v1/images/disk?request_id=x", &json!({ "labels": { "a": "b" } }))
        .await;
    assert_eq!(labelled.ok(200)["status"]["used_by"], many);
}
