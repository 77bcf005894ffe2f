//! VMs that start from their template's kept memory, beside the same VMs booted in the same run: how soon they answer, and what they
//! take of their host's memory.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::ensure;
use api::Create;
use api::kinds::{Template, TemplateSpec, Vm, VmSpec};
use model::lifecycle::Phase;
use model::vm::StartChoice;
use qemu::memory::measure as measure_process;
use testkit::vms::{self, TINY, VmObject};
use testkit::world::{World, debian_image};
use tokio::time::sleep;

use crate::cli::asked;
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
/// How many are asked for in one call.
const AT_ONCE: u32 = 20;
/// A whole system, if its image is there, and how many VMs of it are compared.
const DEBIAN: &str = "debian";
/// So many of them are booted: ten would take half an hour, and each takes as much as the next.
const DEBIANS_BOOTED: usize = 2;
/// Ends when its boot has.
const SETTLED: &str = "#!/bin/sh\ncloud-init status --wait\n";
/// How long it may take to boot where the processor is emulated.
const PATIENCE: &str = "--timeout 30m";

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
    in_one_call(&world).await?;
    println!(
        "\n| memory (Pss) of an idle VM of {MEMORY_MIB} MiB | one of {IDLE} instant, MiB | booted, MiB | ratio | asked for |\n|---|---|---|---|---|"
    );
    memory(&world, TINY, IDLE).await?;
    if debian_image().is_ok() {
        world.import_as(DEBIAN, &debian_image()?).await?;
        world.create_template_of(DEBIAN, MEMORY_MIB).await?;
        let environment = world.environment()?;
        asked(&format!("template warm {DEBIAN} --wait {PATIENCE}"), &environment).await?;
        memory(&world, DEBIAN, DEBIANS_BOOTED).await?;
    }
    world.down().await
}

/// How many start in a second when they are asked for together.
async fn in_one_call(world: &World) -> anyhow::Result<()> {
    let environment = world.environment()?;
    let create =
        format!("vm create q --template {TINY} --start instant --count {AT_ONCE} --wait=ready {PATIENCE}");
    let took_ms = asked(&create, &environment).await?;
    let names: Vec<String> = (1..=AT_ONCE).map(|n| format!("q-{n}")).collect();
    for name in &names {
        let vm = world.get_vm(name).await?;
        ensure!(vm.status.booted_instead.is_none(), "{name}: {:?}", vm.status);
    }
    asked(&format!("vm delete {} --wait", names.join(" ")), &environment).await?;
    let rate = 1000.0 * f64::from(AT_ONCE) / took_ms;
    println!(
        "\n{AT_ONCE} in one call: {:.1} s until all answer, {rate:.2} a second",
        took_ms / 1000.0
    );
    Ok(())
}

/// A row of what a VM of a template takes when it is idle, instant and booted.
async fn memory(world: &World, template: &str, booted: usize) -> anyhow::Result<()> {
    let shared = idle(world, template, IDLE, "instant").await? / IDLE as f64;
    let own = idle(world, template, booted, "boot").await? / booted as f64;
    println!(
        "| {template}, {booted} booted | {:.1} | {:.1} | {:.2} | 0.25 |",
        shared / 1024.0,
        own / 1024.0,
        shared / own
    );
    Ok(())
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

/// What VMs take together in KiB when they are idle: a guest with cloud-init, when that has ended.
async fn idle(world: &World, template: &str, count: usize, start: &str) -> anyhow::Result<f64> {
    let environment = world.environment()?;
    let names: Vec<String> = (1..=count).map(|n| format!("{start}-{n}")).collect();
    let create = format!(
        "vm create {start} --template {template} --start {start} --count {count} --wait=ready {PATIENCE}"
    );
    asked(&create, &environment).await?;
    if template == DEBIAN && start == "boot" {
        let script = world.directory().join("settled.sh");
        fs::write(&script, SETTLED)?;
        for name in &names {
            let apply = format!("vm apply {name} --script {} {PATIENCE}", script.display());
            asked(&apply, &environment).await?;
        }
    }
    sleep(REST).await;
    let mut kib = 0;
    for name in &names {
        for (_, _, pid) in world.living(vms::id(&world.get_vm(name).await?)) {
            let held = measure_process(pid)?;
            kib += held.guest_kib + held.own_kib;
        }
    }
    asked(&format!("vm delete {} --wait", names.join(" ")), &environment).await?;
    Ok(f64::from(u32::try_from(kib)?))
}
