//! The final acknowledgement of a migration is swallowed and the link cut: the target has loaded the guest and says so,
//! and the source never hears it. Two complete copies exist then, and one of them goes on.
//!
//! How the instant is met: the source's agent stands still while the memory is sent, so that its QEMU waits at
//! `pre-switchover`; the target's QEMU stands still while the rest is sent, so that the rest waits in the kernel. From then
//! on all that the target sends to the source is lost, and the target goes on to load, and to acknowledge.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use model::migration::MigrationPhase;
use testkit::executing::until_it_stands_still;
use testkit::link::{Queues, SERVER};
use testkit::pair::{HOSTS, MEMORY_MIB, Pair, WEB};
use testkit::process::Frozen;
use testkit::vms::{self, MigrationObject};
use testkit::wait;
use testkit::world::World;
use tokio::time::{Instant, sleep};

/// How often the switch may have been over already when the agent was stopped.
const ATTEMPTS: usize = 6;
/// How long each step towards the instant may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// A connection on which nothing changes for so long is at rest.
const REST: Duration = Duration::from_millis(200);
/// All that is sent then has to fit into the kernel: agents leave it its buffers.
const ROOM_IN_SOCKETS: &[(&str, &str)] = &[("STERNA_MIGRATION_BUFFER_KIB", "0")];
/// Enough for all that can be sent after the guest has stopped.
const ROOM_BYTES: u64 = 256 << 20;
/// Longer than a source waits for an acknowledgement.
const LONG: Duration = Duration::from_secs(15);

#[tokio::test]
async fn the_final_acknowledgement_is_swallowed_and_the_link_cut() -> anyhow::Result<()> {
    let world = World::up_with(3, ROOM_IN_SOCKETS).await?;
    world.make_template(MEMORY_MIB).await?;
    let mut pair = Pair::create(&world).await?;
    pair.is_watched().await?;
    for host in HOSTS {
        world.make_room(host, ROOM_BYTES).await?;
    }
    link_stays_cut(&world, &mut pair).await?;
    link_comes_back(&world, &mut pair).await?;
    source_is_alone(&world, &mut pair).await?;
    pair.ran_once().await?;
    world.down().await
}

/// The source gives up by itself, says why, and has the guest.
async fn link_stays_cut(world: &World, pair: &mut Pair<'_>) -> anyhow::Result<()> {
    let cut = Cut::swallow(world, pair).await?;
    // As the moves before the one that was met have left it.
    let incarnation = pair.web.status.incarnation;
    let ended = pair.is_well_after(&cut.migration).await?;
    is_aborted(&ended)?;
    ensure!(
        pair.home()? == cut.source && pair.web.status.incarnation == incarnation,
        "the guest is another one: {:?}, and it was incarnation {incarnation:?} on {}",
        pair.web.status,
        cut.source
    );
    cut.heal(world).await?;
    pair.is_well().await.map(drop)
}

/// In time, or too late: either way the record says what became of it.
async fn link_comes_back(world: &World, pair: &mut Pair<'_>) -> anyhow::Result<()> {
    let cut = Cut::swallow(world, pair).await?;
    cut.heal(world).await?;
    let ended = pair.is_well_after(&cut.migration).await?;
    println!("the link came back: {:?}", ended.status.phase);
    Ok(())
}

/// Nobody hears the source for a while. It takes the guest back alone, and the target, which has a server, waits.
async fn source_is_alone(world: &World, pair: &mut Pair<'_>) -> anyhow::Result<()> {
    let cut = Cut::swallow(world, pair).await?;
    world.mute(&cut.source, SERVER).await?;
    sleep(LONG).await;
    world.heal(&cut.source, SERVER).await?;
    is_aborted(&pair.is_well_after(&cut.migration).await?)?;
    cut.heal(world).await?;
    pair.is_well().await.map(drop)
}

fn is_aborted(ended: &MigrationObject) -> anyhow::Result<()> {
    let status = &ended.status;
    let has_cause = status
        .reason
        .as_ref()
        .is_some_and(|reason| !reason.message.is_empty());
    ensure!(
        status.phase == MigrationPhase::Aborted && has_cause,
        "it should be aborted, with a cause: {status:?}"
    );
    println!("aborted: {:?}", status.reason);
    Ok(())
}

/// A migration whose target has acknowledged in vain, and whose two hosts hear each other no more.
struct Cut {
    migration: MigrationObject,
    source: String,
    source_address: Ipv4Addr,
    target: &'static str,
    target_address: Ipv4Addr,
}

impl Cut {
    /// Begins moves until one is met at the instant. One that was over already has moved the guest, and the next one goes
    /// back.
    async fn swallow(world: &World, pair: &mut Pair<'_>) -> anyhow::Result<Self> {
        for attempt in 1..=ATTEMPTS {
            let (source, target) = (pair.home()?, pair.free()?);
            let cut = Self {
                source_address: world.address(&source)?,
                target_address: world.address(target)?,
                migration: world.migrate(WEB, target).await?,
                source,
                target,
            };
            if cut.meets_the_instant(world, pair).await? {
                println!("met at attempt {attempt}");
                return Ok(cut);
            }
            pair.is_well_after(&cut.migration).await?;
        }
        bail!("{ATTEMPTS} moves were over before their source's agent was stopped")
    }

    /// Whether the move is stopped at the instant. Otherwise it goes on, or is over.
    async fn meets_the_instant(&self, world: &World, pair: &Pair<'_>) -> anyhow::Result<bool> {
        let vm = vms::id(&pair.web);
        let incarnation = pair.web.status.incarnation.unwrap_or_default();
        let sender = world
            .qemu(&self.source, vm, incarnation)
            .with_context(|| format!("the VM has no process on {}", self.source))?
            .id()
            .pid;
        let receiver = world.until_memory_arrives(vm, &self.migration).await?.id().pid;
        let agent = Frozen::stop(world.agent_pid(&self.source)?)?;
        if !until_it_stands_still(sender, PATIENCE).await
            || !self.rests(sender, receiver, |unread| unread == 0).await
        {
            return Ok(false);
        }
        let loading = Frozen::stop(receiver)?;
        drop(agent);
        // What comes now is the rest, and all of it has come.
        if !self.rests(sender, receiver, |unread| unread > 0).await {
            return Ok(false);
        }
        world.mute(self.target, self.source_address).await?;
        drop(loading);
        let acknowledged = wait::until_it_holds("the target acknowledges", PATIENCE, || {
            Queues::between(receiver, self.source_address).is_ok_and(|queues| queues.unacknowledged > 0)
        });
        if acknowledged.await.is_err() {
            world.heal(self.target, self.source_address).await?;
            return Ok(false);
        }
        world.mute(&self.source, self.target_address).await?;
        Ok(true)
    }

    /// Whether nothing moves any more in time: all that the source sent has come, and so much of it waits to be read. With
    /// one of the two gone, the move is over.
    async fn rests(&self, sender: i32, receiver: i32, is_it: fn(u64) -> bool) -> bool {
        let look = || {
            let sent = Queues::between(sender, self.target_address).ok()?;
            let came = Queues::between(receiver, self.source_address).ok()?;
            Some((came.unread, sent.unacknowledged))
        };
        let deadline = Instant::now() + PATIENCE;
        let mut before = None;
        while Instant::now() < deadline {
            let Some(now) = look() else {
                return false;
            };
            if before == Some(now) && now.1 == 0 && is_it(now.0) {
                return true;
            }
            before = Some(now);
            sleep(REST).await;
        }
        false
    }

    async fn heal(&self, world: &World) -> anyhow::Result<()> {
        world.heal(self.target, self.source_address).await?;
        world.heal(&self.source, self.target_address).await
    }
}
