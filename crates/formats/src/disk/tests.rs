//! Images that `qemu-img` makes, and what can be wrong with them.

use std::fs;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::{Disk, Format, HEAD_BYTES, Refusal, Sample, TAIL_BYTES, bytes_max, recognise};

const DISK_BYTES: u64 = 8 << 20;

fn run(arguments: &[&str], directory: &Path) {
    let ended = Command::new("qemu-img")
        .args(arguments)
        .current_dir(directory)
        .status();
    assert!(ended.unwrap().success(), "qemu-img {arguments:?}");
}

/// The image that `qemu-img create` makes.
fn made(format: &str, options: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let size = DISK_BYTES.to_string();
    let arguments = ["create", "-q", "-f", format, "-o", options, "image", &size];
    run(&arguments, directory.path());
    fs::read(directory.path().join("image")).unwrap()
}

fn seen(file: &[u8]) -> Result<Disk, Refusal> {
    recognise(Sample {
        head: &file[..file.len().min(HEAD_BYTES)],
        tail: &file[file.len().saturating_sub(TAIL_BYTES)..],
        bytes: file.len() as u64,
    })
}

fn with(mut file: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn what_qemu_img_makes_is_recognised() {
    for (format, options, expected) in [
        ("qcow2", "compat=1.1", Format::Qcow2),
        ("qcow2", "compat=0.10", Format::Qcow2),
        (
            "qcow2",
            "compression_type=zstd,extended_l2=on,cluster_size=128k",
            Format::Qcow2,
        ),
        ("vmdk", "subformat=monolithicSparse", Format::Vmdk),
        ("vmdk", "subformat=streamOptimized", Format::Vmdk),
        ("vpc", "subformat=dynamic,force_size=on", Format::Vhd),
        ("vpc", "subformat=fixed,force_size=on", Format::Vhd),
        ("vdi", "static=off", Format::Vdi),
        ("vdi", "static=on", Format::Vdi),
        ("vhdx", "subformat=dynamic", Format::Vhdx),
    ] {
        let disk = seen(&made(format, options)).unwrap();
        let size = (expected != Format::Vhdx).then_some(DISK_BYTES);
        let wanted = Disk {
            format: expected,
            virtual_bytes: size,
        };
        assert_eq!(disk, wanted, "{format} {options}");
    }
    let mut boots = vec![0; 1024];
    boots[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert_eq!(seen(&boots).unwrap().format, Format::Raw);
}

/// A medium of so many blocks of 2 KiB whose file system says that it has as many.
fn medium(blocks: u16) -> Vec<u8> {
    let file = with(vec![0; usize::from(blocks) * 2048], 16 * 2048, b"\x01CD001\x01");
    let file = with(file, 16 * 2048 + 80, &blocks.to_le_bytes());
    with(file, 16 * 2048 + 128, &2048_u16.to_le_bytes())
}

#[test]
fn a_medium_is_recognised_also_if_a_stick_could_boot_it_and_if_more_follows() {
    let file = medium(40);
    let wanted = Disk {
        format: Format::Iso,
        virtual_bytes: Some(40 * 2048),
    };
    assert_eq!(seen(&file).unwrap(), wanted);
    let hybrid = with(file.clone(), 510, &[0x55, 0xaa]);
    assert_eq!(seen(&hybrid).unwrap(), wanted);
    let longer = [file.clone(), vec![0; 1000]].concat();
    assert_eq!(seen(&longer).unwrap().format, Format::Iso);
    for cut in [hybrid.len() - 1, 17 * 2048] {
        assert!(
            matches!(seen(&hybrid[..cut]), Err(Refusal::Damaged("ISO 9660", _))),
            "{cut}"
        );
    }
    // Another first descriptor says nothing of the size.
    assert!(seen(&with(file, 16 * 2048, &[0])[..20 * 2048]).is_ok());
}

#[test]
fn what_leads_to_other_files_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let base = ["create", "-q", "-f", "qcow2", "base", "8M"];
    run(&base, directory.path());
    for (what, arguments) in [
        ("backing", ["-f", "qcow2", "-b", "base", "-F", "qcow2"].as_slice()),
        ("data file", &["-f", "qcow2", "-o", "data_file=raw"]),
        (
            "several files",
            &["-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"],
        ),
        ("flat", &["-f", "vmdk", "-o", "subformat=monolithicFlat"]),
        ("parent", &["-f", "vmdk", "-b", "parent.vmdk", "-F", "vmdk"]),
    ] {
        run(
            &["create", "-q", "-f", "vmdk", "parent.vmdk", "8M"],
            directory.path(),
        );
        let all = [&["create", "-q"], arguments, &["image.vmdk", "8M"]].concat();
        run(&all, directory.path());
        let file = fs::read(directory.path().join("image.vmdk")).unwrap();
        let refused = seen(&file);
        assert!(
            matches!(refused, Err(Refusal::OtherFiles(..))),
            "{what}: {refused:?}"
        );
    }
    let differs = 4_u32.to_be_bytes();
    let vhd = made("vpc", "subformat=dynamic");
    assert!(matches!(
        seen(&with(vhd, 60, &differs)),
        Err(Refusal::OtherFiles(..))
    ));
    let vdi = made("vdi", "static=off");
    assert!(matches!(
        seen(&with(vdi, 0x4c, &[4, 0, 0, 0])),
        Err(Refusal::OtherFiles(..))
    ));
    // Without a capacity, a reader would go by the text, which may name any file.
    let vmdk = made("vmdk", "subformat=monolithicSparse");
    assert!(matches!(
        seen(&with(vmdk, 12, &[0; 8])),
        Err(Refusal::OtherFiles(..))
    ));
}

#[test]
fn what_lies_or_is_cut_off_is_refused() {
    let qcow2 = made("qcow2", "compat=1.1");
    let huge = u64::MAX.to_be_bytes();
    assert_eq!(
        seen(&with(qcow2.clone(), 24, &huge)),
        Err(Refusal::Size(u64::MAX))
    );
    assert_eq!(seen(&with(qcow2.clone(), 24, &[0; 8])), Err(Refusal::Size(0)));
    assert!(matches!(
        seen(&with(qcow2.clone(), 4, &[0, 0, 0, 4])),
        Err(Refusal::Unsupported(_))
    ));
    assert!(matches!(
        seen(&with(qcow2.clone(), 72, &[0x80])),
        Err(Refusal::Unsupported(_))
    ));
    assert!(matches!(seen(&qcow2[..20]), Err(Refusal::Damaged(..))));
    assert_eq!(seen(b"hello"), Err(Refusal::Unknown));
    assert_eq!(seen(b""), Err(Refusal::Unknown));
    let vhd = made("vpc", "subformat=dynamic,force_size=on");
    assert!(matches!(
        seen(&vhd[..vhd.len() - 1]),
        Err(Refusal::Damaged("VHD", _))
    ));
    let vdi = made("vdi", "static=on");
    assert!(matches!(
        seen(&vdi[..vdi.len() - 1]),
        Err(Refusal::Damaged("VDI", _))
    ));
    let mut odd = vec![0; 1000];
    odd[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert!(matches!(seen(&odd), Err(Refusal::Damaged("raw", _))));
}

#[test]
fn a_file_may_not_become_much_larger_than_the_disk_that_it_declares() {
    let limit = bytes_max(&made("qcow2", "compat=1.1"));
    assert!((DISK_BYTES..DISK_BYTES + (100 << 20)).contains(&limit));
    assert!(bytes_max(b"anything") > model::limits::DISK_MAX_BYTES);
}

proptest! {
    #[test]
    fn no_bytes_are_too_odd(magic in 0..7_usize, mut file in prop::collection::vec(any::<u8>(), 0..2048)) {
        let magics: [&[u8]; 7] = [b"", b"QFI\xfb\0\0\0\x03", b"KDMV\x01\0\0\0", b"conectix", b"vhdxfile", b"COWD", b"# Disk DescriptorFile\n"];
        file.splice(0..0, magics[magic].iter().copied());
        if let Ok(Disk { virtual_bytes: Some(bytes), .. }) = seen(&file) {
            prop_assert!((512..=model::limits::DISK_MAX_BYTES).contains(&bytes));
        }
        let _ = bytes_max(&file);
    }
}
