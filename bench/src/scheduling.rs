//! How soon VMs that are asked for get a host, on simulated hosts, and what placing one costs when many run already.
//!
//! **Start here:** [`measure`].

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use api::ChangeType;
use api::kinds::Vm;
use futures_util::StreamExt;
use model::vm::Power;

use crate::server::Server;
use crate::stats::Series;

/// How many are asked for at once.
const ASKED: usize = 1_000;
/// With how many that run already the last ones are placed.
const RUNNING: [usize; 3] = [0, 10_000, 50_000];
/// So many are furnished at a time, each portion until it runs.
const PORTION: usize = 5_000;
/// For how long it is measured what is taken when nothing is asked for.
const IDLE_S: u64 = 5;
/// The hosts of that curve: room for all of them.
const CURVE_HOSTS: usize = 1_000;
const PATIENCE: Duration = Duration::from_secs(600);

/// Prints rows.
pub(crate) async fn measure(root: &Path, runs: usize) -> anyhow::Result<()> {
    println!("\n| what | s | asked for |\n|---|---|---|");
    for (hosts, asked_s) in [(100, 2), (1_000, 4)] {
        let mut took = Series::default();
        for run in 0..runs {
            let server = Server::simulated(&root.join(format!("s{hosts}-{run}")), hosts).await?;
            running(&server, 0).await?;
            took.push(granted(&server, 0).await?.0.as_secs_f64());
            server.end().await?;
        }
        println!(
            "| {ASKED} VMs asked for at once on {hosts} hosts, until all have one | {took} | {asked_s} |"
        );
    }
    curve(root).await
}

/// Asks for many, and waits until each has a host; then for the processor time that it took.
async fn granted(server: &Server, first: usize) -> anyhow::Result<(Duration, f64)> {
    let client = server.client()?;
    let from = client.revision::<Vm>().await?;
    let mut changes = client.watch::<Vm>(Some(from)).await?;
    let processor_s = server.process()?.processor_s()?;
    let begun = Instant::now();
    let asking = server.create_vms(first..first + ASKED, Power::Running);
    let hearing = async {
        let mut placed = std::collections::BTreeSet::new();
        while placed.len() < ASKED {
            let change = changes.next().await.context("the watch ended")??;
            if change.change_type != ChangeType::Deleted && change.object.status.host.is_some() {
                let number = change
                    .object
                    .name
                    .strip_prefix("bench-")
                    .and_then(|n| n.parse::<usize>().ok());
                placed.extend(number.filter(|n| *n >= first));
            }
        }
        anyhow::Ok(begun.elapsed())
    };
    let (asked, heard) = tokio::time::timeout(PATIENCE, async { tokio::join!(asking, hearing) })
        .await
        .context("VMs have no host")?;
    asked?;
    Ok((heard?, server.process()?.processor_s()? - processor_s))
}

/// The same request again and again while the number of VMs that run grows.
async fn curve(root: &Path) -> anyhow::Result<()> {
    let server = Server::simulated(&root.join("curve"), CURVE_HOSTS).await?;
    println!(
        "\n| VMs that run already, {CURVE_HOSTS} hosts | {ASKED} more have a host after, s | processor time for each, ms, less what is taken without them | that, % of a processor |\n|---|---|---|---|"
    );
    let mut there = 0;
    for there_first in RUNNING {
        for from in (there..there_first).step_by(PORTION) {
            let to = (from + PORTION).min(there_first);
            server.create_vms(from..to, Power::Running).await?;
            running(&server, to).await?;
        }
        there = there.max(there_first);
        running(&server, there).await?;
        let idle = server.process()?.idle_percent(IDLE_S).await? / 100.0;
        let (took, processor_s) = granted(&server, there).await?;
        there += ASKED;
        let each_ms = (processor_s - idle * took.as_secs_f64()) * 1000.0 / ASKED as f64;
        println!(
            "| {there_first} | {:.2} | {each_ms:.2} | {:.0} |",
            took.as_secs_f64(),
            idle * 100.0
        );
    }
    server.end().await
}

/// Waits until so many VMs run, and the controller has nothing to look at.
async fn running(server: &Server, vms: usize) -> anyhow::Result<()> {
    let client = server.client()?;
    let begun = Instant::now();
    loop {
        let metrics = client.text("/metrics").await?;
        let value = |name: &str| {
            let line = metrics
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<f64>().ok())
        };
        let running = value("sterna_vms{phase=\"Running\"}").unwrap_or(0.0);
        if running as usize == vms && value("sterna_controller_queue_length") == Some(0.0) {
            return Ok(());
        }
        anyhow::ensure!(
            begun.elapsed() < PATIENCE,
            "{running} of {vms} VMs run after {PATIENCE:?}"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
