//! Whole command lines, and names that try to say more than a name.

use super::*;
use std::collections::BTreeMap;

fn spec() -> LaunchSpec {
    LaunchSpec {
        vm: Uuid::from_u128(0x0190_b2a4_0000_7000_8000_0000_0000_0001),
        name: "web".to_owned(),
        memory_mib: 256,
        memory: Memory::Own,
        vcpus: 2,
        machine_type: MACHINE_TYPE.to_owned(),
        cpu_model: TCG_CPU_MODEL.to_owned(),
        accelerator: Accelerator::Tcg { tb_size_mib: 16 },
        disks: vec![disk(0)],
        cdrom: None,
        boot: BootDevice::USUAL.into(),
        uefi: None,
        seed: Some(PathBuf::from("/data/vms/web/seed.img")),
        nics: vec![Nic {
            slot: 0,
            tap: "t-web-0".to_owned(),
            mac: [0x52, 0x54, 0, 0, 0, 1],
        }],
        start: Start::Boot,
    }
}

#[test]
fn uefi_is_two_chips_of_which_the_second_is_the_vms_own() {
    let uefi = Some(Uefi {
        code: PathBuf::from("/usr/share/OVMF/OVMF_CODE_4M.fd"),
        variables: PathBuf::from("/data/vms/web/nvram.fd"),
        cache: Cache::Direct,
    });
    let text = rendered(&LaunchSpec { uefi, ..spec() });
    let told = |line: &&str| line.contains("uefi") || line.contains(".fd");
    insta::assert_snapshot!(text.lines().filter(told).collect::<Vec<_>>().join("\n"));
}

fn disk(slot: u8) -> Disk {
    Disk {
        slot,
        path: PathBuf::from(format!("/data/vms/web/disk{slot}.qcow2")),
        format: ImageFormat::Qcow2,
        base: Some(Base {
            path: PathBuf::from("/data/images/base.qcow2"),
            format: ImageFormat::Qcow2,
            base: None,
        }),
        cache: Cache::HostPageCache,
        access: Access::ReadWrite,
    }
}

/// One line for each option, with the keys of JSON in order: whether `json!` sorts them depends on who builds this crate.
fn rendered(spec: &LaunchSpec) -> String {
    let mut text = String::new();
    for argument in command_line(spec).unwrap().arguments {
        let is_option = argument.starts_with('-');
        text.push(if is_option { '\n' } else { ' ' });
        match serde_json::from_str::<BTreeMap<String, Value>>(&argument) {
            Ok(object) => text.push_str(&serde_json::to_string(&object).unwrap()),
            Err(_) => text.push_str(&argument),
        }
    }
    for file in command_line(spec).unwrap().files {
        let OpenFile {
            path,
            access,
            cache,
            is_mapped: _,
            opaque,
        } = file;
        text.push_str(&format!("\n{access:?} {cache:?} {}", path.display()));
        text.extend(opaque.map(|opaque| format!(" {opaque}")));
    }
    text.trim_start().to_owned()
}

#[test]
fn a_small_vm_under_tcg() {
    insta::assert_snapshot!(rendered(&spec()));
}

#[test]
fn an_incoming_vm_under_kvm_with_several_disks_and_interfaces() {
    let mut spec = spec();
    spec.accelerator = Accelerator::Kvm;
    spec.cpu_model = "Skylake-Server-v5".to_owned();
    spec.start = Start::Incoming;
    spec.seed = None;
    let mut shared = disk(3);
    shared.cache = Cache::Direct;
    shared.format = ImageFormat::Raw;
    shared.access = Access::ReadOnly;
    spec.disks.push(shared);
    let mut second = spec.nics[0].clone();
    second.slot = 7;
    second.tap = "t-web-7".to_owned();
    spec.nics.push(second);
    insta::assert_snapshot!(rendered(&spec));
}

#[test]
fn a_drive_with_a_medium_that_is_booted_first() {
    let mut spec = spec();
    spec.nics.clear();
    spec.seed = None;
    spec.disks[0].base = None;
    spec.boot = vec![BootDevice::Cdrom, BootDevice::Disk];
    spec.cdrom = Some(Cdrom {
        medium: Some(Medium {
            path: PathBuf::from("/data/images/ab01.raw"),
            sha256: "ab01".to_owned(),
        }),
    });
    let all = rendered(&spec);
    let with_disks = all
        .lines()
        .filter(|line| line.contains("disk0") || line.contains("medium"));
    let empty = LaunchSpec {
        cdrom: Some(Cdrom::default()),
        boot: vec![BootDevice::Disk],
        ..spec.clone()
    };
    let all_empty = rendered(&empty);
    let without = all_empty
        .lines()
        .filter(|line| line.contains("ahci") || line.contains("disk0"));
    let lines: Vec<&str> = with_disks
        .chain(["-- empty, the disk alone"])
        .chain(without)
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_devices_address_does_not_depend_on_the_others() {
    let mut few = spec();
    few.disks = vec![disk(5)];
    let mut many = spec();
    many.disks = vec![disk(0), disk(1), disk(5)];
    let device = |spec: &LaunchSpec| {
        let arguments = command_line(spec).unwrap().arguments;
        let is_disk = |argument: &&String| argument.contains(r#""drive":"disk5""#);
        arguments.iter().find(is_disk).unwrap().clone()
    };
    assert_eq!(device(&few), device(&many));
    assert!(device(&few).contains(r#""addr":"0x15""#));
}

#[test]
fn names_and_paths_cannot_inject_options() {
    let mut odd = spec();
    odd.name = "a,process=evil,debug-threads=off \"q\" -daemonize".to_owned();
    odd.disks[0].path = PathBuf::from(r#"/data/a","read-only":true,"x":"{},\.qcow2"#);
    let odd_line = command_line(&odd).unwrap();
    let line = command_line(&spec()).unwrap();
    assert_eq!(odd_line.arguments.len(), line.arguments.len());
    let differing: Vec<&String> = odd_line
        .arguments
        .iter()
        .zip(&line.arguments)
        .filter(|(odd, plain)| odd != plain)
        .map(|(odd, _)| odd)
        .collect();
    assert_eq!(differing.len(), 1, "{differing:?}");
    assert_eq!(
        differing[0],
        "guest=a,,process=evil,,debug-threads=off \"q\" -daemonize,process=sterna-vm,debug-threads=on"
    );
    assert_eq!(odd_line.files[0].path, odd.disks[0].path);
}

#[test]
fn what_could_be_misread_is_refused() {
    let refused = |change: fn(&mut LaunchSpec)| {
        let mut spec = spec();
        change(&mut spec);
        command_line(&spec).unwrap_err()
    };
    type E = LaunchSpecError;
    assert!(matches!(refused(|s| s.name = "a\nb".into()), E::Name { .. }));
    assert!(matches!(refused(|s| s.name.clear()), E::Name { .. }));
    assert!(matches!(refused(|s| s.name = "x".repeat(256)), E::Name { .. }));
    assert!(matches!(
        refused(|s| s.cpu_model = "max,vendor=evil".into()),
        E::CpuModel { .. }
    ));
    assert!(matches!(
        refused(|s| s.cpu_model = "max,".into()),
        E::CpuModel { .. }
    ));
    assert!(matches!(
        refused(|s| s.machine_type = "pc,usb=on".into()),
        E::Word { .. }
    ));
    assert!(matches!(
        refused(|s| s.disks[0].path = "relative.qcow2".into()),
        E::Path { .. }
    ));
    assert!(matches!(
        refused(|s| s.seed = Some("/a\nb".into())),
        E::Path { .. }
    ));
    assert!(matches!(
        refused(|s| s.nics[0].tap = "tap0,script=/bin/sh".into()),
        E::Interface { .. }
    ));
    assert!(matches!(
        refused(|s| s.nics[0].tap = "a-name-of-16-byte".into()),
        E::Interface { .. }
    ));
    let odd_medium = |s: &mut LaunchSpec| {
        let (path, sha256) = (PathBuf::from("/a"), "ab,set=0".to_owned());
        let medium = Some(Medium { path, sha256 });
        s.cdrom = Some(Cdrom { medium });
    };
    assert!(matches!(refused(odd_medium), E::Word { .. }));
    assert!(matches!(refused(|s| s.nics[0].mac = [0xff; 6]), E::Mac { .. }));
    assert!(matches!(refused(|s| s.vcpus = 0), E::Range { .. }));
    assert!(matches!(refused(|s| s.memory_mib = 0), E::Range { .. }));
    assert!(matches!(
        refused(|s| s.disks.push(disk(DISK_SLOTS))),
        E::Range { .. }
    ));
    assert!(matches!(refused(|s| s.disks.push(disk(0))), E::SlotTaken { .. }));
}

#[test]
fn kept_memory_is_written_by_one_and_only_read_by_others() {
    let of = |memory: Memory| {
        let spec = LaunchSpec { memory, ..spec() };
        let line = command_line(&spec).unwrap();
        let file = line.files.iter().position(|file| file.is_mapped);
        let object = line
            .arguments
            .iter()
            .find(|argument| argument.contains("pc.ram\""))
            .unwrap();
        let object: Value = serde_json::from_str(object).unwrap();
        (
            object,
            line.maps_a_copy(),
            file.map(|set| (set, line.files[set].access)),
        )
    };
    let path = PathBuf::from("/data/volumes/warm/memory-1.ram");
    let (kept, is_copy, file) = of(Memory::Kept(path.clone()));
    assert!(!is_copy);
    let (set, access) = file.unwrap();
    assert_eq!(access, Access::ReadWrite);
    assert_eq!(kept["mem-path"], format!("/dev/fdset/{set}"));
    assert_eq!(kept["share"], true);
    let (copy, is_copy, file) = of(Memory::CopyOf(path));
    assert!(is_copy);
    assert_eq!(file.unwrap().1, Access::ReadOnly);
    assert_eq!(
        (&copy["share"], &copy["readonly"], &copy["rom"]),
        (&Value::from(false), &Value::from(true), &Value::from("off"))
    );
    assert_eq!(copy["id"], "pc.ram");
}

#[test]
fn a_disk_may_have_a_layer_under_it() {
    let mut spec = spec();
    let image = spec.disks[0].base.clone().unwrap();
    spec.disks[0].base = Some(Base {
        path: PathBuf::from("/data/volumes/warm/root.qcow2"),
        format: ImageFormat::Qcow2,
        base: Some(Box::new(image)),
    });
    let all = rendered(&spec);
    assert!(all.contains("disk0-base-base"), "{all}");
}

#[test]
fn the_cache_of_translated_code_is_by_the_guests_size_and_by_how_it_begins() {
    let size = |memory_mib, memory: &Memory| match Accelerator::tcg(memory_mib, memory) {
        Accelerator::Tcg { tb_size_mib } => tb_size_mib,
        Accelerator::Kvm => 0,
    };
    assert_eq!([128, 256].map(|mib| size(mib, &Memory::Own)), [16, 32]);
    let copy = Memory::CopyOf(PathBuf::from("/data/warm/t/memory"));
    assert_eq!(size(256, &copy), 16);
}
