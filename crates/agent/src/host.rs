//! The host itself: what it has, how busy it is, how it runs guests.
//!
//! **Owns:** the host's status and samples, and the memory of what the accelerator's probe found.
//!
//! **Does not know:** VMs.
//!
//! **Start here:** [`status`].

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use model::host::{Accelerator, AcceleratorName, HostStatus, Lack};
use model::report::Samples;
use serde::{Deserialize, Serialize};

use crate::config::{Config, HostDir};

/// What the probe found, good for one start of the machine.
#[derive(Debug, Serialize, Deserialize)]
struct Probed {
    boot_id: String,
    accelerator: Accelerator,
}

/// Which start of the machine this is.
pub fn boot_id() -> String {
    read_line("/proc/sys/kernel/random/boot_id")
}

/// The processors' load and the free memory.
pub fn load() -> Samples {
    let load = read_line("/proc/loadavg");
    let load1: f64 = load.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default();
    Samples {
        load1_percent: (load1 * 100.0) as u32,
        memory_available_mib: meminfo_mib("MemAvailable"),
        ..Samples::default()
    }
}

fn meminfo_mib(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.unwrap_or_default() / 1024
}

fn read_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
