//! Live migration: there, back, and cancelled in the middle.

use anyhow::{Context, bail, ensure};
use model::migration::MigrationPhase;
use testkit::pair::{MEMORY_MIB, Pair, WEB};
use testkit::world::World;

/// Pings that may be lost in one move on a busy machine: two seconds of them.
const LOST_MAX: u64 = 40;
/// How often a cancel may come too late, when a transfer is that quick.
const CANCELS: usize = 4;

#[tokio::test]
async fn a_vm_moves_while_it_runs() -> anyhow::Result<()> {
    let world = World::up(3).await?;
    world.make_template(MEMORY_MIB).await?;
    let mut pair = Pair::create(&world).await?;
    pair.is_watched().await?;
    moves(&world, &mut pair).await?;
    moves(&world, &mut pair).await?;
    is_cancelled(&world, &mut pair).await?;
    pair.ran_once().await?;
    world.down().await
}

/// To the free host, with a prediction and a measurement.
async fn moves(world: &World, pair: &mut Pair<'_>) -> anyhow::Result<()> {
    let before = pair.watcher.pings().await?;
    let incarnation = pair.web.status.incarnation;
    let target = pair.free()?;
    let asked = world.migrate(WEB, target).await?;
    let done = pair.is_well_after(&asked).await?;
    ensure!(
        done.status.phase == MigrationPhase::Done,
        "it did not move: {:?}",
        done.status
    );
    ensure!(
        pair.home()? == target,
        "it is at {}, not at {target}",
        pair.home()?
    );
    ensure!(
        pair.web.status.incarnation > incarnation,
        "a move is a new incarnation"
    );
    let predicted = done.status.predicted.context("nothing was predicted")?;
    ensure!(
        predicted.total_ms > 0 && predicted.bytes > 0,
        "the prediction is empty: {predicted:?}"
    );
    let measured = done.status.measured.context("nothing was measured")?;
    let is_whole =
        measured.downtime_ms > 0 && measured.total_ms >= measured.downtime_ms && measured.bytes > 0;
    ensure!(is_whole, "the measurement is not whole: {measured:?}");
    let lost = pair.watcher.pings().await?.lost - before.lost;
    ensure!(lost <= LOST_MAX, "{lost} pings were lost: {measured:?}");
    Ok(())
}

/// The guest stays where it is, as it is. A cancel that comes too late moves it, and then the next one is tried.
async fn is_cancelled(world: &World, pair: &mut Pair<'_>) -> anyhow::Result<()> {
    for _ in 0..CANCELS {
        let (home, incarnation) = (pair.home()?, pair.web.status.incarnation);
        let begun = pair.begin_move().await?;
        world.cancel_migration(&begun.name).await?;
        let ended = pair.is_well_after(&begun).await?;
        if ended.status.phase == MigrationPhase::Aborted {
            let reason = ended
                .status
                .reason
                .context("an aborted migration has no reason")?;
            ensure!(!reason.message.is_empty(), "the reason says nothing: {reason:?}");
            ensure!(
                pair.home()? == home && pair.web.status.incarnation == incarnation,
                "the guest is another one"
            );
            return Ok(());
        }
    }
    bail!("{CANCELS} cancels came too late")
}
