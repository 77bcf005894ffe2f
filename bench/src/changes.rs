//! How soon a change of a VM's spec has reached its QEMU.
//!
//! **Start here:** [`measure`].

use api::kinds::{ActionBody, Vm};
use model::lifecycle::Phase;
use testkit::world::World;

use crate::stats::Series;
use crate::sterna::{create, plain, timed};

/// Changes for each run that is asked for: the slowest of a hundred is looked for.
const CHANGES: usize = 20;

/// Prints a row: from the request to the new phase as a client with an open watch sees it. So the way back is in it too:
/// QEMU's answer, the report, and its commit.
pub(crate) async fn measure(world: &World, runs: usize) -> anyhow::Result<()> {
    const NAME: &str = "changed";
    create(world, NAME, plain("h1", 192, "")).await?;
    let mut took = Series::default();
    for change in 0..runs * CHANGES {
        let (word, phase) = match change % 2 {
            0 => ("pause", Phase::Paused),
            _ => ("resume", Phase::Running),
        };
        let body = ActionBody::default();
        let act = async || {
            let asked = world.client().action::<Vm, _>(NAME, word, &body).await;
            asked.map(|_| ()).map_err(Into::into)
        };
        let (ms, _) = timed::<Vm>(world, act, |vm| Ok(vm.name == NAME && vm.status.phase == phase)).await?;
        took.push(ms);
    }
    world.delete_vm(NAME).await?;
    println!("\n| what | ms | 99 of 100 within | asked for |\n|---|---|---|---|");
    println!(
        "| a VM's `pause` or `resume`, from the request to its new phase at a watch | {took} | {:.0} | under 50 to QEMU |",
        took.at_percent(99)
    );
    Ok(())
}
