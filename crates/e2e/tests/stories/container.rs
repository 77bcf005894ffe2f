//! In a container that has no users for VMs of their own, all QEMUs of a host run as the one that is there for them.

use std::fs;

use anyhow::{Context, ensure};
use api::kinds::Host;
use model::host::QemuUserName;
use testkit::vms;
use testkit::world::{COMMON_USER, Owner, World};

#[tokio::test]
async fn qemus_share_a_user_that_is_nobody_else() -> anyhow::Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("reading who this is")?;
    if !status.contains("\nUid:\t0\t") {
        println!("skipped: only root may say which users a container has");
        return Ok(());
    }
    let world = World::up_as(Owner::Contained, 1).await?;
    let said = world.client().get::<Host>("h1").await?.status.qemu_user;
    let said = said.context("a host says as whom its QEMUs run")?;
    ensure!(
        said.name == QemuUserName::Host && said.why.is_some(),
        "it should be the host's user, with a cause: {said:?}"
    );
    world.make_template(192).await?;
    let vm = world.create_vm("web", vms::spec(None, "")).await?;
    world.until_ready("web").await?;
    let living = world.living(vms::id(&vm));
    let (_, _, pid) = living.first().context("it has no process")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let id = COMMON_USER.1;
    let is_it = status.contains(&format!("\nUid:\t{id}\t{id}\t{id}\t{id}\n"));
    let has_nothing = status.contains("\nCapPrm:\t0000000000000000\n");
    ensure!(is_it && has_nothing, "QEMU is somebody else, or more: {status}");
    world.down().await
}
