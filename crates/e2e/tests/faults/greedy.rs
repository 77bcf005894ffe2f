//! A guest that takes all that it can get, and one that ends again and again: neither changes its host or its neighbour beyond a
//! bound.
//!
//! **Owns:** the bounds, which `docs/guarantees.md` repeats. They are for a machine with two processors that emulates the
//! guests' and runs the hosts, the server and the tests besides.
//!
//! **Does not know:** single faults; see [`super::table`].

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api::kinds::{Host, VmSpec};
use model::lifecycle::Phase;
use testkit::pair::{HOSTS, MEMORY_MIB, Pair, WEB};
use testkit::process;
use testkit::vms::{self, VmObject};
use testkit::wait::{self, Verdict};
use testkit::world::World;
use tokio::time::sleep;

const GREEDY: &str = "greedy";
const FRAIL: &str = "frail";
const KILLS: usize = 100;
/// How long the greedy one is watched, and how long at a time.
const WINDOWS: u64 = 6;
const WINDOW: Duration = Duration::from_secs(10);
/// What is left to a neighbour, of the numbers that it counts when nobody disturbs it.
const LEFT_PERCENT: u64 = 20;
/// The longest answer of the server.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// What an agent may grow by, in resident memory and in open files.
const GROWTH_KIB: u64 = 8 << 10;
const GROWTH_FILES: usize = 8;

/// Writes memory, computes, writes to disk and sends to the address, each as fast as it can.
fn greedy_script(address: &str) -> String {
    format!(
        "probe dirty 96 1000000 >/dev/null &\n\
         (while :; do :; done) &\n\
         (while :; do dd if=/dev/urandom of=/data/much bs=64k count=200 conv=fsync 2>/dev/null; done) &\n\
         (while :; do nc {address} 7 </dev/zero >/dev/null; sleep 1; done) &"
    )
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn a_guest_that_takes_all_leaves_its_neighbour_enough() -> anyhow::Result<()> {
    let world = World::up(3).await?;
    world.make_template(MEMORY_MIB).await?;
    let mut pair = Pair::create(&world).await?;
    let home = pair.home()?;
    let agent = world.agent_pid(&home)?;
    pair.ear.goes_on().await?;
    let alone = window(&world, &mut pair).await?;
    let script = greedy_script(&vms::address(&pair.web)?);
    world.create_vm(GREEDY, vms::spec(Some(&home), &script)).await?;
    world.until_ready(GREEDY).await?;
    for _ in 0..WINDOWS {
        let left = window(&world, &mut pair).await?;
        println!("{left} numbers in {WINDOW:?}, and {alone} alone");
        ensure!(
            left * 100 >= alone * LEFT_PERCENT,
            "the neighbour counted {left} numbers in {WINDOW:?}, and {alone} alone"
        );
    }
    let greedy = world.get_vm(GREEDY).await?;
    ensure!(greedy.status.phase == Phase::Running, "{:?}", greedy.status);
    ensure!(world.agent_pid(&home)? == agent, "the host has another agent");
    let host = world.client().get::<Host>(&home).await?;
    ensure!(
        host.status.reason.is_none(),
        "the host complains: {:?}",
        host.status
    );
    world.delete_vm(GREEDY).await?;
    pair.ran_once().await?;
    world.down().await
}

/// How far the neighbour counts in a window, and the server must answer at once all the time.
async fn window(world: &World, pair: &mut Pair<'_>) -> anyhow::Result<u64> {
    let first = pair.ear.next().await?.last;
    let begun = Instant::now();
    while begun.elapsed() < WINDOW {
        let asked = Instant::now();
        world.get_vm(WEB).await?;
        let took = asked.elapsed();
        ensure!(took < ANSWER_MAX, "the server took {took:?} to answer");
        sleep(Duration::from_millis(100)).await;
    }
    Ok(pair.ear.next().await?.last - first)
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn a_guest_that_ends_a_hundred_times_leaves_nothing_behind() -> anyhow::Result<()> {
    let world = World::up(3).await?;
    world.make_template(MEMORY_MIB).await?;
    let mut pair = Pair::create(&world).await?;
    let home = pair.home()?;
    let before = pair.ear.goes_on().await?;
    let spec = VmSpec {
        memory_mib: Some(192),
        ..vms::spec(Some(&home), "")
    };
    world.create_vm(FRAIL, spec).await?;
    // The first ends show what an agent keeps for good.
    for _ in 0..KILLS / 10 {
        ends_and_starts(&world).await?;
    }
    let at_first = Burden::of(&world, &home)?;
    for _ in KILLS / 10..KILLS {
        ends_and_starts(&world).await?;
    }
    // A closed incarnation is kept for ten seconds, so that its last report is surely taken.
    let is_no_more = || {
        let now = Burden::of(&world, &home);
        now.and_then(|now| now.is_no_more_than(&at_first)).is_ok()
    };
    let waited = wait::until_it_holds("its host carries no more", vms::PATIENCE, is_no_more).await;
    let at_last = Burden::of(&world, &home)?;
    println!(
        "after {} ends: {at_first:?}; after {KILLS}: {at_last:?}",
        KILLS / 10
    );
    at_last.is_no_more_than(&at_first)?;
    waited?;
    world.delete_vm(FRAIL).await?;
    let heard = pair.ear.goes_on().await?;
    ensure!(heard.boots == before.boots, "the neighbour has booted");
    for host in HOSTS {
        let reserved = world.client().get::<Host>(host).await?.status.reserved_mib;
        ensure!(reserved < 2 * MEMORY_MIB, "{reserved} MiB of {host} are reserved");
    }
    pair.ran_once().await?;
    world.down().await
}

/// As soon as it runs its QEMU is killed; it says so, and is started again.
async fn ends_and_starts(world: &World) -> anyhow::Result<()> {
    let running = world.until_phase(FRAIL, Phase::Running).await?;
    let vm = vms::id(&running);
    let has_one = || world.living(vm).len() == 1;
    wait::until_it_holds("it has one process", vms::PATIENCE, has_one).await?;
    for (_, _, pid) in world.living(vm) {
        process::kill(pid).await?;
    }
    let failed = |vm: &VmObject| Verdict::from(vm.status.phase == Phase::Failed);
    world.until_vm(FRAIL, "failed", failed).await?;
    world.act(FRAIL, "start").await.map(drop)
}

/// What a host has to carry.
#[derive(Debug)]
struct Burden {
    agent: i32,
    resident_kib: u64,
    files: usize,
    interfaces: BTreeSet<String>,
    directories: usize,
}

impl Burden {
    fn of(world: &World, host: &str) -> anyhow::Result<Self> {
        let agent = world.agent_pid(host)?;
        let status = fs::read_to_string(format!("/proc/{agent}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|text| text.split_whitespace().next()?.parse().ok());
        let vms = fs::read_dir(world.host(host).join("vms"))?.flatten();
        let incarnations = vms.map(|vm| fs::read_dir(vm.path()).map_or(0, Iterator::count));
        Ok(Self {
            agent,
            resident_kib: resident.context("the agent's memory is not known")?,
            files: fs::read_dir(format!("/proc/{agent}/fd"))?.count(),
            interfaces: world.interfaces(host)?,
            directories: incarnations.sum(),
        })
    }

    fn is_no_more_than(&self, other: &Self) -> anyhow::Result<()> {
        ensure!(self.agent == other.agent, "the agent is another one");
        ensure!(
            self.resident_kib <= other.resident_kib + GROWTH_KIB,
            "the agent grew from {} to {} KiB",
            other.resident_kib,
            self.resident_kib
        );
        ensure!(
            self.files <= other.files + GROWTH_FILES,
            "the agent has {} files open, and had {}",
            self.files,
            other.files
        );
        ensure!(
            self.interfaces.len() <= other.interfaces.len() + 1,
            "interfaces are left: {:?}, before {:?}",
            self.interfaces,
            other.interfaces
        );
        ensure!(
            self.directories <= other.directories + GROWTH_FILES,
            "{} directories are left, and there were {}",
            self.directories,
            other.directories
        );
        Ok(())
    }
}
