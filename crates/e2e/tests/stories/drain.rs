//! A host is emptied while its guests run, and is used again afterwards.

use std::time::Duration;

use anyhow::{Context, ensure};
use api::client::ObjectOf;
use api::drain::{DrainStanding, DrainState, HostActionBody};
use api::kinds::Host;
use model::lifecycle::Phase;
use testkit::vms;
use testkit::wait::{self, Verdict};
use testkit::world::World;

const NAMES: [&str; 3] = ["a", "b", "c"];
/// How long three moves may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test]
async fn a_host_is_emptied_while_its_guests_run() -> anyhow::Result<()> {
    let world = World::up(2).await?;
    world.make_template(192).await?;
    for name in NAMES {
        world
            .create_vm(name, vms::spec(Some("h1"), "probe tick &"))
            .await?;
    }
    for name in NAMES {
        world.until_ready(name).await?;
    }
    has_nowhere_to_go(&world).await?;
    act(&world, "h2", "uncordon").await?;
    // A server that dies in the middle finds in the store what is left to do.
    world.kill_server().await?;
    let drained = until_drain(&world, "drained", DrainState::Drained).await?;
    let drain = drained.status.drain.context("it has no drain")?;
    ensure!(
        drain.vms.is_empty() && drained.status.reserved_mib == 0,
        "something is left: {drain:?}"
    );
    for name in NAMES {
        let vm = world.get_vm(name).await?;
        ensure!(
            vm.status.host.as_deref() == Some("h2") && vm.status.phase == Phase::Running,
            "{name} did not move: {:?}",
            vm.status
        );
        let living = world.living(vms::id(&vm));
        ensure!(living.len() == 1, "{name} runs {} times", living.len());
    }
    act(&world, "h1", "undrain").await?;
    for name in NAMES {
        world.delete_vm(name).await?;
    }
    world.down().await
}

/// With the only other host closed, every VM is named with its reason, and nothing is begun.
async fn has_nowhere_to_go(world: &World) -> anyhow::Result<()> {
    act(world, "h2", "cordon").await?;
    act(world, "h1", "drain").await?;
    let stuck = until_drain(world, "stuck", DrainState::Stuck).await?;
    let reason = stuck.status.reason.context("a stuck drain has no reason")?;
    ensure!(
        reason.message.contains("cordoned"),
        "it does not say why: {reason:?}"
    );
    let drain = stuck.status.drain.context("it has no drain")?;
    let stays = drain.vms.iter().filter(|vm| vm.standing == DrainStanding::Stays);
    ensure!(stays.count() == NAMES.len(), "not every VM is named: {drain:?}");
    Ok(())
}

async fn act(world: &World, host: &str, word: &str) -> anyhow::Result<()> {
    let body = HostActionBody::default();
    world.client().action::<Host, _>(host, word, &body).await?;
    Ok(())
}

async fn until_drain(world: &World, what: &str, state: DrainState) -> anyhow::Result<ObjectOf<Host>> {
    wait::until::<Host>(world.client(), "h1", what, PATIENCE, |host| {
        let drain = host.status.drain.as_ref();
        Verdict::from(drain.is_some_and(|drain| drain.state == state))
    })
    .await
}
