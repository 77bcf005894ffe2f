//! Owns: the names of links, which Linux limits to 15 characters, and MAC addresses.
//! Does not know: what the ids stand for.
//! Start here: [`link_name`].

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// The most characters in the name of a link.
const MAX_NAME_CHARS: usize = 15;

/// Lower-case letters and digits that are not easily confused: 32 of them, so that each stands for 5 bits.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Characters of a name that stand for the world (25 bits), and for the id (40 bits).
const WORLD_CHARS: usize = 5;
const ID_CHARS: usize = 8;

/// The name of a link, of 1 to 15 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName(String);

/// Text that is not the name of a link, or not a MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct InvalidName {
    text: String,
    wanted: &'static str,
}

impl LinkName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name that is known to be right.
    pub(crate) fn known(name: &str) -> Self {
        debug_assert!(is_link_name(name), "{name}");
        Self(name.to_owned())
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LinkName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if !is_link_name(text) {
            let wanted = "the name of a network interface: 1 to 15 letters, digits, `-`, `_` and `.`";
            return Err(InvalidName {
                text: text.to_owned(),
                wanted,
            });
        }
        Ok(Self(text.to_owned()))
    }
}

fn is_link_name(text: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
    (1..=MAX_NAME_CHARS).contains(&text.len()) && text.bytes().all(allowed) && text != "." && text != ".."
}

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// The bridge of a network.
    Bridge,
    /// The tunnel of a network.
    Vxlan,
    /// The port of a VM.
    Tap,
}

/// The name of the link of one kind for `id`, in the world whose hash is `world`. Two worlds meet with a probability of
/// 2⁻²⁵, two ids of one kind in a world with 2⁻⁴⁰.
#[must_use]
pub fn link_name(world: u64, kind: LinkKind, id: &[u8]) -> LinkName {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&Sha256::digest(id)[..8]);
    let id = digits(u64::from_be_bytes(bytes), ID_CHARS);
    LinkName(format!("{}{id}", link_prefix(world, kind)))
}

/// What the names of all links of one kind in a world begin with.
#[must_use]
pub fn link_prefix(world: u64, kind: LinkKind) -> String {
    let letter = match kind {
        LinkKind::Bridge => 'b',
        LinkKind::Vxlan => 'x',
        LinkKind::Tap => 't',
    };
    format!("{}{letter}", world_prefix(world))
}

/// What the names of all links of a world begin with.
#[must_use]
pub fn world_prefix(world: u64) -> String {
    format!("s{}", digits(world, WORLD_CHARS))
}

fn digits(mut number: u64, count: usize) -> String {
    let digit = |number: u64| char::from(DIGITS[usize::from(number.to_le_bytes()[0] & 31)]);
    let step = |_| {
        let next = digit(number);
        number >>= 5;
        next
    };
    (0..count).map(step).collect()
}

/// The address of an Ethernet interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let is_byte = |part: &str| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
        let byte = |part: &str| is_byte(part).then(|| u8::from_str_radix(part, 16).ok()).flatten();
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let mac = bytes.and_then(|bytes| bytes.try_into().ok()).map(Self);
        mac.ok_or_else(|| InvalidName {
            text: text.to_owned(),
            wanted: "a MAC address such as 02:00:00:00:00:01",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_tell_worlds_kinds_and_ids_apart() {
        let name = link_name(7, LinkKind::Tap, b"one");
        assert_eq!(name.as_str().len(), MAX_NAME_CHARS);
        assert_eq!(name, link_name(7, LinkKind::Tap, b"one"));
        assert_eq!(name.as_str().parse(), Ok(name.clone()));
        assert!(name.as_str().starts_with(&world_prefix(7)));
        for other in [
            link_name(8, LinkKind::Tap, b"one"),
            link_name(7, LinkKind::Bridge, b"one"),
            link_name(7, LinkKind::Tap, b"two"),
        ] {
            assert_ne!(name, other);
        }
    }

    #[test]
    fn what_linux_would_refuse_is_no_name() {
        for text in ["", ".", "..", "a/b", "a b", "a%d", "sixteen-long-xxx"] {
            assert!(text.parse::<LinkName>().is_err(), "{text:?}");
        }
        assert!("eth0.12".parse::<LinkName>().is_ok());
    }

    #[test]
    fn a_mac_is_read_as_it_is_written() {
        let mac = Mac([2, 0, 0xab, 0xcd, 0, 1]);
        assert_eq!(mac.to_string(), "02:00:ab:cd:00:01");
        assert_eq!("02:00:AB:cd:00:01".parse(), Ok(mac));
        for text in [
            "",
            "02:00:ab:cd:00",
            "02:00:ab:cd:00:01:02",
            "+2:00:ab:cd:00:01",
            "2:0:ab:cd:00:01",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text:?}");
        }
    }
}
