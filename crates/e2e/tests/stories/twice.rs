//! Two clouds on one machine do not meet, also if everything in them has the same name.

use anyhow::ensure;
use model::lifecycle::Phase;
use testkit::vms::{self, VmObject};
use testkit::world::World;

const NAME: &str = "web";

#[tokio::test]
async fn two_worlds_do_not_meet() -> anyhow::Result<()> {
    let (one, other) = tokio::try_join!(World::up(1), World::up(1))?;
    let (vm, other_vm) = tokio::try_join!(boot(&one), boot(&other))?;
    ensure!(vm.id != other_vm.id, "two VMs have the same id");
    ensure!(
        vm.spec.nics.is_some() && vms::address(&vm)? == vms::address(&other_vm)?,
        "the two are not alike"
    );
    one.down().await?;
    let still = other.get_vm(NAME).await?;
    ensure!(
        still.status.phase == Phase::Running,
        "the end of one world reached the other: {:?}",
        still.status
    );
    ensure!(
        other.living(vms::id(&other_vm)).len() == 1,
        "the other world's VM has lost its process"
    );
    other.down().await
}

async fn boot(world: &World) -> anyhow::Result<VmObject> {
    world.make_template(192).await?;
    world.create_vm(NAME, vms::spec(None, "")).await?;
    world.until_ready(NAME).await
}
