//! Whether KVM really runs guests on this machine.
//!
//! *Owns:* the probe guest, its deadline and the reason given. *Does not know:* hosts or VMs.
//! *Start here:* [`probe_accelerator`].
//!
//! An openable `/dev/kvm` proves nothing: some machines open it and hang every guest, or run it thirty times slower than
//! QEMU itself would (a KVM within an emulated processor). So a guest of one disk sector is booted, which writes a byte to a
//! port that ends QEMU with an exit code no failure has; and where it runs, it is run again under TCG and the times compared.

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::process::Command;

use crate::command_line::MACHINE_TYPE;
use crate::command_output::{self, RunError, first_lines};

/// How long the probe guest may take where there is no reason for another deadline; a machine on which it works needs a
/// tenth of that.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(3);

const KVM_DEVICE: &str = "/dev/kvm";
/// Real KVM is at least as fast as TCG on this probe; the rest is for the noise of a busy machine.
const KVM_SLOWNESS_MAX: u32 = 3;
/// The firmware reads no disk of less than a cylinder.
const DISK_BYTES: usize = 1024 * 1024;
const EXIT_PORT: u8 = 0xf4;
const EXIT_BYTE: u8 = 0x2a;
/// The exit device turns a byte B into 2·B + 1.
const EXIT_CODE: i32 = EXIT_BYTE as i32 * 2 + 1;

/// What executes guests on this machine, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceleratorChoice {
    /// Which of the two.
    pub accelerator: AcceleratorKind,
    /// Why, in words for the host's status.
    pub reason: String,
}

/// An accelerator, without its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceleratorKind {
    /// The processor.
    Kvm,
    /// QEMU itself.
    Tcg,
}

/// Finds out by running a guest. The probe's files are made and removed in `scratch`, an existing directory. At the end,
/// however it comes, no probe process is left, unless the reason says so.
pub async fn probe_accelerator(program: &Path, scratch: &Path, deadline: Duration) -> AcceleratorChoice {
    let tcg = |reason| AcceleratorChoice {
        accelerator: AcceleratorKind::Tcg,
        reason,
    };
    if let Err(error) = File::options().read(true).write(true).open(KVM_DEVICE) {
        return tcg(format!("{KVM_DEVICE} cannot be opened: {error}"));
    }
    let kvm_time = match run_guest(program, scratch, "kvm", deadline).await {
        Ok(time) => time,
        Err(cause) => return tcg(format!("KVM opened, but {cause}")),
    };
    match run_guest(program, scratch, "tcg", deadline).await {
        Ok(tcg_time) if kvm_time > tcg_time * KVM_SLOWNESS_MAX => tcg(format!(
            "KVM opened, but a probe guest took {kvm_time:.1?} with it and {tcg_time:.1?} without"
        )),
        _ => AcceleratorChoice {
            accelerator: AcceleratorKind::Kvm,
            reason: format!("a probe guest ran under KVM in {kvm_time:.1?}"),
        },
    }
}

/// Runs the probe guest under `accelerator` and says how long it took; the error is a clause that goes on after "but".
async fn run_guest(
    program: &Path,
    scratch: &Path,
    accelerator: &str,
    deadline: Duration,
) -> Result<Duration, String> {
    let disk = scratch.join(format!("probe-{}-{accelerator}.img", std::process::id()));
    let written = tokio::fs::write(&disk, boot_disk()).await;
    written.map_err(|error| format!("the probe guest could not be made: {error}"))?;
    let mut command = Command::new(program);
    command.args(arguments(&disk, accelerator));
    let started = Instant::now();
    let ran = command_output::run(&mut command, deadline, 1024).await;
    let took = started.elapsed();
    // It lies in a scratch directory: what is left there is the next start's to remove.
    let _: io::Result<()> = tokio::fs::remove_file(&disk).await;
    let output = match ran {
        Ok(output) => output,
        Err(RunError::Deadline { reaped: true, .. }) => {
            return Err(format!("a probe guest did not run within {deadline:?}"));
        }
        Err(error) => return Err(format!("the probe failed: {error}")),
    };
    if output.status.code() == Some(EXIT_CODE) {
        return Ok(took);
    }
    let ended = match (output.status.code(), output.status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or_default()),
    };
    Err(format!(
        "a probe guest did not run ({ended}): {}",
        first_lines(&output.stderr)
    ))
}

fn arguments(disk: &Path, accelerator: &str) -> Vec<String> {
    let node = json!({
        "driver": "raw",
        "node-name": "disk",
        "read-only": true,
        "file": {"driver": "file", "filename": disk.to_string_lossy(), "read-only": true},
    });
    let device = json!({"driver": "virtio-blk-pci", "drive": "disk", "bootindex": 0});
    let exit = json!({"driver": "isa-debug-exit", "iobase": EXIT_PORT, "iosize": 1});
    let machine = format!("{MACHINE_TYPE},sata=off,smbus=off,vmport=off,hpet=off");
    let pairs = [
        ("-machine", machine),
        ("-accel", accelerator.to_owned()),
        ("-m", "size=64M".to_owned()),
        ("-display", "none".to_owned()),
        ("-blockdev", node.to_string()),
        ("-device", device.to_string()),
        ("-device", exit.to_string()),
    ];
    let flags = ["-nodefaults", "-no-user-config"].map(str::to_owned);
    let options = pairs
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value]);
    flags.into_iter().chain(options).collect()
}

/// `mov al, EXIT_BYTE; out EXIT_PORT, al; cli; hlt; jmp $-1`, and the mark of a boot sector.
fn boot_disk() -> Vec<u8> {
    let code = [0xb0, EXIT_BYTE, 0xe6, EXIT_PORT, 0xfa, 0xf4, 0xeb, 0xfd];
    let mut disk = vec![0; DISK_BYTES];
    disk[..code.len()].copy_from_slice(&code);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

#[cfg(test)]
mod tests {
    use super::*;

    const QEMU: &str = "qemu-system-x86_64";

    fn file_count(directory: &Path) -> usize {
        std::fs::read_dir(directory).unwrap().count()
    }

    #[tokio::test]
    async fn the_probe_guest_itself_works() {
        let scratch = tempfile::tempdir().unwrap();
        let ran = run_guest(Path::new(QEMU), scratch.path(), "tcg", Duration::from_secs(60));
        ran.await.expect("run make setup if QEMU is missing");
        assert_eq!(file_count(scratch.path()), 0);
    }

    #[tokio::test]
    async fn the_choice_comes_in_time_with_a_reason() {
        let scratch = tempfile::tempdir().unwrap();
        let started = Instant::now();
        let choice = probe_accelerator(Path::new(QEMU), scratch.path(), PROBE_DEADLINE).await;
        assert!(!choice.reason.is_empty());
        assert!(started.elapsed() < PROBE_DEADLINE * 6, "{choice:?}");
        assert_eq!(file_count(scratch.path()), 0);
        println!("{choice:?} after {:?}", started.elapsed());
    }

    #[tokio::test]
    async fn a_missing_qemu_and_a_hung_guest_are_reasons() {
        let scratch = tempfile::tempdir().unwrap();
        let missing = Path::new("/nonexistent/qemu");
        let deadline = Duration::from_millis(1);
        let cause = run_guest(missing, scratch.path(), "tcg", deadline).await;
        assert!(cause.unwrap_err().contains("could not be started"));
        let cause = run_guest(Path::new(QEMU), scratch.path(), "tcg", deadline).await;
        assert_eq!(cause.unwrap_err(), "a probe guest did not run within 1ms");
    }
}
