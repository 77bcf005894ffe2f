//! Images' files that hosts have fetched: there while anything is over them, gone some time after, fetched again when needed again.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use api::kinds::{Image, Template, VmSpec};
use model::lifecycle::Phase;
use model::vm::Power;
use testkit::vms::{self, PATIENCE, TINY};
use testkit::wait;
use testkit::world::World;

use super::disks::{is_clean, is_empty};

/// Two times this, and a look of the agent, pass before a file goes.
const KEPT_FOR: (&str, &str) = ("STERNA_KEEP_UNNEEDED_IMAGES", "500ms");
const LONG_ENOUGH: Duration = Duration::from_secs(4);

#[tokio::test]
async fn what_hosts_have_fetched_goes_when_nothing_needs_it_and_not_before() -> anyhow::Result<()> {
    let world = World::up_with(2, &[KEPT_FOR]).await?;
    world.make_template(192).await?;
    let disk = prepare(&world, "one").await?;
    tokio::time::sleep(LONG_ENOUGH).await;
    ensure!(files(&world)?.len() == 1, "{:?}", files(&world)?);

    // A disk of which nobody knows any more is over it.
    let strange = world.volumes().join("strange");
    std::fs::create_dir(&strange)?;
    let strange_disk = strange.join("copy.part");
    std::fs::copy(&disk, &strange_disk)?;
    delete(&world, "one").await?;
    tokio::time::sleep(LONG_ENOUGH).await;
    let is_back = || files(&world).is_ok_and(|names| names.len() == 1 && names[0].ends_with(".qcow2"));
    wait::until_it_holds("what a disk is over is there", PATIENCE, is_back).await?;
    is_clean(&strange_disk, 2)?;
    std::fs::remove_dir_all(&strange)?;
    goes(&world).await?;

    // The same content again. Both hosts look, while one of them fetches it.
    world.make_template(192).await?;
    is_clean(&prepare(&world, "two").await?, 2)?;
    delete(&world, "two").await?;
    goes(&world).await?;
    is_empty(&world)?;
    world.down().await
}

/// A VM with its disk, which is not started.
async fn prepare(world: &World, name: &str) -> anyhow::Result<PathBuf> {
    let spec = VmSpec {
        power: Some(Power::Prepared),
        ..vms::spec(Some("h1"), "")
    };
    world.create_vm(name, spec).await?;
    let vm = world.until_phase(name, Phase::Off).await?;
    Ok(world.volumes().join(vm.id.to_string()).join("root.qcow2"))
}

async fn delete(world: &World, vm: &str) -> anyhow::Result<()> {
    world.delete_vm(vm).await?;
    world.client().delete::<Template>(TINY).await?;
    world.client().delete::<Image>(TINY).await?;
    Ok(())
}

async fn goes(world: &World) -> anyhow::Result<()> {
    let is_gone = || files(world).is_ok_and(|names| names.is_empty());
    wait::until_it_holds("what nothing needs is gone", PATIENCE, is_gone).await
}

/// What is in the datastore's directory of images.
fn files(world: &World) -> anyhow::Result<Vec<String>> {
    let images = world.volumes().with_file_name("images");
    let entries = std::fs::read_dir(&images).with_context(|| format!("reading {}", images.display()))?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}
