//! Owns: the frames that tell a network where an address is now.
//! Does not know: why it moved.
//! Start here: [`Netlink::announce`].

use std::net::Ipv4Addr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sendto, socket_with};

use crate::error::NetError;
use crate::names::{LinkName, Mac};
use crate::netlink::{Attempt, Netlink};
use crate::sys::LinkAddress;

const BROADCAST: Mac = Mac([0xff; 6]);
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
const ARP_REQUEST: u16 = 1;
const RARP_REQUEST: u16 = 3;

impl Netlink {
    /// Says on a link (the bridge of a network: all of its ports, tunnel included) that an address is reached this way: a
    /// reverse ARP request, as hypervisors send it, and a gratuitous ARP request if the IP address is known.
    pub async fn announce(&self, link: &LinkName, mac: Mac, ip: Option<Ipv4Addr>) -> Result<(), NetError> {
        let attempt = Attempt {
            what: "announce an address on",
            link: link.as_str(),
        };
        let index = self.index_of(attempt, link).await?;
        let index = i32::try_from(index).map_err(|_| attempt.failed(Errno::RANGE.into()))?;
        let send = |frame: &[u8]| send_frame(index, frame).map_err(|errno| attempt.failed(errno.into()));
        send(&frame(
            ETHERTYPE_RARP,
            RARP_REQUEST,
            mac,
            mac,
            Ipv4Addr::UNSPECIFIED,
        ))?;
        ip.map_or(Ok(()), |ip| {
            send(&frame(ETHERTYPE_ARP, ARP_REQUEST, mac, Mac([0; 6]), ip))
        })
    }
}

fn send_frame(index: i32, frame: &[u8]) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // With no protocol it receives nothing.
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    sendto(&socket, frame, SendFlags::empty(), &LinkAddress::new(index)).map(drop)
}

/// An ARP packet (RFC 826, RFC 903) in a broadcast frame, padded to the shortest that Ethernet has.
fn frame(ethertype: u16, operation: u16, sender: Mac, target: Mac, ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(60);
    frame.extend(BROADCAST.0);
    frame.extend(sender.0);
    frame.extend(ethertype.to_be_bytes());
    frame.extend([0, 1, 8, 0, 6, 4]); // Ethernet and IPv4, with addresses of 6 and 4 bytes
    frame.extend(operation.to_be_bytes());
    for mac in [sender, target] {
        frame.extend(mac.0);
        frame.extend(ip.octets());
    }
    frame.resize(60, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gratuitous_arp_names_its_sender_twice() {
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let frame = frame(
            ETHERTYPE_ARP,
            ARP_REQUEST,
            mac,
            Mac([0; 6]),
            Ipv4Addr::new(10, 0, 0, 7),
        );
        assert_eq!(frame.len(), 60);
        assert_eq!(
            frame[..14],
            [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 9, 8, 6]
        );
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(
            frame[22..42],
            [2, 0, 0, 0, 0, 9, 10, 0, 0, 7, 0, 0, 0, 0, 0, 0, 10, 0, 0, 7]
        );
    }
}
