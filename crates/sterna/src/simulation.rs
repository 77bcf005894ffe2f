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
use sim::{Script, Size};

/// The commands of the simulator.
#[derive(Debug, Subcommand)]
pub(crate) enum SimCommand {
    /// Run simulated clouds in which things break, and check that what is promised holds
    Check(SimCheckArgs),
}

/// Which seeds are run.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sterna sim check --seeds 1000\n  sterna sim check --seed 42 --log\n\n\
    A seed stands for servers, hosts, wishes of users and faults, and repeats exactly. One that fails is printed with the\n\
    shortest script that was found to fail."
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
    /// How many hosts each cloud has [default: chosen by the seed]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) hosts: Option<u16>,
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
    let (mut count, mut events, mut virtual_us) = (0_u64, 0_u64, 0_u64);
    while args.seeds.is_none_or(|seeds| count < seeds) && begun.elapsed() < limit {
        let seed = args.seed.saturating_add(count);
        match sim::check(seed, size(&args, seed)) {
            Ok(outcome) => {
                events += outcome.events;
                virtual_us += outcome.virtual_us;
            }
            Err(failure) => bail!("{failure}to see all of it: sterna sim check --seed {seed} --log"),
        }
        count += 1;
    }
    // Each seed runs twice.
    let times = 2.0 * Duration::from_micros(virtual_us).as_secs_f64() / begun.elapsed().as_secs_f64();
    println!(
        "{count} seeds from {}, {events} events: nothing is wrong ({times:.0} x real time)",
        args.seed
    );
    Ok(std::process::ExitCode::SUCCESS)
}

fn size(args: &SimCheckArgs, seed: u64) -> Size {
    let size = Size::of(seed);
    match args.hosts {
        Some(hosts) => Size {
            hosts: hosts.into(),
            vms: usize::from(hosts) * 2,
            faults: usize::from(hosts).max(size.faults),
            ..size
        },
        None => size,
    }
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
