//! How long a VM's disk takes to be made over an image: as a clone of another, and as one of a hundred that are prepared at once.
//! Beside it what makes such a file without Sterna.
//!
//! **Start here:** [`measure`], [`prepared`].

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use testkit::world::{World, guest_image};
use tokio::process::Command;

use crate::cli::asked;
use crate::stats::Series;

/// How large the images are that a guest sees. So much of each is data, and the rest a hole.
const GIB: [u64; 3] = [1, 20, 100];
const DATA_MIB: u64 = 512;
/// How many clones there are when their bytes are counted.
const CLONES: [u32; 3] = [1, 10, 100];
/// How many are prepared at once, and what is asked for.
const PREPARED: usize = 100;
const FACTOR: f64 = 1.3;
const MORE_MS: f64 = 2000.0;

/// Prints a row for each size of image: from the request to the disk of a linked clone of a VM that is off; and the bytes on disk.
pub(crate) async fn measure(root: &Path, runs: usize) -> anyhow::Result<()> {
    let world = World::up(1).await?;
    let environment = world.environment()?;
    println!(
        "| image, {DATA_MIB} MiB of it data, the rest a hole | linked clone, request to file | full clone | qemu-img create -b | qemu-img convert |"
    );
    println!("|---|---|---|---|---|");
    for gib in GIB {
        let (raw, image) = (root.join("raw"), root.join(format!("{gib}.qcow2")));
        fill(&raw, gib << 30)?;
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &image]).await?;
        let name = format!("i{gib}");
        asked(
            &format!("image import {name} --file {}", image.display()),
            &environment,
        )
        .await?;
        let sizes = "--vcpus 1 --memory 64MiB --off --wait";
        asked(&format!("vm create s{gib} --image {name} {sizes}"), &environment).await?;
        let [mut linked, mut full, mut bare, mut whole] = [(); 4].map(|()| Series::default());
        for run in 0..=runs {
            let clone = format!("vm clone s{gib} c --off --wait");
            let took = asked(&clone, &environment).await?;
            asked("vm delete c --wait", &environment).await?;
            let took_full = asked(&format!("{clone} --full"), &environment).await?;
            asked("vm delete c --wait", &environment).await?;
            let made = root.join("made.qcow2");
            let create = qemu_img(
                &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"],
                &[&image, &made],
            )
            .await?;
            let convert = qemu_img(&["convert", "-f", "qcow2", "-O", "qcow2"], &[&image, &made]).await?;
            // The first run warms caches.
            if run > 0 {
                linked.push(took);
                full.push(took_full);
                bare.push(create);
                whole.push(convert);
            }
        }
        println!("| {gib} GiB | {linked} | {full} | {bare} | {whole} |");
    }
    println!("\n| linked clones of a VM of the last | bytes on disk, each with its directory |\n|---|---|");
    let source = format!("s{}", GIB[GIB.len() - 1]);
    for count in CLONES {
        asked(
            &format!("vm clone {source} n --count {count} --off --wait"),
            &environment,
        )
        .await?;
        println!("| {count} | {} |", bytes(&world.volumes())?);
        let names: Vec<String> = (1..=count).map(|n| format!("n-{n}")).collect();
        asked(&format!("vm delete {} --wait", names.join(" ")), &environment).await?;
    }
    println!();
    world.down().await
}

/// Prints a row: a hundred VMs whose disks are made and which are not booted, in one call over three hosts.
pub(crate) async fn prepared(root: &Path, runs: usize) -> anyhow::Result<()> {
    let world = World::up(3).await?;
    world.make_template(64).await?;
    let environment = world.environment()?;
    let image = guest_image()?;
    let [mut ours, mut bare] = [(); 2].map(|()| Series::default());
    let create = format!(
        "vm create p --template {} --count {PREPARED} --off --wait",
        testkit::vms::TINY
    );
    let names: Vec<String> = (1..=PREPARED).map(|n| format!("p-{n}")).collect();
    for run in 0..=runs {
        let took = asked(&create, &environment).await?;
        asked(&format!("vm delete {} --wait", names.join(" ")), &environment).await?;
        let begun = Instant::now();
        for n in 0..PREPARED {
            let made = root.join(format!("{n}.qcow2"));
            qemu_img(
                &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"],
                &[&image, &made],
            )
            .await?;
        }
        let created = begun.elapsed().as_secs_f64() * 1000.0;
        // The first run warms caches.
        if run > 0 {
            ours.push(took);
            bare.push(created);
        }
    }
    let most_ms = bare.median() * FACTOR + MORE_MS;
    println!("| what | Sterna | {PREPARED} × qemu-img create -b | ratio | at most |\n|---|---|---|---|---|");
    let ratio = ours.ratio_to(&bare);
    println!("| {PREPARED} prepared in one call, 3 hosts | {ours} | {bare} | {ratio} | {most_ms:.0} |\n");
    world.down().await
}

/// A raw disk with a boot sector, the begin of which is data.
fn fill(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let file = File::create(path)?;
    file.set_len(bytes)?;
    let mut piece = vec![0xa5; 1 << 20];
    piece[510..512].copy_from_slice(&[0x55, 0xaa]);
    for mib in 0..DATA_MIB {
        piece[..8].copy_from_slice(&mib.to_le_bytes());
        file.write_all_at(&piece, mib << 20)?;
    }
    Ok(())
}

async fn qemu_img(words: &[&str], files: &[&PathBuf]) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut tool = Command::new("qemu-img");
    let said = tool.args(words).args(files).kill_on_drop(true).output().await?;
    ensure!(said.status.success(), "qemu-img {words:?}: {said:?}");
    Ok(begun.elapsed().as_secs_f64() * 1000.0)
}

/// What the directories of VMs in there take.
fn bytes(volumes: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for vm in std::fs::read_dir(volumes)? {
        let vm = vm?;
        bytes += vm.metadata()?.blocks() * 512;
        for file in std::fs::read_dir(vm.path()).context("a VM's volumes")? {
            bytes += file?.metadata()?.blocks() * 512;
        }
    }
    Ok(bytes)
}
