//! The entries of the table whose VM runs or moves, one after the other in a world; and there all that `make test` makes, which
//! would take as long again to boot a pair for those whose datastore is full.
//!
//! **Owns:** making each fault and undoing it, and what must hold at each end. **Does not know:** how a stage is met.
//!
//! **Start here:** [`make`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use api::kinds::{Migration, Vm};
use model::lifecycle::Phase;
use model::migration::MigrationPhase;
use testkit::counter::{Heard, Left};
use testkit::executing::until_it_executes;
use testkit::link::SERVER;
use testkit::pair::{HOSTS, MEMORY_MIB, Pair, WEB};
use testkit::process;
use testkit::vms::{self, BOOT_PATIENCE, MigrationObject, PATIENCE, VmObject};
use testkit::wait::{self, Verdict};
use testkit::world::{ROOM, World};
use tokio::time::{Instant, sleep};

use super::calendar;
use super::full::{self, Small};
use super::held::Held;
use super::streams::{in_a_stream, names_a_base};
use super::table::{End, Entry, Fault, Stage, When, entries};

/// Longer than a source goes on sending into a link that is cut: a minute, and more for its memory.
const GIVES_UP: Duration = Duration::from_secs(150);
/// Shorter than anybody takes to give up.
const BRIEFLY: Duration = Duration::from_secs(2);
/// A guest that its source's agent cannot have told runs within this time. It takes a fifth of a second.
const BY_THE_RECORD: Duration = Duration::from_secs(8);
/// Shorter than a source would wait for the answer to its `go`, over its connection and over another one.
const NO_ANSWER: Duration = Duration::from_secs(14);
/// Longer than a source waits for an acknowledgement.
const LONG: Duration = Duration::from_secs(15);

#[tokio::test]
async fn parts_links_and_a_datastore_fail_under_a_vm() -> anyhow::Result<()> {
    make(&entries(|one| one.when == When::Usual)).await
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn everything_fails_while_a_vm_runs() -> anyhow::Result<()> {
    make(&entries(|one| is_here(one) && !one.stage.is_of_a_move())).await
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn everything_fails_in_pre_copy() -> anyhow::Result<()> {
    make(&entries(|one| one.stage == Stage::PreCopy)).await
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn everything_fails_at_pre_switchover() -> anyhow::Result<()> {
    make(&entries(|one| one.stage == Stage::PreSwitchover)).await
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn everything_fails_at_the_switch_over() -> anyhow::Result<()> {
    make(&entries(|one| one.stage == Stage::SwitchOver)).await
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn everything_fails_after_the_switch_over() -> anyhow::Result<()> {
    make(&entries(|one| one.stage == Stage::Switched)).await
}

fn is_here(entry: &Entry) -> bool {
    let is_at_rest = matches!(entry.stage, Stage::Running | Stage::Flatten);
    is_at_rest && entry.fault != Fault::FullDatastore || entry.stage.is_of_a_move()
}

async fn make(entries: &[Entry]) -> anyhow::Result<()> {
    let world = World::up_with(3, ROOM).await?;
    world.make_template(MEMORY_MIB).await?;
    let needs_small = entries.iter().any(|one| one.fault == Fault::FullDatastore);
    let small = needs_small.then(Small::mount_if_possible).flatten();
    let mut pair = match &small {
        Some(small) => small.pair(&world).await?,
        None => Pair::create(&world).await?,
    };
    pair.ear.goes_on().await?;
    for entry in entries {
        let told = format!("{:?} at {:?}", entry.fault, entry.stage);
        let begun = Instant::now();
        let ended = match (&small, entry.fault) {
            (Some(small), Fault::FullDatastore) => full::make(&world, small, &mut pair, *entry)
                .await
                .map(|()| format!("{:?}", entry.end)),
            (None, Fault::FullDatastore) => continue,
            _ => make_one(&world, &mut pair, *entry).await,
        };
        let ended = ended.with_context(|| format!("{told}, expected: {:?}", entry.end))?;
        println!("{told}: {ended}, well after {:?}", begun.elapsed());
    }
    let volumes = small.as_ref().map_or_else(|| world.volumes(), Small::volumes);
    leaves_one_history(&world, pair, &volumes).await?;
    world.down().await
}

/// Shuts the guest down, and looks at its disk in this directory of volumes.
pub(super) async fn leaves_one_history(
    world: &World,
    mut pair: Pair<'_>,
    volumes: &Path,
) -> anyhow::Result<()> {
    let heard = pair.ear.next().await?;
    let disk = volumes.join(pair.web.id.to_string()).join("root.qcow2");
    pair.ran_once().await?;
    world.act(WEB, "shutdown").await?;
    let is_off = |vm: &VmObject| Verdict::from(vm.status.phase == Phase::Off);
    wait::until::<Vm>(world.client(), WEB, "off", BOOT_PATIENCE, is_off).await?;
    Left::behind(&disk)?.is_one_history(heard)
}

/// Answers how it ended, in a word.
async fn make_one(world: &World, pair: &mut Pair<'_>, entry: Entry) -> anyhow::Result<String> {
    let before = pair.ear.next().await?;
    let told = if entry.stage.is_of_a_move() {
        in_a_move(world, pair, entry, before).await?
    } else {
        at_rest(world, pair, entry, before).await?
    };
    world.until_all_are_there(&HOSTS).await?;
    Ok(told)
}

async fn in_a_move(
    world: &World,
    pair: &mut Pair<'_>,
    entry: Entry,
    before: Heard,
) -> anyhow::Result<String> {
    let mut held = Held::meet(world, pair, entry.stage).await?;
    strike(world, entry.fault, &held).await?;
    let end = match entry.end {
        End::AtTarget if held.may_be_given_up() => End::AtEither,
        end => end,
    };
    held.release();
    let released = Instant::now();
    let (executes, ended) = tokio::join!(executes_soon(entry, &held), ends(world, entry.fault, &held));
    let ended = ended?;
    ensure!(executes, "the guest stands still after {BY_THE_RECORD:?}");
    let took = released.elapsed();
    ensure!(
        !goes_by_the_record(entry) || took < NO_ANSWER,
        "it ended after {took:?} only: its source has waited for an answer that cannot come"
    );
    let status = &ended.status;
    match end {
        End::Fails => {
            is_aborted(&ended)?;
            fails_and_starts(world, pair, before).await?;
        }
        End::AtSource => {
            is_aborted(&ended)?;
            is_the_same(world, pair, &held.source.with(before)).await?;
        }
        End::AtEither if status.phase == MigrationPhase::Aborted => {
            is_aborted(&ended)?;
            is_the_same(world, pair, &held.source.with(before)).await?;
        }
        _ => {
            ensure!(
                status.phase == MigrationPhase::Done,
                "it should be done: {status:?}"
            );
            is_the_same(world, pair, &held.target.with(before)).await?;
        }
    }
    let reason = status.reason.as_ref().map(|reason| reason.message.as_str());
    Ok(format!(
        "{:?} ({})",
        status.phase,
        reason.unwrap_or("all went well")
    ))
}

/// The target's guest runs although its source's agent cannot tell it that it may: the record says so, and does not wait
/// until the source has given up.
async fn executes_soon(entry: Entry, held: &Held) -> bool {
    !goes_by_the_record(entry) || until_it_executes(held.target.qemu, BY_THE_RECORD).await
}

fn goes_by_the_record(entry: Entry) -> bool {
    (entry.fault, entry.stage) == (Fault::Link, Stage::Switched)
}

async fn at_rest(world: &World, pair: &mut Pair<'_>, entry: Entry, heard: Heard) -> anyhow::Result<String> {
    let before = Before::of(pair, heard).await?;
    let home = before.host.as_str();
    if entry.stage == Stage::Flatten {
        in_a_stream(world, &root_disk(world, pair)).await?;
    }
    match entry.fault {
        Fault::Server => world.kill_server().await?,
        Fault::SourceAgent => world.kill_agent(home).await?,
        Fault::SourceQemu => process::kill(before.process).await?,
        Fault::ServerLink => {
            world.mute(home, SERVER).await?;
            let is_silent = |vm: &VmObject| Verdict::from(vm.status.phase == Phase::Unknown);
            world.until_vm(WEB, "Unknown", is_silent).await?;
            pair.ear.goes_on().await?;
            world.heal(home, SERVER).await?;
        }
        Fault::HostClock => calendar::host_clock_is_set(world, home, &mut pair.ear).await?,
        Fault::ServerClock => calendar::server_clock_is_set(world, &mut pair.ear).await?,
        other => anyhow::bail!("{other:?} makes no sense where nothing moves"),
    }
    if entry.end == End::Fails {
        if entry.stage == Stage::Flatten {
            let has_base = names_a_base(&root_disk(world, pair))?;
            ensure!(has_base, "all was brought before its QEMU was killed");
        }
        fails_and_starts(world, pair, heard).await?;
        if entry.stage == Stage::Flatten {
            becomes_whole(world, pair).await?;
        }
        return Ok("Failed".to_owned());
    }
    world.until_phase(WEB, Phase::Running).await?;
    // Whoever was started anew commands the same process.
    world.act(WEB, "pause").await?;
    world.until_phase(WEB, Phase::Paused).await?;
    world.act(WEB, "resume").await?;
    is_the_same(world, pair, &before).await?;
    Ok("the same process".to_owned())
}

async fn becomes_whole(world: &World, pair: &mut Pair<'_>) -> anyhow::Result<()> {
    let is_whole = |vm: &VmObject| Verdict::from(vm.status.disk.as_ref().is_some_and(|disk| disk.whole));
    world.until_vm(WEB, "whole", is_whole).await?;
    ensure!(
        !names_a_base(&root_disk(world, pair))?,
        "a whole disk names another file"
    );
    pair.ear.goes_on().await.map(drop)
}

fn root_disk(world: &World, pair: &Pair<'_>) -> PathBuf {
    world.volumes().join(pair.web.id.to_string()).join("root.qcow2")
}

/// Makes a fault in the middle of a move.
async fn strike(world: &World, fault: Fault, held: &Held) -> anyhow::Result<()> {
    let (source, target) = (&held.source, &held.target);
    match fault {
        Fault::Server => process::kill(world.server_pid()?).await,
        Fault::SourceAgent => process::kill(world.agent_pid(&source.host)?).await,
        Fault::TargetAgent => process::kill(world.agent_pid(&target.host)?).await,
        Fault::SourceQemu => process::kill(source.qemu).await,
        Fault::TargetQemu => process::kill(target.qemu).await,
        Fault::LinkToSource => world.mute(&target.host, source.address).await,
        Fault::LinkToTarget => world.mute(&source.host, target.address).await,
        Fault::Link | Fault::LinkBriefly | Fault::SourceIsolated => {
            world.mute(&target.host, source.address).await?;
            world.mute(&source.host, target.address).await?;
            if fault == Fault::SourceIsolated {
                world.mute(&source.host, SERVER).await?;
            }
            Ok(())
        }
        Fault::HostClock => calendar::is_set_back(world, &source.host).await,
        Fault::Certificates => calendar::all_have_new_certificates(world).await,
        Fault::ServerLink | Fault::ServerClock | Fault::FullDatastore => {
            anyhow::bail!("{fault:?} has no entry in a move")
        }
    }
}

/// Waits until the move has ended, and undoes the fault before or after it, as the fault is.
async fn ends(world: &World, fault: Fault, held: &Held) -> anyhow::Result<MigrationObject> {
    let (source, target) = (&held.source, &held.target);
    if fault == Fault::SourceIsolated {
        sleep(LONG).await;
        world.heal(&source.host, SERVER).await?;
    }
    if fault == Fault::LinkBriefly {
        sleep(BRIEFLY).await;
        world.heal(&target.host, source.address).await?;
        world.heal(&source.host, target.address).await?;
    }
    let is_final = |migration: &MigrationObject| Verdict::from(migration.status.phase.is_final());
    let name = &held.migration.name;
    let ended = wait::until::<Migration>(world.client(), name, "ended", GIVES_UP, is_final).await?;
    if matches!(fault, Fault::HostClock | Fault::Certificates) {
        calendar::is_right_again(world).await?;
    }
    if matches!(fault, Fault::Link | Fault::LinkToSource | Fault::SourceIsolated) {
        world.heal(&target.host, source.address).await?;
    }
    if matches!(fault, Fault::Link | Fault::LinkToTarget | Fault::SourceIsolated) {
        world.heal(&source.host, target.address).await?;
    }
    Ok(ended)
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
    Ok(())
}

/// The guest as it was before, and where it should be afterwards.
#[derive(Debug)]
pub(super) struct Before {
    pub(super) host: String,
    pub(super) process: i32,
    pub(super) heard: Heard,
}

impl Before {
    /// It should be where it is now.
    pub(super) async fn of(pair: &Pair<'_>, heard: Heard) -> anyhow::Result<Self> {
        Ok(Self {
            host: pair.home()?,
            process: pair.has_one_process().await?,
            heard,
        })
    }
}

/// The same guest runs there, in this process, has counted on and never back.
pub(super) async fn is_the_same(world: &World, pair: &mut Pair<'_>, before: &Before) -> anyhow::Result<()> {
    pair.web = world.until_ready(WEB).await?;
    ensure!(
        pair.web.status.host.as_ref() == Some(&before.host) && pair.web.status.reason.is_none(),
        "it should run well on {}: {:?}",
        before.host,
        pair.web.status
    );
    ensure!(
        pair.has_one_process().await? == before.process,
        "it has another process"
    );
    let heard = pair.ear.goes_on().await?;
    ensure!(
        heard.boots == before.heard.boots,
        "the guest has booted: {before:?}, then {heard:?}"
    );
    Ok(())
}

/// It says that it has failed and why; when it is told to start, it boots, and counts on from what is on its disk.
async fn fails_and_starts(world: &World, pair: &mut Pair<'_>, before: Heard) -> anyhow::Result<()> {
    let is_failed = |vm: &VmObject| Verdict::from(vm.status.phase == Phase::Failed);
    let failed = wait::until::<Vm>(world.client(), WEB, "Failed", PATIENCE, is_failed).await?;
    let status = &failed.status;
    let has_cause = status
        .reason
        .as_ref()
        .is_some_and(|reason| !reason.message.is_empty());
    let leads_on = status
        .next_commands
        .iter()
        .any(|command| command.contains("vm start"));
    ensure!(has_cause && leads_on, "nothing leads on from {status:?}");
    ensure!(
        world.living(vms::id(&failed)).is_empty(),
        "a failed VM has a process"
    );
    world.act(WEB, "start").await?;
    pair.web = world.until_ready(WEB).await?;
    pair.has_one_process().await?;
    pair.ear.goes_on_after_a_boot(before).await?;
    Ok(())
}
