//! The seed: a read-only disk from which the guest learns its name, keys, addresses and user data (cloud-init's NoCloud).
//!
//! **Owns:** the texts of the three files and the ISO 9660 image (with Joliet names) that holds them.
//!
//! **Does not know:** where the image is stored and how the guest sees it.
//!
//! **Start here:** [`image`]. The layout of the image is ECMA-119's, a sector being 2 KiB:
//!
//! ```text
//! 0–15 unused · 16 volume · 17 Joliet volume · 18 end of volumes · 19, 20 path tables (little, big endian)
//! 21, 22 Joliet path tables · 23 root folder · 24 Joliet root folder · 25… files, each from a sector of its own
//! ```

use model::document::{Machine, Port};

const SECTOR_BYTES: usize = 2048;
const FIRST_FILE_SECTOR: usize = 25;
/// What cloud-init looks for.
const LABEL: &str = "cidata";

/// The whole seed disk of a machine.
pub fn image(machine: &Machine, mtu: u32) -> Vec<u8> {
    iso9660(&[
        ("meta-data", meta_data(machine).into_bytes()),
        ("network-config", network_config(&machine.nics, mtu).into_bytes()),
        ("user-data", user_data(machine).into_bytes()),
    ])
}

/// A string as YAML reads it, whatever it contains.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn meta_data(machine: &Machine) -> String {
    let hostname = machine.guest.hostname.as_deref().unwrap_or(&machine.name);
    let mut text = format!(
        "instance-id: {}\nlocal-hostname: {}\n",
        machine.uuid,
        quoted(hostname)
    );
    if !machine.guest.ssh_keys.is_empty() {
        text.push_str("public-keys:\n");
    }
    for key in &machine.guest.ssh_keys {
        text.push_str(&format!("  - {}\n", quoted(key)));
    }
    text
}

fn user_data(machine: &Machine) -> String {
    machine
        .guest
        .user_data
        .clone()
        .unwrap_or_else(|| "#cloud-config\n{}\n".to_owned())
}

fn network_config(ports: &[Port], mtu: u32) -> String {
    let mut text = "version: 2\n".to_owned();
    if !ports.is_empty() {
        text.push_str("ethernets:\n");
    }
    for (index, port) in ports.iter().enumerate() {
        text.push_str(&format!(
            "  nic{index}:\n    match:\n      macaddress: {}\n",
            quoted(&port.mac)
        ));
        text.push_str(&format!(
            "    set-name: eth{index}\n    mtu: {mtu}\n    dhcp4: false\n"
        ));
        if let Some(address) = port.address {
            text.push_str(&format!(
                "    addresses:\n      - {address}/{}\n",
                port.prefix_len
            ));
        }
    }
    text
}

/// An image of files in one folder. The order is that of the names.
fn iso9660(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut joliet = Vec::new();
    let mut data = Vec::new();
    for root in [(&mut plain, 23), (&mut joliet, 24)] {
        for name in [&[0u8][..], &[1]] {
            root.0.extend(folder_entry(name, root.1, SECTOR_BYTES, true));
        }
    }
    for (name, content) in files {
        let sector = FIRST_FILE_SECTOR + data.len() / SECTOR_BYTES;
        plain.extend(folder_entry(
            format!("{};1", name.to_uppercase()).as_bytes(),
            sector,
            content.len(),
            false,
        ));
        joliet.extend(folder_entry(&utf16(name), sector, content.len(), false));
        data.extend(padded(content));
    }
    let sectors = FIRST_FILE_SECTOR + data.len() / SECTOR_BYTES;
    let mut image = vec![0; 16 * SECTOR_BYTES];
    image.extend(volume(1, LABEL.as_bytes(), b' ', sectors, 19, 23, b""));
    image.extend(volume(2, &utf16(LABEL), 0, sectors, 21, 24, b"%/E"));
    image.extend(padded(b"\xffCD001\x01"));
    for root in [23u32, 24] {
        let little = [&[1, 0][..], &root.to_le_bytes(), &[1, 0, 0, 0]].concat();
        let big = [&[1, 0][..], &root.to_be_bytes(), &[0, 1, 0, 0]].concat();
        image.extend(padded(&little));
        image.extend(padded(&big));
    }
    image.extend(padded(&plain));
    image.extend(padded(&joliet));
    image.extend(data);
    image
}

/// A volume descriptor.
fn volume(
    kind: u8,
    label: &[u8],
    blank: u8,
    sectors: usize,
    tables: u8,
    root: usize,
    escape: &[u8],
) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR_BYTES];
    let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
    put(0, &[kind]);
    put(1, b"CD001\x01");
    // System, volume, set, publisher, preparer, application and three files: names filled up with blanks.
    for (at, length) in [(8, 32), (40, 32), (190, 623)] {
        let blanks: Vec<u8> = (0..length)
            .map(|n| if n % 2 == 1 || blank == b' ' { b' ' } else { 0 })
            .collect();
        put(at, &blanks);
    }
    put(40, label);
    put(80, &both_u32(sectors));
    put(88, escape);
    put(120, &both_u16(1));
    put(124, &both_u16(1));
    put(128, &both_u16(SECTOR_BYTES as u16));
    put(132, &both_u32(10));
    put(140, &[tables, 0, 0, 0]);
    put(148, &[0, 0, 0, tables + 1]);
    put(156, &folder_entry(&[0], root, SECTOR_BYTES, true));
    // Created, changed, expires, effective: not said.
    for at in [813, 830, 847, 864] {
        put(at, b"0000000000000000");
    }
    put(881, &[1]);
    bytes
}

fn folder_entry(name: &[u8], sector: usize, length: usize, is_folder: bool) -> Vec<u8> {
    let size = (33 + name.len()).next_multiple_of(2);
    let mut bytes = vec![size as u8, 0];
    bytes.extend(both_u32(sector));
    bytes.extend(both_u32(length));
    // The date: the first of January 2000.
    bytes.extend([100, 1, 1, 0, 0, 0, 0]);
    bytes.extend([if is_folder { 2 } else { 0 }, 0, 0]);
    bytes.extend(both_u16(1));
    bytes.push(name.len() as u8);
    bytes.extend(name);
    bytes.resize(size, 0);
    bytes
}

fn both_u32(number: usize) -> Vec<u8> {
    let number = number as u32;
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

fn both_u16(number: u16) -> Vec<u8> {
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// Filled up with zeros to whole sectors, at least one.
fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(1).next_multiple_of(SECTOR_BYTES), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::document::{Disk, ImageFile};
    use model::image::ImageFormat;
    use model::vm::{BootDevice, GuestConfig};
    use std::collections::BTreeMap;

    fn machine() -> Machine {
        Machine {
            name: "web".to_owned(),
            uuid: uuid::Uuid::from_u128(7),
            vcpus: 1,
            memory_mib: 256,
            disk: Disk {
                datastore: "/d".to_owned(),
                coherent: true,
                image: Some(ImageFile {
                    sha256: String::new(),
                    format: ImageFormat::Qcow2,
                }),
                bytes: 1,
            },
            nics: vec![Port {
                vni: 1,
                mac: "52:54:00:00:00:01".to_owned(),
                address: Some([10, 0, 0, 2].into()),
                prefix_len: 24,
            }],
            guest: GuestConfig {
                hostname: None,
                ssh_keys: vec!["ssh-ed25519 AAAA \"me\": x".to_owned()],
                user_data: Some("#!/bin/sh\n".repeat(500)),
            },
            cdrom: None,
            boot: BootDevice::USUAL.into(),
        }
    }

    fn number(bytes: &[u8]) -> usize {
        u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize
    }

    /// What a reader sees that begins at the volume descriptor in this sector.
    fn files(image: &[u8], volume: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let root = &image[volume * SECTOR_BYTES + 156..][..34];
        let mut folder = &image[number(&root[2..]) * SECTOR_BYTES..][..number(&root[10..])];
        let mut files = BTreeMap::new();
        while folder[0] != 0 {
            let (entry, rest) = folder.split_at(folder[0] as usize);
            let name = entry[33..33 + entry[32] as usize].to_vec();
            let content = image[number(&entry[2..]) * SECTOR_BYTES..][..number(&entry[10..])].to_vec();
            if entry[25] == 0 {
                files.insert(name, content);
            }
            folder = rest;
        }
        files
    }

    #[test]
    fn both_sets_of_names_lead_to_the_files() {
        let image = image(&machine(), 1450);
        let plain = files(&image, 16);
        let joliet = files(&image, 17);
        for (name, content) in [
            ("meta-data", meta_data(&machine())),
            ("user-data", user_data(&machine())),
            ("network-config", network_config(&machine().nics, 1450)),
        ] {
            assert_eq!(joliet[&utf16(name)], content.as_bytes(), "{name}");
            assert_eq!(
                plain[format!("{};1", name.to_uppercase()).as_bytes()],
                content.as_bytes(),
                "{name}"
            );
        }
        assert_eq!(&image[16 * SECTOR_BYTES + 40..][..8], b"cidata  ");
        assert_eq!(image.len() % SECTOR_BYTES, 0);
        assert_eq!(
            number(&image[16 * SECTOR_BYTES + 80..]) * SECTOR_BYTES,
            image.len()
        );
    }

    #[test]
    fn texts_are_yaml_whatever_the_strings_hold() {
        assert_eq!(
            meta_data(&machine()),
            "instance-id: 00000000-0000-0000-0000-000000000007\nlocal-hostname: \"web\"\npublic-keys:\n  \
             - \"ssh-ed25519 AAAA \\\"me\\\": x\"\n"
        );
        assert_eq!(
            network_config(&machine().nics, 1450),
            "version: 2\nethernets:\n  nic0:\n    match:\n      macaddress: \"52:54:00:00:00:01\"\n    set-name: eth0\n    \
             mtu: 1450\n    dhcp4: false\n    addresses:\n      - 10.0.0.2/24\n"
        );
    }
}
