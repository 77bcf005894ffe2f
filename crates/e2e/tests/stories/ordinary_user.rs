//! No root is needed: an ordinary user brings a cloud up, boots a VM, and takes it down.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, ensure};
use testkit::vms;
use testkit::world::{Owner, World};

const TUN: &str = "/dev/net/tun";

#[tokio::test]
async fn an_ordinary_user_needs_no_root() -> anyhow::Result<()> {
    let mode = fs::metadata(TUN)
        .with_context(|| format!("looking at {TUN}"))?
        .permissions()
        .mode();
    ensure!(
        mode & 0o006 == 0o006,
        "{TUN} is not for everybody (its mode is {mode:o}): run  chmod 0666 {TUN}"
    );
    let world = World::up_as(owner()?, 2).await?;
    world.make_template(192).await?;
    world.create_vm("web", vms::spec(None, "")).await?;
    world.until_ready("web").await?;
    world.delete_vm("web").await?;
    world.down().await
}

/// Root becomes somebody else for it; whoever is no root is one already.
fn owner() -> anyhow::Result<Owner> {
    let status = fs::read_to_string("/proc/self/status").context("reading who this is")?;
    let is_root = status.lines().any(|line| line.starts_with("Uid:\t0\t"));
    Ok(if is_root { Owner::Nobody } else { Owner::Tester })
}
