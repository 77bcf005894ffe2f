//! Migration after migration, and in each of them something is killed at any moment. Long, so only `make soak` runs it.
//!
//! `STERNA_SEED` makes the same choices again, though not at the same instants; `STERNA_MINUTES` says for how long.

use std::time::Duration;

use anyhow::Context;
use testkit::pair::{MEMORY_MIB, Pair, WEB};
use testkit::vms;
use testkit::world::World;
use tokio::time::{Instant, sleep};

/// The latest instant of a kill, counted from the request: longer than most migrations take.
const LATEST_MS: u64 = 4000;

/// Chooses, by the splitmix64 generator (Steele, Lea and Flood, OOPSLA 2014).
struct Choices(u64);

impl Choices {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }
}

fn setting(name: &str, otherwise: u64) -> anyhow::Result<u64> {
    let Ok(text) = std::env::var(name) else {
        return Ok(otherwise);
    };
    text.parse()
        .with_context(|| format!("{name} is {text:?}, and should be a number"))
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn whatever_is_killed_when_the_vm_runs_once() -> anyhow::Result<()> {
    let seed = setting("STERNA_SEED", 1)?;
    let until = Instant::now() + Duration::from_secs(60 * setting("STERNA_MINUTES", 10)?);
    let world = World::up(3).await?;
    world.make_template(MEMORY_MIB).await?;
    let mut pair = Pair::create(&world).await?;
    pair.is_watched().await?;
    let mut choices = Choices(seed);
    for round in 0.. {
        if Instant::now() > until {
            break;
        }
        let (told, outcome) = one_round(&world, &mut pair, &mut choices).await;
        println!("seed {seed}, round {round}: {told}");
        outcome.with_context(|| format!("seed {seed}, round {round}: {told}"))?;
    }
    pair.ran_once().await?;
    world.down().await
}

/// What is done in a round, each at any instant but the last.
const DEEDS: [&str; 6] = [
    "the server is killed",
    "the source's agent is killed",
    "the target's agent is killed",
    "both agents are killed",
    "it is cancelled",
    "the target's QEMU is killed as memory arrives",
];

/// What was done, and whether all was well after it.
async fn one_round(
    world: &World,
    pair: &mut Pair<'_>,
    choices: &mut Choices,
) -> (String, anyhow::Result<()>) {
    let at = Duration::from_millis(choices.below(LATEST_MS));
    let deed = usize::try_from(choices.below(DEEDS.len() as u64)).unwrap_or_default();
    let mut told = format!("{} (after {at:?})", DEEDS[deed]);
    let outcome = async {
        let (source, target) = (pair.home()?, pair.free()?);
        let asked = world.migrate(WEB, target).await?;
        if deed < 5 {
            // No guess at when something has happened: any instant will do.
            sleep(at).await;
        }
        match deed {
            0 => world.kill_server().await?,
            1 => world.kill_agent(&source).await?,
            2 => world.kill_agent(target).await?,
            3 => tokio::try_join!(world.kill_agent(&source), world.kill_agent(target)).map(drop)?,
            // It is refused if the migration is over.
            4 => drop(world.cancel_migration(&asked.name).await),
            // Later it may be the copy that runs the VM, and the VM would end with it.
            _ => world
                .until_memory_arrives(vms::id(&pair.web), &asked)
                .await?
                .send_kill()?,
        }
        let ended = pair.is_well_after(&asked).await?;
        told = format!("{told}, then {:?}", ended.status.phase);
        anyhow::Ok(())
    };
    let outcome = outcome.await;
    (told, outcome)
}
