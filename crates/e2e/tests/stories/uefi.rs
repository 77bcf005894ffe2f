//! A VM with UEFI: its variables are its own, go with its disk to a copy, are read on the host it moves to, and are gone with it.

use std::path::PathBuf;

use anyhow::ensure;
use api::kinds::VmSpec;
use model::lifecycle::Phase;
use model::vm::{Firmware, Power};
use testkit::executing::RunsOnce;
use testkit::vms::{self, VmObject};
use testkit::wait::Verdict;
use testkit::world::World;

use super::disks::is_empty;

/// The guest says what it was started by.
const SCRIPT: &str =
    "if [ -d /sys/firmware/efi ]; then echo 'started by UEFI'; else echo 'started by BIOS'; fi";

#[tokio::test]
async fn a_vm_starts_by_uefi_with_variables_of_its_own() -> anyhow::Result<()> {
    let world = World::up(2).await?;
    world.make_template(192).await?;
    let mut spec = vms::spec(Some("h1"), SCRIPT);
    spec.firmware = Some(Firmware::Uefi);
    let web = world.create_vm("web", spec).await?;
    let once = RunsOnce::begin(&world, vms::id(&web));
    let web = world.until_ready("web").await?;
    world.said(&web, "started by UEFI").await?;

    let copy = VmSpec {
        clone_of: Some("web".to_owned()),
        power: Some(Power::Prepared),
        ..VmSpec::default()
    };
    world.create_vm("copy", copy).await?;
    let copy = world.until_phase("copy", Phase::Off).await?;
    ensure!(copy.spec.firmware == Some(Firmware::Uefi), "{:?}", copy.spec);
    let (own, copied) = (variables(&world, &web), variables(&world, &copy));
    ensure!(
        std::fs::read(&own)? == std::fs::read(&copied)?,
        "the copy has other variables"
    );
    world.delete_vm("copy").await?;
    ensure!(!copied.exists(), "variables are left behind");

    let begun = world.migrate("web", "h2").await?;
    let ended = world.until_migration_ended(&begun.name).await?;
    ensure!(ended.status.reason.is_none(), "{:?}", ended.status);
    let is_there = |vm: &VmObject| Verdict::from(vm.status.host.as_deref() == Some("h2") && vm.status.ready);
    world.until_vm("web", "ready on h2", is_there).await?;
    once.end().await?;
    world.delete_vm("web").await?;
    is_empty(&world)?;
    world.down().await
}

fn variables(world: &World, vm: &VmObject) -> PathBuf {
    world.volumes().join(vm.id.to_string()).join("nvram.fd")
}
