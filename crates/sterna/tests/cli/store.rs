//! The store's files: backups, restoring, checking.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::world::World;

/// Overwrites a word wherever it stands.
fn overwrite(path: &Path, word: &str) {
    let mut bytes = std::fs::read(path).unwrap();
    let starts = 0..bytes.len().saturating_sub(word.len());
    let found: Vec<_> = starts
        .filter(|at| bytes[*at..].starts_with(word.as_bytes()))
        .collect();
    for at in found {
        bytes[at..at + word.len()].fill(b'#');
    }
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_checked_and_restored() {
    let world = World::new().await;
    world.run("vm create web --template small").await.ok();
    world.run("store backup cloud.db").await.ok();
    let backup = world.path("cloud.db");
    assert_eq!(
        std::fs::metadata(&backup).unwrap().permissions().mode() & 0o777,
        0o600
    );
    world
        .run("store backup cloud.db")
        .await
        .refused(1, &["exists", "--force"]);
    world.run("store backup cloud.db --force").await.ok();
    let said = world.run("store check cloud.db").await.ok();
    assert!(said.contains("all is well"), "{said}");
    let said = world.run("store check --data server").await.ok();
    assert!(said.contains("all is well"), "{said}");
    let status = world.run("store status").await.ok();
    assert!(status.contains("sqlite"), "{status}");
    // Into the data directory of the server that runs, and one that has a store.
    world
        .run("store restore cloud.db --data server")
        .await
        .refused(1, &["in use by process"]);
    world
        .run("store backup other.db --data server")
        .await
        .refused(1, &["in use", "leave out --data"]);
    let said = world.run("store restore cloud.db --data new").await;
    assert!(said.err.contains("sterna store resume"), "{said:#?}");
    said.ok();
    world
        .run("store restore cloud.db --data new")
        .await
        .refused(1, &["is there already", "move"]);
    world.run("store backup stopped.db --data new").await.ok();
    world.run("store check stopped.db").await.ok();
    world.run("store check --data new").await.ok();
    let left: Vec<_> = std::fs::read_dir(world.path("new/store")).unwrap().collect();
    assert!(left.len() <= 4, "{left:?}");
    world
        .run("store backup none.db --data nowhere")
        .await
        .refused(1, &["no store", "nowhere"]);
    assert!(!world.path("nowhere").exists() && !world.path("none.db").exists());
    world.run("store check").await.refused(2, &["--data"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_broken_is_named_and_not_restored() {
    let world = World::new().await;
    world.run("store backup cloud.db").await.ok();
    // An object that cannot be read, in a database that is whole.
    let damaged = world.path("damaged.db");
    std::fs::copy(world.path("cloud.db"), &damaged).unwrap();
    overwrite(&damaged, "memory_mib");
    let said = world.run("store check damaged.db").await;
    assert_eq!(said.code, 1, "{said:#?}");
    assert!(said.out.contains("/template/"), "{said:#?}");
    assert!(said.err.contains("can be read"), "{said:#?}");
    // A file that was cut off.
    let bytes = std::fs::read(world.path("cloud.db")).unwrap();
    std::fs::write(world.path("short.db"), &bytes[..bytes.len() / 2]).unwrap();
    world.run("store check short.db").await.refused(1, &["short.db"]);
    world
        .run("store restore short.db --data new")
        .await
        .refused(1, &["damaged"]);
    assert!(!world.path("new/store/store.db").exists());
    world.write("text.db", &"no database at all ".repeat(200));
    world.run("store check text.db").await.refused(1, &["text.db"]);
    world
        .run("store restore text.db --data new")
        .await
        .refused(1, &["text.db"]);
    world
        .run("store restore missing.db --data new")
        .await
        .refused(1, &["no store", "missing.db"]);
}
