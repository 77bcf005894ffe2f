//! The guest's start, in the two programs that the kernel and init call.
//!
//! As a shell script this took two seconds: under emulation each command that a script starts costs 20 to 40 ms, most of
//! it for a new address space. Hence everything up to the agent is done here, in one process.
//!
//! ```text
//! kernel ▶ probe as /init of the initramfs [`first`]: disk, root ▶ busybox init (etc/inittab)
//!          ├─▶ probe agent [`agent`]: the guest agent as soon as its port has a name; again whenever it ends
//!          └─▶ probe boot [`rest`]: other modules, the seed ▶ etc/boot-rest: network, services, user data
//! ```

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::mount::{MountFlags, mount, mount_move};

use crate::seed::{CONFIG_DRIVE, NO_CLOUD};
use crate::{Outcome, seed};

const ROOT_LABEL: &[u8] = b"guest-root";
/// cloud-init's NoCloud, and OpenStack's ConfigDrive.
const SEED_LABELS: [&[u8]; 2] = [b"cidata", b"config-2"];
/// The name of a guest whose seed gives none.
const DEFAULT_NAME: &str = "sterna-guest";
const SEED: &str = "/run/seed";
/// Where etc/boot-rest finds what the seed has for it.
const NETWORK: &str = "/run/network";
const SCRIPTS: &str = "/run/user-data";

/// Mounts the root from the disk and hands over to its init. Only in the initramfs, as process 1.
pub(crate) fn first() -> Outcome {
    attach("proc", "/proc", c"")?;
    attach("sysfs", "/sys", c"")?;
    attach("devtmpfs", "/dev", c"")?;
    load_modules("/modules", "disk");
    let disk = wait_for_root()?;
    mount(&disk, "/disk", "ext4", MountFlags::NOATIME, c"")?;
    for place in ["proc", "sys", "dev"] {
        mount_move(format!("/{place}"), format!("/disk/{place}"))?;
    }
    // What stays here stays in memory.
    fs::remove_dir_all("/modules")?;
    fs::remove_file("/init")?;
    std::env::set_current_dir("/disk")?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    attach("tmpfs", "/run", c"mode=755")?;
    load_modules("/lib/modules", "agent");
    Err(Command::new("/sbin/init").exec().into())
}

/// Everything else that would be slow as a script; then the script takes over.
pub(crate) fn rest() -> Outcome {
    attach("tmpfs", "/tmp", c"")?;
    fs::create_dir_all("/dev/pts")?;
    attach("devpts", "/dev/pts", c"")?;
    load_modules("/lib/modules", "network");
    if let Err(error) = take_seed() {
        eprintln!("seed: {error}");
    }
    load_modules("/lib/modules", "late");
    fs::write("/proc/sys/kernel/sysrq", "1")?;
    Err(Command::new("/etc/boot-rest").exec().into())
}

/// Mounts the seed, if there is one, and takes the host's name and the keys from it.
fn take_seed() -> Outcome {
    let read = |name: &str| fs::read_to_string(Path::new(SEED).join(name)).unwrap_or_default();
    if let Some((device, kind)) = find_disk(seed_format) {
        load_modules("/lib/modules", kind);
        fs::create_dir_all(SEED)?;
        mount(&device, SEED, kind, MountFlags::RDONLY, c"")
            .map_err(|error| format!("cannot mount {}: {error}", device.display()))?;
    }
    let is_config_drive = Path::new(SEED).join(CONFIG_DRIVE.meta_data).exists();
    let files = if is_config_drive { CONFIG_DRIVE } else { NO_CLOUD };
    let meta_data = read(files.meta_data);
    let parts = seed::parts(&read(files.user_data));
    let name = seed::host_name(&meta_data).unwrap_or_else(|| DEFAULT_NAME.to_owned());
    rustix::system::sethostname(name.as_bytes())?;
    fs::write("/run/hostname", format!("{name}\n"))?;
    let texts = std::iter::once(&meta_data).chain(&parts);
    let keys = texts.flat_map(|text| seed::ssh_keys(text)).collect::<Vec<_>>();
    fs::create_dir_all("/root/.ssh")?;
    fs::write("/root/.ssh/authorized_keys", keys.concat())?;
    fs::set_permissions("/root/.ssh", fs::Permissions::from_mode(0o700))?;
    let network = Path::new(SEED).join(files.network);
    if network.exists() {
        std::os::unix::fs::symlink(network, NETWORK)?;
    }
    put_scripts(&parts)
}

/// The parts that are scripts, as files in their order.
fn put_scripts(parts: &[String]) -> Outcome {
    fs::create_dir_all(SCRIPTS)?;
    let scripts = parts.iter().filter(|part| part.starts_with("#!"));
    for (index, script) in scripts.enumerate() {
        let path = Path::new(SCRIPTS).join(format!("{index:03}"));
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn attach(kind: &str, place: &str, data: &CStr) -> Outcome {
    mount(kind, place, kind, MountFlags::empty(), data)
        .map_err(|error| format!("mount {place}: {error}").into())
}

/// Loads a stage's modules in the order that the image's builder resolved. One that the kernel refuses (no such device)
/// is left out.
fn load_modules(directory: &str, stage: &str) {
    let order = fs::read_to_string(format!("{directory}/{stage}.order")).unwrap_or_default();
    for name in order.lines() {
        if let Ok(module) = File::open(format!("{directory}/{name}")) {
            let _ = rustix::system::finit_module(&module, c"", 0);
        }
    }
}

fn wait_for_root() -> Result<PathBuf, Box<dyn std::error::Error>> {
    for _ in 0..100 {
        if let Some((disk, ())) = find_disk(root_format) {
            return Ok(disk);
        }
        thread::sleep(Duration::from_millis(50));
    }
    Err("no disk with the label guest-root (only virtio-blk disks are looked at)".into())
}

/// The first virtio disk or partition, by name, in whose head something is recognised, and what that is.
fn find_disk<T>(recognise: fn(&mut File) -> std::io::Result<Option<T>>) -> Option<(PathBuf, T)> {
    let mut disks: Vec<PathBuf> = fs::read_dir("/dev")
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    disks.sort();
    disks
        .into_iter()
        .filter(|path| is_virtio_disk(path))
        .find_map(|path| {
            let found = File::open(&path)
                .and_then(|mut disk| recognise(&mut disk))
                .ok()??;
            Some((path, found))
        })
}

fn is_virtio_disk(path: &Path) -> bool {
    let named = path
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with("vd"));
    named
        && path
            .metadata()
            .is_ok_and(|data| data.file_type().is_block_device())
}

/// An ext4 file system with our label, which stands 120 bytes into the superblock at 1024.
fn root_format(disk: &mut File) -> std::io::Result<Option<()>> {
    Ok((label(&bytes_at::<16>(disk, 1024 + 120)?) == ROOT_LABEL).then_some(()))
}

/// The file system with the seed's label: FAT12 and FAT16 have theirs at 43, FAT32 at 71, ISO 9660 at 40 in sector 16.
fn seed_format(disk: &mut File) -> std::io::Result<Option<&'static str>> {
    let is_label = |bytes: &[u8]| {
        let found = label(bytes);
        SEED_LABELS.iter().any(|label| found.eq_ignore_ascii_case(label))
    };
    let head = bytes_at::<512>(disk, 0)?;
    if is_label(&head[43..54]) || is_label(&head[71..82]) {
        return Ok(Some("vfat"));
    }
    Ok(is_label(&bytes_at::<32>(disk, 16 * 2048 + 40)?).then_some("iso9660"))
}

fn bytes_at<const N: usize>(disk: &mut File, offset: u64) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    disk.seek(SeekFrom::Start(offset))?;
    disk.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A label without what fills it up.
fn label(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes[..end].trim_ascii()
}

/// Waits until the host has given the port its name, which comes some time after the driver is there, then becomes the
/// guest agent. A guest without such a port waits on, since it may be plugged in.
pub(crate) fn agent() -> Outcome {
    let mut wait = Duration::from_millis(5);
    let device = loop {
        if let Some(device) = agent_port() {
            break device;
        }
        thread::sleep(wait);
        wait = (wait + wait / 20).min(Duration::from_secs(2));
    };
    let program = "/usr/sbin/qemu-ga";
    let arguments = [
        "--method=virtio-serial",
        "--statedir=/run",
        "--pidfile=/run/qemu-ga.pid",
    ];
    let error = Command::new(program)
        .args(arguments)
        .arg("--path")
        .arg(device)
        .exec();
    Err(format!("cannot start {program}: {error}").into())
}

fn agent_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let of_agent = |port: &fs::DirEntry| {
        fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == "org.qemu.guest_agent.0")
    };
    let port = ports.flatten().find(of_agent)?;
    let device = Path::new("/dev").join(port.file_name());
    device.exists().then_some(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn disk_with(name: &str, offset: usize, bytes: &[u8]) -> std::io::Result<File> {
        let path = std::env::temp_dir().join(format!("probe-{}-{name}", std::process::id()));
        let mut disk = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)?;
        fs::remove_file(path)?;
        let mut content = vec![0; 40 * 1024];
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
        disk.write_all(&content)?;
        Ok(disk)
    }

    #[test]
    fn a_seed_is_known_by_its_label_in_each_format() -> std::io::Result<()> {
        let config_drive = disk_with("config", 32808, b"config-2   ")?;
        assert_eq!(seed_format(&mut { config_drive })?, Some("iso9660"));
        for (name, offset, format) in [
            ("iso", 32808, "iso9660"),
            ("fat16", 43, "vfat"),
            ("fat32", 71, "vfat"),
        ] {
            assert_eq!(
                seed_format(&mut disk_with(name, offset, b"CIDATA     ")?)?,
                Some(format)
            );
        }
        assert_eq!(seed_format(&mut disk_with("none", 32808, b"cidata2")?)?, None);
        Ok(())
    }

    #[test]
    fn the_root_is_known_by_its_label() -> std::io::Result<()> {
        assert!(root_format(&mut disk_with("root", 1144, b"guest-root\0")?)?.is_some());
        assert!(root_format(&mut disk_with("other", 1144, b"guest-root-2")?)?.is_none());
        Ok(())
    }

    #[test]
    fn a_disk_that_is_too_short_has_no_label() -> std::io::Result<()> {
        let mut disk = disk_with("short", 0, b"")?;
        disk.set_len(100)?;
        assert!(seed_format(&mut disk).is_err());
        Ok(())
    }
}
