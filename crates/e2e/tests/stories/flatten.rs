//! Disks that are made whole: of a VM that runs, of one that is saved and of one that is off. Afterwards nothing needs their image.

use anyhow::ensure;
use api::kinds::{Image, Template, VmSpec};
use model::lifecycle::Phase;
use model::vm::Power;
use testkit::counter::{Heard, Left};
use testkit::executing::RunsOnce;
use testkit::vms::{self, TINY, VmObject};
use testkit::wait::Verdict;
use testkit::world::World;

use super::disks::{is_clean, is_empty};

/// It has counted so far at least.
const COUNTED: Heard = Heard {
    last: 10,
    back: 0,
    boots: 0,
};
const SCRIPT: &str = "probe count /data/count 50 7000 &";

#[tokio::test]
async fn disks_become_whole_and_their_image_is_deleted_under_none() -> anyhow::Result<()> {
    let world = World::up(1).await?;
    world.make_template(192).await?;
    world.create_vm("web", vms::spec(Some("h1"), SCRIPT)).await?;
    let web = world.until_ready("web").await?;
    world.said(&web, "ready: web").await?;
    clone(&world, "cold", Power::Prepared).await?;
    clone(&world, "live", Power::Running).await?;
    let live = world.until_ready("live").await?;
    world.said(&live, "ready: live").await?;
    world.client().delete::<Template>(TINY).await?;

    // Beside a guest that writes, also when the agent and the server are killed.
    let once = RunsOnce::begin(&world, vms::id(&live));
    world.act("live", "flatten").await?;
    tokio::try_join!(world.kill_agent("h1"), world.kill_server())?;
    world.until_phase("live", Phase::Running).await?;
    let refused = world.client().delete::<Image>(TINY).await;
    ensure!(
        refused.is_err_and(|error| format!("{error:#}").contains("cold")),
        "an image is deleted under disks"
    );
    let now = until_whole(&world, "live").await?;
    ensure!(
        now.status.incarnation == live.status.incarnation,
        "{:?}",
        now.status
    );
    once.end().await?;

    // Of a VM that is saved, and of one that is off, neither of which is started for it.
    world.act("web", "suspend").await?;
    world.until_phase("web", Phase::Suspended).await?;
    world.until_phase("cold", Phase::Off).await?;
    for name in ["web", "cold"] {
        let before = world.act(name, "flatten").await?.status.phase;
        let now = until_whole(&world, name).await?;
        is_clean(&world.disk(&now), 1)?;
        world.until_phase(name, before).await?;
    }
    world.client().delete::<Image>(TINY).await?;
    world.act("web", "resume").await?;
    world.until_phase("web", Phase::Running).await?;
    let mut console = world.console("h1", vms::id(&live));
    console.skip();
    world.act("live", "reboot").await?;
    world.act("cold", "start").await?;
    let cold = world.until_ready("cold").await?;
    world.said(&cold, "ready: cold").await?;
    let is_up = |line: &str| line.contains("ready: live").then_some(());
    console.until("live, again", vms::BOOT_PATIENCE, is_up).await?;
    for name in ["web", "live", "cold"] {
        let disk = world.shut_down(name).await?;
        is_clean(&disk, 1)?;
        Left::behind(&disk)?.is_one_history(COUNTED)?;
        world.delete_vm(name).await?;
    }
    is_empty(&world)?;
    world.down().await
}

async fn clone(world: &World, name: &str, power: Power) -> anyhow::Result<VmObject> {
    let spec = VmSpec {
        clone_of: Some("web".to_owned()),
        power: Some(power),
        ..VmSpec::default()
    };
    world.create_vm(name, spec).await
}

async fn until_whole(world: &World, name: &str) -> anyhow::Result<VmObject> {
    let is_whole = |vm: &VmObject| {
        let disk = vm.status.disk.clone().unwrap_or_default();
        match disk.reason {
            Some(_) => Verdict::Never,
            None => Verdict::from(disk.whole),
        }
    };
    world.until_vm(name, "whole", is_whole).await
}
