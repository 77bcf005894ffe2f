//! A Debian with real cloud-init does what its seed tells it, in both forms: name, address, key, parts, vendor data. As a template it
//! forgets who it was.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api::client::ObjectOf;
use api::kinds::{BuildSpec, GuestSpec, Template};
use api::template::WarmState;
use futures_util::future::try_join_all;
use model::operation::OperationPhase;
use model::user_data::UserData;
use model::vm::{SeedFormat, StartChoice};
use serde_json::json;
use testkit::vms::{self, TINY};
use testkit::wait::{self, Verdict};
use testkit::world::{World, debian_image};

use super::builds;

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
/// What one from memory has of its own.
const FROM_MEMORY: &str = "cat /etc/machine-id; cut -d' ' -f2 /etc/ssh/ssh_host_*_key.pub; hostname\n";
/// A boot takes minutes here.
const AT_ONCE: Duration = Duration::from_secs(20);
const SCRIPT: &str = "#!/bin/sh\necho second part >/dev/ttyS0\n";
const VENDOR: &str = "#!/bin/sh\necho vendor part >/dev/ttyS0\n";

/// One host, and a template of a Debian.
async fn of_debian(memory_mib: u64) -> anyhow::Result<World> {
    let world = World::up(1).await?;
    world.import(&debian_image()?).await?;
    world.create_template(memory_mib).await?;
    Ok(world)
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn debian_does_what_either_seed_tells_it() -> anyhow::Result<()> {
    let world = of_debian(512).await?;
    let seeds = [SeedFormat::NoCloud, SeedFormat::ConfigDrive];
    try_join_all(seeds.map(|seed| is_configured(&world, seed))).await?;
    world.down().await
}

/// Who a guest is, a line each.
const WHO: &str = "cat /etc/machine-id; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub; cat /var/lib/cloud/data/instance-id; hostname\n";
/// What a build leaves in a guest that shall not be there, and what its script has made.
const LEFT: &str = "ls -d /var/lib/sterna-build* /run/sterna-build* 2>/dev/null; cat /root/patched; systemctl is-system-running\n";

/// A VM becomes a template, by systemd and cloud-init; a VM of that is somebody else in all that it was.
#[tokio::test]
#[ignore = "long: make soak"]
async fn what_a_debian_was_is_forgotten() -> anyhow::Result<()> {
    let world = of_debian(512).await?;
    let golden = is_somebody(&world, "golden", TINY).await?;
    let of_golden = BuildSpec {
        template: "web".to_owned(),
        from_vm: Some("golden".to_owned()),
        refresh: false,
        script: Some("#!/bin/sh\necho patched >/root/patched\n".to_owned()),
    };
    let vm = builds::build(&world, "web-build-1", of_golden).await?;
    let done = builds::ended(&world, &vm.name, PATIENCE).await?;
    ensure!(done.status.phase == OperationPhase::Done, "{:?}", done.status);
    ensure!(
        world.does("golden", WHO).await? == golden,
        "it is somebody else now"
    );
    world.delete_vm("golden").await?;
    let front = is_somebody(&world, "front", "web").await?;
    let both: Vec<_> = golden.lines().zip(front.lines()).collect();
    ensure!(
        both.len() == 4 && both.iter().all(|(was, is)| was != is && !is.is_empty()),
        "{both:?}"
    );
    let left = world.does("front", LEFT).await?;
    ensure!(left == "patched\nrunning\n", "{left:?}");
    world.down().await
}

/// Those that start from a Debian's memory are there in seconds, and are somebody of their own.
#[tokio::test]
#[ignore = "long: make soak"]
async fn debians_start_from_memory_at_once() -> anyhow::Result<()> {
    let world = of_debian(256).await?;
    let wish = json!({ "spec": { "keep_warm": {} } });
    world.client().patch::<Template>(TINY, &wish, None).await?;
    let is_warm = |template: &ObjectOf<Template>| {
        let warm = template.status.warm.as_ref();
        Verdict::from(warm.is_some_and(|warm| warm.state == WarmState::Ready))
    };
    wait::until::<Template>(world.client(), TINY, "warm", PATIENCE, is_warm).await?;
    let mut seen = BTreeSet::new();
    for name in ["one", "two"] {
        let begun = Instant::now();
        let mut spec = vms::spec(None, "");
        spec.start = Some(StartChoice::AtOnce);
        world.create_vm(name, spec).await?;
        let is_ready = |vm: &vms::VmObject| Verdict::from(vm.status.ready);
        world.until_vm(name, "ready", is_ready).await?;
        ensure!(begun.elapsed() < AT_ONCE, "{name}: {:?}", begun.elapsed());
        let who = world.does(name, FROM_MEMORY).await?;
        ensure!(
            who.ends_with(&format!("{name}\n")) && who.lines().count() >= 3,
            "{who:?}"
        );
        for line in who.lines() {
            ensure!(seen.insert(line.to_owned()), "{line:?} was seen before: {seen:?}");
        }
    }
    world.down().await
}

/// Who a VM of a template is, once cloud-init has ended well.
async fn is_somebody(world: &World, name: &str, template: &str) -> anyhow::Result<String> {
    let mut spec = vms::spec(None, "");
    spec.template = Some(template.to_owned());
    spec.guest = Some(GuestSpec {
        hostname: Some(format!("{name}-guest")),
        user_data: Some(UserData::Parts(vec![SETTINGS.to_owned()])),
        ..GuestSpec::default()
    });
    let vm = world.create_vm(name, spec).await?;
    let is_done = |line: &str| line.contains("result: status: done").then_some(());
    world
        .console("h1", vms::id(&vm))
        .until("its result", PATIENCE, is_done)
        .await
        .with_context(|| name.to_owned())?;
    world.does(name, WHO).await
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
