//! How much of a migration's stream the kernel holds between the two QEMUs, and for how long it may lie there.
//!
//! *Owns:* these settings of QEMU's own sockets, made from outside: QEMU has none for them.
//!
//! *Does not know:* when a transfer begins or ends.
//!
//! *Start here:* [`bound_listener`] for the target, before the source connects; [`bound_stream`] for the source.
//!
//! The kernel lets the buffers of a fast connection grow to several MiB. A source counts what lies in them as sent, so a
//! target that is slower than the link (it decrypts, and touches its memory for the first time) is that far behind when
//! the source stops the guest, and the guest waits until it has caught up: up to 200 ms, measured. With small buffers the
//! target is never behind by more than milliseconds, and on the links of a data centre they carry as much.
//!
//! A source sends its last part with its main loop in the same place. On a link that is cut it waits there, its guest stands
//! still and no monitor answers, until the kernel gives the connection up: by itself after a quarter of an hour.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{SocketAddrAny, getpeername, getsockname, sockopt};

use crate::spawn::QemuProcess;

/// How long what was sent may be without an acknowledgement, or without room at the other end.
const SILENCE_MAX_MS: u32 = 10_000;

/// Bounds what a target takes ahead of its QEMU, if a size is given, and for how long its source may be silent: the
/// connection inherits it from the socket that QEMU listens on. Says whether there is one.
pub fn bound_listener(process: &QemuProcess, address: SocketAddr, bytes: Option<usize>) -> io::Result<bool> {
    let listens = |socket: &OwnedFd| {
        let is_listening = sockopt::socket_acceptconn(socket).unwrap_or(false);
        is_listening && is_address(getsockname(socket).ok(), address)
    };
    bound(process, bytes, listens)
}

/// Bounds what a source sends ahead of the link, if a size is given, and for how long the link may be silent. Says whether
/// it is connected to that address.
pub fn bound_stream(process: &QemuProcess, to: SocketAddr, bytes: Option<usize>) -> io::Result<bool> {
    bound(process, bytes, |socket| {
        is_address(getpeername(socket).ok().flatten(), to)
    })
}

/// The kernel doubles the size, for its own book-keeping.
fn bound(
    process: &QemuProcess,
    bytes: Option<usize>,
    is_meant: impl Fn(&OwnedFd) -> bool,
) -> io::Result<bool> {
    let sockets: Vec<_> = process.sockets()?.into_iter().filter(is_meant).collect();
    for socket in &sockets {
        sockopt::set_tcp_user_timeout(socket, SILENCE_MAX_MS)?;
        let Some(bytes) = bytes else { continue };
        sockopt::set_socket_recv_buffer_size(socket, bytes)?;
        sockopt::set_socket_send_buffer_size(socket, bytes)?;
        // The end of a stream is small, and is not to wait for a full packet.
        sockopt::set_tcp_nodelay(socket, true)?;
    }
    Ok(!sockets.is_empty())
}

fn is_address(name: Option<SocketAddrAny>, address: SocketAddr) -> bool {
    name.is_some_and(|name| SocketAddr::try_from(name).is_ok_and(|name| name == address))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const BYTES: usize = 100_000;

    #[test]
    fn connections_are_bounded_from_outside_and_inherit_it_from_who_listens() {
        let me = QemuProcess::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(bound_listener(&me, address, Some(BYTES)).unwrap());
        let stream = TcpStream::connect(address).unwrap();
        let (taken, _) = listener.accept().unwrap();
        let before = sockopt::socket_send_buffer_size(&stream).unwrap();
        assert!(bound_stream(&me, address, Some(BYTES)).unwrap());
        assert_eq!(sockopt::socket_recv_buffer_size(&taken).unwrap(), 2 * BYTES);
        assert_eq!(sockopt::socket_send_buffer_size(&stream).unwrap(), 2 * BYTES);
        assert_ne!(before, 2 * BYTES);
        let silence_ms = |stream: &TcpStream| sockopt::tcp_user_timeout(stream).unwrap();
        assert_eq!([silence_ms(&taken), silence_ms(&stream)], [SILENCE_MAX_MS; 2]);
        assert!(sockopt::tcp_nodelay(&taken).unwrap() && sockopt::tcp_nodelay(&stream).unwrap());
        assert_ne!(sockopt::socket_recv_buffer_size(&other).unwrap(), 2 * BYTES);
    }
}
