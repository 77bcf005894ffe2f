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

use model::VmId;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::promise;
use crate::world::World;

/// How long is looked at once.
const WINDOW: Duration = Duration::from_millis(100);
/// What the processors of a guest that runs use in a window at least. Those that are stopped are woken now and then, for
/// microseconds, by QEMU itself.
const EXECUTING_US: u64 = 1000;
/// In the window of a hand-over both copies execute, one after the other; in this many in a row they would at once.
const WINDOWS_MAX: usize = 4;

/// Watches a VM from its making to [`RunsOnce::end`].
#[derive(Debug)]
pub struct RunsOnce {
    task: JoinHandle<Vec<Used>>,
    stop: oneshot::Sender<()>,
}

/// By process, the time that virtual processors have used, in microseconds.
type Used = BTreeMap<i32, u64>;

impl RunsOnce {
    /// Begins to watch a VM.
    pub fn begin(world: &World, vm: VmId) -> Self {
        let hosts = world.directory().join("hosts");
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(watch(hosts, vm, stopped));
        Self { task, stop }
    }

    /// Ends, and fails if two copies executed at the same time.
    pub async fn end(self) -> anyhow::Result<()> {
        let _ = self.stop.send(());
        let both = self.task.await?;
        if both.len() < WINDOWS_MAX {
            return Ok(());
        }
        Err(promise::broken(&format!(
            "two copies of the VM executed at once; microseconds by process in windows of {WINDOW:?}: {both:?}"
        )))
    }
}

/// Waits until the guest of a QEMU stands still; whether it did in time.
pub async fn until_it_stands_still(qemu: i32, patience: Duration) -> bool {
    let still = async {
        let mut before = processors_us(qemu);
        loop {
            sleep(WINDOW).await;
            let now = processors_us(qemu);
            if now.saturating_sub(before) < EXECUTING_US {
                return;
            }
            before = now;
        }
    };
    timeout(patience, still).await.is_ok()
}

/// Waits until the guest of a QEMU has used some time from now on; whether it did.
pub async fn until_it_executes(qemu: i32, patience: Duration) -> bool {
    let at_first = processors_us(qemu);
    let executes = async {
        while processors_us(qemu) < at_first + 20 * EXECUTING_US {
            sleep(WINDOW).await;
        }
    };
    timeout(patience, executes).await.is_ok()
}

/// The most windows in a row in which two copies executed.
async fn watch(hosts: PathBuf, vm: VmId, mut stopped: oneshot::Receiver<()>) -> Vec<Used> {
    let mut before = used(&hosts, vm);
    let (mut in_a_row, mut most) = (Vec::new(), Vec::new());
    loop {
        tokio::select! {
            _ = &mut stopped => return most,
            () = sleep(WINDOW) => {}
        }
        let now = used(&hosts, vm);
        let window: Used = now
            .iter()
            .filter_map(|(pid, us)| Some((*pid, us.saturating_sub(*before.get(pid)?))))
            .collect();
        let executed = window.values().filter(|us| **us >= EXECUTING_US).count();
        if executed > 1 {
            in_a_row.push(window);
        } else {
            in_a_row.clear();
        }
        if in_a_row.len() > most.len() {
            most.clone_from(&in_a_row);
        }
        before = now;
    }
}

/// What the virtual processors of each living QEMU of a VM have used.
fn used(hosts: &Path, vm: VmId) -> Used {
    let directories = crate::vms::incarnations(hosts, vm).into_iter();
    let pids = directories.filter_map(|directory| crate::vms::living(&directory));
    pids.map(|pid| (pid, processors_us(pid))).collect()
}

/// The time that a QEMU's virtual processors have used: its threads named `CPU …`.
fn processors_us(pid: i32) -> u64 {
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
    times.sum::<u64>() / 1000
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use qemu::spawn::{ProcessId, RECORD_FILE};

    use super::*;

    /// A process whose one thread is named like a virtual processor's, with its record where an agent would put it.
    struct Copy(Child);

    impl Copy {
        fn start(hosts: &Path, host: &str, vm: VmId, script: &str) -> Self {
            let directory = hosts.join(host).join("vms").join(vm.to_string()).join("1");
            fs::create_dir_all(&directory).unwrap();
            let program = directory.join("CPU 0");
            std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
            let child = Command::new(program).args(["-c", script]).spawn().unwrap();
            let id = ProcessId::of(child.id().cast_signed()).unwrap();
            fs::write(directory.join(RECORD_FILE), serde_json::to_vec(&id).unwrap()).unwrap();
            Self(child)
        }
    }

    impl Drop for Copy {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    async fn windows(other: &str) -> usize {
        let hosts = tempfile::tempdir().unwrap();
        let vm = serde_json::from_str("\"0190b2a4-0000-7000-8000-000000000001\"").unwrap();
        let _one = Copy::start(hosts.path(), "h1", vm, "while :; do :; done");
        let _other = Copy::start(hosts.path(), "h2", vm, other);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(watch(hosts.path().to_owned(), vm, stopped));
        sleep(WINDOW * 15).await;
        stop.send(()).unwrap();
        task.await.unwrap().len()
    }

    /// On a machine with other things to do one of the two may wait for a whole window.
    #[tokio::test]
    async fn two_copies_that_execute_are_found() {
        for _ in 0..10 {
            if windows("while :; do :; done").await >= WINDOWS_MAX {
                return;
            }
        }
        panic!("two copies are never seen to execute at once");
    }

    /// Its start takes some time too.
    #[tokio::test]
    async fn one_that_waits_is_not() {
        assert!(windows("exec sleep 60").await < WINDOWS_MAX);
    }
}
