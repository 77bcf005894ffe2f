//! What a QEMU takes of its host's memory: its guest's main memory, and its own part.
//!
//! *Owns:* reading both from the kernel's account of the process (`proc_pid_smaps(5)`, `proc_pid_status(5)`).
//!
//! *Does not know:* how much was reserved for it.
//!
//! Pages that several processes share count in parts (Pss). The guest's main memory is the largest mapping that can be
//! written to: it is one backend object, and QEMU maps nothing else of that size. What the kernel keeps elsewhere (a
//! guest's nested page tables under KVM, sockets' buffers) is in no account of a process.
//!
//! *Start here:* [`measure`].

use std::fs;
use std::io;

/// What a QEMU takes now, in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Of the guest's main memory, what was ever touched.
    pub guest_kib: u64,
    /// Everything else, page tables included.
    pub own_kib: u64,
    /// Of this, page tables.
    pub page_tables_kib: u64,
}

/// Measures a process; takes milliseconds for each GiB that the guest has touched.
pub fn measure(pid: i32) -> io::Result<MemoryUse> {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
    let found = parse(&read("smaps")?, &read("status")?);
    found.ok_or_else(|| io::Error::other(format!("process {pid} has no memory: it is ending")))
}

fn parse(smaps: &str, status: &str) -> Option<MemoryUse> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        match (field(line), mappings.last_mut()) {
            (Some(("Size", kib)), Some(mapping)) => mapping.size_kib = kib,
            (Some(("Pss" | "SwapPss", kib)), Some(mapping)) => mapping.held_kib += kib,
            (Some(_), _) => {}
            (None, _) => mappings.extend(Mapping::begin(line)),
        }
    }
    let guest = mappings
        .iter()
        .filter(|mapping| mapping.is_writable)
        .max_by_key(|mapping| mapping.size_kib)?;
    let all_kib: u64 = mappings.iter().map(|mapping| mapping.held_kib).sum();
    let page_tables_kib = status.lines().find_map(|line| match field(line)? {
        ("VmPTE", kib) => Some(kib),
        _ => None,
    })?;
    Some(MemoryUse {
        guest_kib: guest.held_kib,
        own_kib: all_kib - guest.held_kib + page_tables_kib,
        page_tables_kib,
    })
}

struct Mapping {
    is_writable: bool,
    size_kib: u64,
    held_kib: u64,
}

impl Mapping {
    /// From a line such as `7f0000000000-7f0010000000 rw-p 00000000 00:00 0`.
    fn begin(line: &str) -> Option<Self> {
        let (range, rest) = line.split_once(' ')?;
        range.contains('-').then_some(Self {
            is_writable: rest.starts_with("rw"),
            size_kib: 0,
            held_kib: 0,
        })
    }
}

/// The name and the number of a line such as `Pss:  12 kB`.
fn field(line: &str) -> Option<(&str, u64)> {
    let (name, rest) = line.split_once(':')?;
    let number = rest.trim().strip_suffix(" kB")?;
    Some((name, number.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_told_from_qemus_own() {
        let smaps = "\
55d0c0a00000-55d0c1a00000 r-xp 00000000 08:01 99                         /usr/bin/qemu:odd name
Size:              16384 kB
Pss:                5000 kB
Pss_Dirty:             0 kB
SwapPss:               0 kB
VmFlags: rd ex mr mw me sd
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Size:             262144 kB
Rss:              131072 kB
Pss:              131000 kB
SwapPss:             100 kB
7f1000000000-7f2000000000 ---p 00000000 00:00 0
Size:           67108864 kB
Pss:                   0 kB
7f3000000000-7f3001000000 rw-p 00000000 00:00 0                          [heap]
Size:              16384 kB
Pss:               10000 kB
SwapPss:             500 kB
";
        let status = "Name:\tqemu\nVmRSS:\t   99 kB\nVmPTE:\t     700 kB\n";
        let expected = MemoryUse {
            guest_kib: 131_100,
            own_kib: 5000 + 10_000 + 500 + 700,
            page_tables_kib: 700,
        };
        assert_eq!(parse(smaps, status), Some(expected));
        assert_eq!(parse("", ""), None);
    }

    #[test]
    fn a_process_can_be_measured() {
        let own = measure(std::process::id().cast_signed()).unwrap();
        assert!(own.own_kib > 0 && own.page_tables_kib > 0, "{own:?}");
    }
}
