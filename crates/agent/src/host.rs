//! The host itself: what it has, how busy it is, how it runs guests.
//!
//! **Owns:** the host's status and samples, and the memory of what the accelerator's probe found.
//!
//! **Does not know:** VMs.
//!
//! **Start here:** [`Abilities::find`].

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use model::host::{Accelerator, AcceleratorName, HostStatus, Lack, QemuUser};
use model::report::{AgentUse, Samples};
use qemu::command_line::TCG_CPU_MODEL;
use qemu::probe_accelerator::{AcceleratorKind, PROBE_DEADLINE, probe_accelerator};
use serde::{Deserialize, Serialize};

use crate::config::{Config, HostDir};
use crate::firmware;
use crate::program::Program;
use crate::storage;
use crate::users::Way;

/// What a machine can do, found out by trying.
#[derive(Debug, Clone)]
pub struct Abilities {
    /// How guests are run.
    pub accelerator: Accelerator,
    /// QEMU's program.
    pub qemu: Program,
    /// What the kernel cannot do.
    pub lacks: Vec<Lack>,
    /// As whom QEMU can run.
    pub way: Way,
    qemu_user: QemuUser,
}

/// What the probe found, good for one start of the machine.
#[derive(Debug, Serialize, Deserialize)]
struct Probed {
    boot_id: String,
    accelerator: Accelerator,
}

impl Abilities {
    /// Tries. A probe of this start of the machine is not repeated.
    pub async fn find(config: &Config, dir: &HostDir, qemu: &Path) -> Self {
        let (accelerator, program, lacks, (way, qemu_user)) = tokio::join!(
            accelerator(dir, qemu),
            Program::find(qemu),
            hostnet::probe_kernel(),
            Way::find(config.qemu_uids.clone(), qemu)
        );
        let lack = |lack: hostnet::Lack| Lack {
            what: lack.what.to_owned(),
            consequence: format!("{} ({})", lack.consequence, lack.detail),
        };
        Self {
            accelerator,
            qemu: program,
            lacks: lacks.into_iter().map(lack).collect(),
            way,
            qemu_user,
        }
    }

    /// The host's status.
    pub fn status(self, config: &Config, peer_address: SocketAddr) -> HostStatus {
        HostStatus {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            qemu_version: self.qemu.version().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
            memory_mib: meminfo_mib("MemTotal"),
            reserved_mib: config.reserved_mib,
            accelerator: self.accelerator,
            peer_address: Some(peer_address),
            lacks: self.lacks,
            cpu_model: TCG_CPU_MODEL.to_owned(),
            boot_id: boot_id(),
            qemu_user: Some(self.qemu_user),
            uefi: firmware::is_there(),
        }
    }
}

async fn accelerator(dir: &HostDir, qemu: &Path) -> Accelerator {
    let boot_id = boot_id();
    let remembered = fs::read(dir.accelerator()).ok();
    let remembered = remembered.and_then(|bytes| serde_json::from_slice::<Probed>(&bytes).ok());
    if let Some(probed) = remembered.filter(|probed| probed.boot_id == boot_id) {
        return probed.accelerator;
    }
    let choice = probe_accelerator(qemu, &dir.0, PROBE_DEADLINE).await;
    let accelerator = match choice.accelerator {
        AcceleratorKind::Kvm => Accelerator {
            name: AcceleratorName::Kvm,
            why: None,
        },
        AcceleratorKind::Tcg => Accelerator {
            name: AcceleratorName::Tcg,
            why: Some(choice.reason),
        },
    };
    let probed = Probed {
        boot_id,
        accelerator: accelerator.clone(),
    };
    let kept = serde_json::to_vec(&probed).unwrap_or_default();
    if let Err(error) = storage::write_whole(&dir.accelerator(), &kept) {
        tracing::warn!(
            error = crate::link::chain(&error),
            "the accelerator is probed again at the next start"
        );
    }
    accelerator
}

/// Which start of the machine this is.
pub fn boot_id() -> String {
    read_line("/proc/sys/kernel/random/boot_id")
}

/// The processors' load and the free memory.
pub fn load() -> Samples {
    let load = read_line("/proc/loadavg");
    let load1: f64 = load
        .split(' ')
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or_default();
    Samples {
        load1_percent: (load1 * 100.0) as u32,
        memory_available_mib: meminfo_mib("MemAvailable"),
        agent: own_use(),
        ..Samples::default()
    }
}

/// What this process takes. All of its threads' time counts, in the kernel's hundredths of a second.
fn own_use() -> AgentUse {
    let stat = read_line("/proc/self/stat");
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = times.filter_map(|word| word.parse::<u64>().ok()).sum();
    AgentUse {
        resident_kib: kib_in("/proc/self/status", "VmRSS").unwrap_or_default(),
        cpu_ms: ticks * 10,
    }
}

fn meminfo_mib(field: &str) -> u64 {
    kib_in("/proc/meminfo", field).unwrap_or_default() / 1024
}

/// The number behind a field's name in a file of the kernel's.
fn kib_in(path: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn read_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
