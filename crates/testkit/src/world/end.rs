//! The end of a `sterna up`: of all its processes, with a look at what is left, and what is shown of one that failed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::start::Up;
use super::{DOWN_PATIENCE, Keep, PAUSE, data};
use crate::clean::{self, Machine};
use crate::process::{self, Process};

/// How long the kernel may take to remove what ended processes held.
const GONE_PATIENCE: Duration = Duration::from_secs(20);
/// How many lines of each log are shown of a world that failed.
const LOG_LINES: usize = 25;
/// Set: what a failed test leaves is not removed.
const KEEP: &str = "STERNA_KEEP";

/// What a drop means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nobody waits for it any more: it ends in silence.
    Starting,
    /// Its test failed.
    InUse,
    /// Nothing runs, and something was left.
    EndedBadly,
    /// Nothing is left.
    Over,
}

impl Up {
    /// Somebody waits for it no more, and uses it.
    pub(super) fn is_in_use(&mut self) {
        self.stage = Stage::InUse;
    }

    pub(super) fn remove(&mut self) -> anyhow::Result<()> {
        self.stage = Stage::Over;
        fs::remove_dir_all(&self.start.root)
            .with_context(|| format!("removing {}", self.start.root.display()))
    }

    /// Ends all processes, the stubborn ones by force; what was not as it should be.
    pub(super) fn end(&mut self) -> Vec<String> {
        self.stage = Stage::EndedBadly;
        let mut problems = Vec::new();
        let seen = process::descendants(self.pid());
        if !process::terminate(self.pid(), DOWN_PATIENCE) {
            problems.push(format!("sterna up did not end within {DOWN_PATIENCE:?}"));
            let stubborn = process::descendants(self.pid());
            let _ = self.child.kill();
            stubborn.iter().for_each(process::kill_seen);
        }
        match self.child.wait() {
            Ok(status) if status.success() => {}
            Ok(status) => problems.push(format!("sterna up ended with {status}")),
            Err(error) => problems.push(format!("sterna up could not be waited for: {error}")),
        }
        if self.start.keep == Keep::Vms {
            problems.extend(self.end_kept());
        }
        problems.extend(left(&self.start.root, &seen, &self.before));
        clean::processes(&self.start.root, &seen)
            .iter()
            .for_each(process::kill_seen);
        problems
    }

    /// What a `sterna up --keep` left running ends by `sterna down`.
    fn end_kept(&self) -> Option<String> {
        let ended = self.start.sterna("down").and_then(|mut down| Ok(down.output()?));
        match ended {
            Ok(ended) if ended.status.success() => None,
            Ok(ended) => Some(format!("sterna down: {}", String::from_utf8_lossy(&ended.stderr))),
            Err(error) => Some(format!("sterna down: {error:#}")),
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let left = match self.stage {
            Stage::Over => return,
            Stage::EndedBadly => Vec::new(),
            Stage::Starting | Stage::InUse => {
                let was = self.stage;
                let left = self.end();
                if was == Stage::Starting && left.is_empty() && self.remove().is_ok() {
                    return;
                }
                left
            }
        };
        show_failure(&self.start.root, &left);
    }
}

/// What is left after a world, once the kernel has had its time.
pub(super) fn left(root: &Path, seen: &[Process], before: &Machine) -> Vec<String> {
    let deadline = Instant::now() + GONE_PATIENCE;
    loop {
        let mut left: Vec<String> = clean::processes(root, seen)
            .iter()
            .map(Process::describe)
            .collect();
        left.extend(before.additions());
        if left.is_empty() || Instant::now() > deadline {
            return left.into_iter().map(|what| format!("{what} is left")).collect();
        }
        std::thread::sleep(PAUSE);
    }
}

/// Shows what may help to find out why, and clears up.
pub(super) fn show_failure(root: &Path, left: &[String]) {
    for what in left {
        eprintln!("after its end: {what}");
    }
    for log in logs(root) {
        let text = fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("--- {}", log.display());
        for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
            eprintln!("{line}");
        }
    }
    let directory = root.display();
    if std::env::var_os(KEEP).is_some() {
        eprintln!("the world's directory is kept: {directory}");
    } else if let Err(error) = fs::remove_dir_all(root) {
        eprintln!("the world's directory {directory} stays: {error}");
    } else {
        eprintln!("set {KEEP}=1 to keep the world's directory the next time");
    }
}

/// The logs of `sterna up`, of server and agents, and of the guests' consoles.
fn logs(root: &Path) -> Vec<PathBuf> {
    let below = |directory: PathBuf| -> Vec<PathBuf> {
        let entries = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let hosts = below(data(root).join("hosts"));
    let vms = hosts.into_iter().flat_map(|host| below(host.join("vms")));
    let of_vms = vms.flat_map(below).flat_map(|path| [path.join("qemu.log"), path]);
    let of_vms = of_vms.filter(|path| path.is_file() && path.extension().is_some_and(|end| end == "log"));
    std::iter::once(root.join("up.log"))
        .chain(below(data(root).join("log")))
        .chain(of_vms)
        .collect()
}
