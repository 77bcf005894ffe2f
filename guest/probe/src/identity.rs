//! A guest that waits to be told who it is: its memory is kept meanwhile, and copies of it go on from there. No process is
//! started for that, since a new one costs an emulated guest more than all that is done here.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::ioctl::{Setter, Updater, ioctl};
use rustix::net::{AddressFamily, SocketType, socket};

use crate::{Outcome, reseed};

const SET_FLAGS: u32 = 0x8914;
const GET_FLAGS: u32 = 0x8913;
const SET_ADDRESS: u32 = 0x8916;
const SET_NETMASK: u32 = 0x891C;
const SET_MAC: u32 = 0x8924;
/// Up, and running.
const IS_UP: u16 = 0x41;
const INET: u16 = 2;
const ETHERNET: u16 = 1;
/// `struct ifreq` of `linux/if.h`.
type Request = [u8; 40];

/// Waits for a line in the pipe that is in a folder, and removes the folder when it has done what it says.
pub(crate) fn run(folder: &Path) -> Outcome {
    let pipe = folder.join("pipe");
    let mut told = BufReader::new(File::options().read(true).write(true).open(&pipe)?);
    fs::rename(&pipe, folder.join(format!("told-{}", std::process::id())))?;
    let mut line = String::new();
    told.read_line(&mut line)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let [seed, time, name, machine, cards @ ..] = &words[..] else {
        return Err("too few words".into());
    };
    reseed::mix(&bytes(seed)?)?;
    set_clock(time)?;
    fs::write("/proc/sys/kernel/hostname", name)?;
    for (file, word) in [
        ("/etc/hostname", name),
        ("/run/hostname", name),
        ("/etc/machine-id", machine),
    ] {
        if Path::new(file).exists() {
            fs::write(file, format!("{word}\n"))?;
        }
    }
    let asked = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    for card in cards.chunks_exact(3) {
        configure(&asked, card[0], card[1], card[2])?;
    }
    Ok(fs::remove_dir_all(folder)?)
}

fn bytes(hex: &str) -> Result<Vec<u8>, std::num::ParseIntError> {
    let pairs = (0..hex.len() / 2).map(|n| hex.get(2 * n..2 * n + 2).unwrap_or_default());
    pairs.map(|pair| u8::from_str_radix(pair, 16)).collect()
}

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanos: i64,
}

#[expect(
    unsafe_code,
    reason = "the library that is used for the rest is built without times"
)]
unsafe extern "C" {
    fn clock_settime(clock: i32, to: *const Timespec) -> i32;
}

#[expect(
    unsafe_code,
    reason = "the library that is used for the rest is built without times"
)]
fn set_clock(time: &str) -> Outcome {
    let since = Duration::from_secs_f64(time.parse()?);
    let to = Timespec {
        seconds: since.as_secs().try_into()?,
        nanos: since.subsec_nanos().into(),
    };
    // SAFETY: it points to a time that outlives the call.
    match unsafe { clock_settime(0, &raw const to) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

fn configure(asked: &OwnedFd, present: &str, mac: &str, address: &str) -> Outcome {
    let card = card_with(&[present, mac]).ok_or_else(|| format!("there is no interface with {present}"))?;
    let name = card
        .file_name()
        .ok_or("it has no name")?
        .to_string_lossy()
        .into_owned();
    let hardware = bytes(&mac.replace(':', ""))?;
    set::<SET_MAC>(asked, request(&name, ETHERNET, &hardware))?;
    let mut flags = request(&name, 0, &[]);
    get_flags(asked, &mut flags)?;
    let up = u16::from_ne_bytes([flags[16], flags[17]]) | IS_UP;
    set::<SET_FLAGS>(asked, request(&name, up, &[]))?;
    let Some((ip, length)) = address.split_once('/') else {
        return Ok(());
    };
    let Ok(ip) = ip.parse::<Ipv4Addr>() else {
        let added = Command::new("ip")
            .args(["addr", "replace", address, "dev", &name])
            .status()?;
        return added
            .success()
            .then_some(())
            .ok_or_else(|| format!("ip: {added}").into());
    };
    let mask = u32::MAX.checked_shl(32 - length.parse::<u32>()?).unwrap_or(0);
    let of_inet = |bits: u32| [&[0; 2], &bits.to_be_bytes()[..]].concat();
    set::<SET_ADDRESS>(asked, request(&name, INET, &of_inet(ip.into())))?;
    set::<SET_NETMASK>(asked, request(&name, INET, &of_inet(mask)))?;
    Ok(())
}

fn card_with(macs: &[&str]) -> Option<PathBuf> {
    let cards = fs::read_dir("/sys/class/net").ok()?.filter_map(Result::ok);
    let mut paths = cards.map(|card| card.path());
    paths.find(|path| fs::read_to_string(path.join("address")).is_ok_and(|mac| macs.contains(&mac.trim())))
}

/// A name, then a number and bytes: a socket's address, or flags.
fn request(name: &str, number: u16, rest: &[u8]) -> Request {
    let mut all = [0; 40];
    let name = &name.as_bytes()[..name.len().min(15)];
    all[..name.len()].copy_from_slice(name);
    all[16..18].copy_from_slice(&number.to_ne_bytes());
    let rest = &rest[..rest.len().min(22)];
    all[18..18 + rest.len()].copy_from_slice(rest);
    all
}

#[expect(unsafe_code, reason = "there is no safe way to make this call")]
fn set<const WHAT: u32>(asked: &OwnedFd, request: Request) -> Result<(), Errno> {
    // SAFETY: these calls read one `struct ifreq`.
    unsafe { ioctl(asked, Setter::<WHAT, Request>::new(request)) }
}

#[expect(unsafe_code, reason = "there is no safe way to make this call")]
fn get_flags(asked: &OwnedFd, request: &mut Request) -> Result<(), Errno> {
    // SAFETY: this call reads and writes one `struct ifreq`.
    unsafe { ioctl(asked, Updater::<GET_FLAGS, Request>::new(request)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_from_pairs_of_digits() {
        assert_eq!(bytes("00ff10"), Ok(vec![0, 255, 16]));
        assert!(bytes("0g").is_err());
    }

    #[test]
    fn a_request_is_laid_out_as_the_kernel_has_it() {
        let all = request("eth0", INET, &[0, 0, 10, 0, 0, 1]);
        assert_eq!(&all[..5], b"eth0\0");
        assert_eq!(all[16..24], [2, 0, 0, 0, 10, 0, 0, 1]);
    }
}
