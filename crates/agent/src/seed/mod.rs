//! The seed: a read-only disk from which the guest learns its name, keys, addresses and user data.
//!
//! **Owns:** the two forms that guests' software looks for, as a label and files: cloud-init's NoCloud, and OpenStack's
//! ConfigDrive in its second version.
//!
//! **Does not know:** where the image is stored and how the guest sees it.
//!
//! **Start here:** [`image`]; the texts are in [`texts`], the layout of the disk in [`iso`].

mod iso;
mod texts;

use model::document::Machine;
use model::vm::SeedFormat;

/// A label, and files with their paths in it.
struct Content {
    label: &'static str,
    files: Vec<(&'static str, String)>,
}

/// The whole seed disk of a machine.
pub fn image(machine: &Machine, mtu: u32) -> Vec<u8> {
    let content = match machine.guest.seed {
        SeedFormat::NoCloud => texts::no_cloud(machine, mtu),
        SeedFormat::ConfigDrive => texts::config_drive(machine, mtu),
    };
    iso::image(&content)
}

#[cfg(test)]
mod tests {
    use model::document::{Disk, Machine, Port};
    use model::user_data::UserData;
    use model::vm::{BootDevice, GuestConfig, SeedFormat};

    pub(super) fn machine() -> Machine {
        Machine {
            name: "web".to_owned(),
            uuid: uuid::Uuid::from_u128(7),
            vcpus: 1,
            memory_mib: 256,
            disk: Disk {
                datastore: "/d".to_owned(),
                coherent: true,
                image: None,
                bytes: 1,
                layer: None,
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
                user_data: Some(UserData::Text("#!/bin/sh\n".repeat(500))),
                vendor_data: Some(UserData::Text("#cloud-config\n{}\n".to_owned())),
                seed: SeedFormat::NoCloud,
            },
            cdrom: None,
            boot: BootDevice::USUAL.into(),
            firmware: model::vm::Firmware::Bios,
            keeps_memory: false,
            build: None,
        }
    }

    #[test]
    fn the_form_that_is_asked_for_is_made() {
        let mut machine = machine();
        for (seed, label) in [
            (SeedFormat::NoCloud, "cidata"),
            (SeedFormat::ConfigDrive, "config-2"),
        ] {
            machine.guest.seed = seed;
            let image = super::image(&machine, 1450);
            assert!(image[16 * 2048 + 40..].starts_with(label.as_bytes()));
        }
    }
}
