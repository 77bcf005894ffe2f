//! A Debian with real cloud-init does what its seed tells it, in both forms: name, address, key, parts, vendor data.

use std::time::Duration;

use anyhow::Context;
use api::kinds::GuestSpec;
use futures_util::future::try_join_all;
use model::user_data::UserData;
use model::vm::SeedFormat;
use testkit::vms;
use testkit::wait::Verdict;
use testkit::world::{World, debian_image};

/// What a whole Debian may take where the processor is emulated.
const PATIENCE: Duration = Duration::from_secs(3600);
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDebianDebianDebianDebianDebianDebianDebianDebi me@here";
/// It says what it finds, and once cloud-init has ended, with which result.
const SETTINGS: &str = r#"#cloud-config
write_files:
  - path: /root/look
    content: |
      address=$(ip -4 -o address show dev eth0 | awk '{ sub("/.*", "", $4); print $4 }')
      keys=$(grep -c IDebianDebian /home/debian/.ssh/authorized_keys)
      echo "found: $(hostname) $address keys=$keys" >/dev/ttyS0
      cloud-init status --wait >/run/result
      echo "result: $(tail -n 1 /run/result | tr -d .)" >/dev/ttyS0
runcmd:
  - [systemd-run, --no-block, sh, /root/look]
"#;
const SCRIPT: &str = "#!/bin/sh\necho second part >/dev/ttyS0\n";
const VENDOR: &str = "#!/bin/sh\necho vendor part >/dev/ttyS0\n";

#[tokio::test]
#[ignore = "long: make soak"]
async fn debian_does_what_either_seed_tells_it() -> anyhow::Result<()> {
    let world = World::up(1).await?;
    world.import(&debian_image()?).await?;
    world.create_template(512).await?;
    let seeds = [SeedFormat::NoCloud, SeedFormat::ConfigDrive];
    try_join_all(seeds.map(|seed| is_configured(&world, seed))).await?;
    world.down().await
}

async fn is_configured(world: &World, seed: SeedFormat) -> anyhow::Result<()> {
    let name = if seed.is_usual() { "nocloud" } else { "configdrive" };
    let mut spec = vms::spec(None, "");
    spec.guest = Some(GuestSpec {
        hostname: Some(format!("{name}-guest")),
        ssh_keys: vec![KEY.to_owned()],
        user_data: Some(UserData::Parts(vec![SETTINGS.to_owned(), SCRIPT.to_owned()])),
        vendor_data: Some(VENDOR.to_owned().into()),
        seed: Some(seed),
    });
    let vm = world.create_vm(name, spec).await?;
    let address = vms::address(&vm)?;
    let console = world.console("h1", vms::id(&vm));
    for said in [
        "vendor part",
        "second part",
        &format!("found: {name}-guest {address} keys=1"),
        "result: status: done",
    ] {
        let mut log = console.clone();
        let is_it = |line: &str| line.contains(said).then_some(());
        log.until(said, PATIENCE, is_it)
            .await
            .with_context(|| name.to_owned())?;
    }
    let address = address.parse()?;
    let has_it =
        |vm: &vms::VmObject| Verdict::from(vm.status.ready && vm.status.addresses.contains(&address));
    world.until_vm(name, "ready at its address", has_it).await?;
    Ok(())
}
