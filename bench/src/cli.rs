//! How long a person waits for an answer on the command line: from the start of the process to its end.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Instant;

use anyhow::ensure;
use model::vm::Power;
use testkit::vms::spec;
use testkit::world::{World, program};
use tokio::process::Command;

use crate::stats::Series;

/// How many VMs there are.
const VMS: usize = 100;

/// What is asked, and what asking nothing takes.
const COMMANDS: [&str; 5] = [
    "--version",
    "vm get bench-42",
    "vm list",
    "vm list --sort name --filter status.phase=hold",
    "vm list -o json",
];

/// Prints a row for each command, made in turn.
pub(crate) async fn measure(runs: usize) -> anyhow::Result<()> {
    let world = World::up(1).await?;
    world.make_template(64).await?;
    for n in 0..VMS {
        let mut held = spec(None, "");
        (held.power, held.nics) = (Some(Power::Hold), Some(Vec::new()));
        world.create_vm(&format!("bench-{n}"), held).await?;
    }
    let environment = world.environment()?;
    let mut took: Vec<Series> = COMMANDS.iter().map(|_| Series::default()).collect();
    for run in 0..=runs {
        for (series, command) in took.iter_mut().zip(COMMANDS) {
            let ms = asked(command, &environment).await?;
            // The first run warms caches.
            if run > 0 {
                series.push(ms);
            }
        }
    }
    println!("\n| command, process start included, {VMS} VMs | ms | asked for |\n|---|---|---|");
    for (series, command) in took.iter().zip(COMMANDS) {
        let wanted = if command.starts_with("vm") {
            "under 50"
        } else {
            "–"
        };
        println!("| `sterna {command}` | {series} | {wanted} |");
    }
    world.down().await
}

/// Runs a command to its end; how many milliseconds it took.
pub(crate) async fn asked(line: &str, environment: &BTreeMap<String, String>) -> anyhow::Result<f64> {
    let mut command = Command::new(program()?);
    command
        .args(line.split_whitespace())
        .envs(environment)
        .stdin(Stdio::null());
    let begun = Instant::now();
    let ended = command.output().await?;
    let ms = begun.elapsed().as_secs_f64() * 1000.0;
    let errors = String::from_utf8_lossy(&ended.stderr);
    ensure!(
        ended.status.success(),
        "sterna {line} ended with {}: {errors}",
        ended.status
    );
    Ok(ms)
}
