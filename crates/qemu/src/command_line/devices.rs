//! The devices and their fixed addresses.
//!
//! *Owns:* the map of the PCI bus (drawn in the parent module). *Does not know:* validation; it gets checked specs.
//! *Start here:* [`always_there`], [`disk`].

use std::path::Path;

use serde_json::{Value, json};

use super::{
    AGENT_SOCKET, Access, Base, BootDevice, CDROM, CONSOLE_SOCKET, Cache, Cdrom, CommandLine, Disk,
    HOT_PLUG_PORTS, ImageFormat, NOT_BOOTED, Nic, QMP_SECOND_SOCKET, QMP_SOCKET, Uefi, boot_index,
};

const HOT_PLUG_ADDRESS: u8 = 0x02;
const RNG_ADDRESS: u8 = 0x03;
const SERIAL_BUS_ADDRESS: u8 = 0x04;
const NIC_ADDRESS: u8 = 0x08;
const DISK_ADDRESS: u8 = 0x10;
const SEED_ADDRESS: u8 = 0x1c;
const AHCI_ADDRESS: u8 = 0x1d;
const PVPANIC_PORT: u16 = 0x505;
const CONSOLE_PORT: u16 = 0x3f8;
const CONSOLE_IRQ: u8 = 4;

pub(super) fn monitors(line: &mut CommandLine) {
    for (id, socket) in [("qmp", QMP_SOCKET), ("qmp2", QMP_SECOND_SOCKET)] {
        socket_chardev(line, id, socket);
        line.option("-mon", format!("chardev={id},mode=control"));
    }
}

/// `-chardev` takes no JSON; ids and names are constants.
fn socket_chardev(line: &mut CommandLine, id: &str, socket: &str) {
    let value = format!("socket,id={id},path={socket},server=on,wait=off");
    line.option("-chardev", value);
}

/// What every VM has.
pub(super) fn always_there(line: &mut CommandLine) {
    for port in 0..HOT_PLUG_PORTS {
        hot_plug_port(line, port);
    }
    let entropy = json!({"qom-type": "rng-random", "id": "entropy", "filename": "/dev/urandom"});
    line.json("-object", &entropy);
    let rng = json!({"driver": "virtio-rng-pci", "id": "rng", "rng": "entropy"});
    line.json("-device", &at(RNG_ADDRESS, rng));
    let serial = json!({"driver": "virtio-serial-pci", "id": "serial", "max_ports": 8});
    line.json("-device", &at(SERIAL_BUS_ADDRESS, serial));
    socket_chardev(line, "agent", AGENT_SOCKET);
    let agent = json!({
        "driver": "virtserialport",
        "id": "agent",
        "bus": "serial.0",
        "nr": 1,
        "chardev": "agent",
        "name": "org.qemu.guest_agent.0",
    });
    line.json("-device", &agent);
    socket_chardev(line, "console", CONSOLE_SOCKET);
    let console = json!({
        "driver": "isa-serial",
        "id": "console",
        "chardev": "console",
        "index": 0,
        "iobase": CONSOLE_PORT,
        "irq": CONSOLE_IRQ,
    });
    line.json("-device", &console);
    let pvpanic = json!({"driver": "pvpanic", "id": "pvpanic", "ioport": PVPANIC_PORT});
    line.json("-device", &pvpanic);
}

fn hot_plug_port(line: &mut CommandLine, port: u8) {
    let value = json!({
        "driver": "pcie-root-port",
        "id": format!("hot{port}"),
        "bus": "pcie.0",
        "addr": format!("{HOT_PLUG_ADDRESS:#04x}.{port:#x}"),
        "multifunction": port == 0,
        "chassis": port + 1,
        "slot": port + 1,
        "port": port + 1,
    });
    line.json("-device", &value);
}

/// The node is the image, its child the file: `disk0` over `disk0-file`. What lies under an overlay is said here, and not
/// looked up in the overlay's header, which its QEMU can write.
pub(super) fn disk(line: &mut CommandLine, disk: &Disk, boot: &[BootDevice]) {
    let name = format!("disk{}", disk.slot);
    let mut node = image(line, &name, disk);
    if disk.format == ImageFormat::Qcow2 {
        node["backing"] = under(line, &format!("{name}-base"), disk, disk.base.as_ref());
    }
    line.json("-blockdev", &node);
    let boot_index = match boot_index(boot, BootDevice::Disk) {
        NOT_BOOTED => NOT_BOOTED,
        first => first + i32::from(disk.slot),
    };
    let device = json!({
        "driver": "virtio-blk-pci",
        "id": name,
        "drive": name,
        "serial": name,
        "bootindex": boot_index,
        "write-cache": "on",
    });
    line.json("-device", &at(DISK_ADDRESS + disk.slot, device));
}

/// What lies under an overlay, down to the bottom.
fn under(line: &mut CommandLine, name: &str, disk: &Disk, base: Option<&Base>) -> Value {
    let Some(base) = base else {
        return Value::Null;
    };
    let read_only = Disk {
        slot: disk.slot,
        path: base.path.clone(),
        format: base.format,
        base: None,
        cache: disk.cache,
        access: Access::ReadOnly,
    };
    let mut node = image(line, name, &read_only);
    if base.format == ImageFormat::Qcow2 {
        node["backing"] = under(line, &format!("{name}-base"), disk, base.base.as_deref());
    }
    node
}

fn image(line: &mut CommandLine, name: &str, disk: &Disk) -> Value {
    json!({
        "driver": disk.format.name(),
        "node-name": name,
        "read-only": disk.access == Access::ReadOnly,
        "discard": "unmap",
        "cache": cache(disk.cache),
        "file": {
            "driver": "file",
            "node-name": format!("{name}-file"),
            "filename": line.open(&disk.path, disk.access, disk.cache),
            "locking": "on",
            "discard": "unmap",
            "cache": cache(disk.cache),
        },
    })
}

/// The chips' nodes; the machine names them.
pub(super) fn uefi(line: &mut CommandLine, uefi: &Uefi) {
    let chip = |line: &mut CommandLine, name: &str, path: &Path, access: Access, how: Cache| {
        json!({
            "driver": "raw",
            "node-name": name,
            "read-only": access == Access::ReadOnly,
            "cache": cache(how),
            "file": {
                "driver": "file",
                "node-name": format!("{name}-file"),
                "filename": line.open(path, access, how),
                "read-only": access == Access::ReadOnly,
                "locking": "on",
                "cache": cache(how),
            },
        })
    };
    let code = chip(
        line,
        "uefi-code",
        &uefi.code,
        Access::ReadOnly,
        Cache::HostPageCache,
    );
    line.json("-blockdev", &code);
    let variables = chip(
        line,
        "uefi-variables",
        &uefi.variables,
        Access::ReadWrite,
        uefi.cache,
    );
    line.json("-blockdev", &variables);
}

/// What is in the drive is QEMU's own, with no node of ours: it goes when it is taken out.
pub(super) fn cdrom(line: &mut CommandLine, cdrom: &Cdrom, boot: &[BootDevice]) {
    let controller = json!({"driver": "ich9-ahci", "id": "ahci"});
    line.json("-device", &at(AHCI_ADDRESS, controller));
    let mut device = json!({
        "driver": "ide-cd",
        "id": CDROM,
        "bus": "ahci.0",
        "bootindex": boot_index(boot, BootDevice::Cdrom),
    });
    if let Some(medium) = &cdrom.medium {
        // `-drive` takes no JSON; all of it are constants and a number.
        let file = line.open_medium(medium);
        line.option(
            "-drive",
            format!("if=none,id=medium,format=raw,readonly=on,file={file}"),
        );
        device["drive"] = json!("medium");
    }
    line.json("-device", &device);
}

/// How a node uses the host's page cache.
pub(crate) fn cache(cache: Cache) -> Value {
    json!({"direct": cache == Cache::Direct, "no-flush": false})
}

pub(super) fn seed(line: &mut CommandLine, path: &Path) {
    let node = json!({
        "driver": "raw",
        "node-name": "seed",
        "read-only": true,
        "file": {
            "driver": "file",
            "node-name": "seed-file",
            "filename": line.open(path, Access::ReadOnly, Cache::HostPageCache),
            "locking": "on",
            "read-only": true,
        },
    });
    line.json("-blockdev", &node);
    let device = json!({
        "driver": "virtio-blk-pci",
        "id": "seed",
        "drive": "seed",
        "serial": "seed",
    });
    line.json("-device", &at(SEED_ADDRESS, device));
}

/// Without an option ROM: nothing boots from the network, and its size need not agree between QEMU packages.
pub(super) fn nic(line: &mut CommandLine, nic: &Nic) {
    let name = format!("nic{}", nic.slot);
    let tap = json!({
        "type": "tap",
        "id": format!("{name}-tap"),
        "ifname": nic.tap,
        "script": "no",
        "downscript": "no",
        "vhost": false,
    });
    line.json("-netdev", &tap);
    let [a, b, c, d, e, f] = nic.mac;
    let device = json!({
        "driver": "virtio-net-pci",
        "id": name,
        "netdev": format!("{name}-tap"),
        "mac": format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
        "romfile": "",
    });
    line.json("-device", &at(NIC_ADDRESS + nic.slot, device));
}

fn at(address: u8, mut device: Value) -> Value {
    device["bus"] = json!("pcie.0");
    device["addr"] = json!(format!("{address:#04x}"));
    device
}
