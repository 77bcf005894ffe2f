//! What Sterna adds to bare QEMU and bare SQLite: ratios in one run on one machine, in turn, medians over several runs.
//!
//! **Owns:** the measurements and their table.
//!
//! **Does not know:** what is good enough: `docs/performance.md` says what is asked for.
//!
//! **Start here:** [`main`]. `bench [WHAT] [RUNS]` prints tables in Markdown; WHAT is one of [`ALL`]
//! or [`ALONE`].

#![allow(clippy::print_stdout, reason = "tables are what it is for")]

mod api;
mod bare;
mod changes;
mod cli;
mod clones;
mod drain;
mod import;
mod instant;
mod memory;
mod moves;
mod process;
mod scheduling;
mod server;
mod simulation;
mod size;
mod start;
mod stats;
mod sterna;
mod store;
mod ways;

use std::path::Path;

use anyhow::{Context, bail};
use bare::{Credentials, Machine, Place, Recipe};
use moves::Guest;
use qemu::command_line::Start;
use qemu::migration_tls::{DH_PARAMETERS_FILE, DH_PARAMETERS_PEM};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};
use stats::Series;
use testkit::world::{World, guest_image};

/// How often each thing is measured unless asked otherwise.
const RUNS: usize = 10;

/// What is measured, in this order.
const ALL: [&str; 13] = [
    "store",
    "boots",
    "moves",
    "drain",
    "changes",
    "cli",
    "api",
    "watchers",
    "size",
    "scheduling",
    "start",
    "simulation",
    "import",
];

/// What is measured only when it is asked for: it takes long, or is part of another one.
const ALONE: [&str; 6] = ["memory", "move", "clone", "prepared", "instant", "ways"];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1).peekable();
    let what = words.next_if(|word| word.parse::<usize>().is_err());
    let runs = words
        .next()
        .map_or(Ok(RUNS), |text| text.parse())
        .context("RUNS is a number")?;
    println!("machine: {}", machine()?);
    println!(
        "\nMedians of {runs} runs (least–most), in milliseconds unless a row says otherwise; ratios run by run.\n"
    );
    match what {
        None => {
            for what in ALL {
                measure(what, runs).await?;
            }
        }
        Some(what) => measure(&what, runs).await?,
    }
    println!("\nload after: {}", load()?);
    Ok(())
}

async fn measure(what: &str, runs: usize) -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let root = root.path();
    match what {
        "store" => return of_store(root, runs).await,
        "cli" => return cli::measure(runs).await,
        "memory" => return memory::measure().await,
        "instant" => return instant::measure(runs).await,
        "api" => return api::measure(root).await,
        "watchers" => return api::watchers(root).await,
        "size" => return size::measure(root).await,
        "scheduling" => return scheduling::measure(root, runs).await,
        "clone" => return clones::measure(root, runs).await,
        "prepared" => return clones::prepared(root, runs).await,
        "import" => return import::measure(root, runs).await,
        "ways" => return ways::measure(root, runs).await,
        "start" => return start::measure(root, runs).await,
        // Not on a task: a simulation never waits, and a task would be made to.
        "simulation" => return tokio::task::spawn_blocking(move || simulation::measure(runs)).await?,
        "move" => {}
        what if !ALL.contains(&what) => {
            bail!(
                "{what:?} is not measured here: {}, {}",
                ALL.join(", "),
                ALONE.join(", ")
            )
        }
        _ => {}
    }
    let world = World::up(2).await?;
    world.make_template(256).await?;
    if what != "changes" {
        println!("| what | Sterna | bare QEMU | ratio |\n|---|---|---|---|");
    }
    match what {
        "boots" => boot(&world, root, runs).await?,
        "drain" => drain::measure(&world, root, runs, &credentials(root)?).await?,
        "changes" => changes::measure(&world, runs).await?,
        "move" => one_move(&world, root, runs).await?,
        _ => moves(&world, root, runs).await?,
    }
    println!();
    world.down().await
}

/// What the store adds to SQLite. Its files are where temporary files are: see to it that this is a disk.
async fn of_store(root: &Path, runs: usize) -> anyhow::Result<()> {
    println!("| what | Sterna | bare SQLite | ratio |\n|---|---|---|---|");
    store::measure(root, runs).await?;
    println!();
    Ok(())
}

async fn moves(world: &World, root: &Path, runs: usize) -> anyhow::Result<()> {
    let credentials = credentials(root)?;
    for guest in [Guest::idle(256), Guest::idle(1024), Guest::counting(256)] {
        moves::measure(world, root, guest, guest.recipes(), runs, &credentials).await?;
    }
    Ok(())
}

/// The first row of `moves` alone: for a look between two builds.
async fn one_move(world: &World, root: &Path, runs: usize) -> anyhow::Result<()> {
    let credentials = credentials(root)?;
    moves::measure(world, root, Guest::idle(256), &[Recipe::Same], runs, &credentials).await
}

fn load() -> anyhow::Result<String> {
    Ok(std::fs::read_to_string("/proc/loadavg")?.trim().to_owned())
}

fn machine() -> anyhow::Result<String> {
    let cpus = std::thread::available_parallelism()?;
    Ok(format!("{cpus} processors, load {}", load()?))
}

/// Create to guest-ready.
async fn boot(world: &World, root: &Path, runs: usize) -> anyhow::Result<()> {
    let image = guest_image()?;
    let place = Place::on(world, "h1")?;
    let (mut ours, mut theirs) = (Series::default(), Series::default());
    for run in 0..=runs {
        let name = format!("boot-{run}");
        let sterna_ms = sterna::create(world, &name, sterna::plain("h1", 256, "")).await?;
        world.delete_vm(&name).await?;
        let begun = std::time::Instant::now();
        let disk = bare::overlay(root, &name, &image)?;
        let spec = bare::spec(&disk, &image, 256, Start::Boot);
        let mut machine = Machine::start(root, &name, &spec, &place).await?;
        machine.run().await?;
        machine.ready().await?;
        let bare_ms = begun.elapsed().as_secs_f64() * 1000.0;
        drop(machine);
        // The first run warms caches.
        if run > 0 {
            ours.push(sterna_ms);
            theirs.push(bare_ms);
        }
    }
    row("create to guest-ready, 256 MiB", &ours, &theirs);
    Ok(())
}

fn row(what: &str, ours: &Series, theirs: &Series) {
    println!("| {what} | {ours} | {theirs} | {} |", ours.ratio_to(theirs));
}

/// Certificates like those of Sterna's migration CA, for two hosts.
fn credentials(root: &Path) -> anyhow::Result<Credentials> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("migration CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let host = |name: &str| -> anyhow::Result<String> {
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name = common_name(name);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &ca)?.pem();
        let dir = root.join(format!("tls-{name}"));
        std::fs::create_dir(&dir)?;
        std::fs::write(dir.join("ca-cert.pem"), ca.pem())?;
        for role in ["client", "server"] {
            std::fs::write(dir.join(format!("{role}-cert.pem")), &certificate)?;
            std::fs::write(dir.join(format!("{role}-key.pem")), key.serialize_pem())?;
        }
        std::fs::write(dir.join(DH_PARAMETERS_FILE), DH_PARAMETERS_PEM)?;
        Ok(dir.to_string_lossy().into_owned())
    };
    Ok(Credentials {
        source: host("h1")?,
        target: host("h2")?,
    })
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_makefile_names_what_is_measured() {
        let makefile = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../Makefile"));
        let said = format!("WHAT={}, {}\n", ALL.join(", "), ALONE.join(", "));
        assert!(
            makefile.contains(&said),
            "say {said:?} at `bench` in the Makefile"
        );
    }
}
