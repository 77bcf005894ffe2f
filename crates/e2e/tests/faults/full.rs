//! The entries of the table whose datastore is full, on a small file system of its own.
//!
//! **Owns:** taking room away and giving it back, and what must hold at each end. Only root can mount the file system that
//! this needs; anybody else's run says so and leaves these entries out. The usual ones are made by [`super::moves`], in the world of
//! all others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use api::Create;
use api::client::ObjectOf;
use api::kinds::{Datastore, DatastoreSpec, Image, ImageSpec, ImageState, VmSpec};
use model::lifecycle::Phase;
use model::vm::Power;
use tempfile::TempDir;
use testkit::counter::Heard;
use testkit::pair::{MEMORY_MIB, Pair, WEB};
use testkit::process::Frozen;
use testkit::vms::{self, PATIENCE, VmObject};
use testkit::wait::{self, Verdict};
use testkit::world::World;

use super::moves::{Before, is_the_same, leaves_one_history};
use super::streams::{in_a_stream, names_a_base};
use super::table::{End, Entry, Fault, Stage, When, entries};

const SMALL: &str = "small";
const LATE: &str = "late";
/// Enough for the image, two disks and the memory of a guest.
const ROOM_BYTES: u64 = 600 << 20;
/// Less than a guest's memory.
const LITTLE_BYTES: u64 = 32 << 20;
/// Less than a guest writes at its boot.
const COPY_BYTES: u64 = 1 << 20;
/// How often the guest may write while its room is measured.
const ATTEMPTS: usize = 20;
/// How soon is looked again at an image.
const PAUSE: Duration = Duration::from_millis(100);

#[tokio::test]
#[ignore = "long: make soak"]
async fn a_datastore_is_full_at_length() -> anyhow::Result<()> {
    let Some(files) = Small::mount_if_possible() else {
        return Ok(());
    };
    let world = World::up(3).await?;
    world.make_template(MEMORY_MIB).await?;
    let mut pair = files.pair(&world).await?;
    for entry in entries(|one| one.fault == Fault::FullDatastore && one.when == When::Soak) {
        let told = format!("{:?} at {:?}", entry.fault, entry.stage);
        make(&world, &files, &mut pair, entry).await.context(told)?;
    }
    leaves_one_history(&world, pair, &files.volumes()).await?;
    world.down().await
}

/// Makes it a datastore.
async fn register(world: &World, files: &Small) -> anyhow::Result<()> {
    let spec = DatastoreSpec {
        path: files.path().to_string_lossy().into_owned(),
        coherent: true,
    };
    let body = Create {
        name: Some(SMALL.to_owned()),
        labels: BTreeMap::new(),
        spec,
    };
    let made = world.client().create::<Datastore>(&body, None, false).await;
    Ok(made.map(drop)?)
}

pub(super) async fn make(
    world: &World,
    files: &Small,
    pair: &mut Pair<'_>,
    entry: Entry,
) -> anyhow::Result<()> {
    let before = pair.ear.goes_on().await?;
    match (entry.stage, entry.end) {
        (Stage::Running, End::Waits) => running(world, files, pair, before).await,
        (Stage::Boot, End::Fails) => boot(world, files).await,
        (Stage::Stop, End::Refused) => stop(world, files, pair, before).await,
        (Stage::Copy, End::Refused) => copy(world, files, pair, before).await,
        (Stage::Flatten, End::Refused) => flatten(world, files, pair, before).await,
        _ => bail!("{entry:?} is not made here"),
    }
}

/// The guest stands still in the middle of a write that it never sees fail.
async fn running(world: &World, files: &Small, pair: &mut Pair<'_>, heard: Heard) -> anyhow::Result<()> {
    let before = Before::of(pair, heard).await?;
    files.leave(0)?;
    let stopped = world
        .until_vm(WEB, "stopped for want of room", |vm| {
            let reason = vm.status.reason.as_ref();
            Verdict::from(reason.is_some_and(|reason| reason.code == "disk-error"))
        })
        .await?;
    says(&stopped, "space")?;
    files.empty()?;
    goes_on(world, pair, &before).await
}

/// Another VM finds no room for its disk. It fails with the cause, and starts when it is told to again.
async fn boot(world: &World, files: &Small) -> anyhow::Result<()> {
    files.leave(0)?;
    let spec = VmSpec {
        datastore: Some(SMALL.to_owned()),
        ..vms::spec(None, "")
    };
    world.create_vm(LATE, spec).await?;
    let is_failed = |vm: &VmObject| Verdict::from(vm.status.phase == Phase::Failed);
    let failed = world.until_vm(LATE, "failed for want of room", is_failed).await?;
    says(&failed, "space")?;
    files.empty()?;
    world.act(LATE, "start").await?;
    world.until_phase(LATE, Phase::Running).await?;
    world.delete_vm(LATE).await
}

/// Its memory has no room. It is not saved, says why, and the guest goes on with the room that it had; and is saved when
/// there is enough.
async fn stop(world: &World, files: &Small, pair: &mut Pair<'_>, heard: Heard) -> anyhow::Result<()> {
    let before = Before::of(pair, heard).await?;
    files.leave(LITTLE_BYTES)?;
    world.act(WEB, "stop").await?;
    let is_refused = |vm: &VmObject| {
        let reason = vm.status.reason.as_ref();
        Verdict::from(reason.is_some_and(|reason| reason.code == "suspend-failed"))
    };
    let refused = world
        .until_vm(WEB, "not stopped for want of room", is_refused)
        .await?;
    says(&refused, "space")?;
    let has_room_again = || files.room_bytes().is_ok_and(|bytes| bytes > LITTLE_BYTES / 2);
    wait::until_it_holds("nothing of the state takes room", PATIENCE, has_room_again).await?;
    goes_on(world, pair, &before).await?;
    files.empty()?;
    world.act(WEB, "stop").await?;
    world.until_phase(WEB, Phase::Stopped).await?;
    world.act(WEB, "resume").await?;
    pair.web = world.until_ready(WEB).await?;
    let resumed = Before::of(pair, heard).await?;
    is_the_same(world, pair, &resumed).await
}

/// A copy of its disk has no room, for a VM and for an image. Nothing of it stays, the guest goes on, and the copy is made when
/// it is asked for again.
async fn copy(world: &World, files: &Small, pair: &mut Pair<'_>, heard: Heard) -> anyhow::Result<()> {
    let before = Before::of(pair, heard).await?;
    files.leave(COPY_BYTES)?;
    let spec = VmSpec {
        clone_of: Some(WEB.to_owned()),
        power: Some(Power::Prepared),
        ..VmSpec::default()
    };
    let late = world.create_vm(LATE, spec).await?;
    let is_failed = |vm: &VmObject| Verdict::from(vm.status.phase == Phase::Failed);
    let failed = world.until_vm(LATE, "failed for want of room", is_failed).await?;
    says(&failed, "space")?;
    let directory = files.path().join("volumes").join(late.id.to_string());
    wait::until_it_holds("nothing of the copy is left", PATIENCE, || !directory.exists()).await?;
    goes_on(world, pair, &before).await?;
    let spec = ImageSpec {
        from_vm: Some(WEB.to_owned()),
        ..ImageSpec::default()
    };
    let body = Create {
        name: Some(LATE.to_owned()),
        labels: BTreeMap::new(),
        spec,
    };
    world.client().create::<Image>(&body, None, false).await?;
    let failed = until_image(world, ImageState::Failed).await?;
    let why = failed.status.reason.context("there is no reason")?;
    ensure!(why.message.contains("space"), "{why:?}");
    goes_on(world, pair, &before).await?;
    files.empty()?;
    world.act(LATE, "retry").await?;
    let again = world.client();
    again
        .action::<Image, _>(LATE, "import", &ImageSpec::default())
        .await?;
    world.until_phase(LATE, Phase::Off).await?;
    until_image(world, ImageState::Ready).await?;
    world.delete_vm(LATE).await?;
    world.client().delete::<Image>(LATE).await?;
    is_the_same(world, pair, &before).await
}

/// Its disk has no room to be made whole. The guest goes on over its image, and the disk is whole when that is asked for again.
async fn flatten(world: &World, files: &Small, pair: &mut Pair<'_>, heard: Heard) -> anyhow::Result<()> {
    let before = Before::of(pair, heard).await?;
    files.leave(COPY_BYTES)?;
    world.act(WEB, "flatten").await?;
    let disk = |vm: &VmObject| vm.status.disk.clone().unwrap_or_default();
    let refused = world
        .until_vm(WEB, "not made whole for want of room", |vm| {
            Verdict::from(disk(vm).reason.is_some())
        })
        .await?;
    let why = disk(&refused).reason.context("there is no reason")?;
    ensure!(why.message.contains("room"), "{why:?}");
    goes_on(world, pair, &before).await?;
    files.empty()?;
    // Also if it becomes full when a part has come.
    let path = files.path().join("volumes").join(pair.web.id.to_string());
    let path = path.join("root.qcow2");
    in_a_stream(world, &path).await?;
    let stands_still = Frozen::stop(before.process)?;
    files.leave(0)?;
    drop(stands_still);
    let refused = world
        .until_vm(WEB, "not made whole for want of room, in the middle", |vm| {
            Verdict::from(disk(vm).reason.is_some() && !disk(vm).flattening)
        })
        .await?;
    let why = disk(&refused).reason.context("there is no reason")?;
    ensure!(why.message.contains("space"), "{why:?}");
    ensure!(names_a_base(&path)?, "it is not whole, and names nothing");
    files.empty()?;
    goes_on(world, pair, &before).await?;
    world.act(WEB, "flatten").await?;
    world
        .until_vm(WEB, "whole", |vm| Verdict::from(disk(vm).whole))
        .await?;
    is_the_same(world, pair, &before).await
}

async fn until_image(world: &World, state: ImageState) -> anyhow::Result<ObjectOf<Image>> {
    let reached = async {
        loop {
            let image = world.client().get::<Image>(LATE).await?;
            if image.status.state == state {
                return Ok(image);
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let reached = tokio::time::timeout(PATIENCE, reached).await;
    reached.with_context(|| format!("the image is never {state:?}"))?
}

/// The guest runs, nothing is wrong with it any more, and it is the same.
async fn goes_on(world: &World, pair: &mut Pair<'_>, before: &Before) -> anyhow::Result<()> {
    let is_well =
        |vm: &VmObject| Verdict::from(vm.status.phase == Phase::Running && vm.status.reason.is_none());
    world.until_vm(WEB, "running again", is_well).await?;
    is_the_same(world, pair, before).await
}

fn says(vm: &VmObject, word: &str) -> anyhow::Result<()> {
    let reason = vm.status.reason.as_ref().context("there is no reason")?;
    ensure!(reason.message.contains(word), "{word:?} is not in {reason:?}");
    ensure!(
        !vm.status.next_commands.is_empty(),
        "nothing leads on from {:?}",
        vm.status
    );
    Ok(())
}

/// A file system of its own, in memory.
pub(super) struct Small(TempDir);

impl Small {
    pub(super) fn mount_if_possible() -> Option<Self> {
        let mounted = Self::mount();
        if let Err(error) = &mounted {
            println!("no datastore is full: this user cannot mount a file system: {error:#}");
        }
        mounted.ok()
    }

    /// A pair, with the disk of the one that moves in it.
    pub(super) async fn pair<'w>(&self, world: &'w World) -> anyhow::Result<Pair<'w>> {
        register(world, self).await?;
        Pair::create_on(world, Some(SMALL)).await
    }

    pub(super) fn volumes(&self) -> PathBuf {
        self.path().join("volumes")
    }

    fn mount() -> anyhow::Result<Self> {
        let small = Self(tempfile::tempdir()?);
        let options = format!("size={ROOM_BYTES}");
        run(
            &["mount", "-t", "tmpfs", "-o", &options, "sterna-test"],
            small.path(),
        )?;
        Ok(small)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves so much room, and no more.
    fn leave(&self, bytes: u64) -> anyhow::Result<()> {
        let attempt = || {
            let now = rustix::fs::statvfs(self.path())?;
            self.resize((now.f_blocks - now.f_bfree) * now.f_frsize + bytes)
        };
        let mut last = attempt();
        for _ in 1..ATTEMPTS {
            if last.is_ok() {
                break;
            }
            last = attempt();
        }
        last
    }

    fn room_bytes(&self) -> anyhow::Result<u64> {
        let now = rustix::fs::statvfs(self.path())?;
        Ok(now.f_bfree * now.f_frsize)
    }

    fn empty(&self) -> anyhow::Result<()> {
        self.resize(ROOM_BYTES)
    }

    fn resize(&self, bytes: u64) -> anyhow::Result<()> {
        run(&["mount", "-o", &format!("remount,size={bytes}")], self.path())
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
