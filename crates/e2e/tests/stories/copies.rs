//! A copy of a host's disk that is started beside it is refused, and its guest runs once; the same machine after a restart
//! is taken.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use api::kinds::{Host, HostState, HostStatus};
use model::lifecycle::Phase;
use testkit::executing::RunsOnce;
use testkit::process::{self, Frozen};
use testkit::vms::{self, PATIENCE};
use testkit::wait::Verdict;
use testkit::world::{Copied, World};
use tokio::time::{sleep, timeout};

const PAUSE: Duration = Duration::from_millis(100);
/// For how long a copy tries in vain.
const IN_VAIN: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_copy_beside_its_host_is_refused_and_a_restarted_machine_is_taken() -> anyhow::Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("reading who this is")?;
    if !status.contains("\nUid:\t0\t") {
        println!("skipped: only root may say what an agent finds of its machine's start");
        return Ok(());
    }
    let world = World::up(1).await?;
    world.make_template(192).await?;
    let web = world.create_vm("web", vms::spec(Some("h1"), "")).await?;
    let once = RunsOnce::begin(&world, vms::id(&web));
    world.until_ready("web").await?;
    let mut copy = world.copy_host("h1")?;
    is_refused(&world, &mut copy).await?;
    // The copy's files speak of the same process.
    let living: BTreeSet<i32> = world
        .living(vms::id(&web))
        .into_iter()
        .map(|(_, _, pid)| pid)
        .collect();
    ensure!(living.len() == 1, "it should run once, on its host: {living:?}");
    // The machine goes off, with all that is on it, and comes back as the one that is called a copy here.
    let supervisor = Frozen::stop(world.up_pid())?;
    process::kill(world.agent_pid("h1")?).await?;
    for qemu in living {
        process::kill(qemu).await?;
    }
    let speaks = async {
        while !taken(&copy) {
            sleep(PAUSE).await;
        }
    };
    timeout(PATIENCE, speaks)
        .await
        .context("the machine is not taken after its restart")?;
    let is_as_ever = |status: &HostStatus| status.state == HostState::Up && status.reason.is_none();
    until_host(&world, "up, with nothing wrong", is_as_ever).await?;
    // It says itself that its guest has ended, as an agent does that is believed.
    world
        .until_vm("web", "not to run any more", |vm| {
            Verdict::from(vm.status.phase != Phase::Running)
        })
        .await?;
    ensure!(copy.runs()?, "the agent of the restarted machine has ended");
    copy.end()?;
    drop(supervisor);
    once.end().await?;
    world.down().await
}

/// It is told nothing, does nothing, and is named.
async fn is_refused(world: &World, copy: &mut Copied) -> anyhow::Result<()> {
    let journal = fs::read(copy.directory().join("journal"))?;
    let is_named = |status: &HostStatus| {
        let code = status.reason.as_ref().map(|reason| reason.code.as_str());
        status.state == HostState::Up && code == Some("host-twice")
    };
    until_host(world, "heard, with a copy that is refused", is_named).await?;
    sleep(IN_VAIN).await;
    let log = copy.log()?;
    ensure!(
        copy.runs()? && log.contains("host-twice") && log.contains("speaks for host h1"),
        "the copy should say why it does nothing: {log}"
    );
    ensure!(!taken(copy), "a server has taken a copy");
    ensure!(
        fs::read(copy.directory().join("journal"))? == journal,
        "a copy that is refused has decided something"
    );
    let vm = world.get_vm("web").await?;
    ensure!(
        vm.status.phase == Phase::Running,
        "the guest went: {:?}",
        vm.status
    );
    Ok(())
}

/// Whether a server has taken the copy's agent for its host's: it says so in its directory, which named its original.
fn taken(copy: &Copied) -> bool {
    let said = |directory: &Path| fs::read_to_string(directory.join("speaker")).ok();
    let original = copy.directory().with_file_name("h1");
    said(copy.directory()) != said(&original)
}

/// Asks again and again: whom a server refuses is not stored, and so no change that a watch would tell.
async fn until_host(world: &World, what: &str, wanted: impl Fn(&HostStatus) -> bool) -> anyhow::Result<()> {
    let reached = async {
        while !wanted(&world.client().get::<Host>("h1").await?.status) {
            sleep(PAUSE).await;
        }
        anyhow::Ok(())
    };
    let reached = timeout(PATIENCE, reached).await;
    reached.with_context(|| format!("the host is never {what}"))?
}
