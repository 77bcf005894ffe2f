//! Bounds on what a person or a program may ask for, and the checks that hold them.

use std::collections::BTreeMap;

use crate::Reason;

/// The longest name of an object, in bytes: it becomes a host name in the guest.
pub const NAME_MAX: usize = 63;
/// Labels per object.
pub const LABELS_MAX: usize = 64;
/// The least memory that a VM may have, in MiB.
pub const MEMORY_MIN_MIB: u64 = 32;
/// The most memory that a VM may have: 16 TiB, in MiB.
pub const MEMORY_MAX_MIB: u64 = 16 * 1024 * 1024;
/// The most virtual processors of a VM.
pub const VCPUS_MAX: u32 = 512;
/// The largest disk: 8 TiB, in bytes.
pub const DISK_MAX_BYTES: u64 = 8 << 40;
/// The most network interfaces of a VM.
pub const NICS_MAX: usize = 8;
/// The largest user data, vendor data included, in bytes: 1 MiB.
pub const USER_DATA_MAX_BYTES: usize = 1 << 20;
/// The most that all which a guest is told takes in its object, as JSON. An object, with what is written beside it, has to
/// fit into one transaction of the store, which takes 1.5 MiB.
pub const GUEST_MAX_BYTES: usize = 1280 << 10;
/// The most versions of a template.
pub const VERSIONS_MAX: usize = 32;
/// The most ssh keys of a VM.
pub const SSH_KEYS_MAX: usize = 64;

/// Checks a name: lower-case letters, digits and dashes, a letter or digit first and last.
pub fn check_name(name: &str) -> Result<(), Reason> {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = name.as_bytes();
    let fits = !bytes.is_empty() && bytes.len() <= NAME_MAX;
    let ends = bytes.first().copied().is_some_and(plain) && bytes.last().copied().is_some_and(plain);
    if fits && ends && bytes.iter().all(|&c| plain(c) || c == b'-' || c == b'.') {
        return Ok(());
    }
    Err(Reason::new(
        "invalid-name",
        format!(
            "the name {name:?} cannot be used: take 1 to {NAME_MAX} lower-case letters, digits, dashes or dots, \
             beginning and ending with a letter or digit"
        ),
    ))
}

/// Whether a text is a SHA-256 digest in hexadecimal.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Checks that a number lies within bounds; `what` names the field with its unit.
pub fn check_range(what: &str, value: u64, min: u64, max: u64) -> Result<(), Reason> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Reason::new(
        "out-of-range",
        format!("{what} is {value}: give a number from {min} to {max}"),
    ))
}

/// Checks labels: few, short, printable.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Reason> {
    if labels.len() > LABELS_MAX {
        let n = labels.len();
        return Err(Reason::new(
            "too-many-labels",
            format!("{n} labels given: at most {LABELS_MAX} are kept"),
        ));
    }
    let printable = |text: &str| text.len() <= NAME_MAX && text.bytes().all(|c| (0x21..0x7f).contains(&c));
    match labels
        .iter()
        .find(|(key, value)| key.is_empty() || !printable(key) || !printable(value))
    {
        None => Ok(()),
        Some((key, value)) => Err(Reason::new(
            "invalid-label",
            format!(
                "the label {key:?}={value:?} cannot be used: take at most {NAME_MAX} printable characters without spaces"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_hurt_are_refused() {
        for bad in ["", "a/b", "A", "-a", "a-", "a b", "ä", "..", &"a".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "web-1", "h1", "a.b", &"a".repeat(63)] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }
}
