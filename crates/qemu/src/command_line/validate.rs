//! What a launch specification must satisfy before a command line is made of it.
//!
//! *Owns:* the bounds and the alphabets. *Does not know:* the command line. *Start here:* [`check`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{DISK_SLOTS, LaunchSpec, Memory, NIC_SLOTS};

const NAME_BYTES_MAX: usize = 255;
const INTERFACE_BYTES_MAX: usize = 15;
const VCPUS_MAX: u16 = 255;

/// Why no command line can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchSpecError {
    /// A name that is empty, too long, or has control characters.
    #[error("the VM's name must have 1 to {NAME_BYTES_MAX} bytes and no control characters: {name:?}")]
    Name {
        /// The name.
        name: String,
    },
    /// A path that could be misread.
    #[error("a path must be absolute, in UTF-8 and without control characters: {path:?}")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A CPU model that is not of the form known here.
    #[error(
        "a CPU model must be a name, then features with `on` or `off`, such as `EPYC-v4,svm=off`: {value:?}"
    )]
    CpuModel {
        /// Its value.
        value: String,
    },
    /// A machine type or a digest outside its alphabet.
    #[error("{what} must have 1 to 64 letters, digits, dots, dashes or underscores: {value:?}")]
    Word {
        /// Which of them.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// A number outside its range.
    #[error("{what} must be from {min} to {max}, and is {value}")]
    Range {
        /// Which number.
        what: &'static str,
        /// The least.
        min: u32,
        /// The greatest.
        max: u32,
        /// Its value.
        value: u32,
    },
    /// Two devices in one place.
    #[error("{what} slot {slot} is used twice")]
    SlotTaken {
        /// `disk` or `nic`.
        what: &'static str,
        /// Its number.
        slot: u8,
    },
    /// An interface name that the kernel would not have.
    #[error(
        "an interface's name must have 1 to {INTERFACE_BYTES_MAX} letters, digits, dots, dashes or underscores: {name:?}"
    )]
    Interface {
        /// The name.
        name: String,
    },
    /// A hardware address that is no station's.
    #[error("a hardware address must be one of a single station: {mac:02x?}")]
    Mac {
        /// The address.
        mac: [u8; 6],
    },
}

pub(super) fn check(spec: &LaunchSpec) -> Result<(), LaunchSpecError> {
    let name_fits = (1..=NAME_BYTES_MAX).contains(&spec.name.len());
    if !name_fits || spec.name.contains(char::is_control) {
        let name = spec.name.clone();
        return Err(LaunchSpecError::Name { name });
    }
    check_word("the machine type", &spec.machine_type)?;
    check_cpu_model(&spec.cpu_model)?;
    check_range("the number of vCPUs", spec.vcpus.into(), 1, VCPUS_MAX.into())?;
    check_range("the memory in MiB", spec.memory_mib, 1, 16 * 1024 * 1024)?;
    if let super::Accelerator::Tcg { tb_size_mib } = spec.accelerator {
        check_range("the translation cache in MiB", tb_size_mib, 1, 2047)?;
    }
    check_slots("disk", spec.disks.iter().map(|disk| disk.slot), DISK_SLOTS)?;
    check_slots("nic", spec.nics.iter().map(|nic| nic.slot), NIC_SLOTS)?;
    let bases = spec.disks.iter().filter_map(|disk| disk.base.as_ref());
    let paths = spec.disks.iter().map(|disk| &disk.path).chain(&spec.seed);
    let medium = spec.cdrom.as_ref().and_then(|cdrom| cdrom.medium.as_ref());
    let paths = paths.chain(medium.map(|medium| &medium.path));
    let bases = bases.flat_map(|base| std::iter::successors(Some(base), |base| base.base.as_deref()));
    let memory = match &spec.memory {
        Memory::Own => None,
        Memory::Kept(path) | Memory::CopyOf(path) => Some(path),
    };
    let mut paths = paths.chain(bases.map(|base| &base.path)).chain(memory);
    paths.try_for_each(|path| check_path(path))?;
    if let Some(medium) = medium {
        check_word("a medium's digest", &medium.sha256)?;
    }
    for nic in &spec.nics {
        check_interface(&nic.tap)?;
        if nic.mac[0] & 1 == 1 || nic.mac == [0; 6] {
            return Err(LaunchSpecError::Mac { mac: nic.mac });
        }
    }
    Ok(())
}

fn is_word(text: &str, bytes_max: usize) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=bytes_max).contains(&text.len()) && text.bytes().all(letter)
}

fn check_word(what: &'static str, value: &str) -> Result<(), LaunchSpecError> {
    if is_word(value, 64) {
        return Ok(());
    }
    let value = value.to_owned();
    Err(LaunchSpecError::Word { what, value })
}

fn check_cpu_model(model: &str) -> Result<(), LaunchSpecError> {
    let (name, features) = model.split_once(',').unwrap_or((model, "x=on"));
    let is_feature = |feature: &str| {
        let value = feature.split_once('=');
        value.is_some_and(|(name, state)| is_word(name, 64) && matches!(state, "on" | "off"))
    };
    if is_word(name, 64) && features.split(',').all(is_feature) {
        return Ok(());
    }
    let value = model.to_owned();
    Err(LaunchSpecError::CpuModel { value })
}

fn check_range(what: &'static str, value: u32, min: u32, max: u32) -> Result<(), LaunchSpecError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(LaunchSpecError::Range {
        what,
        min,
        max,
        value,
    })
}

fn check_slots(
    what: &'static str,
    slots: impl Iterator<Item = u8>,
    count: u8,
) -> Result<(), LaunchSpecError> {
    let mut taken = BTreeSet::new();
    for slot in slots {
        check_range(
            if what == "disk" {
                "a disk's slot"
            } else {
                "an interface's slot"
            },
            slot.into(),
            0,
            u32::from(count) - 1,
        )?;
        if !taken.insert(slot) {
            return Err(LaunchSpecError::SlotTaken { what, slot });
        }
    }
    Ok(())
}

fn check_path(path: &Path) -> Result<(), LaunchSpecError> {
    let text = path.to_str();
    let is_plain = text.is_some_and(|text| !text.contains(char::is_control));
    if is_plain && path.is_absolute() {
        return Ok(());
    }
    let path = path.to_owned();
    Err(LaunchSpecError::Path { path })
}

fn check_interface(name: &str) -> Result<(), LaunchSpecError> {
    if is_word(name, INTERFACE_BYTES_MAX) && name != "." && name != ".." {
        return Ok(());
    }
    let name = name.to_owned();
    Err(LaunchSpecError::Interface { name })
}
