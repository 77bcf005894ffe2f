//! Copies of VMs: of one that runs and of one that is off, each a machine of its own with a disk of its own, also when agent and
//! server are killed meanwhile.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use api::kinds::{Image, VmSpec};
use model::lifecycle::Phase;
use model::vm::{Consistency, Power};
use testkit::counter::{Heard, Left};
use testkit::executing::RunsOnce;
use testkit::vms::{self, TINY, VmObject};
use testkit::world::World;
use tokio::time::sleep;

use super::disks::{is_clean, is_empty, qemu_img, same};

/// A clone's chain is the image and it, no more.
const OVER_IMAGE: usize = 2;

/// Says whose disk it was first, and counts on it.
const SCRIPT: &str = "[ -e /data/first ] || hostname >/data/first\n\
    echo \"the disk was $(cat /data/first)'s first, its first card has $(ip -o -4 address show dev eth0 | awk '{ print $4 }')\"\n\
    dd if=/dev/urandom of=/data/noise bs=1M count=12 2>/dev/null\n\
    probe count /data/count 50 7000 &";
/// It has counted so far at least.
const COUNTED: Heard = Heard {
    last: 10,
    back: 0,
    boots: 0,
};
/// More than the image's.
const LARGER_BYTES: u64 = 256 << 20;
/// When agent and server are killed, after a copy was asked for.
const KILLED_AFTER: [Duration; 3] = [
    Duration::from_millis(0),
    Duration::from_millis(120),
    Duration::from_millis(400),
];

#[tokio::test]
async fn a_vm_is_copied_while_it_runs_and_while_it_is_off_and_all_go_their_ways() -> anyhow::Result<()> {
    let world = World::up(2).await?;
    world.make_template(192).await?;
    let web = world.create_vm("web", vms::spec(Some("h1"), SCRIPT)).await?;
    let once = RunsOnce::begin(&world, vms::id(&web));
    let web = world.until_ready("web").await?;
    world.said(&web, "ready: web").await?;
    let test = clone(&world, "test", "web", Power::Running).await?;
    ensure!(test.status.copied.is_none(), "{:?}", test.status);
    let test = world.until_ready("test").await?;
    let copied = test
        .status
        .copied
        .clone()
        .context("it says nothing of its copy")?;
    ensure!(copied.consistency == Consistency::Frozen, "{copied:?}");
    is_its_own(&world, &web, &test).await?;
    full_clone(&world, "whole", "web").await?;
    let now = world.get_vm("web").await?;
    ensure!(
        now.status.incarnation == web.status.incarnation && now.status.phase == Phase::Running,
        "{:?}",
        now.status
    );
    once.end().await?;

    // The source is gone, and what both are made of is not.
    let disk = world.shut_down("web").await?;
    let first = Left::behind(&disk)?;
    is_copied_while_it_is_off(&world, &web, &disk).await?;
    world.delete_vm("web").await?;
    let refused = world.client().delete::<Image>(TINY).await;
    ensure!(refused.is_err(), "an image is deleted under a copy");
    let second = Left::behind(&world.shut_down("test").await?)?;
    for left in [&first, &second] {
        left.is_one_history(COUNTED)?;
    }
    world.delete_vm("test").await?;
    is_empty(&world)?;
    world.down().await
}

/// A VM that is off is copied as it is, and neither needs the other; afterwards both are started.
async fn is_copied_while_it_is_off(world: &World, web: &VmObject, disk: &Path) -> anyhow::Result<()> {
    clone(world, "cold", "web", Power::Prepared).await?;
    let cold = world.until_phase("cold", Phase::Off).await?;
    full_clone(world, "whole", "web").await?;
    let copied = cold
        .status
        .copied
        .clone()
        .context("it says nothing of its copy")?;
    ensure!(copied.consistency == Consistency::Off, "{copied:?}");
    let copy = world.disk(&cold);
    is_clean(&copy, OVER_IMAGE)?;
    same(disk, &copy)?;
    world.act("cold", "start").await?;
    let cold = world.until_ready("cold").await?;
    is_its_own(world, web, &cold).await?;
    world.act("web", "start").await?;
    world.until_phase("web", Phase::Running).await?;
    world.delete_vm("cold").await
}

#[tokio::test]
async fn a_copy_is_made_whoever_is_killed_meanwhile() -> anyhow::Result<()> {
    let world = World::up(1).await?;
    world.make_template(192).await?;
    world.create_vm("web", vms::spec(Some("h1"), SCRIPT)).await?;
    let web = world.until_ready("web").await?;
    world.said(&web, "ready: web").await?;
    let once = RunsOnce::begin(&world, vms::id(&web));
    for (n, after) in KILLED_AFTER.into_iter().enumerate() {
        let name = format!("copy-{n}");
        clone(&world, &name, "web", Power::Prepared).await?;
        sleep(after).await;
        world.kill_agent("h1").await?;
        let copy = world.until_phase(&name, Phase::Off).await?;
        is_clean(&world.disk(&copy), OVER_IMAGE)?;
        world.delete_vm(&name).await?;
    }
    clone(&world, "copy-s", "web", Power::Prepared).await?;
    world.kill_server().await?;
    let copy = world.until_phase("copy-s", Phase::Off).await?;
    is_clean(&world.disk(&copy), OVER_IMAGE)?;
    // One that is not wanted any more takes with it what there was of it.
    clone(&world, "copy-d", "web", Power::Prepared).await?;
    world.delete_vm("copy-d").await?;
    // The guest goes on: its file systems are not left frozen.
    let now = world.get_vm("web").await?;
    ensure!(
        now.status.incarnation == web.status.incarnation,
        "{:?}",
        now.status
    );
    once.end().await?;
    Left::behind(&world.shut_down("web").await?)?.is_one_history(COUNTED)?;
    for name in ["web", "copy-s"] {
        world.delete_vm(name).await?;
    }
    is_empty(&world)?;
    world.down().await
}

async fn clone(world: &World, name: &str, source: &str, power: Power) -> anyhow::Result<VmObject> {
    let spec = VmSpec {
        clone_of: Some(source.to_owned()),
        power: Some(power),
        ..VmSpec::default()
    };
    world.create_vm(name, spec).await
}

/// It needs no image, and is larger.
async fn full_clone(world: &World, name: &str, source: &str) -> anyhow::Result<()> {
    let mut spec = VmSpec {
        clone_of: Some(source.to_owned()),
        clone_full: Some(true),
        disk_bytes: Some(1 << 20),
        power: Some(Power::Prepared),
        ..VmSpec::default()
    };
    let refused = world.create_vm(name, spec.clone()).await;
    ensure!(
        refused.is_err_and(|error| format!("{error:#}").contains("smaller")),
        "a smaller disk"
    );
    spec.disk_bytes = Some(LARGER_BYTES);
    world.create_vm(name, spec).await?;
    let whole = world.until_phase(name, Phase::Off).await?;
    ensure!(whole.spec.image.is_none(), "{:?}", whole.spec);
    qemu_img(&["check", "-q"], &[&world.disk(&whole)])?;
    let info = qemu_img(
        &["info", "--output=json", "--backing-chain"],
        &[&world.disk(&whole)],
    )?;
    let chain: Vec<serde_json::Value> = serde_json::from_str(&info)?;
    ensure!(
        chain.len() == 1 && chain[0]["virtual-size"] == LARGER_BYTES,
        "{info}"
    );
    world.delete_vm(name).await
}

/// It has the source's disk, and its own name and address.
async fn is_its_own(world: &World, source: &VmObject, copy: &VmObject) -> anyhow::Result<()> {
    let (first, own) = (vms::address(source)?, vms::address(copy)?);
    ensure!(first != own, "both have {own}");
    world
        .said(
            copy,
            &format!("the disk was web's first, its first card has {own}/"),
        )
        .await?;
    world.said(copy, &format!("ready: {}", copy.name)).await
}
