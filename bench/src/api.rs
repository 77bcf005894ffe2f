//! The server's interface under load: single reads among many objects, durable creates, how soon watchers hear; what
//! idle watchers take.
//!
//! **Start here:** [`measure`], [`watchers`].

use std::path::Path;
use std::time::{Duration, Instant};

use ::api::ChangeType;
use ::api::client::Client;
use ::api::kinds::Vm;
use anyhow::{Context, ensure};
use futures_util::StreamExt;
use model::vm::Power;
use serde_json::json;
use tokio::task::JoinSet;

use crate::server::{Server, vm_name};
use crate::stats::Series;

/// How many VMs there are.
const VMS: usize = 10_000;
const GETS: usize = 5_000;
/// How often a second something is written, and for how long, while a watcher reads along.
const WRITES_PER_S: usize = 500;
const WRITES_S: usize = 10;
/// How many writes are under way at a time, at most.
const WRITERS: usize = 32;
/// How many wait for what never comes, and how many of them share a connection.
const WATCHERS: usize = 10_000;
const WATCHERS_EACH: usize = 200;
/// How long they wait before the server is looked at: each has heard an empty line by then.
const IDLE: Duration = Duration::from_secs(6);

/// Prints rows.
pub(crate) async fn measure(root: &Path) -> anyhow::Result<()> {
    let server = Server::alone(&root.join("server")).await?;
    server.furnish().await?;
    println!("\n| what | measured | asked for |\n|---|---|---|");
    let took = server.create_vms(0..VMS, Power::Hold).await?;
    let per_s = VMS as f64 / took.as_secs_f64();
    println!("| durable creates a second, one pool, 64 at a time, {VMS} made | {per_s:.0} | 1000 |");
    gets(&server.client()?).await?;
    heard(&server).await?;
    server.end().await
}

/// One VM after the other on one connection.
async fn gets(client: &Client) -> anyhow::Result<()> {
    let mut took = Series::default();
    for n in 0..GETS {
        let name = vm_name(n * 7919 % VMS);
        let begun = Instant::now();
        client.get::<Vm>(&name).await?;
        took.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    println!(
        "| `GET` of one VM among {VMS}, ms: median, 99 of 100 within | {:.2}, {:.2} | 99 of 100 within 2 |",
        took.median(),
        took.at_percent(99)
    );
    Ok(())
}

/// Labels are changed at a steady rate; a watcher notes when it hears of each.
async fn heard(server: &Server) -> anyhow::Result<()> {
    let from = server.client()?.revision::<Vm>().await?;
    let mut changes = server.client()?.watch::<Vm>(Some(from)).await?;
    let count = WRITES_PER_S * WRITES_S;
    let reader = tokio::spawn(async move {
        let mut heard = std::collections::BTreeMap::new();
        while heard.len() < count {
            let change = changes.next().await.context("the watch ended")??;
            if change.change_type != ChangeType::Deleted {
                heard.insert(change.revision, Instant::now());
            }
        }
        anyhow::Ok(heard)
    });
    let (written, took) = write(server, count).await?;
    let heard = tokio::time::timeout(Duration::from_secs(60), reader)
        .await
        .context("the watch is late")???;
    let (mut after, mut whole) = (Series::default(), Series::default());
    for (revision, asked, answered) in written {
        let at = heard.get(&revision).context("a write was not heard")?;
        after.push(at.saturating_duration_since(answered).as_secs_f64() * 1000.0);
        whole.push(at.saturating_duration_since(asked).as_secs_f64() * 1000.0);
    }
    let rate = count as f64 / took.as_secs_f64();
    println!(
        "| a change at its watcher, {rate:.0} writes a second, ms after the writer's answer: 99 of 100 within | {:.2} | 5 after the commit |",
        after.at_percent(99)
    );
    println!(
        "| the same, ms after the request: median, 99 of 100 within | {:.2}, {:.2} | – |",
        whole.median(),
        whole.at_percent(99)
    );
    Ok(())
}

type Written = Vec<(u64, Instant, Instant)>;

/// Writes at the rate: the revision of each, when it was asked for, and when it was answered.
async fn write(server: &Server, count: usize) -> anyhow::Result<(Written, Duration)> {
    let client = server.client()?;
    client.store_status().await?;
    let pause = Duration::from_secs(1) / u32::try_from(WRITES_PER_S)?;
    let mut ticks = tokio::time::interval(pause);
    let begun = Instant::now();
    let mut under_way = JoinSet::new();
    let mut written = Vec::new();
    for n in 0..count {
        ticks.tick().await;
        while under_way.len() >= WRITERS {
            written.push(under_way.join_next().await.context("nothing is under way")???);
        }
        let client = client.clone();
        under_way.spawn(async move {
            let body = json!({ "labels": { "n": n.to_string() } });
            let asked = Instant::now();
            let vm = client.patch::<Vm>(&vm_name(n % VMS), &body, None).await?;
            anyhow::Ok((vm.revision, asked, Instant::now()))
        });
    }
    while let Some(done) = under_way.join_next().await {
        written.push(done??);
    }
    ensure!(written.len() == count, "writes are missing");
    Ok((written, begun.elapsed()))
}

/// How much more memory a server takes when so many wait: with a connection each, as the command line's have one, and with
/// as many on a connection as it takes.
pub(crate) async fn watchers(root: &Path) -> anyhow::Result<()> {
    println!("\n| what | measured | asked for |\n|---|---|---|");
    for (dir, each) in [("single", 1), ("shared", WATCHERS_EACH)] {
        let server = Server::alone(&root.join(dir)).await?;
        let before = server.process()?.resident_mib()?;
        let readers = idle_watchers(&server, each).await?;
        tokio::time::sleep(IDLE).await;
        let metrics = server.client()?.text("/metrics").await?;
        let counted = metrics
            .lines()
            .find_map(|line| line.strip_prefix("sterna_watchers{kind=\"vm\"} "));
        ensure!(
            counted == Some(&WATCHERS.to_string()),
            "the server counts {counted:?} watchers in place of {WATCHERS}"
        );
        let more = server.process()?.resident_mib()? - before;
        let bytes = more * f64::from(1 << 20) / WATCHERS as f64;
        println!(
            "| {WATCHERS} idle watchers, {each} on a connection: MiB more, bytes each | {more:.0}, {bytes:.0} | 200 MB |"
        );
        drop(readers);
        server.end().await?;
    }
    Ok(())
}

/// Watchers that read, so many on each connection.
async fn idle_watchers(server: &Server, each: usize) -> anyhow::Result<JoinSet<()>> {
    let from = server.client()?.revision::<Vm>().await?;
    let pool = server.client()?;
    let mut readers = JoinSet::new();
    for _ in 0..WATCHERS / each {
        // A pool opens a connection for each watch that goes on.
        let client = if each == 1 {
            pool.clone()
        } else {
            server.connection()?
        };
        for _ in 0..each {
            let mut changes = client.watch::<Vm>(Some(from)).await?;
            readers.spawn(async move { while changes.next().await.is_some() {} });
        }
    }
    Ok(readers)
}
