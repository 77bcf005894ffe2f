//! What people write in arguments: sizes and durations with a unit, labels, network interfaces.
//!
//! **Owns:** turning one argument into a value, or a sentence that says what to write instead.
//!
//! **Does not know:** what may be asked of a VM: the server says which sizes and names it takes.

use std::path::PathBuf;
use std::time::Duration;

use api::kinds::NicSpec;
use api::placement::PeersSpec;

/// Units of sizes, in bytes.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];
/// Units of durations, in milliseconds.
const DURATION_UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// A size in bytes, as in `10GiB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    if text.starts_with('-') {
        return Err("a size is not negative: give something like 256MiB".to_owned());
    }
    let (number, unit) = split_number(text);
    if number.is_empty() {
        return Err("a size begins with a number: give something like 256MiB or 10GiB".to_owned());
    }
    let unit = unit.trim();
    if unit.is_empty() {
        return Err(format!("a size needs a unit: give {number}MiB or {number}GiB"));
    }
    if unit.starts_with(['.', ',']) {
        return Err("a size is a whole number: take a smaller unit, as in 1536MiB".to_owned());
    }
    let unit_bytes = SIZE_UNITS
        .iter()
        .find(|(name, _)| unit.eq_ignore_ascii_case(name))
        .map(|(_, bytes)| *bytes);
    let unit_bytes =
        unit_bytes.ok_or_else(|| format!("the unit {unit:?} is not known: give KiB, MiB, GiB or TiB"))?;
    let size = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit_bytes));
    match size {
        None => Err("that is more than can be counted: give a size below 16 EiB".to_owned()),
        Some(0) => Err("a size is more than nothing: give something like 256MiB".to_owned()),
        Some(size) => Ok(size),
    }
}

/// A size in whole MiB, as in `256MiB`.
pub(crate) fn memory_mib(text: &str) -> Result<u64, String> {
    let bytes = bytes(text)?;
    if bytes % (1 << 20) == 0 {
        return Ok(bytes >> 20);
    }
    Err(format!(
        "memory comes in whole MiB: give {}MiB",
        bytes.div_ceil(1 << 20)
    ))
}

/// A duration, as in `90s`, `5m` or `1h30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest.starts_with('-') {
        return Err("a duration is not negative: give something like 90s or 5m".to_owned());
    }
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let (number, tail) = split_number(rest);
        let unit_end = tail
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(tail.len());
        let (unit, after) = tail.split_at(unit_end);
        if number.is_empty() {
            return Err(format!(
                "{text:?} is not a duration: give something like 90s, 5m or 1h30m"
            ));
        }
        if unit.is_empty() {
            return Err(format!("a duration needs a unit: give {number}s or {number}m"));
        }
        let unit_ms = DURATION_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, ms)| *ms);
        let unit_ms =
            unit_ms.ok_or_else(|| format!("the unit {unit:?} is not known: give ms, s, m, h or d"))?;
        let part_ms = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(unit_ms));
        total_ms = part_ms
            .and_then(|part| total_ms.checked_add(part))
            .filter(|total| *total <= DURATION_MAX_MS)
            .ok_or_else(|| "that is longer than a year: give a shorter duration".to_owned())?;
        rest = after;
    }
    if total_ms == 0 {
        return Err("a duration is more than nothing: give something like 90s or 5m".to_owned());
    }
    Ok(Duration::from_millis(total_ms))
}

/// The longest duration: a year.
const DURATION_MAX_MS: u64 = 365 * 86_400_000;

fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// A label, as in `tier=web`.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !text.contains(',') => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err("a label is written key=value, one at a time".to_owned()),
    }
}

/// A file in a guest, and the one here that it is made from, as in `/etc/motd=motd.txt`.
pub(crate) fn file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((path, from)) if path.starts_with('/') && !from.is_empty() => Ok((path.to_owned(), from.into())),
        _ => Err("write the path in the guest, =, and the file here, as in /etc/motd=motd.txt".to_owned()),
    }
}

/// A label to set, as in `tier=web`, or to remove, as in `tier-`.
pub(crate) fn label_change(text: &str) -> Result<(String, Option<String>), String> {
    match text.strip_suffix('-') {
        Some(key) if !key.is_empty() && !key.contains('=') => Ok((key.to_owned(), None)),
        _ => label(text)
            .map(|(key, value)| (key, Some(value)))
            .map_err(|_| "write key=value to set a label, and key- to remove it".to_owned()),
    }
}

/// What a rule is about, as in `vm:app=web`, `host:h1,h2` or `host-label:disk=ssd`.
pub(crate) fn peers(text: &str) -> Result<PeersSpec, String> {
    let wrong = || "write vm:KEY=VALUE, host:NAME or host-label:KEY=VALUE; several with commas".to_owned();
    let (what, rest) = text.split_once(':').ok_or_else(wrong)?;
    let labels = || rest.split(',').map(label).collect::<Result<_, _>>();
    match what {
        _ if rest.is_empty() => Err(wrong()),
        "vm" => Ok(PeersSpec::Vms(labels()?)),
        "host-label" => Ok(PeersSpec::HostLabels(labels()?)),
        "host" => Ok(PeersSpec::Hosts(rest.split(',').map(str::to_owned).collect())),
        _ => Err(wrong()),
    }
}

/// A network interface, as in `front,address=10.1.0.7,mac=52:54:00:00:00:07`.
pub(crate) fn nic(text: &str) -> Result<NicSpec, String> {
    let mut parts = text.split(',');
    let network = parts.next().unwrap_or_default();
    if network.is_empty() || network.contains('=') {
        return Err("begin with the network's name, as in front,address=10.1.0.7".to_owned());
    }
    let mut nic = NicSpec {
        network: network.to_owned(),
        ..NicSpec::default()
    };
    for part in parts {
        match part.split_once('=') {
            Some(("address", address)) => {
                let parsed = address
                    .parse()
                    .map_err(|_| format!("{address:?} is not an IP address"))?;
                nic.address = Some(parsed);
            }
            Some(("mac", mac)) => nic.mac = Some(mac.to_owned()),
            _ => return Err(format!("{part:?} is not understood: give address=… or mac=…")),
        }
    }
    Ok(nic)
}

/// An age for people: the largest unit that fits.
pub(crate) fn age(seconds: i64) -> String {
    match seconds {
        ..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A duration for people.
pub(crate) fn elapsed(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", duration.as_secs_f64()),
        _ => format!("{}m{:02}s", seconds / 60, seconds % 60),
    }
}

/// A number of bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    let units = [
        ("TiB", 1_u64 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    let Some((unit, unit_bytes)) = units.into_iter().find(|(_, unit_bytes)| bytes >= *unit_bytes) else {
        return format!("{bytes} B");
    };
    let tenths = u128::from(bytes) * 10 / u128::from(unit_bytes);
    if tenths >= 100 {
        format!("{} {unit}", tenths / 10)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

/// A file in a datastore, as in `default:images/debian.qcow2`; the URL that a server knows it by.
pub(crate) fn place(text: &str) -> Result<String, String> {
    let named = text
        .split_once(':')
        .filter(|(name, path)| !name.is_empty() && !path.is_empty());
    let (name, path) = named.ok_or("write it as DATASTORE:PATH, as in default:images/debian.qcow2")?;
    if path.starts_with('/') {
        return Err("the path is the one in the datastore's directory: leave the / before it out".to_owned());
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let escaped = path.bytes().map(|byte| match byte {
        byte if plain(byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    Ok(format!("datastore://{name}/{}", escaped.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit_and_say_so() {
        assert_eq!(bytes("10GiB"), Ok(10 << 30));
        assert_eq!(bytes("1 kib"), Ok(1024));
        assert_eq!(bytes("2MB"), Ok(2_000_000));
        assert_eq!(memory_mib("256MiB"), Ok(256));
        assert_eq!(memory_mib("2GiB"), Ok(2048));
        for (bad, why) in [
            ("256", "needs a unit: give 256MiB"),
            ("", "begins with a number"),
            ("MiB", "begins with a number"),
            ("-1MiB", "not negative"),
            ("0MiB", "more than nothing"),
            ("1.5GiB", "whole number"),
            ("10M", "\"M\" is not known"),
            ("99999999999999999999GiB", "more than can be counted"),
            ("99999999999TiB", "more than can be counted"),
        ] {
            let error = bytes(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(memory_mib("1500KiB").unwrap_err().contains("give 2MiB"));
    }

    #[test]
    fn durations_are_numbers_with_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for (bad, why) in [
            ("90", "needs a unit: give 90s"),
            ("", "more than nothing"),
            ("0s", "more than nothing"),
            ("-5s", "not negative"),
            ("soon", "not a duration"),
            ("5x", "\"x\" is not known"),
            ("5m9", "needs a unit"),
            ("99999999999999999999s", "longer than a year"),
            ("400d", "longer than a year"),
        ] {
            let error = duration(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn labels_are_pairs() {
        assert_eq!(label("tier=web"), Ok(("tier".to_owned(), "web".to_owned())));
        assert_eq!(label("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(label("empty="), Ok(("empty".to_owned(), String::new())));
        for bad in ["tier", "=web", "", "a=1,b=2"] {
            assert!(label(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn interfaces_name_their_network_first() {
        let nic_1 = nic("front,address=10.1.0.7,mac=52:54:00:00:00:07").unwrap();
        assert_eq!(nic_1.network, "front");
        assert_eq!(nic_1.address, Some("10.1.0.7".parse().unwrap()));
        assert_eq!(nic_1.mac.as_deref(), Some("52:54:00:00:00:07"));
        assert_eq!(nic("front").unwrap().address, None);
        for bad in [
            "",
            "address=10.1.0.7",
            "front,10.1.0.7",
            "front,address=x",
            "front,vlan=3",
        ] {
            assert!(nic(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn people_read_round_numbers() {
        assert_eq!(
            ["-3", "5", "119", "120", "7199", "7200", "172800"].map(|s| age(s.parse().unwrap())),
            ["0s", "5s", "119s", "2m", "119m", "2h", "2d"]
        );
        assert_eq!(
            [0, 1023, 1024, 1536, 12 << 20, 5 << 30].map(size),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "12 MiB", "5.0 GiB"]
        );
        assert_eq!(elapsed(Duration::from_millis(1_250)), "1.2s");
        assert_eq!(elapsed(Duration::from_secs(125)), "2m05s");
    }

    #[test]
    fn a_file_in_a_datastore_has_a_url_whatever_its_name() {
        assert_eq!(
            place("default:a/b c#.raw").unwrap(),
            "datastore://default/a/b%20c%23.raw"
        );
        for wrong in ["", "default", "default:", ":a", "default:/a"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}
