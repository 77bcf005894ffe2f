//! What the files of a seed say.
//!
//! **Owns:** their paths and their forms, YAML and JSON. A string is written as JSON in both, which YAML reads alike, whatever
//! the string holds.
//!
//! **Does not know:** how they come onto a disk.
//!
//! **Start here:** [`no_cloud`] and [`config_drive`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::document::{Machine, Port};
use model::user_data::UserData;
use serde_json::{Map, Value, json};

use super::Content;

/// The files of cloud-init's NoCloud.
pub(super) fn no_cloud(machine: &Machine, mtu: u32) -> Content {
    let user_data = text(machine.guest.user_data.as_ref());
    let mut files = vec![
        ("meta-data", meta_data(machine)),
        ("network-config", network_config(&machine.nics, mtu)),
        // Without the file the disk is no seed.
        (
            "user-data",
            user_data.unwrap_or_else(|| "#cloud-config\n{}\n".to_owned()),
        ),
    ];
    files.extend(text(machine.guest.vendor_data.as_ref()).map(|text| ("vendor-data", text)));
    Content {
        label: "cidata",
        files,
    }
}

/// The files of OpenStack's ConfigDrive, version 2, of those that cloud-init reads.
pub(super) fn config_drive(machine: &Machine, mtu: u32) -> Content {
    let mut files = vec![
        (
            "openstack/latest/meta_data.json",
            openstack_meta_data(machine).to_string(),
        ),
        (
            "openstack/latest/network_data.json",
            network_data(&machine.nics, mtu).to_string(),
        ),
    ];
    let user_data = text(machine.guest.user_data.as_ref());
    files.extend(user_data.map(|text| ("openstack/latest/user_data", text)));
    let vendor_data = text(machine.guest.vendor_data.as_ref());
    let vendor_data = vendor_data.map(|text| json!({ "cloud-init": text }).to_string());
    files.extend(vendor_data.map(|text| ("openstack/latest/vendor_data.json", text)));
    Content {
        label: "config-2",
        files,
    }
}

fn text(data: Option<&UserData>) -> Option<String> {
    data.map(UserData::merged)
}

fn hostname(machine: &Machine) -> &str {
    machine.guest.hostname.as_deref().unwrap_or(&machine.name)
}

/// A string as YAML reads it, whatever it contains.
fn quoted(text: &str) -> String {
    let json = Value::from(text).to_string();
    // YAML takes these as they are for ends of lines, or not at all; JSON does not mind.
    let is_plain = |c: char| {
        !matches!(
            c,
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        )
    };
    json.chars()
        .fold(String::with_capacity(json.len()), |mut all, c| {
            match is_plain(c) {
                true => all.push(c),
                false => all.push_str(&format!("\\u{:04x}", u32::from(c))),
            }
            all
        })
}

fn meta_data(machine: &Machine) -> String {
    let mut text = format!(
        "instance-id: {}\nlocal-hostname: {}\n",
        machine.uuid,
        quoted(hostname(machine))
    );
    if !machine.guest.ssh_keys.is_empty() {
        text.push_str("public-keys:\n");
    }
    for key in &machine.guest.ssh_keys {
        text.push_str(&format!("  - {}\n", quoted(key)));
    }
    text
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

fn openstack_meta_data(machine: &Machine) -> Value {
    let keys = machine.guest.ssh_keys.iter().enumerate();
    let keys: Map<String, Value> = keys
        .map(|(index, key)| (format!("key-{index:02}"), key.as_str().into()))
        .collect();
    json!({
        "uuid": machine.uuid,
        "name": machine.name,
        "hostname": hostname(machine),
        "public_keys": keys,
    })
}

fn network_data(ports: &[Port], mtu: u32) -> Value {
    // cloud-init names a card by `name`, which OpenStack itself leaves out.
    let link = |(index, port): (usize, &Port)| {
        json!({
            "id": format!("nic{index}"),
            "name": format!("eth{index}"),
            "type": "phy",
            "ethernet_mac_address": port.mac,
            "mtu": mtu,
        })
    };
    let network = |(index, port): (usize, &Port)| {
        let address = port.address?;
        Some(json!({
            "id": format!("network{index}"),
            "link": format!("nic{index}"),
            "type": if address.is_ipv4() { "ipv4" } else { "ipv6" },
            "ip_address": address,
            "netmask": netmask(address, port.prefix_len),
        }))
    };
    let links: Vec<Value> = ports.iter().enumerate().map(link).collect();
    let networks: Vec<Value> = ports.iter().enumerate().filter_map(network).collect();
    json!({ "links": links, "networks": networks, "services": [] })
}

/// The mask of a network in which the address is, with as many ones as its prefix is long.
fn netmask(address: IpAddr, prefix_len: u8) -> IpAddr {
    let zeros = |bits: u32| bits.saturating_sub(u32::from(prefix_len));
    match address {
        IpAddr::V4(_) => Ipv4Addr::from(u32::MAX.checked_shl(zeros(32)).unwrap_or(0)).into(),
        IpAddr::V6(_) => Ipv6Addr::from(u128::MAX.checked_shl(zeros(128)).unwrap_or(0)).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seed::tests::machine;

    fn file<'c>(content: &'c Content, path: &str) -> Option<&'c str> {
        let found = content.files.iter().find(|(name, _)| *name == path);
        found.map(|(_, text)| text.as_str())
    }

    #[test]
    fn no_cloud_is_told_in_yaml() {
        let content = no_cloud(&machine(), 1450);
        assert_eq!(content.label, "cidata");
        assert_eq!(
            file(&content, "meta-data"),
            Some(
                "instance-id: 00000000-0000-0000-0000-000000000007\nlocal-hostname: \"web\"\npublic-keys:\n  \
                 - \"ssh-ed25519 AAAA \\\"me\\\": x\"\n"
            )
        );
        assert_eq!(
            file(&content, "network-config"),
            Some(
                "version: 2\nethernets:\n  nic0:\n    match:\n      macaddress: \"52:54:00:00:00:01\"\n    set-name: eth0\n    \
                 mtu: 1450\n    dhcp4: false\n    addresses:\n      - 10.0.0.2/24\n"
            )
        );
        assert!(file(&content, "user-data").unwrap().starts_with("#!/bin/sh\n"));
        assert_eq!(file(&content, "vendor-data"), Some("#cloud-config\n{}\n"));
    }

    #[test]
    fn a_guest_that_is_told_nothing_finds_a_seed_all_the_same() {
        let mut machine = machine();
        machine.guest.user_data = None;
        machine.guest.vendor_data = None;
        machine.nics.clear();
        let content = no_cloud(&machine, 1450);
        assert_eq!(file(&content, "user-data"), Some("#cloud-config\n{}\n"));
        assert_eq!(file(&content, "vendor-data"), None);
        assert_eq!(file(&content, "network-config"), Some("version: 2\n"));
        let content = config_drive(&machine, 1450);
        let paths: Vec<_> = content.files.iter().map(|(path, _)| *path).collect();
        assert_eq!(
            paths,
            [
                "openstack/latest/meta_data.json",
                "openstack/latest/network_data.json"
            ]
        );
    }

    #[test]
    fn a_config_drive_is_told_in_json() {
        let content = config_drive(&machine(), 1450);
        assert_eq!(content.label, "config-2");
        let read = |name: &str| -> Value {
            let text = file(&content, &format!("openstack/latest/{name}")).unwrap();
            serde_json::from_str(text).unwrap()
        };
        assert_eq!(
            read("meta_data.json"),
            json!({
                "uuid": "00000000-0000-0000-0000-000000000007",
                "name": "web",
                "hostname": "web",
                "public_keys": { "key-00": "ssh-ed25519 AAAA \"me\": x" },
            })
        );
        assert_eq!(
            read("network_data.json"),
            json!({
                "links": [{ "id": "nic0", "name": "eth0", "type": "phy", "ethernet_mac_address": "52:54:00:00:00:01",
                    "mtu": 1450 }],
                "networks": [{ "id": "network0", "link": "nic0", "type": "ipv4", "ip_address": "10.0.0.2",
                    "netmask": "255.255.255.0" }],
                "services": [],
            })
        );
        assert_eq!(
            read("vendor_data.json"),
            json!({ "cloud-init": "#cloud-config\n{}\n" })
        );
        assert!(file(&content, "openstack/latest/user_data").is_some());
    }

    #[test]
    fn a_mask_has_as_many_ones_as_the_prefix() {
        let v4: IpAddr = [10, 0, 0, 2].into();
        let v6: IpAddr = "fd00::2".parse().unwrap();
        for (address, prefix_len, mask) in [
            (v4, 24, "255.255.255.0"),
            (v4, 8, "255.0.0.0"),
            (v4, 32, "255.255.255.255"),
            (v4, 0, "0.0.0.0"),
            (v6, 64, "ffff:ffff:ffff:ffff::"),
        ] {
            assert_eq!(netmask(address, prefix_len).to_string(), mask);
        }
    }

    proptest! {
        #[test]
        fn whatever_strings_hold_they_are_read_back(
            name in "(?s).{0,40}",
            keys in proptest::collection::vec("(?s).{0,80}", 0..4),
            text in "(?s).{0,200}",
        ) {
            let mut machine = machine();
            machine.guest.hostname = Some(name.clone());
            machine.guest.ssh_keys.clone_from(&keys);
            machine.guest.vendor_data = Some(UserData::Text(text.clone()));
            let content = no_cloud(&machine, 1450);
            let told: Value = yaml_serde::from_str(file(&content, "meta-data").unwrap()).unwrap();
            prop_assert_eq!(&told["local-hostname"], &Value::from(name.as_str()));
            let told_keys = told.get("public-keys").cloned().unwrap_or_else(|| json!([]));
            prop_assert_eq!(told_keys, json!(keys));
            prop_assert_eq!(file(&content, "vendor-data"), Some(text.as_str()));
            let content = config_drive(&machine, 1450);
            let told: Value = serde_json::from_str(file(&content, "openstack/latest/meta_data.json").unwrap()).unwrap();
            prop_assert_eq!(&told["hostname"], &Value::from(name));
            prop_assert_eq!(told["public_keys"].as_object().unwrap().values().cloned().collect::<Vec<_>>(),
                keys.into_iter().map(Value::from).collect::<Vec<_>>());
            let told: Value = serde_json::from_str(file(&content, "openstack/latest/vendor_data.json").unwrap()).unwrap();
            prop_assert_eq!(&told["cloud-init"], &Value::from(text));
        }
    }
}
