//! A host is emptied of idle guests: by Sterna's drain, and by bare scripts of which as many run at a time.
//!
//! **Start here:** [`measure`].

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api::drain::{DrainState, HostActionBody};
use api::kinds::Host;
use futures_util::{StreamExt, TryStreamExt, stream};
use testkit::world::World;

use crate::bare::{Credentials, Place, Recipe};
use crate::moves::{BareGuest, Guest};
use crate::stats::Series;
use crate::{row, sterna};

const GUESTS: usize = 6;
const MEMORY_MIB: u32 = 192;
/// How many leave the host at a time.
const PARALLEL: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(10);

/// Prints a row. Both sides' guests go from one host to the other and back.
pub(crate) async fn measure(
    world: &World,
    root: &Path,
    runs: usize,
    credentials: &Credentials,
) -> anyhow::Result<()> {
    let names: Vec<String> = (0..GUESTS).map(|n| format!("drained-{n}")).collect();
    let guest = Guest::idle(MEMORY_MIB);
    let mut bare = Vec::new();
    for name in &names {
        let spec = sterna::plain("h1", MEMORY_MIB.into(), "");
        sterna::create(world, name, spec).await?;
        let places = [Place::on(world, "h1")?, Place::on(world, "h2")?];
        bare.push(BareGuest::boot(root, name, guest, credentials, places).await?);
    }
    let (mut ours, mut theirs) = (Series::default(), Series::default());
    for (run, host) in (0..=runs).zip(["h1", "h2"].into_iter().cycle()) {
        let sterna_ms = drain(world, host).await?;
        let begun = Instant::now();
        let moves = stream::iter(&mut bare).map(|guest| guest.migrate(Recipe::Same));
        let moved: Vec<_> = moves.buffer_unordered(PARALLEL as usize).try_collect().await?;
        ensure!(moved.len() == GUESTS, "{} bare guests moved", moved.len());
        // The first run warms caches.
        if run > 0 {
            ours.push(sterna_ms);
            theirs.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    for name in &names {
        world.delete_vm(name).await?;
    }
    row(
        &format!("{GUESTS} idle guests of {MEMORY_MIB} MiB leave a host, {PARALLEL} at a time"),
        &ours,
        &theirs,
    );
    Ok(())
}

/// From the request until nothing runs on the host any more.
async fn drain(world: &World, host: &str) -> anyhow::Result<f64> {
    let body = HostActionBody {
        parallel: Some(PARALLEL),
    };
    let begun = Instant::now();
    world.client().action::<Host, _>(host, "drain", &body).await?;
    let emptied = async {
        loop {
            let drain = world.client().get::<Host>(host).await?.status.drain;
            if drain.is_some_and(|drain| drain.state == DrainState::Drained) {
                return anyhow::Ok(begun.elapsed());
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let took = tokio::time::timeout(PATIENCE, emptied)
        .await
        .context("the host is not emptied")??;
    let none = HostActionBody::default();
    world.client().action::<Host, _>(host, "undrain", &none).await?;
    Ok(took.as_secs_f64() * 1000.0)
}
