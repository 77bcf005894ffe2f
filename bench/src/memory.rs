//! What a QEMU takes of its host's memory beside its guest's, in the configurations that Sterna starts: at rest, under load,
//! and on both sides of a migration.
//!
//! Started and moved by Sterna, so that the command lines, the settings of a migration and its TLS are the product's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, ensure};
use api::client::ObjectOf;
use api::kinds::{Migration, NicSpec, VmSpec};
use model::migration::MigrationPhase;
use model::{Incarnation, VmId};
use qemu::memory::{MemoryUse, measure as measure_process};
use testkit::vms::{self, BOOT_PATIENCE};
use testkit::wait::{self, Verdict};
use testkit::watcher;
use testkit::world::World;
use tokio::time::{sleep, timeout};

/// Between two looks at a process.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a guest is looked at, at rest and under load.
const LOOK: Duration = Duration::from_secs(5);
/// How long a guest of several GiB may take to move.
const MOVE_PATIENCE: Duration = Duration::from_secs(300);
/// What the guest's kernel and its programs keep for themselves, besides an eighth of all.
const KERNELS_MIB: u64 = 64;
/// Every block of it is another one.
const WRITE_FILES: &str =
    "(while :; do dd if=/dev/urandom of=/root/load bs=1M count=8; sync; done) >/dev/null 2>&1 &";

/// One configuration.
struct Case {
    memory_mib: u64,
    vcpus: u32,
    nics: usize,
    /// Whether it writes to a disk and to a network, and changes its memory.
    is_busy: bool,
}

const CASES: [Case; 7] = [
    Case::idle(128, 1, 0),
    Case::idle(128, 1, 1),
    Case::idle(128, 1, 4),
    Case::idle(256, 4, 1),
    Case::idle(1024, 1, 1),
    Case::idle(4096, 2, 1),
    Case {
        memory_mib: 1024,
        vcpus: 2,
        nics: 1,
        is_busy: true,
    },
];

impl Case {
    const fn idle(memory_mib: u64, vcpus: u32, nics: usize) -> Self {
        Self {
            memory_mib,
            vcpus,
            nics,
            is_busy: false,
        }
    }
}

/// Measures all configurations and prints a table.
pub(crate) async fn measure() -> anyhow::Result<()> {
    let world = World::up(2).await?;
    world.make_template(128).await?;
    println!(
        "QEMU's own part in MiB, the most that was seen; all of the guest's memory is touched before a migration.\n"
    );
    println!(
        "| memory | processors | interfaces | load | reserved | running | page tables | source | target |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (n, case) in CASES.iter().enumerate() {
        one(&world, &format!("memory-{n}"), case).await?;
    }
    world.down().await
}

async fn one(world: &World, name: &str, case: &Case) -> anyhow::Result<()> {
    let touched_mib = case.memory_mib - case.memory_mib / 8 - KERNELS_MIB;
    let rate = if case.is_busy { 20_000 } else { 1 };
    let mut script = format!("probe dirty {touched_mib} {rate} >/dev/null &\n");
    if case.is_busy {
        script.push_str(WRITE_FILES);
    }
    let template = world.create_vm(name, spec(case, &script)).await?;
    let vm = vms::id(&template);
    let ready = world.until_ready(name).await?;
    let watcher = match case.is_busy {
        true => Some(watch(world, name, &vms::address(&ready)?).await?),
        false => None,
    };
    let all_touched = || {
        let uses = uses(world, vm);
        uses.values().any(|held| held.guest_kib / 1024 >= touched_mib)
    };
    wait::until_it_holds("the guest touches its memory", BOOT_PATIENCE, all_touched).await?;
    let peaks = Peaks::default();
    peaks.note_for(world, vm, sleep(LOOK)).await;
    let source = ready.status.incarnation.context("it has no incarnation")?;
    let running = peaks.of(source)?;
    let moved = world.migrate(name, "h2").await?;
    let ended = peaks.note_for(world, vm, until_ended(world, &moved.name)).await?;
    ensure!(ended.status.phase == MigrationPhase::Done, "{:?}", ended.status);
    let target = ended.status.to_incarnation.context("it has no target")?;
    let mib = |kib: u64| kib.div_ceil(1024);
    println!(
        "| {} MiB | {} | {} | {} | {} | {} | {} | {} | {} |",
        case.memory_mib,
        case.vcpus,
        case.nics,
        if case.is_busy {
            "disk, network, memory"
        } else {
            "none"
        },
        scheduler::qemu_part_mib(case.memory_mib, case.vcpus),
        mib(running.own_kib),
        mib(running.page_tables_kib),
        mib(peaks.of(source)?.own_kib),
        mib(peaks.of(target)?.own_kib)
    );
    for name in watcher.as_deref().into_iter().chain([name]) {
        world.delete_vm(name).await?;
    }
    Ok(())
}

async fn until_ended(world: &World, name: &str) -> anyhow::Result<ObjectOf<Migration>> {
    let is_final = |one: &ObjectOf<Migration>| Verdict::from(one.status.phase.is_final());
    wait::until::<Migration>(world.client(), name, "ended", MOVE_PATIENCE, is_final).await
}

fn spec(case: &Case, script: &str) -> VmSpec {
    let nic = NicSpec {
        network: "default".to_owned(),
        mac: None,
        address: None,
    };
    VmSpec {
        memory_mib: Some(case.memory_mib),
        vcpus: Some(case.vcpus),
        nics: Some(vec![nic; case.nics]),
        ..vms::spec(Some("h1"), script)
    }
}

/// Another guest that takes a stream from it and pings it.
async fn watch(world: &World, name: &str, address: &str) -> anyhow::Result<String> {
    let watcher = format!("{name}-watcher");
    world
        .create_vm(&watcher, vms::spec(Some("h1"), &watcher::script(address)))
        .await?;
    world.until_ready(&watcher).await?;
    Ok(watcher)
}

/// What each living copy of a VM takes now.
fn uses(world: &World, vm: VmId) -> BTreeMap<Incarnation, MemoryUse> {
    let living = world.living(vm).into_iter();
    // One may end while it is looked at.
    let uses = living.filter_map(|(_, incarnation, pid)| Some((incarnation, measure_process(pid).ok()?)));
    uses.collect()
}

/// The most that each copy was seen to take.
#[derive(Default)]
struct Peaks(RefCell<BTreeMap<Incarnation, MemoryUse>>);

impl Peaks {
    /// Looks again and again while something else is done.
    async fn note_for<T>(&self, world: &World, vm: VmId, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            self.note(uses(world, vm));
            if let Ok(done) = timeout(PAUSE, &mut work).await {
                return done;
            }
        }
    }

    fn note(&self, seen: BTreeMap<Incarnation, MemoryUse>) {
        let mut peaks = self.0.borrow_mut();
        for (incarnation, held) in seen {
            let peak = peaks.entry(incarnation).or_insert(held);
            if held.own_kib > peak.own_kib {
                *peak = held;
            }
        }
    }

    fn of(&self, incarnation: Incarnation) -> anyhow::Result<MemoryUse> {
        self.0
            .borrow()
            .get(&incarnation)
            .copied()
            .context("a copy was never seen")
    }
}
