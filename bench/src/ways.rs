//! Ways to a machine that answers, in one run: installed from a medium, made from a template, and a Debian with cloud-init if its
//! image is there.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api::kinds::{CdromSpec, Vm, VmSpec};
use model::lifecycle::Phase;
use testkit::vms::{self, VmObject};
use testkit::wait::{self, Verdict};
use testkit::world::{World, debian_image, guest_image};

use crate::stats::Series;

const MEDIUM: &str = "installer";
const DEBIAN: &str = "debian";
const MEMORY_MIB: u64 = 256;
const DEBIAN_MEMORY_MIB: u64 = 512;
/// How long each may take where the processor is emulated.
const PATIENCE: Duration = Duration::from_secs(900);

/// Prints a table.
pub(crate) async fn measure(root: &Path, runs: usize) -> anyhow::Result<()> {
    let world = World::up(1).await?;
    world.make_template(MEMORY_MIB).await?;
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/e2e/tests/stories/installation/media.sh");
    let made = Command::new(script).arg(guest_image()?).arg(root).status()?;
    ensure!(made.success(), "no medium could be made");
    world.import_as(MEDIUM, &root.join("installer.iso")).await?;
    let has_debian = debian_image().is_ok();
    if has_debian {
        world.import_as(DEBIAN, &debian_image()?).await?;
        world.create_template_of(DEBIAN, DEBIAN_MEMORY_MIB).await?;
    }
    let (mut installed, mut made, mut configured) = (Series::default(), Series::default(), Series::default());
    for run in 0..runs {
        installed.push(took(&world, &format!("installed-{run}"), from_medium()).await?);
        made.push(took(&world, &format!("made-{run}"), vms::spec(None, "")).await?);
        if has_debian {
            let spec = VmSpec {
                template: Some(DEBIAN.to_owned()),
                ..vms::spec(None, "")
            };
            configured.push(took(&world, &format!("debian-{run}"), spec).await?);
        }
    }
    println!(
        "| from the request until the guest's agent answers | ms | of the installation |\n|---|---|---|"
    );
    println!("| small guest, installed from its medium | {installed} | |");
    println!(
        "| small guest, from a template | {made} | {} |",
        made.ratio_to(&installed)
    );
    if has_debian {
        println!(
            "| Debian with cloud-init, from a template | {configured} | {} |",
            configured.ratio_to(&installed)
        );
    }
    println!();
    world.down().await
}

fn from_medium() -> VmSpec {
    VmSpec {
        memory_mib: Some(MEMORY_MIB),
        disk_bytes: Some(1 << 30),
        cdrom: Some(CdromSpec {
            image: Some(MEDIUM.to_owned()),
            force: false,
        }),
        ..VmSpec::default()
    }
}

/// Milliseconds from the request to the answer.
async fn took(world: &World, name: &str, spec: VmSpec) -> anyhow::Result<f64> {
    let begun = Instant::now();
    world.create_vm(name, spec).await?;
    let answers = |vm: &VmObject| Verdict::from(vm.status.phase == Phase::Running && vm.status.ready);
    let vm = wait::until::<Vm>(world.client(), name, "answering", PATIENCE, answers).await;
    vm.with_context(|| name.to_owned())?;
    let took_ms = begun.elapsed().as_secs_f64() * 1000.0;
    world.delete_vm(name).await?;
    Ok(took_ms)
}
