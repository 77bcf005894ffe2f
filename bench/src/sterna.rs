//! The same guest through Sterna: from the request to what was asked for, as a client with an open watch sees it.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use api::client::ObjectOf;
use api::kinds::{Migration, Vm, VmSpec};
use api::{ChangeType, Resource};
use futures_util::StreamExt;
use model::migration::MigrationPhase;
use testkit::vms::{id, spec};
use testkit::world::World;

use crate::bare::Took;
use crate::moves::largest_gap;

/// How long nothing may happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A VM without a network interface, so that the bare command line is the same.
pub(crate) fn plain(host: &str, memory_mib: u64, script: &str) -> VmSpec {
    VmSpec {
        nics: Some(Vec::new()),
        memory_mib: Some(memory_mib),
        ..spec(Some(host), script)
    }
}

/// Follows a kind from now on, does something, and says when an object is as wanted.
pub(crate) async fn timed<R: Resource>(
    world: &World,
    act: impl AsyncFnOnce() -> anyhow::Result<()>,
    wanted: impl Fn(&ObjectOf<R>) -> anyhow::Result<bool>,
) -> anyhow::Result<(f64, ObjectOf<R>)> {
    let (_, revision) = world.client().list::<R>().await?;
    let mut changes = world.client().watch::<R>(Some(revision)).await?;
    let begun = Instant::now();
    act().await?;
    while let Some(change) = tokio::time::timeout(PATIENCE, changes.next())
        .await
        .context("nothing changes")?
    {
        let change = change?;
        if change.change_type != ChangeType::Deleted && wanted(&change.object)? {
            return Ok((begun.elapsed().as_secs_f64() * 1000.0, change.object));
        }
    }
    bail!("the watch ended")
}

/// Creates a VM and waits until its guest's agent answers.
pub(crate) async fn create(world: &World, name: &str, spec: VmSpec) -> anyhow::Result<f64> {
    let act = async || world.create_vm(name, spec).await.map(|_| ());
    let (ms, _) = timed::<Vm>(world, act, |vm| Ok(vm.name == name && vm.status.ready)).await?;
    Ok(ms)
}

/// Moves a VM and waits until the record says Done; then asks its guest for the gap that it saw, if it counts.
pub(crate) async fn migrate(world: &World, vm: &str, to: &str, counts: bool) -> anyhow::Result<Took> {
    let mut console = world.console(to, id(&world.get_vm(vm).await?));
    console.skip();
    let act = async || world.migrate(vm, to).await.map(|_| ());
    let wanted = |migration: &ObjectOf<Migration>| {
        let is_it = migration.spec.vm == vm && migration.spec.to.as_deref() == Some(to);
        match migration.status.phase {
            MigrationPhase::Aborted if is_it => bail!("aborted: {:?}", migration.status.reason),
            phase => Ok(is_it && phase == MigrationPhase::Done && migration.status.measured.is_some()),
        }
    };
    let (total_ms, migration) = timed::<Migration>(world, act, wanted).await?;
    // The record is removed, so that the next move between the same hosts is told from this one.
    world.client().delete::<Migration>(&migration.name).await?;
    let measured = migration.status.measured.context("the record has no figures")?;
    Ok(Took {
        total_ms,
        stopped_ms: f64::from(u32::try_from(measured.downtime_ms)?),
        gap_ms: match counts {
            true => Some(largest_gap(&mut console).await?),
            false => None,
        },
    })
}
