//! A file on an NFS server, where no datastore is mounted from it: NFS 4.0, by libnfs in a process of its own.
//!
//! **Owns:** the way of that process to the server, and what its words mean.
//!
//! **Does not know:** when it is asked again.
//!
//! **Start here:** [`Nfs::open`]. The program gets no further than to this one: what it says goes on over a connection that was
//! made here, so that the address was checked, and the way out of `sterna up` serves it too.

use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;
use url::Url;

use super::download::{Broken, Opened, SILENCE_DEADLINE};
use super::partial::Begun;
use super::reach::{Reach, final_problem};
use super::source;
use crate::images::confined;

/// Where NFS is spoken.
const PORT: u16 = 2049;
/// How much is read at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// How much of what the program says is looked at.
const SAID_MAX_BYTES: u64 = 4096;
/// What another try does not change, and what to do about it.
const FINAL: [(&str, &str); 8] = [
    ("NFS4ERR_NOENT", "there is no such file: look at the path"),
    ("NFS4ERR_ISDIR", "it is a directory"),
    ("NFS4ERR_NOTDIR", "a part of its path is no directory"),
    ("NFS4ERR_INVAL", "it is not a file"),
    ("NFS4ERR_NAMETOOLONG", "its name is too long"),
    ("NFS4ERR_ACCESS", "it may not be read: let others read it"),
    (
        "NFS4ERR_PERM",
        "it is not given to this machine: look at the export, which has to be `insecure` too, since no privileged port is used",
    ),
    ("NFS4ERR_WRONGSEC", "it is given with Kerberos only"),
];

/// A file that an NFS server gives to others.
pub(super) struct Nfs {
    pub(super) reach: Arc<Reach>,
    pub(super) url: Url,
}

impl Nfs {
    /// Asks for the file from its begin: the program knows no other, and nothing tells it to be the same as before.
    pub(super) async fn open(&self, from: u64) -> Result<Opened, Broken> {
        if from > 0 {
            return Err(Broken::Changed("the rest of it cannot be asked for".to_owned()));
        }
        let opened = timeout(SILENCE_DEADLINE, self.opened()).await;
        opened.unwrap_or_else(|_| Err(Broken::Passing("it did not answer".to_owned())))
    }

    async fn opened(&self) -> Result<Opened, Broken> {
        let server = self.reach.connect_plainly_to(&self.url, PORT).await?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let program = confined::nfs_cat(port, &source::path(&self.url)).await;
        let mut child = program.map_err(Broken::Final)?;
        let output = child
            .stdout
            .take()
            .ok_or_else(|| final_problem("it has no output"))?;
        let mut coming = Coming {
            child,
            output,
            relay: relay(listener, server).boxed(),
            is_relayed: false,
        };
        // Before the first of it nothing shows that there is such a file.
        let first = coming.read().await?;
        if first.is_empty() {
            coming.ended().await?;
        }
        let rest = stream::try_unfold(coming, Coming::next);
        Ok(Opened {
            begun: Begun::default(),
            bytes: stream::iter((!first.is_empty()).then_some(Ok(first)))
                .chain(rest)
                .boxed(),
        })
    }
}

/// Carries the one connection of the program to the server and back.
async fn relay(listener: TcpListener, mut server: TcpStream) {
    if let Ok((mut program, _)) = listener.accept().await {
        drop(listener);
        // Each end sees that it has ended.
        let _ = copy_bidirectional(&mut program, &mut server).await;
    }
}

/// A file that is being read.
struct Coming {
    child: Child,
    output: ChildStdout,
    relay: BoxFuture<'static, ()>,
    is_relayed: bool,
}

impl Coming {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, String> {
        let chunk = self.read().await.map_err(|error| error.to_string())?;
        if chunk.is_empty() {
            return self.ended().await.map(|()| None).map_err(Broken::into_words);
        }
        Ok(Some((chunk, self)))
    }

    /// What comes next; nothing at its end.
    async fn read(&mut self) -> std::io::Result<Bytes> {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        loop {
            tokio::select! {
                read = self.output.read_buf(&mut chunk) => return read.map(|_| chunk.freeze()),
                () = &mut self.relay, if !self.is_relayed => self.is_relayed = true,
            }
        }
    }

    /// Whether that was all, or why there is no more.
    async fn ended(&mut self) -> Result<(), Broken> {
        let mut said = Vec::new();
        if let Some(errors) = self.child.stderr.take() {
            errors.take(SAID_MAX_BYTES).read_to_end(&mut said).await?;
        }
        let status = self.child.wait().await?;
        if status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said);
        // The shells' number for a program that cannot be run.
        if status.code() == Some(127) {
            return Err(Broken::Final(confined::without_nfs_cat(said.trim())));
        }
        let why = FINAL.iter().find(|(word, _)| said.contains(&format!("{word}(")));
        Err(match why {
            Some((word, why)) => final_problem(&format!("{why} ({word})")),
            None => Broken::Passing(said.lines().next().unwrap_or("it ended early").to_owned()),
        })
    }
}
