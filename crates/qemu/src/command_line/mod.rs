//! The command line of a VM's QEMU.
//!
//! *Owns:* every device, its fixed address and its id; the block graph; the file names in a VM's directory. *Does not know:*
//! processes, hosts, or which of these VMs should run. Everything here is pure: the same [`LaunchSpec`] gives the same line.
//! *Start here:* [`command_line`].
//!
//! ```text
//! pcie.0   00 host bridge      02.0–02.3 hot0…hot3, empty root ports for hot-plug
//!          03 rng   04 serial bus (guest agent)   05, 06, 07 kept free (06 for a balloon)
//!          08–0f nic0…nic7     10–1b disk0…disk11     1c seed     1d AHCI, with the drive for media
//!          1e kept free        1f ISA bridge
//! isa      console (0x3f8), pvpanic (0x505)
//! ```
//! An address depends on a device's slot alone, never on what else a VM has: a source and a target, or a saved state and
//! the QEMU that restores it, must agree on it. Changing anything that a guest can see needs a new machine profile.
//!
//! Every QEMU starts with `-S`, so that "launched" and "ran" are two steps, also at a fresh boot. It is started in the VM's
//! directory ([`crate::spawn`] does that), and its sockets are named relative to it: so no path is too long for a socket,
//! and none needs escaping. What comes from outside (the name, interface names) goes into JSON wherever QEMU takes it, and
//! is validated everywhere.
//!
//! Images reach it as open files, never by their paths: whoever starts it opens them, so that it needs no right over any
//! directory, and an image's own header names no file that would be opened in its stead.

mod devices;
mod validate;

pub(crate) use devices::cache;

use std::path::{Path, PathBuf};

use model::vm::BootDevice;
use serde_json::{Value, json};
use uuid::Uuid;

pub use validate::LaunchSpecError;

/// The monitor of the one who commands. It serves one client at a time.
pub const QMP_SOCKET: &str = "qmp.sock";
/// The monitor for looking, and for a watchdog.
pub const QMP_SECOND_SOCKET: &str = "qmp2.sock";
/// The guest agent's socket, for [`crate::guest_agent`].
pub const AGENT_SOCKET: &str = "agent.sock";
/// The serial console. Whoever connects must read all the time: an unread console stalls the guest.
pub const CONSOLE_SOCKET: &str = "console.sock";

/// The machine type that new VMs get. A VM keeps the one that it began with.
pub const MACHINE_TYPE: &str = "pc-q35-10.0";
/// The CPU model for VMs under TCG. It is named, versioned and the same on every host, so it migrates anywhere; `max` does
/// not. Its vendor is AMD, so that no guest kernel isolates its page tables against Meltdown, which is dear under TCG. The
/// additions make it an x86-64-v2, which newer distributions ask for, and give the kernel its first entropy. TCG has all of it.
pub const TCG_CPU_MODEL: &str =
    "qemu64-v1,ssse3=on,sse4.1=on,sse4.2=on,popcnt=on,rdrand=on,svm=off,enforce=on";
/// The number of disks that have an address.
pub const DISK_SLOTS: u8 = 12;
/// The number of interfaces that have an address.
pub const NIC_SLOTS: u8 = 8;
/// The number of empty root ports, `hot0` and so on. Each costs a migration's target a few milliseconds of
/// downtime, since loading it maps the guest's memory anew.
pub const HOT_PLUG_PORTS: u8 = 4;
/// The id of the drive for media. It is on AHCI, which every installer knows.
pub const CDROM: &str = "cdrom";

/// All that decides what a VM's QEMU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchSpec {
    /// The VM's id, by which its QEMU is recognised.
    pub vm: Uuid,
    /// The VM's name, for people who look at processes.
    pub name: String,
    /// The guest's memory.
    pub memory_mib: u32,
    /// What the guest's memory is made of.
    pub memory: Memory,
    /// The number of virtual CPUs.
    pub vcpus: u16,
    /// The versioned machine type.
    pub machine_type: String,
    /// The named CPU model, possibly with features: `NAME,FEATURE=on,FEATURE=off`.
    pub cpu_model: String,
    /// What executes the guest's code.
    pub accelerator: Accelerator,
    /// The disks. The one in slot 0 is booted from.
    pub disks: Vec<Disk>,
    /// The drive for media.
    pub cdrom: Option<Cdrom>,
    /// What is booted from, the first choice first.
    pub boot: Vec<BootDevice>,
    /// UEFI; the machine's own BIOS if `None`.
    pub uefi: Option<Uefi>,
    /// A small read-only disk with the guest's first configuration.
    pub seed: Option<PathBuf>,
    /// The network interfaces.
    pub nics: Vec<Nic>,
    /// Where its state comes from.
    pub start: Start,
}

/// What a guest's memory is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// Of the host's, for it alone.
    #[default]
    Own,
    /// Of a file that is as large, absolute, which has all of it when the guest stands still.
    Kept(PathBuf),
    /// Of such a file, which is only read: what the guest changes of it is its own. There must be neither a balloon nor a
    /// report of free pages in such a machine: what they give back would be punched out of the file.
    CopyOf(PathBuf),
}

/// What executes the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU itself.
    Tcg {
        /// The cache of translated code.
        tb_size_mib: u32,
    },
}

impl Accelerator {
    /// QEMU itself, for a guest of so much memory, which begins with this. Code that finds no room in the cache is translated again and
    /// again: a Debian boots twice as fast with 32 MiB as with 16. What comes after a boot runs less, and there may be many
    /// copies of a guest.
    #[must_use]
    pub const fn tcg(memory_mib: u32, memory: &Memory) -> Self {
        let tb_size_mib = match (memory_mib, memory) {
            (256.., Memory::Own | Memory::Kept(_)) => 32,
            _ => 16,
        };
        Self::Tcg { tb_size_mib }
    }
}

/// Where a VM's state comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From its disk, at `cont`.
    Boot,
    /// From `migrate-incoming`: a migration, or a saved state.
    Incoming,
}

/// One disk. Its device and its block node are called `disk` and its slot's number, the node of its file `-file` in addition,
/// and what lies under it `-base`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// From 0 to [`DISK_SLOTS`] − 1, kept for the disk's life.
    pub slot: u8,
    /// The image, absolute.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// What it is an overlay over. If `None`, it is an overlay over nothing, whatever its header says.
    pub base: Option<Base>,
    /// Whether the host's page cache is used.
    pub cache: Cache,
    /// Whether the guest may write.
    pub access: Access,
}

/// UEFI's two chips. Both files are plain bytes; what is in them moves with the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uefi {
    /// The program, which is only read; absolute.
    pub code: PathBuf,
    /// The VM's own variables, absolute.
    pub variables: PathBuf,
    /// Whether the host's page cache is used for these.
    pub cache: Cache,
}

/// What lies under an overlay. It is only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The image, absolute.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// What it is an overlay over. If `None`, it is an overlay over nothing, whatever its header says.
    pub base: Option<Box<Base>>,
}

/// A drive for media that are only read. What is in it may be changed later: see [`crate::qmp::cdrom`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cdrom {
    /// What is in it at first.
    pub medium: Option<Medium>,
}

/// An installation medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Medium {
    /// Its file, absolute.
    pub path: PathBuf,
    /// Its digest, by which it is known again in QEMU.
    pub sha256: String,
}

impl Medium {
    /// What QEMU keeps with the open file. It is the only thing by which a medium is known there.
    pub(crate) fn opaque(sha256: &str) -> String {
        format!("{MEDIUM_PREFIX}{sha256}")
    }
}

/// What [`Medium::opaque`] begins with.
pub(crate) const MEDIUM_PREFIX: &str = "medium:";

/// The number by which firmware sorts devices: those of one choice stand together.
pub(crate) fn boot_index(boot: &[BootDevice], device: BootDevice) -> i32 {
    let place = boot.iter().position(|known| *known == device);
    let place = place.and_then(|place| i32::try_from(place).ok());
    place.map_or(NOT_BOOTED, |place| place * BOOT_INDEX_STEP)
}

/// Firmware passes it by.
pub(crate) const NOT_BOOTED: i32 = -1;
/// More than there are disks.
const BOOT_INDEX_STEP: i32 = 16;

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// QEMU's own, with overlays.
    Qcow2,
    /// The plain bytes.
    Raw,
}

impl ImageFormat {
    /// The driver's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// How a disk uses the host's page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Through it.
    HostPageCache,
    /// Past it (`cache.direct=on`): needed on datastores that several hosts share.
    Direct,
}

/// Who may write to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The guest.
    ReadWrite,
    /// Nobody.
    ReadOnly,
}

/// One network interface, called `nic` and its slot's number. Its tap exists already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// From 0 to [`NIC_SLOTS`] − 1, kept for the interface's life.
    pub slot: u8,
    /// The host's tap interface.
    pub tap: String,
    /// The guest's hardware address.
    pub mac: [u8; 6],
}

/// What QEMU is started with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// Without the program's name.
    pub arguments: Vec<String>,
    /// What is opened for it. QEMU knows the first one as `/dev/fdset/0`, and so on; which descriptors these are is told it
    /// by whoever opens them.
    pub files: Vec<OpenFile>,
}

/// A file that is opened for QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// Which.
    pub path: PathBuf,
    /// For what.
    pub access: Access,
    /// How.
    pub cache: Cache,
    /// Whether QEMU maps it: it then opens what this process has open, by `/proc`, and finds it under that name instead.
    pub is_mapped: bool,
    /// What QEMU keeps with it, letters, digits and colons, for whoever asks which file it is.
    pub opaque: Option<String>,
}

/// The processor's device.
const KVM_DEVICE: &str = "/dev/kvm";

/// What to start QEMU with.
pub fn command_line(spec: &LaunchSpec) -> Result<CommandLine, LaunchSpecError> {
    validate::check(spec)?;
    let mut line = CommandLine::default();
    identity(&mut line, spec);
    if let Some(uefi) = &spec.uefi {
        devices::uefi(&mut line, uefi);
    }
    machine(&mut line, spec);
    behaviour(&mut line, spec);
    devices::monitors(&mut line);
    devices::always_there(&mut line);
    for disk in &spec.disks {
        devices::disk(&mut line, disk, &spec.boot);
    }
    if let Some(cdrom) = &spec.cdrom {
        devices::cdrom(&mut line, cdrom, &spec.boot);
    }
    if let Some(path) = &spec.seed {
        devices::seed(&mut line, path);
    }
    for nic in &spec.nics {
        devices::nic(&mut line, nic);
    }
    Ok(line)
}

impl CommandLine {
    /// Whether the guest's memory is a copy of a file's. What is left of QEMU's own memory then is little, and most of it touched
    /// here and there: a huge page for each costs more than it gains.
    pub fn maps_a_copy(&self) -> bool {
        let mut files = self.files.iter();
        files.any(|file| file.is_mapped && file.access == Access::ReadOnly)
    }

    /// Has a file opened for QEMU. Returns the name under which QEMU finds it.
    fn open(&mut self, path: &Path, access: Access, cache: Cache) -> String {
        let set = self.files.len();
        self.files.push(OpenFile {
            path: path.to_owned(),
            access,
            cache,
            is_mapped: false,
            opaque: None,
        });
        format!("/dev/fdset/{set}")
    }

    /// The same for what QEMU maps.
    fn open_mapped(&mut self, path: &Path, access: Access) -> String {
        let name = self.open(path, access, Cache::HostPageCache);
        if let Some(file) = self.files.last_mut() {
            file.is_mapped = true;
        }
        name
    }

    /// The same for a medium.
    fn open_medium(&mut self, medium: &Medium) -> String {
        let name = self.open(&medium.path, Access::ReadOnly, Cache::HostPageCache);
        if let Some(file) = self.files.last_mut() {
            file.opaque = Some(Medium::opaque(&medium.sha256));
        }
        name
    }

    fn flag(&mut self, name: &str) {
        self.arguments.push(name.to_owned());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.arguments.push(name.to_owned());
        self.arguments.push(value.into());
    }

    fn json(&mut self, name: &str, value: &Value) {
        self.option(name, value.to_string());
    }
}

fn identity(line: &mut CommandLine, spec: &LaunchSpec) {
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    // In this syntax a comma within a value is written twice.
    let name = spec.name.replace(',', ",,");
    let value = format!("guest={name},process=sterna-vm,debug-threads=on");
    line.option("-name", value);
    line.option("-uuid", spec.vm.to_string());
}

fn machine(line: &mut CommandLine, spec: &LaunchSpec) {
    let devices_off = "sata=off,smbus=off,vmport=off,hpet=off";
    let chips = if spec.uefi.is_some() {
        ",pflash0=uefi-code,pflash1=uefi-variables"
    } else {
        ""
    };
    let machine = format!(
        "{},{devices_off},graphics=off,memory-backend=pc.ram{chips}",
        spec.machine_type
    );
    line.option("-machine", machine);
    let accelerator = match spec.accelerator {
        Accelerator::Kvm => {
            let device = line.open(Path::new(KVM_DEVICE), Access::ReadWrite, Cache::HostPageCache);
            format!("kvm,device={device}")
        }
        Accelerator::Tcg { tb_size_mib } => format!("tcg,thread=multi,tb-size={tb_size_mib}"),
    };
    line.option("-accel", accelerator);
    line.option("-cpu", &spec.cpu_model);
    line.option(
        "-smp",
        format!("cpus={0},sockets=1,cores={0},threads=1", spec.vcpus),
    );
    line.option("-m", format!("size={}M", spec.memory_mib));
    let memory = memory(line, spec);
    line.json("-object", &memory);
}

/// It has the same id whatever it is made of: streams are told apart by that.
fn memory(line: &mut CommandLine, spec: &LaunchSpec) -> Value {
    let size = u64::from(spec.memory_mib) * 1024 * 1024;
    match &spec.memory {
        Memory::Own => json!({"qom-type": "memory-backend-ram", "id": "pc.ram", "size": size}),
        Memory::Kept(path) => json!({
            "qom-type": "memory-backend-file",
            "id": "pc.ram",
            "size": size,
            "mem-path": line.open_mapped(path, Access::ReadWrite),
            "share": true,
        }),
        Memory::CopyOf(path) => json!({
            "qom-type": "memory-backend-file",
            "id": "pc.ram",
            "size": size,
            "mem-path": line.open_mapped(path, Access::ReadOnly),
            "share": false,
            "readonly": true,
            "rom": "off",
        }),
    }
}

fn behaviour(line: &mut CommandLine, spec: &LaunchSpec) {
    line.flag("-S");
    if spec.start == Start::Incoming {
        line.option("-incoming", "defer");
    }
    // The cause of an end must still be there when the agent comes back.
    line.option("-action", "reboot=reset,shutdown=pause,panic=pause");
    // The guest's clock follows the host that it is on.
    line.option("-rtc", "base=utc,clock=host");
    line.option("-boot", "strict=on");
    line.option("-display", "none");
    line.option("-msg", "timestamp=on");
    line.option(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
}

#[cfg(test)]
mod tests;
