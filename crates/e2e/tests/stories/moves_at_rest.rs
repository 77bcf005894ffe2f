//! A VM that is prepared, started, rebooted where it is, stopped on one host and resumed on another, as the same guest;
//! and the records that these leave.

use std::time::Duration;

use anyhow::{Context, ensure};
use api::drain::HostActionBody;
use api::kinds::{ActionBody, Host, Operation, Vm, VmSpec};
use model::lifecycle::Phase;
use model::operation::OperationPhase;
use model::vm::Power;
use testkit::console::Console;
use testkit::vms::{self, VmObject};
use testkit::wait::Verdict;
use testkit::world::World;

const NAME: &str = "web";
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_vm_moves_while_it_is_at_rest() -> anyhow::Result<()> {
    let world = World::up(2).await?;
    world.make_template(192).await?;
    let vm = is_prepared(&world).await?;
    world.act(NAME, "start").await?;
    let vm = world.until_ready(vm.name.as_str()).await?;
    let vm = reboots(&world, &vm).await?;
    stops_and_resumes_elsewhere(&world, &vm).await?;
    world.delete_vm(NAME).await?;
    let told = told(&world).await?;
    ensure!(told == ["web-delete-4 Done"], "{told:?}");
    world.down().await
}

/// Its disk is there, and no process was.
async fn is_prepared(world: &World) -> anyhow::Result<VmObject> {
    let spec = VmSpec {
        power: Some(Power::Prepared),
        ..vms::spec(None, "probe tick &")
    };
    world.create_vm(NAME, spec).await?;
    let vm = world.until_phase(NAME, Phase::Off).await?;
    let disk = world.volumes().join(vm.id.to_string()).join("root.qcow2");
    ensure!(disk.exists(), "{} was not made", disk.display());
    ensure!(
        vm.status.host.is_some() && world.living(vms::id(&vm)).is_empty(),
        "{vm:?}"
    );
    Ok(vm)
}

/// Once by itself when it is asked, once by force in the midst of the boot that follows: the same incarnation, the same process.
async fn reboots(world: &World, before: &VmObject) -> anyhow::Result<VmObject> {
    let host = before.status.host.clone().context("it is on no host")?;
    let mut console = world.console(&host, vms::id(before));
    let processes = world.living(vms::id(before));
    for (n, force) in [(1, false), (2, true)] {
        console.skip();
        let body = ActionBody { force };
        let asked = world.client().action::<Vm, _>(NAME, "reboot", &body).await?;
        ensure!(
            asked.status.operation == Some(format!("web-reboot-{n}")),
            "{asked:?}"
        );
        let begins = |line: &str| line.contains("SeaBIOS").then_some(());
        console
            .until("the beginning of another boot", vms::BOOT_PATIENCE, begins)
            .await?;
        let is_over = |vm: &VmObject| Verdict::from(vm.status.operation.is_none());
        world.until_vm(NAME, "rebooted", is_over).await?;
        let told = told(world).await?;
        let expected = if force {
            "web-reboot-2 Done reset"
        } else {
            "web-reboot-1 Done"
        };
        ensure!(told.last().is_some_and(|last| last == expected), "{told:?}");
    }
    let vm = world.until_ready(NAME).await?;
    ensure!(
        vm.status.incarnation == before.status.incarnation,
        "a reboot ended the incarnation"
    );
    ensure!(
        world.living(vms::id(before)) == processes,
        "a reboot made another process"
    );
    Ok(vm)
}

/// Saved into the datastore it holds no host; elsewhere the same guest goes on, under a new incarnation.
async fn stops_and_resumes_elsewhere(world: &World, before: &VmObject) -> anyhow::Result<()> {
    let host = before.status.host.clone().context("it is on no host")?;
    let mut console = world.console(&host, vms::id(before));
    console.skip();
    let ticks = next_ticks(&mut console).await?;
    world.act(NAME, "stop").await?;
    let stopped = world.until_phase(NAME, Phase::Stopped).await?;
    ensure!(
        stopped.status.host.is_none(),
        "a stopped VM holds a host: {stopped:?}"
    );
    ensure!(
        world.living(vms::id(&stopped)).is_empty(),
        "a stopped VM has a process"
    );
    let reserved = world.client().get::<Host>(&host).await?.status.reserved_mib;
    ensure!(reserved == 0, "{reserved} MiB are reserved for a stopped VM");
    world
        .client()
        .action::<Host, _>(&host, "cordon", &HostActionBody::default())
        .await?;
    world.act(NAME, "resume").await?;
    let resumed = world.until_ready(NAME).await?;
    ensure!(
        resumed.status.host.is_some_and(|other| other != host),
        "it came back to {host}"
    );
    ensure!(
        resumed.status.incarnation > before.status.incarnation,
        "a resume is a new incarnation"
    );
    let elsewhere = world.living(vms::id(before));
    let [(other, ..)] = &elsewhere[..] else {
        anyhow::bail!("not one process of it: {elsewhere:?}");
    };
    // The first that it ever wrote there.
    let later = next_ticks(&mut world.console(other, vms::id(before))).await?;
    ensure!(later > ticks, "the guest began anew: {later} ticks after {ticks}");
    let state = world
        .volumes()
        .join(before.id.to_string())
        .join(format!("saved-{}.state", incarnation(before)));
    testkit::wait::until_it_holds("the used state is deleted", PATIENCE, || !state.exists()).await
}

fn incarnation(vm: &VmObject) -> String {
    vm.status.incarnation.map(|n| n.to_string()).unwrap_or_default()
}

/// Every operation, in a few words.
async fn told(world: &World) -> anyhow::Result<Vec<String>> {
    let (all, _) = world.client().list::<Operation>().await?;
    let words = |operation: &api::client::ObjectOf<Operation>| {
        let status = &operation.status;
        let is_timed = status.ended_at.is_some() != (status.phase == OperationPhase::Running);
        ensure!(is_timed && operation.owner == "admin", "{operation:?}");
        let reason = status.reason.as_ref().map(|reason| format!(" {}", reason.code));
        Ok(format!(
            "{} {:?}{}",
            operation.name,
            status.phase,
            reason.unwrap_or_default()
        ))
    };
    all.iter().map(words).collect()
}

/// The next report of the guest's counter.
async fn next_ticks(console: &mut Console) -> anyhow::Result<u64> {
    let ticks = |line: &str| -> Option<u64> {
        let after = line.split_once("ticks=")?.1;
        after.split_whitespace().next()?.parse().ok()
    };
    console.until("the guest's ticks", PATIENCE, ticks).await
}
