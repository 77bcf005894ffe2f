//! Processes are killed, and every VM runs on, runs again, or says why it does not; and never twice.

use anyhow::{Context, ensure};
use model::lifecycle::Phase;
use model::migration::MigrationPhase;
use testkit::pair::{MEMORY_MIB, Pair, WEB};
use testkit::process;
use testkit::vms;
use testkit::world::World;

#[tokio::test]
async fn servers_and_agents_are_killed() -> anyhow::Result<()> {
    let world = World::up(3).await?;
    world.make_template(MEMORY_MIB).await?;
    let mut pair = Pair::create(&world).await?;
    pair.is_watched().await?;
    agent_of_a_running_vm(&world, &mut pair).await?;
    server_during_a_migration(&world, &mut pair).await?;
    agent_of_the_source(&world, &mut pair).await?;
    agent_of_the_target(&world, &mut pair).await?;
    server_while_a_vm_is_created(&world).await?;
    pair.is_well().await?;
    pair.ran_once().await?;
    world.down().await
}

#[tokio::test]
async fn qemus_are_killed() -> anyhow::Result<()> {
    let world = World::up(3).await?;
    world.make_template(MEMORY_MIB).await?;
    let mut pair = Pair::create(&world).await?;
    pair.is_watched().await?;
    qemu_at_the_target(&world, &mut pair).await?;
    qemu_at_the_source(&world, &mut pair).await?;
    pair.ran_once().await?;
    world.down().await
}

/// The next agent adopts the same process, and commands it.
async fn agent_of_a_running_vm(world: &World, pair: &mut Pair<'_>) -> anyhow::Result<()> {
    let before = pair.has_one_process().await?;
    world.kill_agent(&pair.home()?).await?;
    world.act(WEB, "pause").await?;
    world.until_phase(WEB, Phase::Paused).await?;
    world.act(WEB, "resume").await?;
    pair.is_well().await?;
    ensure!(
        pair.has_one_process().await? == before,
        "the VM has another process"
    );
    Ok(())
}

/// Agents finish or abort what was granted without a server; the next server reads what became of it.
async fn server_during_a_migration(world: &World, pair: &mut Pair<'_>) -> anyhow::Result<()> {
    let begun = pair.begin_move().await?;
    world.kill_server().await?;
    pair.is_well_after(&begun).await.map(drop)
}

async fn agent_of_the_source(world: &World, pair: &mut Pair<'_>) -> anyhow::Result<()> {
    let source = pair.home()?;
    let begun = pair.begin_move().await?;
    world.kill_agent(&source).await?;
    pair.is_well_after(&begun).await.map(drop)
}

async fn agent_of_the_target(world: &World, pair: &mut Pair<'_>) -> anyhow::Result<()> {
    let target = pair.free()?;
    let begun = pair.begin_move().await?;
    world.kill_agent(target).await?;
    pair.is_well_after(&begun).await.map(drop)
}

/// What was answered is stored: the next server goes on with it.
async fn server_while_a_vm_is_created(world: &World) -> anyhow::Result<()> {
    world.create_vm("late", vms::spec(None, "")).await?;
    world.kill_server().await?;
    world.until_ready("late").await?;
    world.delete_vm("late").await
}

/// The guest goes on at the source, as the same incarnation.
async fn qemu_at_the_target(world: &World, pair: &mut Pair<'_>) -> anyhow::Result<()> {
    let (home, incarnation) = (pair.home()?, pair.web.status.incarnation);
    let asked = world.migrate(WEB, pair.free()?).await?;
    world
        .until_memory_arrives(vms::id(&pair.web), &asked)
        .await?
        .send_kill()?;
    let ended = pair.is_well_after(&asked).await?;
    ensure!(
        ended.status.phase == MigrationPhase::Aborted,
        "a killed target is no success: {:?}",
        ended.status
    );
    ensure!(
        ended.status.reason.is_some(),
        "an aborted migration has no reason"
    );
    ensure!(
        pair.home()? == home && pair.web.status.incarnation == incarnation,
        "the guest is another one"
    );
    Ok(())
}

/// The guest is lost with its memory. The VM says so, and `start` boots it from its disk.
async fn qemu_at_the_source(world: &World, pair: &mut Pair<'_>) -> anyhow::Result<()> {
    let source = pair.has_one_process().await?;
    let begun = pair.begin_move().await?;
    process::kill(source).await?;
    let ended = world.until_migration_ended(&begun.name).await?;
    ensure!(
        ended.status.phase == MigrationPhase::Aborted,
        "a killed source is no success: {:?}",
        ended.status
    );
    let failed = world
        .until_vm(WEB, "Failed", |vm| (vm.status.phase == Phase::Failed).into())
        .await?;
    let reason = failed.status.reason.context("a failed VM has no reason")?;
    ensure!(!reason.message.is_empty(), "the reason says nothing: {reason:?}");
    let leads_on = failed
        .status
        .next_commands
        .iter()
        .any(|command| command.contains("vm start"));
    ensure!(
        leads_on,
        "`start` is not among the next commands: {:?}",
        failed.status.next_commands
    );
    world.act(WEB, "start").await?;
    pair.web = world.until_ready(WEB).await?;
    pair.has_one_process().await.map(drop)
}
