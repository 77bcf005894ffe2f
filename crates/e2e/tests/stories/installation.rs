//! A system that is installed from a medium onto a blank disk, without a question: it boots from the disk then, its medium is
//! taken out, another one put in while it runs, and it moves to another host with it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use api::kinds::{CdromSpec, Image, Vm, VmSpec};
use model::lifecycle::Phase;
use serde_json::{Value, json};
use testkit::console::Console;
use testkit::vms::{self, VmObject};
use testkit::wait::{self, Verdict};
use testkit::world::{World, guest_image};

const NAME: &str = "new";
const INSTALLER: &str = "installer";
const RESCUE: &str = "rescue";
/// Two boots, and what is written between them.
const INSTALLED_WITHIN: Duration = Duration::from_secs(180);

#[tokio::test]
async fn a_system_is_installed_from_a_medium() -> anyhow::Result<()> {
    let world = World::up(2).await?;
    let directory = tempfile::tempdir()?;
    make_media(directory.path())?;
    for name in [INSTALLER, RESCUE] {
        world
            .import_as(name, &directory.path().join(format!("{name}.iso")))
            .await?;
        let image = world.client().get::<Image>(name).await?;
        ensure!(image.status.is_medium == Some(true), "{image:?}");
    }
    let spec = VmSpec {
        memory_mib: Some(192),
        disk_bytes: Some(1 << 30),
        cdrom: Some(CdromSpec {
            image: Some(INSTALLER.to_owned()),
            force: false,
        }),
        placement: vms::spec(Some("h1"), "").placement,
        ..VmSpec::default()
    };
    world.create_vm(NAME, spec).await?;
    // Only what is on the disk has an agent: the medium has none.
    let is_installed = |vm: &VmObject| Verdict::from(vm.status.phase == Phase::Running && vm.status.ready);
    let vm = wait::until::<Vm>(world.client(), NAME, "installed", INSTALLED_WITHIN, is_installed).await?;
    let mut console = world.console("h1", vms::id(&vm));
    said(&mut console, "installer: done").await?;
    holds(&vm, Some(INSTALLER))?;

    changed(&world, json!({ "cdrom": { "image": null } })).await?;
    let vm = changed(
        &world,
        json!({ "cdrom": { "image": RESCUE }, "boot": ["cdrom", "disk"] }),
    )
    .await?;
    let refused = world.client().delete::<Image>(RESCUE).await;
    ensure!(refused.is_err(), "a medium is deleted that is in a drive");
    ensure!(
        vm.status
            .incarnation
            .is_some_and(|incarnation| incarnation.0 == 1),
        "{vm:?}"
    );
    moves(&world).await?;
    reboots_from_the_medium(&world).await?;
    world.delete_vm(NAME).await?;
    world.client().delete::<Image>(RESCUE).await?;
    world.down().await
}

fn make_media(directory: &Path) -> anyhow::Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stories/installation/media.sh");
    let made = Command::new(script).arg(guest_image()?).arg(directory).output()?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "no media could be made:\n{said}");
    Ok(())
}

async fn said(console: &mut Console, words: &str) -> anyhow::Result<()> {
    let is_there = |line: &str| plain(line).contains(words).then_some(());
    console.until(words, vms::BOOT_PATIENCE, is_there).await
}

/// A line without the cursor's movements, which firmware writes wherever it likes.
fn plain(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    let after = |part: &str| {
        part.trim_start_matches(|c: char| !c.is_ascii_alphabetic())
            .chars()
            .skip(1)
            .collect::<String>()
    };
    parts.fold(first, |line, part| line + &after(part))
}

fn holds(vm: &VmObject, image: Option<&str>) -> anyhow::Result<()> {
    let drive = vm.status.cdrom.as_ref();
    let present = drive.and_then(|drive| drive.image.as_deref());
    ensure!(drive.is_some() && present == image, "{:?}", vm.status.cdrom);
    Ok(())
}

/// Changes the spec of the running VM and waits until its host says that it is so.
async fn changed(world: &World, spec: Value) -> anyhow::Result<VmObject> {
    let patch = json!({ "spec": spec });
    let wanted = world.client().patch::<Vm>(NAME, &patch, None).await?.spec;
    let image = wanted.cdrom.and_then(|cdrom| cdrom.image);
    let is_so = |vm: &VmObject| {
        let drive = vm.status.cdrom.as_ref();
        Verdict::from(drive.is_some_and(|drive| {
            let is_closed = drive.is_open == drive.image.is_none();
            drive.image == image && Some(&drive.boot) == wanted.boot.as_ref() && is_closed
        }))
    };
    world.until_vm(NAME, "with its drive changed", is_so).await
}

/// The same machine with the same medium goes on elsewhere.
async fn moves(world: &World) -> anyhow::Result<()> {
    let begun = world.migrate(NAME, "h2").await?;
    let ended = world.until_migration_ended(&begun.name).await?;
    ensure!(ended.status.reason.is_none(), "{:?}", ended.status);
    let is_there =
        |vm: &VmObject| Verdict::from(vm.status.host.as_deref() == Some("h2") && vm.status.cdrom.is_some());
    let vm = world.until_vm(NAME, "on h2", is_there).await?;
    holds(&vm, Some(RESCUE))
}

/// The medium that was put in while it ran is booted at the next reset, and leaves it to the disk.
async fn reboots_from_the_medium(world: &World) -> anyhow::Result<()> {
    let vm = world.get_vm(NAME).await?;
    let mut console = world.console("h2", vms::id(&vm));
    world.act(NAME, "reboot").await?;
    said(&mut console, "rescue: boots the disk").await?;
    said(&mut console, "ready: ").await
}
