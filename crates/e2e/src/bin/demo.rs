//! A short story of three hosts and two guests, told on the terminal while it happens.
//!
//! **Owns:** the story and its last line: `demo: ok` with figures, or `demo: failed` with the reason.
//!
//! **Does not know:** how worlds are started and ended; see `testkit`.
//!
//! **Start here:** [`story`].

#![allow(
    clippy::disallowed_methods,
    reason = "it tells how long real things take; no simulator runs it"
)]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use api::kinds::{GuestSpec, VmSpec};
use model::lifecycle::Phase;
use model::migration::{Figures, MigrationPhase};
use testkit::pair::{EYE, MEMORY_MIB, Pair, WEB};
use testkit::vms;
use testkit::watcher::{Pings, Stream};
use testkit::world::World;
use tokio::signal::unix::{SignalKind, signal};

/// The clone of the one that moves.
const TWIN: &str = "twin";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match demo().await {
        Ok(figures) => {
            println!("demo: ok {figures}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("demo: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The story in a world of its own, which is gone when this returns.
async fn demo() -> anyhow::Result<String> {
    let begun = Instant::now();
    let mut teller = Teller { begun, step: begun };
    let world = tokio::select! {
        world = World::up(3) => world?,
        () = interrupted() => bail!("it was interrupted"),
    };
    teller.tell("three hosts and a server are ready");
    let told = tokio::select! {
        told = story(&world, &mut teller) => Some(told?),
        () = interrupted() => None,
    };
    world.down().await?;
    let figures = told.context("it was interrupted")?;
    teller.tell("all is taken down: no process, namespace, interface or mount is left");
    Ok(format!("{figures} total_s={:.1}", begun.elapsed().as_secs_f64()))
}

async fn interrupted() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
}

/// Writes a line a step, with the time of the story and the time that the step took.
struct Teller {
    begun: Instant,
    step: Instant,
}

impl Teller {
    fn tell(&mut self, what: &str) -> Duration {
        let took = self.step.elapsed();
        println!(
            "{:6.1} s  {what}  ({:.1} s)",
            self.begun.elapsed().as_secs_f64(),
            took.as_secs_f64()
        );
        self.step = Instant::now();
        took
    }
}

/// Answers the figures for the last line.
async fn story(world: &World, teller: &mut Teller) -> anyhow::Result<String> {
    let bytes = world.import_image().await?;
    teller.tell(&format!("the image tiny is imported: {} MiB", bytes >> 20));
    world.create_template(MEMORY_MIB).await?;
    teller.tell(&format!("a template of it: 1 processor, {MEMORY_MIB} MiB"));
    let mut pair = Pair::create(world).await?;
    let (home, watch) = (pair.home()?, pair.watch);
    let boot = teller.tell(&format!(
        "web on {home} and eye on {watch}, made by copy-on-write: their agents answer"
    ));
    pair.is_watched().await?;
    teller.tell("eye holds a TCP stream from web, and pings it every 50 ms");
    let (figures, stream, pings) = move_live(world, &mut pair, teller).await?;
    kill_target(world, &mut pair, teller).await?;
    let resume = suspend_and_resume(world, &mut pair, teller).await?;
    let clone = clone_while_it_runs(world, &mut pair, teller).await?;
    pair.ran_once().await?;
    for name in [TWIN, WEB, EYE] {
        world.delete_vm(name).await?;
    }
    teller.tell("all virtual machines are deleted");
    let boot_s = boot.as_secs_f64();
    Ok(format!(
        "boot_s={boot_s:.1} migrate_total_ms={} downtime_ms={} bytes={} lost_pings={} seq_errors={} max_gap_ms={:.0} \
         survived_kill=yes resume_ms={} clone_s={:.1}",
        figures.total_ms,
        figures.downtime_ms,
        figures.bytes,
        pings.lost,
        stream.errors,
        stream.max_gap_ms,
        resume.as_millis(),
        clone.as_secs_f64(),
    ))
}

/// Moves `web` while it is used.
async fn move_live(
    world: &World,
    pair: &mut Pair<'_>,
    teller: &mut Teller,
) -> anyhow::Result<(Figures, Stream, Pings)> {
    let before = pair.watcher.pings().await?;
    let target = pair.free()?;
    let asked = world.migrate(WEB, target).await?;
    let done = world.until_migration(&asked.name, MigrationPhase::Done).await?;
    let measured = done.status.measured.context("the record has no figures")?;
    teller.tell(&format!(
        "web moved to {target} while it ran: {} ms in all, {} ms of downtime, {} MiB",
        measured.total_ms,
        measured.downtime_ms,
        measured.bytes >> 20
    ));
    let stream = pair.is_well().await?;
    ensure!(pair.home()? == target, "web is not where it was moved to");
    let pings = pair.watcher.pings().await?;
    let pings = Pings {
        lost: pings.lost - before.lost,
        ..pings
    };
    teller.tell(&format!(
        "eye saw no error in {} lines (the longest silence was {:.0} ms) and lost {} pings",
        stream.lines, stream.max_gap_ms, pings.lost
    ));
    Ok((measured, stream, pings))
}

/// Kills the QEMU at the target while memory arrives there: the guest goes on at the source.
async fn kill_target(world: &World, pair: &mut Pair<'_>, teller: &mut Teller) -> anyhow::Result<()> {
    let (home, target) = (pair.home()?, pair.free()?);
    let asked = world.migrate(WEB, target).await?;
    world
        .until_memory_arrives(vms::id(&pair.web), &asked)
        .await?
        .send_kill()?;
    let ended = world.until_migration_ended(&asked.name).await?;
    ensure!(
        ended.status.phase == MigrationPhase::Aborted,
        "the migration was over before its target was killed"
    );
    let stream = pair.is_well().await?;
    ensure!(pair.home()? == home, "web is not where it was");
    teller.tell(&format!(
        "a second move, to {target}, loses its QEMU there in the middle (kill -9): web goes on at {home}, {} lines \
         without an error",
        stream.lines
    ));
    Ok(())
}

/// How long it took until the clone's agent answered.
async fn clone_while_it_runs(
    world: &World,
    pair: &mut Pair<'_>,
    teller: &mut Teller,
) -> anyhow::Result<Duration> {
    let spec = VmSpec {
        clone_of: Some(WEB.to_owned()),
        // It does not do what web does: eye would hear both.
        guest: Some(GuestSpec {
            user_data: Some("#!/bin/sh\n".to_owned().into()),
            ..GuestSpec::default()
        }),
        ..VmSpec::default()
    };
    world.create_vm(TWIN, spec).await?;
    let twin = world.until_ready(TWIN).await?;
    let copied = twin
        .status
        .copied
        .clone()
        .context("the clone says nothing of its copy")?;
    let (own, other) = (vms::address(&twin)?, vms::address(&pair.web)?);
    ensure!(own != other, "web and its clone have the same address");
    let host = twin.status.host.clone().context("the clone is on no host")?;
    let ready = format!("ready: {TWIN}");
    let is_ready = |line: &str| line.contains(&ready).then_some(());
    let mut console = world.console(&host, vms::id(&twin));
    console.until(&ready, vms::BOOT_PATIENCE, is_ready).await?;
    let stream = pair.is_well().await?;
    Ok(teller.tell(&format!(
        "web was cloned while it ran ({}): {TWIN} boots on {host} with its own name and address {own}; web went on, {} lines \
         without an error",
        copied.consistency, stream.lines
    )))
}

/// How long the resume took, up to the guest's running.
async fn suspend_and_resume(
    world: &World,
    pair: &mut Pair<'_>,
    teller: &mut Teller,
) -> anyhow::Result<Duration> {
    world.act(WEB, "suspend").await?;
    world.until_phase(WEB, Phase::Suspended).await?;
    teller.tell("web is suspended: its memory is on disk");
    let asked = Instant::now();
    world.act(WEB, "resume").await?;
    world.until_phase(WEB, Phase::Running).await?;
    let took = asked.elapsed();
    let stream = pair.is_well().await?;
    teller.tell(&format!(
        "web resumed after {} ms; even the stream goes on, {} lines without an error",
        took.as_millis(),
        stream.lines
    ));
    Ok(took)
}
