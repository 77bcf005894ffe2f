//! Images that the server takes from elsewhere, as people ask for them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use futures_util::{StreamExt, stream};
use model::digest::hex;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::world::World;

/// Serves these files as long as the test lasts; where.
fn serve(files: Vec<(&'static str, Vec<u8>)>) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let asked = lines.next().and_then(Result::ok).unwrap_or_default();
            let _rest = lines.find(|line| line.as_ref().map_or(true, String::is_empty));
            let file = files
                .iter()
                .find(|(name, _)| asked.contains(&format!(" /{name} ")));
            let (status, body) = file.map_or(("404 Not Found", &[][..]), |(_, body)| ("200 OK", body));
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(body));
        }
    });
    format!("http://{address}")
}

fn digest(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_comes_from_a_url_or_a_datastore_and_a_failure_says_what_leads_on() {
    let world = World::new().await;
    let mut disk = std::fs::read(world.dir.path().join("disk.raw")).unwrap();
    disk.extend([7; 4096]);
    let sums = format!("{}  new.raw\n", digest(&disk));
    let base = serve(vec![("new.raw", disk.clone()), ("SHA256SUMS", sums.into_bytes())]);
    let import = async |rest: &str| world.run(&format!("image import {rest}")).await;
    let image = import(&format!("a --url {base}/new.raw --sha256sums -o json"))
        .await
        .ok();
    let image: Value = serde_json::from_str(&image).unwrap();
    assert_eq!(
        (&image["status"]["state"], &image["status"]["sha256"]),
        (&"ready".into(), &digest(&disk).into())
    );
    let wrong = "0".repeat(64);
    let leads_on = format!("sterna image import b --url '{base}/new.raw' --sha256 {wrong}");
    let failed = import(&format!("b --url {base}/new.raw --sha256 {wrong}")).await;
    failed.refused(1, &["digest-differs", &leads_on]);
    import(&format!("b --url {base}/new.raw --sha256sums")).await.ok();
    // Once more is fine, something else is not.
    import(&format!("b --url {base}/new.raw --sha256sums")).await.ok();
    import(&format!("b --url {base}/other.raw"))
        .await
        .refused(1, &["has its content"]);
    import(&format!("c --url {base}/missing --no-wait")).await.ok();
    import(&format!("c --url {base}/missing"))
        .await
        .refused(1, &["404"]);
    import("d --url file:///etc/passwd").await.refused(1, &["scheme"]);
    import("d").await.refused(2, &["--file", "--url", "--path"]);
    let store = tempfile::tempdir().unwrap();
    std::fs::write(store.path().join("new.raw"), &disk).unwrap();
    let path = store.path().display();
    world
        .run(&format!("datastore create here --path {path}"))
        .await
        .ok();
    import("d --path here:new.raw").await.ok();
}

/// Sends the begin of a content, and leaves when the server has half of that.
async fn send_the_begin(world: &World, name: &str, begin: Vec<u8>) {
    let client = world.client();
    let spec = api::Create {
        name: Some(name.to_owned()),
        labels: std::collections::BTreeMap::new(),
        spec: api::kinds::ImageSpec::default(),
    };
    client
        .create::<api::kinds::Image>(&spec, None, false)
        .await
        .unwrap();
    let bytes = begin.len() as u64;
    let more = stream::iter([Ok(begin)]).chain(stream::pending());
    let sending = client.upload(name, None, 2 * bytes, more);
    let has_come = async {
        while client.uploaded(name).await.unwrap().bytes < bytes / 2 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        ended = sending => panic!("it ended: {:?}", ended.err()),
        () = has_come => {}
    }
}

/// What a server has of the content that is being sent: held open, so that no other file gets its number.
fn sent_file(images: &Path) -> File {
    let files = std::fs::read_dir(images).unwrap();
    let mut paths = files.map(|file| file.unwrap().path());
    let sent = paths.find(|path| path.extension().is_some_and(|it| it == "sent"));
    File::open(sent.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_command_goes_on_with_an_upload_that_was_cut_off() {
    let world = World::new().await;
    let mut disk = std::fs::read(world.path("disk.raw")).unwrap();
    disk.extend(vec![7; 1 << 20]);
    let images = world.path("server/images");
    let kept = images.join(digest(&disk));
    std::fs::write(world.path("large.raw"), &disk).unwrap();
    // Of this file, and of another one.
    let (begin, other) = (disk[..512 << 10].to_vec(), vec![1; 512 << 10]);
    for (name, begin, goes_on) in [("a", begin, true), ("b", other, false)] {
        send_the_begin(&world, name, begin).await;
        let sent = sent_file(&images);
        world
            .run(&format!("image import {name} --file large.raw"))
            .await
            .ok();
        assert_eq!(digest(&std::fs::read(&kept).unwrap()), digest(&disk));
        let is_same = kept.metadata().unwrap().ino() == sent.metadata().unwrap().ino();
        assert_eq!(is_same, goes_on, "{name}");
    }
}
