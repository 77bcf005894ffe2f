//! A hundred operations at once on one host: they queue up, and none fails for want of time.
//!
//! Their processes are real, their guests stand still before their first instruction: what is tried here is the host's own
//! work, and it is more than a small machine can do at once.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api::client::ObjectOf;
use api::drain::HostActionBody;
use api::kinds::{Host, Operation, Vm, VmSpec};
use futures_util::future::try_join_all;
use model::lifecycle::Phase;
use model::operation::{Action, OperationPhase};
use model::vm::Power;
use serde_json::json;
use testkit::vms;
use testkit::wait::{self, Verdict};
use testkit::world::World;

const HOST: &str = "h1";
const VMS: usize = 100;
/// So many of them get a process, the others a disk only.
const WITH_PROCESS: usize = 20;
/// How long all of them together may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(200);

#[tokio::test]
async fn a_hundred_operations_at_once_queue_up_on_a_host() -> anyhow::Result<()> {
    let world = World::up(1).await?;
    world.make_template(32).await?;
    let overcommit = json!({"spec": {"overcommit": {"memory_percent": 400, "vcpus_per_cpu": 64}}});
    world.client().patch::<Host>(HOST, &overcommit, None).await?;
    // All are asked for at once, and then all are let go at once.
    world
        .client()
        .action::<Host, _>(HOST, "cordon", &HostActionBody::default())
        .await?;
    try_join_all((0..VMS).map(|n| create(&world, n))).await?;
    world
        .client()
        .action::<Host, _>(HOST, "uncordon", &HostActionBody::default())
        .await?;
    let begun = Instant::now();
    all_reach(&world, |n| {
        if n < WITH_PROCESS {
            Phase::Paused
        } else {
            Phase::Off
        }
    })
    .await?;
    println!("{VMS} starts and preparations took {:?}", begun.elapsed());
    all_went_well(&world, &[Action::Start, Action::Prepare]).await?;

    let begun = Instant::now();
    let ask = async |n: usize| match n {
        0..WITH_PROCESS if n.is_multiple_of(2) => world.act(&name(n), "shutdown").await.map(drop),
        0..WITH_PROCESS => world.act(&name(n), "suspend").await.map(drop),
        _ => Ok(world.client().delete::<Vm>(&name(n)).await.map(drop)?),
    };
    try_join_all((0..VMS).map(ask)).await?;
    for n in WITH_PROCESS..VMS {
        wait::until_gone::<Vm>(world.client(), &name(n), PATIENCE).await?;
    }
    all_reach(&world, |n| {
        if n.is_multiple_of(2) {
            Phase::Off
        } else {
            Phase::Suspended
        }
    })
    .await?;
    println!(
        "{VMS} shutdowns, suspensions and deletions took {:?}",
        begun.elapsed()
    );
    all_went_well(&world, &[Action::Shutdown, Action::Suspend, Action::Delete]).await?;

    try_join_all((0..WITH_PROCESS).map(async |n| world.delete_vm(&name(n)).await)).await?;
    let reserved = world.client().get::<Host>(HOST).await?.status.reserved_mib;
    ensure!(reserved == 0, "{reserved} MiB are reserved for nobody");
    world.down().await
}

fn name(n: usize) -> String {
    format!("crowd-{n}")
}

async fn create(world: &World, n: usize) -> anyhow::Result<()> {
    let power = if n < WITH_PROCESS {
        Power::Paused
    } else {
        Power::Prepared
    };
    let spec = VmSpec {
        power: Some(power),
        ..vms::spec(None, "")
    };
    world.create_vm(&name(n), spec).await.map(drop)
}

/// Waits until every VM that is there is where it shall be.
async fn all_reach(world: &World, phase: impl Fn(usize) -> Phase) -> anyhow::Result<()> {
    let (vms, _) = world.client().list::<Vm>().await?;
    for vm in vms {
        let n: usize = vm.name.trim_start_matches("crowd-").parse()?;
        let judge = |vm: &ObjectOf<Vm>| match vm.status.phase {
            Phase::Failed => Verdict::Never,
            now => Verdict::from(now == phase(n) && vm.status.operation.is_none()),
        };
        wait::until::<Vm>(world.client(), &vm.name, &phase(n).to_string(), PATIENCE, judge).await?;
    }
    Ok(())
}

/// Each of these operations is done, at the first try.
async fn all_went_well(world: &World, actions: &[Action]) -> anyhow::Result<()> {
    let (all, _) = world.client().list::<Operation>().await?;
    let meant: Vec<_> = all
        .iter()
        .filter(|one| actions.contains(&one.spec.action))
        .collect();
    ensure!(meant.len() == VMS, "{} operations have a record", meant.len());
    let bad = meant.iter().find(|one| {
        let status = &one.status;
        status.phase != OperationPhase::Done || status.attempt != 1 || status.reason.is_some()
    });
    bad.map_or(Ok(()), |one| {
        Err(anyhow::anyhow!("{}: {:?}", one.name, one.status))
    })
    .context("not all went well")
}
