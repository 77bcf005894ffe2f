//! Which addresses a server may be made to reach.
//!
//! **Owns:** what is refused unless the operator allows it: what only the server itself, or its cloud's provider, is meant
//! to reach.
//!
//! **Does not know:** how names become addresses, and who connects.
//!
//! **Start here:** [`Addresses::check`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range of addresses, as in `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    first: IpAddr,
    length: u8,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no range of addresses: give one like 192.0.2.0/24 or 192.0.2.7");
        let (first, length) = match text.split_once('/') {
            Some((first, length)) => (first, Some(length)),
            None => (text, None),
        };
        let first: IpAddr = first.parse().map_err(|_| wrong())?;
        let whole = if first.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Ok(whole), str::parse::<u8>).map_err(|_| wrong())?;
        if length > whole {
            return Err(wrong());
        }
        Ok(Self { first, length })
    }
}

impl Range {
    const fn v4(first: Ipv4Addr, length: u8) -> Self {
        Self {
            first: IpAddr::V4(first),
            length,
        }
    }

    const fn v6(first: Ipv6Addr, length: u8) -> Self {
        Self {
            first: IpAddr::V6(first),
            length,
        }
    }

    fn has(&self, address: IpAddr) -> bool {
        let (first, other, bits) = match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(other)) => {
                (u32::from(first).into(), u32::from(other).into(), 32_u8)
            }
            (IpAddr::V6(first), IpAddr::V6(other)) => (u128::from(first), u128::from(other), 128),
            _ => return false,
        };
        let rest = u32::from(bits.saturating_sub(self.length));
        (first ^ other).checked_shr(rest).unwrap_or(0) == 0
    }
}

/// This machine, its link, its provider's metadata, and what is nobody's address.
const REFUSED: [Range; 13] = [
    Range::v4(Ipv4Addr::UNSPECIFIED, 8),
    Range::v4(Ipv4Addr::new(127, 0, 0, 0), 8),
    Range::v4(Ipv4Addr::new(169, 254, 0, 0), 16),
    Range::v4(Ipv4Addr::new(192, 0, 0, 0), 24),
    Range::v4(Ipv4Addr::new(100, 100, 100, 200), 32),
    Range::v4(Ipv4Addr::new(168, 63, 129, 16), 32),
    Range::v4(Ipv4Addr::new(224, 0, 0, 0), 4),
    Range::v4(Ipv4Addr::new(240, 0, 0, 0), 4),
    Range::v6(Ipv6Addr::UNSPECIFIED, 128),
    Range::v6(Ipv6Addr::LOCALHOST, 128),
    Range::v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    Range::v6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
    Range::v6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128),
];

/// The operator's word on addresses.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    allowed: Vec<Range>,
}

impl Addresses {
    /// What is allowed beside what everybody may reach.
    pub fn allowing(allowed: Vec<Range>) -> Self {
        Self { allowed }
    }

    /// Whether an address may be reached, or why not.
    pub(super) fn check(&self, address: IpAddr) -> Result<(), String> {
        let meant = meant(address);
        let is_allowed = self.allowed.iter().any(|range| range.has(meant));
        if is_allowed || !REFUSED.iter().any(|range| range.has(meant)) {
            return Ok(());
        }
        Err(format!(
            "{address} is not reached: images come from any address but loopback, link-local, multicast, reserved and \
             metadata ones{}. `sterna server --import-allow {meant}` allows it",
            self.and_allowed()
        ))
    }

    fn and_allowed(&self) -> String {
        if self.allowed.is_empty() {
            return String::new();
        }
        let allowed: Vec<String> = self.allowed.iter().map(Range::to_string).collect();
        format!(", and from {}", allowed.join(", "))
    }
}

/// The IPv4 address that an IPv6 address leads to, if it does: mapped and compatible ones, and those of translators.
fn meant(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let segments = v6.segments();
    let last = |[high, low]: [u16; 2]| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)).into();
    match segments {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => last([high, low]),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => last([high, low]),
        [0x2002, high, low, ..] => last([high, low]),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rules: &Addresses, address: &str) -> Result<(), String> {
        rules.check(address.parse().unwrap())
    }

    #[test]
    fn what_only_the_server_reaches_is_refused_in_every_form() {
        let rules = Addresses::default();
        for refused in [
            "127.0.0.1",
            "127.8.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "100.100.100.200",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::169.254.169.254",
            "2002:7f00:1::",
        ] {
            let why = check(&rules, refused).unwrap_err();
            assert!(why.contains("--import-allow"), "{why}");
        }
        for fine in [
            "10.1.2.3",
            "192.168.0.9",
            "100.64.0.1",
            "8.8.8.8",
            "fd12::1",
            "2a00::1",
            "::ffff:8.8.8.8",
        ] {
            check(&rules, fine).unwrap();
        }
    }

    #[test]
    fn the_operator_allows_more_and_the_refusal_says_what() {
        let ranges = ["127.0.0.0/8", "::1"].map(|range| range.parse().unwrap());
        let rules = Addresses::allowing(ranges.into());
        for fine in ["127.0.0.1", "::ffff:127.1.1.1", "::1"] {
            check(&rules, fine).unwrap();
        }
        let why = check(&rules, "169.254.169.254").unwrap_err();
        assert!(why.contains("127.0.0.0/8, ::1/128"), "{why}");
        assert!(check(&Addresses::allowing(vec!["0.0.0.0/0".parse().unwrap()]), "::1").is_err());
    }

    #[test]
    fn ranges_that_are_none_are_refused() {
        for wrong in [
            "",
            "x",
            "10.0.0.0/33",
            "10.0.0.0/",
            "::/129",
            "10.0.0.0/-1",
            "10/8",
        ] {
            wrong.parse::<Range>().unwrap_err();
        }
    }
}
