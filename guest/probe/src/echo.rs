//! Servers that answer with what they got.

use std::io;
use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use std::thread;

use crate::Outcome;

/// Echoes each TCP connection in a thread of its own, for ever.
pub(crate) fn tcp(port: u16) -> Outcome {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            let mut writer = &stream;
            let mut reader = &stream;
            // A connection that breaks concerns its client only.
            let _ = io::copy(&mut reader, &mut writer);
        });
    }
    Ok(())
}

/// Echoes each datagram, for ever.
pub(crate) fn udp(port: u16) -> Outcome {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let mut datagram = [0; 2048];
    loop {
        // Errors here are a client's (port closed, no route back): there may be others.
        if let Ok((length, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..length], from);
        }
    }
}
