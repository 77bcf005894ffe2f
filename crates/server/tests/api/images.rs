//! Images from elsewhere: every format, compressed or not; and what must not get in.

use std::fs;
use std::path::Path;
use std::process::Command;

use model::digest::hex;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::world::{Said, World, raw_disk};

const DISK_BYTES: u64 = 4 << 20;

fn run(program: &str, arguments: &[&str], directory: &Path) {
    let ended = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .status();
    assert!(ended.unwrap().success(), "{program} {arguments:?}");
}

/// A directory with the disk `raw`, which has something at its begin and in its midst.
fn disk() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut disk = raw_disk();
    disk.resize(DISK_BYTES as usize, 0);
    disk[2 << 20..][..70_000].fill(7);
    fs::write(directory.path().join("raw"), disk).unwrap();
    directory
}

fn converted(directory: &Path, format: &str, options: &str) -> Vec<u8> {
    let arguments = [
        "convert", "-f", "raw", "-O", format, "-o", options, "raw", "image",
    ];
    run("qemu-img", &arguments, directory);
    fs::read(directory.join("image")).unwrap()
}

fn packed(directory: &Path, program: &str, content: &[u8]) -> Vec<u8> {
    let path = directory.join("to-pack");
    fs::write(&path, content).unwrap();
    let packed = Command::new(program).arg("-c").arg(&path).output().unwrap();
    assert!(packed.status.success(), "{packed:?}");
    packed.stdout
}

async fn import(world: &World, name: &str, content: Vec<u8>) -> Said {
    let digest = digest(&content);
    let spec = json!({ "name": name, "spec": { "expected_sha256": digest } });
    world.post("/v1/images", &spec).await.ok(201);
    let sent = world.request(Method::PUT, &format!("/v1/images/{name}/content"));
    world.send(sent.body(content)).await
}

fn digest(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// Holds what the server keeps to be the disk.
fn is_the_disk(world: &World, image: &Value, directory: &Path) {
    let status = &image["status"];
    assert_eq!(
        (&status["state"], &status["virtual_bytes"]),
        (&json!("ready"), &json!(DISK_BYTES)),
        "{image:#?}"
    );
    let kept = world
        .dir
        .path()
        .join("images")
        .join(status["sha256"].as_str().unwrap());
    assert_eq!(digest(&fs::read(&kept).unwrap()), status["sha256"]);
    let format = status["format"].as_str().unwrap();
    let kept = kept.to_str().unwrap();
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", format, "raw", kept],
        directory,
    );
}

fn nothing_is_left(world: &World) {
    let files = fs::read_dir(world.dir.path().join("images")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = names.filter(|name| name.starts_with("incoming")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_any_format_becomes_one_that_guests_run_from() {
    let world = World::new().await;
    let directory = disk();
    for (name, format, options) in [
        ("qcow2", "qcow2", "compat=1.1"),
        ("vmdk", "vmdk", "subformat=monolithicSparse"),
        ("stream", "vmdk", "subformat=streamOptimized"),
        ("vhd", "vpc", "subformat=dynamic,force_size=on"),
        ("fixed-vhd", "vpc", "subformat=fixed,force_size=on"),
        ("vhdx", "vhdx", "subformat=dynamic"),
        ("vdi", "vdi", "static=off"),
    ] {
        let content = converted(directory.path(), format, options);
        let image = import(&world, name, content.clone()).await.ok(200);
        is_the_disk(&world, &image, directory.path());
        let source = (format != "qcow2").then(|| digest(&content));
        assert_eq!(image["status"]["source_sha256"], json!(source), "{name}");
    }
    nothing_is_left(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_may_be_compressed() {
    let world = World::new().await;
    let directory = disk();
    let raw = fs::read(directory.path().join("raw")).unwrap();
    let qcow2 = converted(directory.path(), "qcow2", "compat=1.1");
    let vmdk = converted(directory.path(), "vmdk", "subformat=streamOptimized");
    for (name, program, content) in [("a", "gzip", &raw), ("b", "xz", &qcow2), ("c", "zstd", &vmdk)] {
        let content = packed(directory.path(), program, content);
        let image = import(&world, name, content.clone()).await.ok(200);
        is_the_disk(&world, &image, directory.path());
        assert_eq!(image["status"]["source_sha256"], json!(digest(&content)));
    }
    // What is zero in it takes no room.
    let raw = world.dir.path().join("images").join(digest(&raw));
    let blocks = std::os::unix::fs::MetadataExt::blocks(&raw.metadata().unwrap());
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
    nothing_is_left(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_off_lies_or_would_fill_the_disk_is_refused() {
    let world = World::new().await;
    let directory = disk();
    let half = |file: Vec<u8>| file[..file.len() / 2].to_vec();
    let qcow2 = converted(directory.path(), "qcow2", "compat=1.1");
    let vmdk = converted(directory.path(), "vmdk", "subformat=monolithicSparse");
    let vdi = converted(directory.path(), "vdi", "static=off");
    let vhd = converted(directory.path(), "vpc", "subformat=dynamic");
    let vhdx = converted(directory.path(), "vhdx", "subformat=dynamic");
    let packed_disk = packed(directory.path(), "gzip", &qcow2);
    // Much that is sent as little, behind the header of a disk of 4 MiB.
    let mut bomb = qcow2.clone();
    bomb.resize(80 << 20, 0);
    let bomb = packed(directory.path(), "zstd", &bomb);
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-b", "raw", "-F", "raw", "over"],
        directory.path(),
    );
    let over = fs::read(directory.path().join("over")).unwrap();
    for (name, content, why) in [
        ("cut", half(qcow2), "qemu-img says"),
        ("cut-vmdk", half(vmdk), "qemu-img says"),
        ("cut-vhdx", vhdx[..1 << 20].to_vec(), "qemu-img says"),
        ("cut-vdi", half(vdi), "cut off"),
        ("cut-vhd", half(vhd), "cut off"),
        ("cut-gzip", half(packed_disk), "gzip says"),
        ("bomb", bomb, "more than the disk that it declares"),
        ("backed", over, "backing file"),
        (
            "text",
            b"# Disk DescriptorFile\nRW 1 FLAT \"/etc/shadow\" 0".to_vec(),
            "other files",
        ),
    ] {
        let said = import(&world, name, content).await;
        said.refused(422, "not-an-image");
        let detail = said.body["detail"].as_str().unwrap();
        assert!(detail.contains(why), "{name}: {detail}");
        let image = world.get(&format!("/v1/images/{name}")).await.ok(200);
        assert_eq!(image["status"]["state"], "failed");
    }
    nothing_is_left(&world);
}
