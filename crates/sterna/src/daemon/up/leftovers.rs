//! Processes that outlive those who started them: QEMUs, by design. `sterna up` adopts those that an earlier one in the
//! same directory left, on purpose or because it was killed, and ends them with the rest of its world.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use qemu::spawn::{ProcessId, QemuProcess};
use rustix::process::{Pid, Signal, WaitOptions};

/// How long processes are killed and waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A VM's process that lives.
pub(crate) struct Guest {
    /// The name of its host.
    pub(crate) host: String,
    /// The directory of its incarnation, which it holds the lock of.
    directory: PathBuf,
    process: QemuProcess,
}

impl Guest {
    /// The number of its process.
    pub(crate) fn pid(&self) -> i32 {
        self.process.id().pid
    }

    /// From `hosts/H/vms/ID/N/`, if the process of the record there is still that one.
    fn find(directory: PathBuf) -> Option<Self> {
        let record = std::fs::read(directory.join(qemu::spawn::RECORD_FILE)).ok()?;
        let id: ProcessId = serde_json::from_slice(&record).ok()?;
        let process = QemuProcess::reopen(id).ok()?;
        let host = directory.ancestors().nth(3)?.file_name()?.to_str()?.to_owned();
        // One that has ended and was not waited for yet holds no lock.
        let lives = qemu::spawn::is_occupied(&directory).unwrap_or(true);
        lives.then_some(Self {
            host,
            directory,
            process,
        })
    }
}

/// The VMs' processes that are written down in the hosts' directories, if they are still those.
pub(crate) fn guests(hosts: &Path) -> Vec<Guest> {
    let below = |dirs: Vec<PathBuf>| -> Vec<PathBuf> {
        let entries = dirs
            .iter()
            .filter_map(|dir| std::fs::read_dir(dir).ok())
            .flatten();
        entries.filter_map(Result::ok).map(|entry| entry.path()).collect()
    };
    let vms: Vec<_> = below(vec![hosts.to_owned()])
        .into_iter()
        .map(|host| host.join("vms"))
        .collect();
    below(below(vms)).into_iter().filter_map(Guest::find).collect()
}

/// Kills them and waits until they are gone.
pub(crate) async fn end(guests: &[Guest]) -> anyhow::Result<()> {
    for guest in guests {
        guest.process.send_kill()?;
    }
    for guest in guests {
        qemu::spawn::kill(&guest.process, &guest.directory, PATIENCE)
            .await
            .with_context(|| format!("ending what runs in {}", guest.directory.display()))?;
    }
    Ok(())
}

/// Ends every process that descends from this one, the spared ones left out, and reaps it. Orphans are this process's
/// children: it is a subreaper.
pub(crate) fn end_descendants(spared: &BTreeSet<i32>) {
    let deadline = Instant::now() + PATIENCE;
    while signal_children(spared) {
        let now = Instant::now();
        if now > deadline {
            eprintln!("some processes of this world could not be ended");
            return;
        }
        // Blocks until a killed child has ended.
        let _ = rustix::process::wait(WaitOptions::empty());
    }
}

/// Kills all children but the spared ones; whether there were any.
fn signal_children(spared: &BTreeSet<i32>) -> bool {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    let mut children = children();
    children.retain(|pid| !spared.contains(pid));
    for pid in &children {
        if let Some(pid) = Pid::from_raw(*pid) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    !children.is_empty()
}

fn children() -> Vec<i32> {
    let own = std::process::id();
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{own}/task")) else {
        return Vec::new();
    };
    let lists = tasks
        .filter_map(Result::ok)
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::have_hosts;
    use super::*;

    #[test]
    fn a_guest_is_a_record_whose_process_and_lock_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("h2/vms/0190b2a4/7");
        std::fs::create_dir_all(&directory).unwrap();
        let own = ProcessId::of(std::process::id().cast_signed()).unwrap();
        let record = serde_json::to_vec(&own).unwrap();
        std::fs::write(directory.join(qemu::spawn::RECORD_FILE), record).unwrap();
        assert!(guests(dir.path()).is_empty(), "nobody holds the lock");

        let lock = std::fs::File::create(directory.join(qemu::spawn::LOCK_FILE)).unwrap();
        lock.lock().unwrap();
        let found = guests(dir.path());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].host.as_str(), found[0].pid()), ("h2", own.pid));
        assert!(have_hosts(&found, 2).is_ok());
        let refusal = have_hosts(&found, 1).unwrap_err().to_string();
        assert!(
            refusal.contains("h2") && refusal.contains("sterna down"),
            "{refusal}"
        );

        let other = ProcessId {
            start_ticks: own.start_ticks + 1,
            ..own
        };
        let record = serde_json::to_vec(&other).unwrap();
        std::fs::write(directory.join(qemu::spawn::RECORD_FILE), record).unwrap();
        assert!(guests(dir.path()).is_empty(), "that process is another one now");
    }
}
