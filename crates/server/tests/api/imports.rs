//! Images that the server takes from a URL: from a real HTTP server, and from some that lie.

mod encrypted;
mod object_stores;
pub(crate) mod sources;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::digest::hex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use store::MemoryStore;

use self::sources::{Front, FtpServer, NfsServer, Nginx, Said};
use super::world::{PATIENCE, World, raw_disk};

pub(crate) fn digest(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// A disk of three MiB with something everywhere.
pub(crate) fn disk() -> Vec<u8> {
    let mut disk = raw_disk();
    disk.extend((0..3_u32 << 20).map(|n| (n % 251) as u8));
    disk
}

pub(crate) async fn begin(world: &World, name: &str, url: &str) {
    let spec = json!({ "name": name, "spec": { "source": { "url": url } } });
    let image = world.post("/v1/images", &spec).await.ok(201);
    assert_eq!(image["status"]["state"], "importing");
}

pub(crate) async fn ended(world: &World, name: &str) -> Value {
    let over = |image: &Value| image["status"]["state"] != "importing";
    world.until(&format!("/v1/images/{name}"), over).await
}

async fn import(world: &World, name: &str, url: &str) -> Value {
    begin(world, name, url).await;
    ended(world, name).await
}

#[track_caller]
pub(crate) fn is_ready(image: &Value, content: &[u8]) {
    assert_eq!(image["status"]["state"], "ready", "{image:#?}");
    assert_eq!(image["status"]["sha256"], digest(content));
}

#[track_caller]
fn has_failed(image: &Value, code: &str, why: &str) {
    assert_eq!(image["status"]["state"], "failed", "{image:#?}");
    let reason = &image["status"]["reason"];
    assert_eq!(reason["code"], code, "{image:#?}");
    assert!(reason["message"].as_str().unwrap().contains(why), "{image:#?}");
    let next = image["status"]["next_commands"][0].as_str().unwrap();
    assert!(next.starts_with("sterna image import "), "{image:#?}");
}

/// Waits until the directory has nothing but contents that images have: an image may be ready just before the last of its
/// import is cleared up.
pub(crate) async fn nothing_is_left(world: &World) {
    let begun = Instant::now();
    loop {
        let left = left(world).await;
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{left:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn left(world: &World) -> Vec<String> {
    let list = world.get("/v1/images").await.ok(200);
    let images = list["items"].as_array().unwrap();
    let has = |name: &str| images.iter().any(|image| image["status"]["sha256"] == name);
    let files = fs::read_dir(world.dir.path().join("images")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !has(name)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_server_gives_an_image_with_its_digest_from_the_list_beside_it() {
    let world = World::new().await;
    let disk = disk();
    let nginx = Nginx::start(&[("disk.raw", &disk)]).await;
    let sums = format!("{}  other\n{} *disk.raw\n", digest(b"other"), digest(&disk));
    nginx.put("SHA256SUMS", sums.as_bytes());
    nginx.put("WRONG", format!("{}  disk.raw\n", digest(b"other")).as_bytes());
    let from =
        |list: &str| json!({ "source": { "url": nginx.url("disk.raw"), "sha256sums_url": nginx.url(list) } });
    for (name, list) in [("a", "SHA256SUMS"), ("b", "WRONG"), ("c", "disk.raw")] {
        world
            .post("/v1/images", &json!({ "name": name, "spec": from(list) }))
            .await
            .ok(201);
    }
    is_ready(&ended(&world, "a").await, &disk);
    has_failed(&ended(&world, "b").await, "digest-differs", "expected was");
    has_failed(&ended(&world, "c").await, "too-large", "");
    has_failed(
        &import(&world, "d", &nginx.url("missing")).await,
        "source-refused",
        "404",
    );
    // What leads on is the same import, or another one.
    world
        .post("/v1/images/b/actions/import", &from("SHA256SUMS"))
        .await
        .ok(200);
    is_ready(&ended(&world, "b").await, &disk);
    // Repeated it changes nothing, and another source is refused.
    world
        .post("/v1/images/b/actions/import", &from("SHA256SUMS"))
        .await
        .ok(200);
    world
        .post("/v1/images/b/actions/import", &from("WRONG"))
        .await
        .refused(409, "image-has-content");
    for name in ["c", "d"] {
        world.delete(&format!("/v1/images/{name}")).await.ok(200);
    }
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_connections_and_restarts_go_on_where_they_were() {
    let world = World::new().await;
    let disk = disk();
    let nginx = Nginx::start(&[("disk.raw", &disk)]).await;
    let broken = nginx.behind(1 << 20, 2).await;
    begin(&world, "a", &broken.url("disk.raw")).await;
    broken.asked(3).await;
    let progress = world.get("/v1/images/a").await.ok(200)["status"]["progress"].clone();
    assert_eq!(progress["bytes_total"], disk.len());
    assert!(progress["bytes_done"].as_u64().unwrap() > 1 << 20, "{progress}");
    let world = world.restarted().await;
    broken.go_on();
    is_ready(&ended(&world, "a").await, &disk);
    let said = broken.said();
    // Nothing was sent twice but what was on its way when the server ended.
    let all: usize = said.iter().map(|said: &Said| said.bytes).sum();
    assert!(all < disk.len() + (2 << 20), "{all}: {said:#?}");
    assert!(
        said.iter()
            .skip(1)
            .all(|said| said.asked.contains("range: bytes=")),
        "{said:#?}"
    );
    assert!(
        said.iter()
            .skip(1)
            .all(|said| said.asked.contains("if-range: \"")),
        "{said:#?}"
    );
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_lie_are_told_apart() {
    let world = World::new().await;
    let wrong_range = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/4096\r\nContent-Length: 10\r\n\r\n0123456789";
    let begun = "HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: 4096\r\n\r\n0123456789";
    let to =
        |where_to: &str| format!("HTTP/1.1 302 Found\r\nLocation: {where_to}\r\nContent-Length: 0\r\n\r\n");
    let other = "HTTP/1.1 200 OK\r\nETag: \"2\"\r\nContent-Length: 512\r\n\r\n".to_owned() + &"x".repeat(512);
    let tebibyte = "HTTP/1.1 200 OK\r\nContent-Length: 9999999999999\r\n\r\n0123456789";
    for (name, answers, code, why) in [
        (
            "range",
            vec![begun.to_owned(), wrong_range.to_owned()],
            "source-refused",
            "another part",
        ),
        ("file", vec![to("file:///etc/passwd")], "source-refused", "scheme"),
        (
            "metadata",
            vec![to("http://169.254.169.254/latest")],
            "address-not-allowed",
            "127.0.0.1/32",
        ),
        (
            "other-loopback",
            vec![to("http://127.0.0.2/")],
            "address-not-allowed",
            "--import-allow",
        ),
        ("rounds", vec![to("/again"); 7], "source-refused", "more than 5"),
        ("endless", vec![tebibyte.to_owned()], "too-large", "TiB"),
        // It becomes another file after the first bytes: that one is taken from its begin, and is no image.
        (
            "other",
            vec![begun.to_owned(), other.clone(), other],
            "not-an-image",
            "boot sector",
        ),
        (
            "refuses",
            vec!["HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_owned()],
            "source-refused",
            "403",
        ),
    ] {
        let lying = Front::saying(answers).await;
        let image = import(&world, name, &lying.url("disk")).await;
        has_failed(&image, code, why);
        world.delete(&format!("/v1/images/{name}")).await.ok(200);
    }
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_waits_for_ends_and_the_same_content_is_kept_once() {
    let world = World::new().await;
    let disk = disk();
    let nginx = Nginx::start(&[("disk.raw", &disk)]).await;
    let still = nginx.behind(usize::MAX, 0).await;
    begin(&world, "gone", &still.url("disk.raw")).await;
    still.asked(1).await;
    // It does not take a file meanwhile.
    let sent = world
        .request(reqwest::Method::PUT, "/v1/images/gone/content")
        .body(raw_disk());
    world.send(sent).await.refused(409, "under-way");
    world.delete("/v1/images/gone").await.ok(200);
    still.left().await;
    // Its place is free: as many as there are places.
    let names = ["a", "b", "c", "d"];
    for name in names {
        begin(&world, name, &nginx.url("disk.raw")).await;
    }
    for name in names {
        is_ready(&ended(&world, name).await, &disk);
    }
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_servers_one_imports() {
    let store = Arc::new(MemoryStore::new(store::system_clock()));
    let (one, other) = (World::on(store.clone()).await, World::on(store).await);
    let disk = disk();
    let nginx = Nginx::start(&[("disk.raw", &disk)]).await;
    let counted = nginx.behind(usize::MAX, usize::MAX).await;
    for (world, name) in [(&one, "a"), (&other, "b"), (&one, "c")] {
        begin(world, name, &counted.url(&format!("disk.raw?{name}"))).await;
    }
    for name in ["a", "b", "c"] {
        is_ready(&ended(&one, name).await, &disk);
        is_ready(&ended(&other, name).await, &disk);
    }
    assert_eq!(counted.said().len(), 3, "{:#?}", counted.said());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_in_a_datastore_that_the_server_sees_is_imported() {
    let world = World::new().await;
    let disk = disk();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a disk.raw"), &disk).unwrap();
    fs::write(
        directory.path().join("SHA256SUMS"),
        format!("{}  a disk.raw\n", digest(&disk)),
    )
    .unwrap();
    for (name, path) in [
        ("here", directory.path().to_str().unwrap()),
        ("away", "/nowhere/at/all"),
    ] {
        let spec = json!({ "name": name, "spec": { "path": path, "coherent": true } });
        world.post("/v1/datastores", &spec).await.ok(201);
    }
    let source =
        json!({ "url": "datastore://here/a%20disk.raw", "sha256sums_url": "datastore://here/SHA256SUMS" });
    let spec = json!({ "name": "a", "spec": { "source": source } });
    world.post("/v1/images", &spec).await.ok(201);
    is_ready(&ended(&world, "a").await, &disk);
    let away = import(&world, "b", "datastore://away/disk").await;
    has_failed(&away, "source-refused", "does not see");
    let spec = json!({ "name": "c", "spec": { "source": { "url": "datastore://nothing/disk" } } });
    world.post("/v1/images", &spec).await.refused(422, "not-found");
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ftp_server_gives_an_image_also_in_parts() {
    let world = World::new().await;
    let disk = disk();
    let server = FtpServer::start(2, false).await;
    server.put("a disk.raw", &disk);
    server.put(
        "SHA256SUMS",
        format!("{}  a disk.raw\n", digest(&disk)).as_bytes(),
    );
    let source = json!({ "url": server.url("a%20disk.raw"), "sha256sums_url": server.url("SHA256SUMS") });
    let spec = json!({ "name": "a", "spec": { "source": source } });
    world.post("/v1/images", &spec).await.ok(201);
    is_ready(&ended(&world, "a").await, &disk);
    let missing = import(&world, "b", &server.url("missing")).await;
    has_failed(&missing, "source-refused", "it answers 550");
    let secret = json!({ "name": "c", "spec": { "source": { "url": "ftp://ann:x@127.0.0.1/a" } } });
    world
        .post("/v1/images", &secret)
        .await
        .refused(422, "invalid-url");
    let metadata = import(&world, "c", "ftp://169.254.169.254/latest").await;
    has_failed(&metadata, "address-not-allowed", "169.254.169.254");
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nfs_server_gives_an_image_without_being_mounted() {
    let world = World::new().await;
    let disk = disk();
    let server = NfsServer::start().await;
    server.put("a disk.raw", &disk);
    let list = format!("{}  a disk.raw\n", digest(&disk));
    server.put("SHA256SUMS", list.as_bytes());
    let secret = server.put("secret", &disk);
    fs::create_dir(secret.with_file_name("directory")).unwrap();
    fs::set_permissions(secret, fs::Permissions::from_mode(0o600)).unwrap();
    let source = json!({ "url": server.url("a%20disk.raw"), "sha256sums_url": server.url("SHA256SUMS") });
    let spec = json!({ "name": "a", "spec": { "source": source } });
    world.post("/v1/images", &spec).await.ok(201);
    is_ready(&ended(&world, "a").await, &disk);
    for (name, why) in [
        ("missing", "no such file"),
        ("secret", "let others read it"),
        ("directory", "it is a directory"),
    ] {
        let failed = import(&world, name, &server.url(name)).await;
        has_failed(&failed, "source-refused", why);
    }
    let options = json!({ "name": "c", "spec": { "source": { "url": server.url("a%3Fuid=0") } } });
    world
        .post("/v1/images", &options)
        .await
        .refused(422, "invalid-url");
    let metadata = import(&world, "c", "nfs://169.254.169.254/latest").await;
    has_failed(&metadata, "address-not-allowed", "169.254.169.254");
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ftp_server_that_cannot_send_the_rest_is_asked_for_all_again() {
    let world = World::new().await;
    let disk = disk();
    let server = FtpServer::start(1, true).await;
    server.put("disk.raw", &disk);
    is_ready(&import(&world, "a", &server.url("disk.raw")).await, &disk);
    nothing_is_left(&world).await;
}
