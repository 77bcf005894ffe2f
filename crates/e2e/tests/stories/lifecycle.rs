//! The life of one VM: made, paused, suspended, shut down, started again, deleted.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use model::lifecycle::Phase;
use model::report::StartStep;
use testkit::console::Console;
use testkit::vms::{self, VmObject};
use testkit::wait;
use testkit::world::World;

const NAME: &str = "web";
const HOST: &str = "h1";
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_vm_lives_and_dies() -> anyhow::Result<()> {
    let world = World::up(1).await?;
    world.make_template(192).await?;
    let links = world.interfaces(HOST)?;
    world.create_vm(NAME, vms::spec(None, "probe tick &")).await?;
    let vm = world.until_ready(NAME).await?;
    every_step_has_its_time(&world, &vm).await?;
    let mut console = world.console(HOST, vms::id(&vm));
    let ticks = ticks_after(&mut console, 0).await?;

    let ticks = pauses(&world, &mut console, ticks).await?;
    suspends(&world, &mut console, ticks).await?;
    shuts_down(&world, &mut console).await?;
    is_deleted(&world, &vm, &links).await?;
    world.down().await
}

/// From the request to the agent's answer, and the chart shows them all.
async fn every_step_has_its_time(world: &World, vm: &VmObject) -> anyhow::Result<()> {
    use StartStep::{Agent, Boot, Disk, Image, Network, Placement, Process, Seed, Turn};
    let mut steps: Vec<StartStep> = vm.status.steps.iter().map(|step| step.step).collect();
    steps.sort();
    let all = [Placement, Image, Turn, Seed, Disk, Network, Process, Boot, Agent];
    ensure!(steps == all, "{:?}", vm.status.steps);
    let chart = world.command(&["vm", "get", NAME, "--timing"])?.output().await?;
    let chart = String::from_utf8_lossy(&chart.stdout);
    for step in steps {
        ensure!(
            chart.contains(&step.to_string()),
            "{step} is not in the chart:\n{chart}"
        );
    }
    Ok(())
}

/// A paused guest stands still, and goes on where it was.
async fn pauses(world: &World, console: &mut Console, ticks: u64) -> anyhow::Result<u64> {
    world.act(NAME, "pause").await?;
    let paused = world.until_phase(NAME, Phase::Paused).await?;
    ensure!(
        !paused.status.next_commands.is_empty(),
        "nothing leads on from a pause"
    );
    world.act(NAME, "resume").await?;
    world.until_phase(NAME, Phase::Running).await?;
    ticks_after(console, ticks).await
}

/// Saved to disk and loaded again, the same guest goes on, under a new incarnation.
async fn suspends(world: &World, console: &mut Console, ticks: u64) -> anyhow::Result<()> {
    let before = world.act(NAME, "suspend").await?;
    let suspended = world.until_phase(NAME, Phase::Suspended).await?;
    ensure!(
        world.living(vms::id(&suspended)).is_empty(),
        "a suspended VM has a process"
    );
    world.act(NAME, "resume").await?;
    let resumed = world.until_ready(NAME).await?;
    ensure!(
        resumed.status.incarnation > before.status.incarnation,
        "a resume is a new incarnation"
    );
    let later = ticks_after(console, ticks).await?;
    ensure!(later > ticks, "the guest began anew: {later} ticks after {ticks}");
    Ok(())
}

/// Asked by ACPI, the guest ends by itself; started again, it boots.
async fn shuts_down(world: &World, console: &mut Console) -> anyhow::Result<()> {
    world.act(NAME, "shutdown").await?;
    let off = world.until_phase(NAME, Phase::Off).await?;
    ensure!(
        off.status.reason.is_none(),
        "the guest did not end by itself: {:?}",
        off.status.reason
    );
    console.skip();
    world.act(NAME, "start").await?;
    world.until_ready(NAME).await?;
    console
        .until("the end of a second boot", PATIENCE, |line| {
            line.contains("ready: web").then_some(())
        })
        .await
}

/// Nothing of it is left: no object, no disk, no interface, no process.
async fn is_deleted(world: &World, vm: &VmObject, links_before: &BTreeSet<String>) -> anyhow::Result<()> {
    let volumes = world.volumes().join(vm.id.to_string());
    ensure!(
        volumes.exists(),
        "{} is not where the VM's disk is",
        volumes.display()
    );
    ensure!(
        world.interfaces(HOST)? != *links_before,
        "the VM has no interface on its host"
    );
    world.delete_vm(NAME).await?;
    let found = world.get_vm(NAME).await;
    ensure!(found.is_err(), "a deleted VM is found: {found:?}");
    ensure!(!volumes.exists(), "{} is left", volumes.display());
    // The bridge of a network without a VM goes with the next document.
    let are_gone = || {
        world
            .interfaces(HOST)
            .is_ok_and(|links| links.is_subset(links_before))
    };
    wait::until_it_holds("the host has the interfaces of before", PATIENCE, are_gone).await?;
    ensure!(world.living(vms::id(vm)).is_empty(), "a deleted VM has a process");
    Ok(())
}

/// The next report of the guest's counter that is above a number.
async fn ticks_after(console: &mut Console, least: u64) -> anyhow::Result<u64> {
    let ticks = |line: &str| -> Option<u64> {
        let after = line.split_once("ticks=")?.1;
        after
            .split_whitespace()
            .next()?
            .parse()
            .ok()
            .filter(|ticks| *ticks > least)
    };
    console.skip();
    console
        .until(&format!("more than {least} ticks"), PATIENCE, ticks)
        .await
}
