//! Whether more than one copy of a VM executes.
//!
//! **Owns:** looking at the time that virtual processors use: the kernel counts it for each thread, and a processor that
//! is stopped uses none. No monitor is asked, so that neither a wrong answer nor a busy monitor matters.
//!
//! **Does not know:** which copy should run.
//!
//! **Start here:** [`RunsOnce`].

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use model::VmId;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::world::World;

/// How long is looked at once. The guests under watch do something every 10 ms.
const WINDOW: Duration = Duration::from_millis(100);
/// In the window of a hand-over both copies execute, one after the other; in this many in a row they would at once.
const WINDOWS_MAX: u32 = 3;

/// Watches a VM from its making to [`RunsOnce::end`].
#[derive(Debug)]
pub struct RunsOnce {
    task: JoinHandle<u32>,
    stop: tokio::sync::oneshot::Sender<()>,
}

impl RunsOnce {
    /// Begins to watch a VM.
    pub fn begin(world: &World, vm: VmId) -> Self {
        let hosts = world.directory().join("hosts");
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(watch(hosts, vm, stopped));
        Self { task, stop }
    }

    /// Ends, and fails if two copies executed at the same time.
    pub async fn end(self) -> anyhow::Result<()> {
        let _ = self.stop.send(());
        let windows = self.task.await?;
        ensure!(
            windows < WINDOWS_MAX,
            "two copies of the VM executed for {windows} times {WINDOW:?}"
        );
        Ok(())
    }
}

async fn watch(hosts: PathBuf, vm: VmId, mut stopped: tokio::sync::oneshot::Receiver<()>) -> u32 {
    let mut before = used(&hosts, vm);
    let (mut in_a_row, mut most) = (0, 0);
    loop {
        tokio::select! {
            _ = &mut stopped => return most,
            () = sleep(WINDOW) => {}
        }
        let now = used(&hosts, vm);
        let executed = now
            .iter()
            .filter(|(pid, ns)| before.get(pid).is_some_and(|then| *ns > then))
            .count();
        in_a_row = if executed > 1 { in_a_row + 1 } else { 0 };
        most = most.max(in_a_row);
        before = now;
    }
}

/// The time that the virtual processors of each living QEMU of a VM have used, in nanoseconds.
fn used(hosts: &Path, vm: VmId) -> BTreeMap<i32, u64> {
    let directories = crate::vms::incarnations(hosts, vm).into_iter();
    let pids = directories.filter_map(|directory| crate::vms::living(&directory));
    pids.map(|pid| (pid, processors_ns(pid))).collect()
}

/// The time that a QEMU's virtual processors have used: its threads named `CPU …`.
fn processors_ns(pid: i32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let processors = tasks.filter(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("CPU "))
    });
    let times = processors.filter_map(|task| {
        let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        schedstat.split_whitespace().next()?.parse::<u64>().ok()
    });
    times.sum()
}
