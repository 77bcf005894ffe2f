//! Owns: the system calls that have no safe wrapper.
//! Does not know: why they are called.
//! Start here: each function is on its own; the reason why it is sound stands at its `unsafe`.

#![allow(
    unsafe_code,
    reason = "ioctls of the tun driver, packet sockets' addresses and unshare have no safe wrapper"
)]

use std::fs::File;

use rustix::io::{Errno, Result};
use rustix::ioctl::{IntegerSetter, Opcode, Updater, ioctl, opcode};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::names::LinkName;

// From <linux/if_tun.h>. The sizes in the numbers are those of an int, whatever the argument is.
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<i32>(b'T', 203);
const TUNSETOWNER: Opcode = opcode::write::<i32>(b'T', 204);

/// Ethernet frames, without the driver's own header before them, with virtio's: as QEMU opens it.
const TAP_FLAGS: u16 = 0x0002 | 0x1000 | 0x4000;

/// `struct ifreq`, with the flags as the union's member.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Makes `tun`, an open `/dev/net/tun`, stand for the tap of this name, which is made if it is not there.
pub(crate) fn tap_attach(tun: &File, name: &LinkName) -> Result<()> {
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: TAP_FLAGS,
        rest: [0; 22],
    };
    for (to, from) in request.name.iter_mut().zip(name.as_str().bytes()) {
        *to = from;
    }
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq` (40 bytes on Linux), which `InterfaceRequest` is; names have at
    // most 15 bytes, so that the last one is 0.
    unsafe { ioctl(tun, Updater::<TUNSETIFF, _>::new(&mut request)) }
}

/// Lets the tap outlive the file.
pub(crate) fn tap_persist(tun: &File) -> Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument as a number, not as an address.
    unsafe { ioctl(tun, IntegerSetter::<TUNSETPERSIST>::new_usize(1)) }
}

/// Lets a user without rights attach to the tap.
pub(crate) fn tap_set_owner(tun: &File, uid: u32) -> Result<()> {
    let uid = usize::try_from(uid).map_err(|_| Errno::RANGE)?;
    // SAFETY: TUNSETOWNER takes its argument as a number, not as an address.
    unsafe { ioctl(tun, IntegerSetter::<TUNSETOWNER>::new_usize(uid)) }
}

/// Moves the calling thread into a new network namespace.
pub(crate) fn unshare_network() -> Result<()> {
    // SAFETY: only CLONE_FILES can take descriptors away from other threads, and it is not among the flags.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}

/// Moves the process, which must have one thread only, into a new user namespace and a new network namespace of it.
pub(crate) fn unshare_user_and_network() -> Result<()> {
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) }
}

/// `struct sockaddr_ll`: where a packet socket sends its frame.
#[repr(C)]
pub(crate) struct LinkAddress {
    family: u16,
    protocol: u16,
    index: i32,
    hardware_type: u16,
    packet_type: u8,
    address_len: u8,
    address: [u8; 8],
}

impl LinkAddress {
    /// The interface with this index; the frame brings its own header.
    pub(crate) fn new(index: i32) -> Self {
        let family = rustix::net::AddressFamily::PACKET.as_raw();
        Self {
            family,
            protocol: 0,
            index,
            hardware_type: 0,
            packet_type: 0,
            address_len: 6,
            address: [0xff; 8],
        }
    }
}

// SAFETY: the pointer is that of a whole `struct sockaddr_ll` (20 bytes), alive until `f` has returned.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        const LEN: SocketAddrLen = size_of::<LinkAddress>() as SocketAddrLen;
        f(std::ptr::from_ref(self).cast(), LEN)
    }
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40 && size_of::<LinkAddress>() == 20);
