//! Processes that outlive those who started them: QEMUs, by design. `sterna up` ends those of its own world, and those
//! that an earlier one in the same directory left behind when it was killed.

use std::path::Path;
use std::time::{Duration, Instant};

use qemu::spawn::{ProcessId, QemuProcess};
use rustix::process::{Pid, Signal, WaitOptions};

/// How long processes are killed and waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends the QEMUs that are written down in the hosts' directories, if they are still those.
pub(crate) fn end_recorded(hosts: &Path) -> anyhow::Result<()> {
    for record in records(hosts) {
        let Ok(text) = std::fs::read(&record) else {
            continue;
        };
        let Ok(id) = serde_json::from_slice::<ProcessId>(&text) else {
            continue;
        };
        if let Ok(process) = QemuProcess::reopen(id) {
            eprintln!(
                "ending a VM's process {} that an earlier `sterna up` left behind",
                process.id().pid
            );
            process.send_kill()?;
        }
    }
    Ok(())
}

/// `hosts/H/vms/ID/N/` with the record that the agent keeps of a process.
fn records(hosts: &Path) -> Vec<std::path::PathBuf> {
    let below = |dirs: Vec<std::path::PathBuf>| -> Vec<_> {
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
    below(below(vms))
        .into_iter()
        .map(|incarnation| incarnation.join(qemu::spawn::RECORD_FILE))
        .filter(|path| path.exists())
        .collect()
}

/// Ends every process that descends from this one, and reaps it. Orphans are this process's children: it is a subreaper.
pub(crate) fn end_descendants() {
    let deadline = Instant::now() + PATIENCE;
    while signal_children() {
        let now = Instant::now();
        if now > deadline {
            eprintln!("some processes of this world could not be ended");
            return;
        }
        // Blocks until a killed child has ended.
        let _ = rustix::process::wait(WaitOptions::empty());
    }
}

/// Kills all children; whether there were any.
fn signal_children() -> bool {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    let children = children();
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
