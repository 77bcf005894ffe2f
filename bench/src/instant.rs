//! VMs that start from their template's kept memory, beside the same VMs booted in the same run: how soon they answer, and what they
//! take of their host's memory.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use api::Create;
use api::kinds::{Template, TemplateSpec, Vm, VmSpec};
use model::lifecycle::Phase;
use model::vm::StartChoice;
use qemu::memory::measure as measure_process;
use testkit::vms::{self, TINY, VmObject};
use testkit::world::World;
use tokio::time::sleep;

use crate::stats::Series;
use crate::sterna::timed;

/// The guests' memory.
const MEMORY_MIB: u64 = 256;
/// The memory of those that start from a larger template, which is to make no difference.
const LARGE_MIB: u64 = 2048;
/// Their template.
const LARGE: &str = "large";
/// How many VMs of each sort are there when their memory is measured.
const IDLE: usize = 10;
/// How long they are left alone before that.
const REST: Duration = Duration::from_secs(10);

/// Prints a table.
pub(crate) async fn measure(runs: usize) -> anyhow::Result<()> {
    let world = World::up(1).await?;
    world.make_template(MEMORY_MIB).await?;
    make_large_template(&world).await?;
    for template in [TINY, LARGE] {
        let warming = Instant::now();
        warm(&world, template).await?;
        println!(
            "warming {template} took {:.1} s\n",
            warming.elapsed().as_secs_f64()
        );
    }
    let (mut instant, mut booted, mut large) = (Took::default(), Took::default(), Took::default());
    for n in 0..runs {
        instant.push(one(&world, TINY, &format!("i-{n}"), StartChoice::AtOnce).await?);
        large.push(one(&world, LARGE, &format!("l-{n}"), StartChoice::AtOnce).await?);
        booted.push(one(&world, TINY, &format!("b-{n}"), StartChoice::Boot).await?);
    }
    println!("| from the request until | instant | booted | ratio | asked for |\n|---|---|---|---|---|");
    println!(
        "| its guest's agent answers, with random numbers of its own | {} | {} | {} | 0.10 |",
        instant.ready,
        booted.ready,
        instant.ready.ratio_to(&booted.ready)
    );
    println!(
        "| it has its name and address too | {} | {} | {} | 0.17 |",
        instant.named,
        booted.named,
        instant.named.ratio_to(&booted.named)
    );
    println!(
        "\n| from the request until | {LARGE_MIB} MiB | {MEMORY_MIB} MiB | ratio | asked for |\n|---|---|---|---|---|"
    );
    println!(
        "| its guest's agent answers | {} | {} | {} | 1.2 |",
        large.ready,
        instant.ready,
        large.ready.ratio_to(&instant.ready)
    );
    println!(
        "| it has its name and address too | {} | {} | {} | 1.2 |",
        large.named,
        instant.named,
        large.named.ratio_to(&instant.named)
    );
    let shared = idle(&world, "si", StartChoice::AtOnce).await?;
    let own = idle(&world, "sb", StartChoice::Boot).await?;
    println!(
        "\n| memory (Pss) of {IDLE} idle VMs of {MEMORY_MIB} MiB | MiB | of the booted ones' | asked for |\n|---|---|---|---|"
    );
    println!("| booted | {} | | |", own / 1024);
    println!(
        "| instant | {} | {:.2} | 0.25 |",
        shared / 1024,
        ratio_of(shared, own)
    );
    world.down().await
}

async fn make_large_template(world: &World) -> anyhow::Result<()> {
    let body = Create {
        name: Some(LARGE.to_owned()),
        labels: BTreeMap::new(),
        spec: TemplateSpec {
            image: TINY.to_owned(),
            memory_mib: Some(LARGE_MIB),
            ..TemplateSpec::default()
        },
    };
    world.client().create::<Template>(&body, None, false).await?;
    Ok(())
}

async fn warm(world: &World, template: &str) -> anyhow::Result<()> {
    let name = format!("{template}-warm");
    let spec = VmSpec {
        warms: Some(template.to_owned()),
        ..VmSpec::default()
    };
    world.create_vm(&name, spec).await?;
    world.until_phase(&name, Phase::Stopped).await.map(drop)
}

/// Until a VM is ready, and until its addresses are seen.
#[derive(Default)]
struct Took {
    ready: Series,
    named: Series,
}

impl Took {
    fn push(&mut self, (ready, named): (f64, f64)) {
        self.ready.push(ready);
        self.named.push(named);
    }
}

async fn one(world: &World, template: &str, name: &str, start: StartChoice) -> anyhow::Result<(f64, f64)> {
    let begun = Instant::now();
    let act = async || create(world, template, name, start).await;
    let seen = std::cell::Cell::new(0.0);
    let wanted = |vm: &VmObject| {
        if vm.name == name && vm.status.ready && seen.get() == 0.0 {
            seen.set(begun.elapsed().as_secs_f64() * 1000.0);
        }
        Ok(vm.name == name && vm.status.ready && !vm.status.addresses.is_empty())
    };
    let (named_ms, _) = timed::<Vm>(world, act, wanted).await?;
    world.delete_vm(name).await?;
    Ok((seen.get(), named_ms))
}

async fn create(world: &World, template: &str, name: &str, start: StartChoice) -> anyhow::Result<()> {
    let spec = VmSpec {
        template: Some(template.to_owned()),
        start: Some(start),
        ..vms::spec(None, "")
    };
    world.create_vm(name, spec).await.map(drop)
}

/// What idle VMs take together.
async fn idle(world: &World, stem: &str, start: StartChoice) -> anyhow::Result<u64> {
    let names: Vec<String> = (0..IDLE).map(|n| format!("{stem}-{n}")).collect();
    let mut all = Vec::new();
    for name in &names {
        create(world, TINY, name, start).await?;
        all.push(vms::id(&world.until_ready(name).await?));
    }
    sleep(REST).await;
    let mut kib = 0;
    for id in all {
        for (_, _, pid) in world.living(id) {
            let held = measure_process(pid)?;
            kib += held.guest_kib + held.own_kib;
        }
    }
    for name in &names {
        world.delete_vm(name).await?;
    }
    Ok(kib)
}

fn ratio_of(one: u64, other: u64) -> f64 {
    f64::from(u32::try_from(one).unwrap_or(u32::MAX))
        / f64::from(u32::try_from(other.max(1)).unwrap_or(u32::MAX))
}
