//! How much faster than real time a simulated cloud runs in which things break.
//!
//! **Start here:** [`measure`].

use std::time::{Duration, Instant};

use anyhow::bail;
use sim::{Script, Size};

use crate::stats::Series;

const HOSTS: usize = 20;

/// Prints a row: each run is another seed, with every check that `sterna sim check` makes.
pub(crate) fn measure(runs: usize) -> anyhow::Result<()> {
    let mut times = Series::default();
    for seed in 1..=u64::try_from(runs)? {
        let size = Size {
            servers: 1,
            hosts: HOSTS,
            vms: HOSTS * 2,
            seconds: 60,
            faults: HOSTS,
        };
        let begun = Instant::now();
        let outcome = sim::run(&Script::of(seed, size), None, false);
        if let Some(wrong) = outcome.wrong {
            bail!("seed {seed} fails: {wrong}");
        }
        times.push(Duration::from_micros(outcome.virtual_us).as_secs_f64() / begun.elapsed().as_secs_f64());
    }
    println!("\n| what | times real time | asked for |\n|---|---|---|");
    println!("| 1 server, {HOSTS} hosts, {HOSTS} faults in a minute | {times} | 500 |");
    Ok(())
}
