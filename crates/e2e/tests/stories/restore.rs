//! A store is lost, and a backup restored, while guests run: they run on, nothing is decided until it is known what runs,
//! and nothing runs twice.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use api::store::{ResumeBody, StoreStatus};
use model::migration::MigrationPhase;
use model::{Incarnation, VmId};
use testkit::executing::{RunsOnce, until_it_executes};
use testkit::vms::{self, PATIENCE};
use testkit::watcher::{self, Watcher};
use testkit::world::World;
use tokio::time::{Duration, sleep, timeout};

const WEB: &str = "web";
const EYE: &str = "eye";
const LATE: &str = "late";
/// Memory that the guest writes to: its processor never rests.
const WORK: &str = "probe dirty 16 100 >/dev/null &";
const PAUSE: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_restored_store_goes_on_when_it_knows_what_runs_and_no_guest_is_disturbed() -> anyhow::Result<()> {
    let world = World::up(2).await?;
    world.make_template(192).await?;
    let web = world.create_vm(WEB, vms::spec(Some("h1"), WORK)).await?;
    let script = watcher::script(&vms::address(&web)?);
    let eye = world.create_vm(EYE, vms::spec(Some("h2"), &script)).await?;
    let (web, eye) = (vms::id(&web), vms::id(&eye));
    let once = [RunsOnce::begin(&world, web), RunsOnce::begin(&world, eye)];
    tokio::try_join!(world.until_ready(WEB), world.until_ready(EYE))?;
    let mut watcher = Watcher::new(world.console("h2", eye));
    watcher.goes_on().await?;

    // After the first backup one guest moves, and another one begins.
    let first = backup(&world, "first.db").await?;
    moves(&world, "h2").await?;
    let late = world.create_vm(LATE, vms::spec(Some("h1"), WORK)).await?;
    world.until_ready(LATE).await?;
    let second = backup(&world, "second.db").await?;
    let guests = Guests::seen(&world, &[web, eye, vms::id(&late)])?;

    restore(&world, &first).await?;
    let held = until_all_have_spoken(&world).await?;
    let unknown = held.restored.map(|restored| restored.unknown).unwrap_or_default();
    let runs: Vec<_> = unknown
        .iter()
        .map(|run| (run.vm, run.host.as_str(), run.name.as_deref()))
        .collect();
    let wanted = [(web, "h2", Some(WEB)), (vms::id(&late), "h1", None)];
    ensure!(
        runs.len() == 2 && wanted.iter().all(|run| runs.contains(run)),
        "what is not known: {unknown:?}"
    );
    let refused = world
        .client()
        .resume_store(&ResumeBody { end_unknown: false })
        .await;
    ensure!(refused.is_err(), "a store that does not know what runs went on");
    guests.run_on(&world).await?;
    watcher.goes_on().await?;

    // The second backup knows all that runs.
    restore(&world, &second).await?;
    let held = until_all_have_spoken(&world).await?;
    let unknown = held.restored.map(|restored| restored.unknown);
    ensure!(unknown.as_ref().is_some_and(Vec::is_empty), "{unknown:?}");
    let resumed = world
        .client()
        .resume_store(&ResumeBody { end_unknown: false })
        .await?;
    ensure!(resumed.restored.is_none(), "{resumed:?}");
    tokio::try_join!(
        world.until_ready(WEB),
        world.until_ready(EYE),
        world.until_ready(LATE)
    )?;
    guests.run_on(&world).await?;
    watcher.goes_on().await?;

    // And what is decided from now on is obeyed.
    moves(&world, "h1").await?;
    watcher.goes_on().await?;
    world.delete_vm(LATE).await?;
    for once in once {
        once.end().await?;
    }
    world.down().await
}

async fn moves(world: &World, to: &str) -> anyhow::Result<()> {
    let asked = world.migrate(WEB, to).await?;
    world
        .until_migration(&asked.name, MigrationPhase::Done)
        .await
        .map(drop)
}

/// The command line, which has to succeed.
async fn run(world: &World, words: &[&str]) -> anyhow::Result<()> {
    let ended = world.command(words)?.output().await?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "{words:?}: {said}");
    println!("{words:?}: {said}");
    Ok(())
}

async fn backup(world: &World, name: &str) -> anyhow::Result<PathBuf> {
    let file = world.directory().join(name);
    run(world, &["store", "backup", text(&file)?]).await?;
    Ok(file)
}

/// The server's store is lost while it does not run, and made anew.
async fn restore(world: &World, backup: &Path) -> anyhow::Result<()> {
    let data = world.directory();
    world
        .without_server(async || {
            for name in ["store.db", "store.db-wal", "store.db-shm"] {
                let lost = data.join("server/store").join(name);
                if lost.exists() {
                    std::fs::remove_file(&lost).with_context(|| format!("removing {}", lost.display()))?;
                }
            }
            run(
                world,
                &["store", "restore", text(backup)?, "--data", text(&data)?],
            )
            .await
        })
        .await
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path is not UTF-8")
}

/// Waits until the store is held, and every host has said all that it runs.
async fn until_all_have_spoken(world: &World) -> anyhow::Result<StoreStatus> {
    let spoken = async {
        loop {
            if let Ok(status) = world.client().store_status().await
                && status
                    .restored
                    .as_ref()
                    .is_some_and(|restored| restored.silent_hosts.is_empty())
            {
                return status;
            }
            sleep(PAUSE).await;
        }
    };
    timeout(PATIENCE, spoken)
        .await
        .context("hosts do not say what they run")
}

/// A host, an incarnation there, and its process.
type Living = (String, Incarnation, i32);

/// Processes of guests, as they were seen.
struct Guests(Vec<(VmId, Vec<Living>)>);

impl Guests {
    fn seen(world: &World, vms: &[VmId]) -> anyhow::Result<Self> {
        let guests: Vec<_> = vms.iter().map(|vm| (*vm, world.living(*vm))).collect();
        let each_has_one = guests.iter().all(|(_, living)| living.len() == 1);
        ensure!(each_has_one, "guests have the processes {guests:?}");
        Ok(Self(guests))
    }

    /// They are the same, there are no others, and each gets on with its work.
    async fn run_on(&self, world: &World) -> anyhow::Result<()> {
        for (vm, before) in &self.0 {
            let now = world.living(*vm);
            ensure!(now == *before, "a guest had {before:?}, and has {now:?}");
            for (host, _, pid) in now {
                ensure!(
                    until_it_executes(pid, PATIENCE).await,
                    "process {pid} on {host} stands still"
                );
            }
        }
        Ok(())
    }
}
