//! Connections out of a network namespace from which nothing is reached: made by a process that stayed outside.
//!
//! **Owns:** both ends of it: what is asked over a socket file, and the open connection that comes back as a descriptor.
//!
//! **Does not know:** which addresses are allowed: whoever asks has checked them.
//!
//! **Start here:** [`serve`] for the outside, [`Outlet`] for the inside. A connection to the socket is one question, a line.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// How long a connection may take; whoever asks waits a little longer.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const ANSWER_DEADLINE: Duration = Duration::from_secs(12);
/// The longest line, either way.
const LINE_MAX_BYTES: usize = 4096;
/// Before a connection that is handed over, and before the reason why there is none.
const DONE: &str = "done ";
const FAILED: &str = "failed ";

/// Answers until the listener breaks.
pub fn serve(listener: &UnixListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        std::thread::spawn(move || {
            // Whoever asked sees that there is no answer.
            let _ = answer(stream);
        });
    }
}

/// Listens at a path, however long it is.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    in_directory(path, |short| UnixListener::bind(short))
}

/// A socket's path has at most 107 bytes.
fn in_directory<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = std::fs::File::open(directory)?;
    let short = format!("/proc/self/fd/{}", directory.as_raw_fd());
    act(&Path::new(&short).join(name))
}

fn answer(mut stream: UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    let mut line = String::new();
    BufReader::new((&stream).take(LINE_MAX_BYTES as u64)).read_line(&mut line)?;
    let done = match line.trim_end().split_once(' ') {
        Some(("resolve", name)) => resolve(name).map(|all| (all, None)),
        Some(("connect", address)) => connect(address).map(|made| (String::new(), Some(made))),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    match done {
        Ok((text, None)) => say(&mut stream, DONE, &text),
        Ok((_, Some(made))) => hand_over(&stream, &made),
        Err(error) => say(&mut stream, FAILED, &error.to_string()),
    }
}

/// A line in one piece, as it is heard.
fn say(stream: &mut UnixStream, what: &str, text: &str) -> io::Result<()> {
    stream.write_all(format!("{what}{text}\n").as_bytes())
}

fn resolve(name: &str) -> io::Result<String> {
    let found: Vec<String> = (name, 0)
        .to_socket_addrs()?
        .map(|address| address.ip().to_string())
        .collect();
    Ok(found.join(" "))
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let address: SocketAddr = address.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
    TcpStream::connect_timeout(&address, CONNECT_DEADLINE)
}

fn hand_over(stream: &UnixStream, made: &TcpStream) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = [made.as_fd()];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let line = format!("{DONE}\n");
    sendmsg(
        stream,
        &[IoSlice::new(line.as_bytes())],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// The way out.
#[derive(Debug, Clone)]
pub struct Outlet(PathBuf);

impl Outlet {
    /// By the socket at this path.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The addresses of a name, as they are outside.
    pub(super) async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let (text, _) = self.ask(format!("resolve {name}\n")).await?;
        Ok(text
            .split_whitespace()
            .filter_map(|address| address.parse().ok())
            .collect())
    }

    /// A connection from outside.
    pub(super) async fn connect(&self, address: SocketAddr) -> io::Result<tokio::net::TcpStream> {
        let (_, made) = self.ask(format!("connect {address}\n")).await?;
        let made = made.ok_or(io::ErrorKind::UnexpectedEof)?;
        made.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(made)
    }

    async fn ask(&self, question: String) -> io::Result<(String, Option<TcpStream>)> {
        let path = self.0.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let mut stream = in_directory(&path, |short| UnixStream::connect(short))?;
            stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
            stream.write_all(question.as_bytes())?;
            hear(&stream)
        });
        asked.await.map_err(io::Error::other)?
    }
}

/// The answer, with the connection that may come with it. What is a line is sent at once.
fn hear(stream: &UnixStream) -> io::Result<(String, Option<TcpStream>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut line = vec![0; LINE_MAX_BYTES];
    let heard = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut line)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut made = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            made = files.last().map(TcpStream::from);
        }
    }
    let text = String::from_utf8_lossy(line.get(..heard.bytes).unwrap_or_default()).into_owned();
    match text.strip_prefix(DONE) {
        Some(text) => Ok((text.to_owned(), made)),
        None => Err(io::Error::other(
            text.strip_prefix(FAILED).unwrap_or("no answer").trim().to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_connections_come_from_outside() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("outlet");
        let listener = listen(&path).unwrap();
        std::thread::spawn(move || serve(&listener));
        let outlet = Outlet::at(path);
        let there = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = there.local_addr().unwrap();
        let made = outlet.connect(address).await.unwrap();
        let (_, from) = there.accept().unwrap();
        assert_eq!(made.local_addr().unwrap(), from);
        assert!(
            outlet
                .resolve("localhost")
                .await
                .unwrap()
                .iter()
                .any(IpAddr::is_loopback)
        );
        drop(there);
        let refused = outlet.connect(address).await.unwrap_err().to_string();
        assert!(refused.contains("refused"), "{refused}");
        assert!(outlet.resolve("no such name").await.is_err());
    }
}
