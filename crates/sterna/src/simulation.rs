//! `sterna sim`: the control plane without a machine, under seeds.
//!
//! **Owns:** which seeds are run, for how long, and what is printed of them.
//!
//! **Does not know:** what a seed stands for, and what is checked: see [`sim`].
//!
//! **Start here:** [`run`].

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, Subcommand};
use sim::{Script, Size, Tally};

/// The commands of the simulator.
#[derive(Debug, Subcommand)]
pub(crate) enum SimCommand {
    /// Run simulated clouds in which things break, and check that what is promised holds
    Check(SimCheckArgs),
}

/// Which seeds are run.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sterna sim check --seeds 1000\n  sterna sim check --minutes 60 --any-size\n  sterna sim check --seed 42 --log\n\n\
    A seed stands for servers, hosts, wishes of users and faults, and repeats exactly. One that fails is printed with the\n\
    shortest script that was found to fail, and with the command that shows all of it."
)]
pub(crate) struct SimCheckArgs {
    /// The first seed
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(crate) seed: u64,
    /// How many seeds [default: as many as there is time for]
    #[arg(long, value_name = "N")]
    pub(crate) seeds: Option<u64>,
    /// For how long seeds are begun
    #[arg(long, value_name = "M", default_value_t = 2)]
    pub(crate) minutes: u64,
    /// Clouds of all sizes, up to three servers and eight hosts [default: small ones, of which more can be run]
    #[arg(long)]
    pub(crate) any_size: bool,
    /// How many servers each cloud has [default: chosen by the seed, as are all below]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10))]
    pub(crate) servers: Option<u16>,
    /// How many hosts each cloud has; with two VMs and at least a fault for each
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) hosts: Option<u16>,
    /// How many VMs users make at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) vms: Option<u16>,
    /// How many things break
    #[arg(long, value_name = "N")]
    pub(crate) faults: Option<u16>,
    /// For how long users ask and things break, in virtual time
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(10..=86_400))]
    pub(crate) seconds: Option<u64>,
    /// Print all that happens in the first seed, and check nothing else
    #[arg(long)]
    pub(crate) log: bool,
}

/// Runs the simulator.
pub(crate) fn run(command: SimCommand) -> anyhow::Result<std::process::ExitCode> {
    let SimCommand::Check(args) = command;
    if args.log {
        return print_log(&args);
    }
    let begun = Instant::now();
    let limit = Duration::from_secs(args.minutes.saturating_mul(60));
    let mut tally = Tally::default();
    while args.seeds.is_none_or(|seeds| tally.seeds < seeds) && begun.elapsed() < limit {
        let seed = args.seed.saturating_add(tally.seeds);
        if let Err(failure) = tally.check(seed, size(&args, seed)) {
            bail!("{failure}nothing was wrong before, with {tally}");
        }
    }
    // Each seed runs twice.
    let times = 2.0 * Duration::from_micros(tally.virtual_us).as_secs_f64() / begun.elapsed().as_secs_f64();
    let first = args.seed;
    println!("{tally}, from seed {first} on: nothing is wrong ({times:.0} x real time)");
    Ok(std::process::ExitCode::SUCCESS)
}

fn size(args: &SimCheckArgs, seed: u64) -> Size {
    let mut size = if args.any_size {
        Size::any_of(seed)
    } else {
        Size::of(seed)
    };
    if let Some(hosts) = args.hosts.map(usize::from) {
        size.hosts = hosts;
        size.vms = hosts * 2;
        size.faults = hosts.max(size.faults);
    }
    size.servers = args.servers.map_or(size.servers, usize::from);
    size.vms = args.vms.map_or(size.vms, usize::from);
    size.faults = args.faults.map_or(size.faults, usize::from);
    size.seconds = args.seconds.unwrap_or(size.seconds);
    size
}

fn print_log(args: &SimCheckArgs) -> anyhow::Result<std::process::ExitCode> {
    let script = Script::of(args.seed, size(args, args.seed));
    print!("{script}");
    let outcome = sim::run(&script, None, true);
    for line in &outcome.log {
        println!("{line}");
    }
    match outcome.wrong {
        Some(wrong) => bail!("seed {} fails: {wrong}", args.seed),
        None => Ok(std::process::ExitCode::SUCCESS),
    }
}
