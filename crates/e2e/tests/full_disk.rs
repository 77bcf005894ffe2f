//! A datastore without room: what needs room says so and stops there, and goes on when there is room again.
//!
//! Only root can mount the small file system that this needs; anybody else's run says so and ends.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use api::Create;
use api::kinds::{Datastore, DatastoreSpec, VmSpec};
use model::lifecycle::Phase;
use tempfile::TempDir;
use testkit::clean::TESTS_OWN_MOUNT;
use testkit::vms::{self, VmObject};
use testkit::wait::Verdict;
use testkit::world::World;

const SMALL: &str = "small";
const WEB: &str = "web";
/// Less than the image has, more than the image and the beginning of a disk, and enough.
const SIZES_MIB: [u64; 3] = [8, 72, 400];
/// What the guest's disk has, and what is written to it behind all that is on it.
const DISK_BYTES: u64 = 256 << 20;
const WRITE: &str =
    "sleep 5; dd if=/dev/urandom of=/dev/vda bs=1M seek=100 count=100; sync; echo all is written";

#[tokio::test]
async fn a_full_datastore_stops_what_needs_room_until_there_is_some() -> anyhow::Result<()> {
    let Ok(files) = Small::mount(SIZES_MIB[0]) else {
        println!("skipped: this user cannot mount a file system");
        return Ok(());
    };
    let world = World::up(1).await?;
    world.make_template(192).await?;
    let spec = DatastoreSpec {
        path: files.path().to_string_lossy().into_owned(),
        coherent: true,
    };
    let body = Create {
        name: Some(SMALL.to_owned()),
        labels: BTreeMap::new(),
        spec,
    };
    world.client().create::<Datastore>(&body, None, false).await?;
    no_room_to_start(&world, &files).await?;
    no_room_to_write(&world, &files).await?;
    world.delete_vm(WEB).await?;
    world.down().await
}

/// The VM fails with the cause, and starts when it is told to again.
async fn no_room_to_start(world: &World, files: &Small) -> anyhow::Result<()> {
    let spec = VmSpec {
        datastore: Some(SMALL.to_owned()),
        disk_bytes: Some(DISK_BYTES),
        ..vms::spec(None, WRITE)
    };
    world.create_vm(WEB, spec).await?;
    let failed = world
        .until_vm(WEB, "failed for want of room", |vm| {
            (vm.status.phase == Phase::Failed).into()
        })
        .await?;
    says(&failed, "space")?;
    files.resize(SIZES_MIB[1])?;
    world.act(WEB, "start").await?;
    world.until_ready(WEB).await.map(drop)
}

/// The guest stands still in the middle of a write that it never sees fail.
async fn no_room_to_write(world: &World, files: &Small) -> anyhow::Result<()> {
    let stopped = world
        .until_vm(WEB, "stopped for want of room", |vm| match &vm.status.reason {
            Some(reason) if reason.code == "disk-error" => Verdict::Reached,
            _ => Verdict::NotYet,
        })
        .await?;
    says(&stopped, "space")?;
    files.resize(SIZES_MIB[2])?;
    world
        .until_vm(WEB, "running again", |vm| {
            (vm.status.phase == Phase::Running && vm.status.reason.is_none()).into()
        })
        .await?;
    let mut console = world.console("h1", vms::id(&stopped));
    console
        .until("the end of the write", vms::BOOT_PATIENCE, |line| {
            line.ends_with("all is written").then_some(())
        })
        .await?;
    ensure!(
        world.living(vms::id(&stopped)).len() == 1,
        "the guest was started anew"
    );
    Ok(())
}

fn says(vm: &VmObject, word: &str) -> anyhow::Result<()> {
    let reason = vm.status.reason.as_ref().context("there is no reason")?;
    ensure!(reason.message.contains(word), "{word:?} is not in {reason:?}");
    ensure!(
        !vm.status.next_commands.is_empty(),
        "nothing leads on from {:?}",
        vm.status
    );
    println!("{:?}: {reason:?}", vm.status.phase);
    Ok(())
}

/// A file system of its own, in memory.
struct Small(TempDir);

impl Small {
    fn mount(mib: u64) -> anyhow::Result<Self> {
        let small = Self(tempfile::tempdir()?);
        run(
            &[
                "mount",
                "-t",
                "tmpfs",
                "-o",
                &format!("size={mib}m"),
                TESTS_OWN_MOUNT,
            ],
            small.path(),
        )?;
        Ok(small)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn resize(&self, mib: u64) -> anyhow::Result<()> {
        run(&["mount", "-o", &format!("remount,size={mib}m")], self.path())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // A test that failed may have left processes that end a little later.
        let _ = run(&["umount", "--lazy"], self.path());
    }
}

fn run(words: &[&str], path: &Path) -> anyhow::Result<()> {
    let ended = Command::new(words[0]).args(&words[1..]).arg(path).output()?;
    ensure!(
        ended.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&ended.stderr)
    );
    Ok(())
}
