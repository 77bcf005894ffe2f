//! What a machine must look like after a world as it did before.
//!
//! **Owns:** the comparison of interfaces, named network namespaces and their mounts, and the search for processes.
//!
//! **Does not know:** how a world ends.
//!
//! Network namespaces without a name need no list of their own: they last as long as a process in them or a mount of them,
//! and both are looked for. Their numbers prove nothing, as the kernel gives them out again.
//!
//! **Start here:** [`Machine::look`].

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::process::{self, Process};

/// How the kernel names the file system of a namespace that is kept by a mount. Others have file systems of their own, at any time.
const NAMESPACE: &str = " - nsfs ";

/// What can be left behind on a machine, apart from processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    interfaces: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    mounts: BTreeSet<String>,
}

impl Machine {
    /// As it is now.
    pub fn look() -> Self {
        let names = |directory: &str| -> BTreeSet<String> {
            let entries = fs::read_dir(directory).into_iter().flatten();
            entries
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect()
        };
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            interfaces: names("/sys/class/net"),
            namespaces: names("/run/netns"),
            mounts: mounts
                .lines()
                .filter(|line| line.contains(NAMESPACE))
                .map(str::to_owned)
                .collect(),
        }
    }

    /// What is there now and was not then.
    pub fn additions(&self) -> Vec<String> {
        let now = Self::look();
        let kinds = [
            ("interface", &now.interfaces, &self.interfaces),
            ("network namespace", &now.namespaces, &self.namespaces),
            ("mount", &now.mounts, &self.mounts),
        ];
        let added = kinds
            .into_iter()
            .flat_map(|(kind, now, then)| now.difference(then).map(move |name| format!("{kind} {name}")));
        added.collect()
    }
}

/// The processes that concern a directory, or were seen before and are there still.
pub fn processes(directory: &Path, seen: &[Process]) -> Vec<Process> {
    let mut found: Vec<Process> = process::all()
        .into_iter()
        .filter(|one| one.concerns(directory))
        .collect();
    let others = seen.iter().filter(|one| one.is_there());
    let others: Vec<Process> = others
        .filter(|one| found.iter().all(|other| other.id != one.id))
        .cloned()
        .collect();
    found.extend(others);
    found
}
