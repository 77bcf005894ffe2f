//! Owns: the connection to the kernel's netlink; every request with its deadline and its error.
//! Does not know: which links there should be.
//! Start here: [`Netlink::open`].

use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rustix::io::Errno;

use crate::error::NetError;
use crate::names::LinkName;

/// How long a request may take. The kernel answers in well under a millisecond; under load its one lock makes it wait.
const DEADLINE: Duration = Duration::from_secs(5);

/// A connection to the netlink of one network namespace. Clones share it.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
    deadline: Duration,
}

impl Netlink {
    /// Connects to the network namespace of the calling thread. Must be called within a tokio runtime, which keeps the
    /// connection going until the last clone is dropped.
    pub fn open() -> Result<Self, NetError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|error| NetError::new("connect to", "the kernel's netlink", error))?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            deadline: DEADLINE,
        })
    }

    /// The same connection, with another deadline for each request.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Sends a request and waits until it is done.
    pub(crate) async fn send(
        &self,
        attempt: Attempt<'_>,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetError> {
        self.exchange(attempt, message, NLM_F_ACK | flags).await.map(drop)
    }

    /// Asks for everything of a kind.
    pub(crate) async fn dump(
        &self,
        attempt: Attempt<'_>,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetError> {
        self.exchange(attempt, message, NLM_F_DUMP).await
    }

    /// The link of this name, if there is one.
    pub(crate) async fn find(&self, name: &LinkName) -> Result<Option<LinkMessage>, NetError> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_string()));
        let attempt = Attempt {
            what: "look up",
            link: name.as_str(),
        };
        let answer = self
            .exchange(attempt, RouteNetlinkMessage::GetLink(request), 0)
            .await;
        match answer {
            Err(error) if error.is(Errno::NODEV) => Ok(None),
            Err(error) => Err(error),
            Ok(messages) => Ok(messages.into_iter().find_map(into_link)),
        }
    }

    /// The index of a link that must be there.
    pub(crate) async fn index_of(&self, attempt: Attempt<'_>, name: &LinkName) -> Result<u32, NetError> {
        let link = self.find(name).await?;
        link.map(|link| link.header.index)
            .ok_or_else(|| attempt.failed(Errno::NODEV.into()))
    }

    async fn exchange(
        &self,
        attempt: Attempt<'_>,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let collect = async {
            let mut answers = self.handle.clone().request(request).map_err(|_| closed())?;
            let mut inner = Vec::new();
            while let Some(answer) = answers.next().await {
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => inner.push(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    _ => {}
                }
            }
            Ok(inner)
        };
        match tokio::time::timeout(self.deadline, collect).await {
            Ok(done) => done.map_err(|error| attempt.failed(error)),
            Err(_) => Err(NetError::timed_out(attempt.what, attempt.link)),
        }
    }
}

/// The connection's task has ended: with its runtime, or by an error of the socket.
fn closed() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

pub(crate) fn into_link(message: RouteNetlinkMessage) -> Option<LinkMessage> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}

/// What is done to which link, for the error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt<'a> {
    pub(crate) what: &'static str,
    pub(crate) link: &'a str,
}

impl Attempt<'_> {
    pub(crate) fn failed(self, source: io::Error) -> NetError {
        NetError::new(self.what, self.link, source)
    }
}
