//! A VM with UEFI: its variables are its own, go with its disk to a copy, are read on the host it moves to, and are gone with it.
//! Those of VMs that start from their template's memory begin as its warm form's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use api::Create;
use api::kinds::{Template, TemplateSpec, Vm, VmSpec};
use model::lifecycle::Phase;
use model::vm::{Firmware, Power, StartChoice};
use testkit::executing::RunsOnce;
use testkit::vms::{self, BOOT_PATIENCE, TINY, VmObject};
use testkit::wait::{self, Verdict};
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

#[tokio::test]
#[ignore = "soak: a minute and more, with three boots by UEFI"]
async fn vms_start_from_memory_that_was_booted_by_uefi() -> anyhow::Result<()> {
    let world = World::up(2).await?;
    world.import_image().await?;
    let form = warm(&world).await?;
    let kept = variables(&world, &form);
    let content = std::fs::read(&kept)?;
    ensure!(
        std::fs::metadata(&kept)?.permissions().readonly(),
        "the form's variables can be written"
    );

    for name in ["one", "two"] {
        create_at_once(&world, name, "h1").await?;
    }
    let (one, two) = tokio::try_join!(world.until_ready("one"), world.until_ready("two"))?;
    for vm in [&one, &two] {
        ensure!(vm.status.booted_instead.is_none(), "{:?}", vm.status);
        ensure!(
            std::fs::read(own(&world, vm))? == content,
            "{} has others",
            vm.name
        );
    }

    // Where OVMF is another one it is booted, by other variables.
    is_of_another_uefi(&kept.with_file_name("warm-1.json"))?;
    create_at_once(&world, "three", "h2").await?;
    let three = world.until_ready("three").await?;
    let why = three.status.booted_instead.as_ref().map(|why| &why.message);
    ensure!(
        why.is_some_and(|why| why.contains("it was made by")),
        "{:?}",
        three.status
    );
    ensure!(
        std::fs::read(own(&world, &three))? == content,
        "it booted by the form's"
    );
    ensure!(variables(&world, &three).exists(), "it has none");

    // Made whole, it boots by what it has, which is nobody else's; the other takes its own along.
    world.act("one", "flatten").await?;
    let is_whole = |vm: &VmObject| Verdict::from(vm.status.disk.as_ref().is_some_and(|disk| disk.whole));
    world.until_vm("one", "whole", is_whole).await?;
    world.shut_down("one").await?;
    world.act("one", "start").await?;
    let begun = world.migrate("two", "h2").await?;
    let ended = world.until_migration_ended(&begun.name).await?;
    ensure!(ended.status.reason.is_none(), "{:?}", ended.status);
    for name in ["one", "two"] {
        world.until_ready(name).await?;
        let said = world.does(name, &format!("hostname; {SCRIPT}")).await?;
        ensure!(said == format!("{name}\nstarted by UEFI\n"), "{said:?}");
    }
    let booted = std::fs::read(variables(&world, &one))?;
    ensure!(booted != content, "no boot has left anything");
    ensure!(std::fs::read(own(&world, &two))? == content, "two's were written");
    ensure!(std::fs::read(&kept)? == content, "the form's were written");
    for name in ["one", "two", "three", &form.name] {
        world.delete_vm(name).await?;
    }
    is_empty(&world)?;
    world.down().await
}

/// The template, started by UEFI, and its warm form.
async fn warm(world: &World) -> anyhow::Result<VmObject> {
    let template = Create {
        name: Some(TINY.to_owned()),
        labels: BTreeMap::new(),
        spec: TemplateSpec {
            image: TINY.to_owned(),
            memory_mib: Some(192),
            firmware: Some(Firmware::Uefi),
            ..TemplateSpec::default()
        },
    };
    world.client().create::<Template>(&template, None, false).await?;
    let spec = VmSpec {
        warms: Some(TINY.to_owned()),
        ..VmSpec::default()
    };
    world.create_vm("form", spec).await?;
    let is_kept = |vm: &VmObject| match vm.status.phase {
        Phase::Stopped => Verdict::Reached,
        Phase::Failed => Verdict::Never,
        _ => Verdict::NotYet,
    };
    wait::until::<Vm>(world.client(), "form", "kept", BOOT_PATIENCE, is_kept).await
}

async fn create_at_once(world: &World, name: &str, host: &str) -> anyhow::Result<VmObject> {
    let spec = VmSpec {
        start: Some(StartChoice::AtOnce),
        ..vms::spec(Some(host), "")
    };
    world.create_vm(name, spec).await
}

/// A warm form is made to have been made by another OVMF than is here.
fn is_of_another_uefi(form: &Path) -> anyhow::Result<()> {
    let mut made: serde_json::Value = serde_json::from_slice(&std::fs::read(form)?)?;
    let uefi = made
        .pointer_mut("/made_by/uefi")
        .filter(|uefi| uefi.is_string())
        .context("it does not say by which")?;
    *uefi = serde_json::json!("another");
    Ok(std::fs::write(form, serde_json::to_vec(&made)?)?)
}

fn variables(world: &World, vm: &VmObject) -> PathBuf {
    world.volumes().join(vm.id.to_string()).join("nvram.fd")
}

/// Those of a VM whose disk lies over its template's warm form's.
fn own(world: &World, vm: &VmObject) -> PathBuf {
    variables(world, vm).with_file_name("nvram-warm.fd")
}
