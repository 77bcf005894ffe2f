//! A counter on disk and on the network, and who listens to it. A number is on disk, past the page cache, before it is sent:
//! whoever heard it knows what the disk must hold at least, after any crash.
//!
//! The file is a ring of blocks, one for each number, with the boot that wrote it. Before each number the block of the one
//! before is read again: what another copy of the machine has written there is found at once.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::{Outcome, as_ms};

const REPORT: Duration = Duration::from_secs(1);
const BLOCK_BYTES: usize = 4096;
/// So many of the last numbers are in the file.
const SLOTS: u64 = 2048;

/// A number and who counted it: the same machine, if the boot is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Count {
    number: u64,
    boot: String,
}

impl Count {
    /// One line, in a block as in a datagram.
    fn encode(&self) -> String {
        format!("{:020} {}\n", self.number, self.boot)
    }

    /// `None` if the bytes do not begin with one.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let (number, boot) = std::str::from_utf8(&bytes[..end]).ok()?.split_once(' ')?;
        Some(Self {
            number: number.parse().ok()?,
            boot: boot.to_owned(),
        })
    }
}

/// As reads and writes past the page cache want it.
#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES]);

/// The file.
struct Ring(File);

impl Ring {
    fn open(path: &str, flags: OFlags) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        options.custom_flags(flags.bits().cast_signed());
        options.open(path).map(Self)
    }

    /// What is in the block of a number: of that one, of one that the ring has left behind, or nothing.
    fn read(&self, number: u64) -> io::Result<Option<Count>> {
        let mut block = Block([0; BLOCK_BYTES]);
        self.0.read_at(&mut block.0, offset(number))?;
        Ok(Count::decode(&block.0))
    }

    fn write(&self, count: &Count) -> io::Result<()> {
        let mut block = Block([0; BLOCK_BYTES]);
        let text = count.encode();
        block.0[..text.len()].copy_from_slice(text.as_bytes());
        self.0.write_all_at(&block.0, offset(count.number))
    }

    /// The highest number, if there is any.
    fn last(&self) -> io::Result<Option<Count>> {
        let mut last: Option<Count> = None;
        for number in 1..=SLOTS {
            match self.read(number)? {
                Some(count) if last.as_ref().is_none_or(|last| last.number < count.number) => {
                    last = Some(count)
                }
                _ => break,
            }
        }
        Ok(last)
    }
}

fn offset(number: u64) -> u64 {
    number % SLOTS * BLOCK_BYTES as u64
}

/// Counts on from what is on disk for ever, and sends each number to all on the network.
pub(crate) fn run(path: &str, interval: Duration, port: u16) -> Outcome {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let ring = Ring::open(path, OFlags::DIRECT | OFlags::DSYNC)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_broadcast(true)?;
    let mut last = ring.last()?;
    println!("start={}", last.as_ref().map_or(0, |last| last.number));
    let start = Instant::now();
    let (mut next_report, mut max_sync) = (REPORT, Duration::ZERO);
    loop {
        let before = Instant::now();
        let next = step(&ring, last.as_ref(), boot.trim())?;
        max_sync = max_sync.max(before.elapsed());
        // One that cannot be sent is lost, as on a wire.
        let _ = socket.send_to(next.encode().as_bytes(), (Ipv4Addr::BROADCAST, port));
        if start.elapsed() >= next_report {
            println!("count={} max_sync_ms={}", next.number, as_ms(max_sync));
            next_report = start.elapsed() + REPORT;
        }
        last = Some(next);
        thread::sleep(interval);
    }
}

/// Writes the next number, if the one before is as it was written.
fn step(ring: &Ring, last: Option<&Count>, boot: &str) -> Result<Count, Box<dyn std::error::Error>> {
    if let Some(last) = last {
        let found = ring.read(last.number)?;
        if found.as_ref() != Some(last) {
            return Err(format!("the block of {last:?} holds {found:?}: somebody else wrote it").into());
        }
    }
    let next = Count {
        number: last.map_or(1, |last| last.number + 1),
        boot: boot.to_owned(),
    };
    ring.write(&next)?;
    Ok(next)
}

/// What was heard of a counter.
#[derive(Debug, Default)]
struct Heard {
    numbers: u64,
    last: u64,
    /// Numbers that were not higher than all before, or came from a machine after its successor.
    back: u64,
    boots: Vec<String>,
}

impl Heard {
    fn take(&mut self, count: Count) {
        let is_new = !self.boots.contains(&count.boot);
        let is_current = self.boots.last() == Some(&count.boot);
        self.numbers += 1;
        if count.number <= self.last || !(is_new || is_current) {
            self.back += 1;
        }
        self.last = self.last.max(count.number);
        if is_new {
            self.boots.push(count.boot);
        }
    }

    fn report(&self) -> String {
        let boots = self.boots.len();
        format!(
            "heard={} last={} back={} boots={boots}",
            self.numbers, self.last, self.back
        )
    }
}

/// Listens for ever, and reports each second.
pub(crate) fn hear(port: u16) -> Outcome {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let start = Instant::now();
    let (mut heard, mut next_report) = (Heard::default(), REPORT);
    loop {
        let wait = next_report.saturating_sub(start.elapsed());
        socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        let mut datagram = [0; 128];
        if let Ok(length) = socket.recv(&mut datagram)
            && let Some(count) = Count::decode(&datagram[..length])
        {
            heard.take(count);
        }
        if start.elapsed() >= next_report {
            println!("{}", heard.report());
            next_report += REPORT;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(number: u64, boot: &str) -> Count {
        Count {
            number,
            boot: boot.to_owned(),
        }
    }

    /// Removed when dropped.
    struct Scratch(String);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("probe-count-{name}-{}", std::process::id()));
            Self(path.to_string_lossy().into_owned())
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let one = count(u64::MAX, "a-b");
        assert_eq!(Count::decode(one.encode().as_bytes()), Some(one));
        assert_eq!(Count::decode(&[0; BLOCK_BYTES]), None);
        assert_eq!(Count::decode(b"12 a"), None);
    }

    #[test]
    fn a_ring_is_counted_on_across_its_end_and_by_the_next_boot() {
        let scratch = Scratch::new("ring");
        let ring = Ring::open(&scratch.0, OFlags::empty()).unwrap();
        assert_eq!(ring.last().unwrap(), None);
        let mut last = None;
        for _ in 0..SLOTS + 7 {
            last = Some(step(&ring, last.as_ref(), "one").unwrap());
        }
        assert_eq!(ring.last().unwrap(), Some(count(SLOTS + 7, "one")));
        let next = step(&ring, ring.last().unwrap().as_ref(), "two").unwrap();
        assert_eq!(ring.last().unwrap(), Some(next));
    }

    #[test]
    fn what_another_copy_wrote_is_found() {
        let scratch = Scratch::new("other");
        let ring = Ring::open(&scratch.0, OFlags::empty()).unwrap();
        let mine = step(&ring, None, "one").unwrap();
        ring.write(&count(1, "two")).unwrap();
        assert!(step(&ring, Some(&mine), "one").is_err());
    }

    #[test]
    fn a_counter_that_goes_back_is_heard() {
        let mut heard = Heard::default();
        for one in [count(1, "a"), count(3, "a"), count(4, "b")] {
            heard.take(one);
        }
        assert_eq!(heard.report(), "heard=3 last=4 back=0 boots=2");
        // The same number again; a lower one; one of a machine that has a successor.
        for one in [count(4, "b"), count(2, "b"), count(5, "a")] {
            heard.take(one);
        }
        assert_eq!(heard.report(), "heard=6 last=5 back=3 boots=2");
    }
}
