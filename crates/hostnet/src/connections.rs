//! Owns: ending the TCP connections of a process from outside, by the kernel's `sock_diag`.
//! Does not know: why.
//! Start here: [`end_connections`].

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_packet_sock_diag::{AF_INET, AF_INET6, IPPROTO_TCP, SockDiagDestroy, SockDiagMessage};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use rtnetlink::proto;
use rtnetlink::sys::SocketAddr;
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;
use rustix::io::Errno;

use crate::error::NetError;

/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Ends every TCP connection of a process with others, in the calling thread's network namespace: for both ends it is as if
/// the other one had reset it, also where that one is not reached any more. What it listens on stays. Answers how many
/// there were.
pub async fn end_connections(pid: u32) -> Result<usize, NetError> {
    let ended = end_all(pid);
    match tokio::time::timeout(DEADLINE, ended).await {
        Ok(ended) => {
            ended.map_err(|error| NetError::new("end", format!("the connections of process {pid}"), error))
        }
        Err(_) => Err(NetError::timed_out(
            "end",
            format!("the connections of process {pid}"),
        )),
    }
}

async fn end_all(pid: u32) -> io::Result<usize> {
    let own = sockets(pid)?;
    let mut count = 0;
    for family in [AF_INET, AF_INET6] {
        for connection in connections(family).await? {
            if own.contains(&connection.header.inode) {
                end(family, connection.header.socket_id).await?;
                count += 1;
            }
        }
    }
    Ok(count)
}

/// The inodes of a process's sockets.
fn sockets(pid: u32) -> io::Result<BTreeSet<u32>> {
    let inode = |link: &str| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?;
    // A file that was closed since has no link any more.
    let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    Ok(links.filter_map(|link| inode(link.to_str()?)).collect())
}

/// All TCP connections of a family.
async fn connections(family: u8) -> io::Result<Vec<InetResponse>> {
    let every = if family == AF_INET {
        SocketId::new_v4()
    } else {
        SocketId::new_v6()
    };
    let states = StateFlags::all() - StateFlags::LISTEN - StateFlags::TIME_WAIT;
    let request = SockDiagMessage::InetRequest(request(family, every, states));
    let answers = exchange(request, NLM_F_DUMP).await?;
    let found = answers.into_iter().filter_map(|answer| match answer {
        SockDiagMessage::InetResponse(found) => Some(*found),
        _ => None,
    });
    Ok(found.collect())
}

/// One that has gone by itself is fine.
async fn end(family: u8, socket: SocketId) -> io::Result<()> {
    let request = SockDiagMessage::InetRequest(request(family, socket, StateFlags::all()));
    match exchange(SockDiagDestroy::new(request), NLM_F_ACK).await {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(()),
        other => other.map(drop),
    }
}

fn request(family: u8, socket_id: SocketId, states: StateFlags) -> InetRequest {
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    }
}

/// Asks on a connection of its own: this is asked once in a long while.
async fn exchange<M>(message: M, flags: u16) -> io::Result<Vec<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable + std::fmt::Debug + Send + Unpin + 'static,
    NetlinkPayload<M>: From<M>,
{
    let (connection, handle, _) = proto::new_connection::<M>(NETLINK_SOCK_DIAG)?;
    let connection = tokio::spawn(connection);
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | flags;
    let kernel = SocketAddr::new(0, 0);
    let mut answers = handle.request(request, kernel).map_err(io::Error::other)?;
    let mut inner = Vec::new();
    let mut failure = None;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => inner.push(message),
            NetlinkPayload::Error(error) if error.code.is_some() => failure = Some(error.to_io()),
            _ => {}
        }
    }
    connection.abort();
    failure.map_or(Ok(inner), Err)
}
