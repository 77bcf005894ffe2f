//! The connection itself: two tasks, a table of pending commands and a channel of events.
//!
//! *Owns:* framing, ids, deadlines, open files that go with a command. *Does not know:* single commands. *Start here:* [`Qmp::connect`], [`read_loop`].

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::timeout;

use super::QmpError;
use crate::json_line::{LineError, LineReader};
use crate::unix_socket;

/// The longest line that is accepted from QEMU. `query-qmp-schema`, the longest answer known, has a fifth of it.
pub const LINE_BYTES_MAX: usize = 2 * 1024 * 1024;
const EVENTS_MAX: usize = 128;
const COMMANDS_QUEUED_MAX: usize = 32;
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// A connection to one monitor. Clones share it.
#[derive(Clone, Debug)]
pub struct Qmp {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Line>,
    deadline: Duration,
    peer_pid: Option<i32>,
}

/// A command on its way.
#[derive(Debug)]
struct Line {
    bytes: Vec<u8>,
    /// Goes with it.
    file: Option<OwnedFd>,
}

/// What is known of an event. No decision may rest on its content: it says "look again".
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The event's name, such as `STOP`; names unknown here pass like any other.
    pub name: String,
    /// Its data, an empty object where it has none.
    pub data: Value,
}

/// What [`Events::next`] gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Hint {
    /// Something happened.
    Event(Event),
    /// The reader was too slow, and this many events are lost: look at everything.
    Lagged(u64),
}

/// The events of one connection, from the moment that this receiver was made.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// The next hint, or `None` when the connection has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Hint> {
        match self.0.recv().await {
            Ok(event) => Some(Hint::Event(event)),
            Err(broadcast::error::RecvError::Lagged(lost)) => Some(Hint::Lagged(lost)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

type Answer = Result<Value, Refusal>;

#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

#[derive(Debug)]
struct Shared {
    next_id: AtomicU64,
    pending: Mutex<Pending>,
}

#[derive(Debug)]
struct Pending {
    answers: BTreeMap<u64, oneshot::Sender<Answer>>,
    /// The only lasting sender of events: dropping it ends every [`Events`].
    events: Option<broadcast::Sender<Event>>,
    closed: Option<String>,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, cause: String) {
        let mut pending = self.pending();
        pending.closed.get_or_insert(cause);
        pending.answers.clear();
        pending.events = None;
    }

    fn closed(&self, command: &str) -> QmpError {
        let cause = self.pending().closed.clone();
        QmpError::Closed {
            command: command.to_owned(),
            cause: cause.unwrap_or_else(|| "the connection was given up".to_owned()),
        }
    }
}

/// Takes a command out of the table when its caller stops waiting, for whatever reason.
struct PendingEntry<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for PendingEntry<'_> {
    fn drop(&mut self) {
        self.shared.pending().answers.remove(&self.id);
    }
}

impl Qmp {
    /// Connects to the monitor at `path` and negotiates. `deadline` bounds this, and each later [`Qmp::execute`].
    /// The events are those from the connection's first instant on.
    pub async fn connect(path: &Path, deadline: Duration) -> Result<(Self, Events), QmpError> {
        let negotiated = timeout(deadline, Self::negotiate(path, deadline)).await;
        negotiated.unwrap_or_else(|_| Err(timed_out("greeting", deadline)))
    }

    async fn negotiate(path: &Path, deadline: Duration) -> Result<(Self, Events), QmpError> {
        let connected = unix_socket::connect(path).await;
        let stream = connected.map_err(|source| QmpError::Connect {
            path: path.to_owned(),
            source,
        })?;
        let peer_pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let (reader, writer) = stream.into_split();
        let mut reader = LineReader::new(reader, LINE_BYTES_MAX);
        read_greeting(&mut reader).await?;
        let (queue, commands) = mpsc::channel(COMMANDS_QUEUED_MAX);
        let (events, first_receiver) = broadcast::channel(EVENTS_MAX);
        let shared = Arc::new(Shared {
            next_id: AtomicU64::new(1),
            pending: Mutex::new(Pending {
                answers: BTreeMap::new(),
                events: Some(events),
                closed: None,
            }),
        });
        let reading = tokio::spawn(read_loop(reader, Arc::clone(&shared)));
        tokio::spawn(write_loop(writer, commands, Arc::clone(&shared), reading));
        let qmp = Self {
            shared,
            queue,
            deadline,
            peer_pid,
        };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok((qmp, Events(first_receiver)))
    }

    /// Executes one command and gives its `return` value. `arguments` is an object, possibly empty.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_within(command, arguments, self.deadline).await
    }

    /// Like [`Qmp::execute`] with a deadline of its own.
    pub async fn execute_within(
        &self,
        command: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let exchanged = timeout(deadline, self.exchange(command, arguments, None)).await;
        exchanged.unwrap_or_else(|_| Err(timed_out(command, deadline)))
    }

    /// Like [`Qmp::execute`], for a command that takes an open file.
    pub(super) async fn execute_with_file(
        &self,
        command: &str,
        arguments: Value,
        file: OwnedFd,
    ) -> Result<Value, QmpError> {
        let exchanged = timeout(self.deadline, self.exchange(command, arguments, Some(file))).await;
        exchanged.unwrap_or_else(|_| Err(timed_out(command, self.deadline)))
    }

    async fn exchange(
        &self,
        command: &str,
        arguments: Value,
        file: Option<OwnedFd>,
    ) -> Result<Value, QmpError> {
        tracing::debug!(command, "qmp");
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let line = json!({"execute": command, "arguments": arguments, "id": id});
        let (sender, answer) = oneshot::channel();
        let entry = PendingEntry {
            shared: &self.shared,
            id,
        };
        {
            let mut pending = self.shared.pending();
            if pending.closed.is_none() {
                pending.answers.insert(id, sender);
            }
        }
        let bytes = format!("{line}\n").into_bytes();
        let sent = self.queue.send(Line { bytes, file }).await;
        sent.map_err(|_| self.shared.closed(command))?;
        let answered = answer.await;
        drop(entry);
        match answered {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Refusal { class, desc })) => Err(QmpError::Command {
                command: command.to_owned(),
                class,
                desc,
            }),
            Err(_) => Err(self.shared.closed(command)),
        }
    }

    /// Another receiver of events, from now on; it ends at once if the connection has ended.
    pub fn events(&self) -> Events {
        let pending = self.shared.pending();
        match &pending.events {
            Some(events) => Events(events.subscribe()),
            None => Events(broadcast::channel(1).1),
        }
    }

    /// The process that listens on the socket, as the kernel knows it.
    pub fn peer_pid(&self) -> Option<i32> {
        self.peer_pid
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.pending().closed.is_some()
    }
}

fn timed_out(command: &str, deadline: Duration) -> QmpError {
    QmpError::Timeout {
        command: command.to_owned(),
        deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
    }
}

async fn read_greeting(reader: &mut LineReader<OwnedReadHalf>) -> Result<(), QmpError> {
    let command = || "greeting".to_owned();
    let protocol = |detail| QmpError::Protocol {
        command: command(),
        detail,
    };
    let line = match reader.next_line().await {
        Ok(Some(line)) => line,
        Err(error @ LineError::TooLong { .. }) => return Err(protocol(error.to_string())),
        Ok(None) => {
            return Err(QmpError::Closed {
                command: command(),
                cause: "QEMU closed the connection".to_owned(),
            });
        }
        Err(error) => {
            return Err(QmpError::Closed {
                command: command(),
                cause: describe(&error),
            });
        }
    };
    let greeting: Value = serde_json::from_slice(&line).map_err(|error| protocol(error.to_string()))?;
    if greeting.get("QMP").is_none() {
        return Err(protocol("the first line is no QMP greeting".to_owned()));
    }
    Ok(())
}

/// Writes whole lines only, so that a caller that gives up never leaves half a command behind. It ends with the reader, or
/// when the last [`Qmp`] is gone, and then takes the reader with it.
async fn write_loop(
    mut writer: OwnedWriteHalf,
    mut commands: mpsc::Receiver<Line>,
    shared: Arc<Shared>,
    mut reading: tokio::task::JoinHandle<()>,
) {
    loop {
        let line = tokio::select! {
            line = commands.recv() => line,
            _ = &mut reading => break,
        };
        let Some(line) = line else { break };
        let written = timeout(WRITE_DEADLINE, write(&mut writer, &line)).await;
        let cause = match written {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => format!("writing to QEMU failed: {error}"),
            Err(_) => "QEMU does not read its monitor".to_owned(),
        };
        shared.close(cause);
        break;
    }
    shared.close("the connection was given up".to_owned());
    reading.abort();
}

async fn write(writer: &mut OwnedWriteHalf, line: &Line) -> io::Result<()> {
    let sent = match &line.file {
        None => 0,
        Some(file) => send_with(writer, &line.bytes, file).await?,
    };
    writer.write_all(&line.bytes[sent..]).await
}

/// The file goes with the first byte. Returns how many went.
async fn send_with(writer: &OwnedWriteHalf, bytes: &[u8], file: &OwnedFd) -> io::Result<usize> {
    let socket = writer.as_ref();
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files = [file.as_fd()];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let data = [IoSlice::new(bytes)];
        Ok(sendmsg(socket, &data, &mut ancillary, SendFlags::NOSIGNAL)?)
    };
    socket.async_io(Interest::WRITABLE, send).await
}

async fn read_loop(mut reader: LineReader<OwnedReadHalf>, shared: Arc<Shared>) {
    let cause = loop {
        let line = match reader.next_line().await {
            Ok(Some(line)) => line,
            Ok(None) => break "QEMU closed the connection".to_owned(),
            Err(error) => break describe(&error),
        };
        let message: Message = match serde_json::from_slice(&line) {
            Ok(message) => message,
            Err(error) => break format!("QEMU sent something that is no QMP: {error}"),
        };
        dispatch(message, &shared);
    };
    shared.close(cause);
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    id: Option<u64>,
    #[serde(default, rename = "return")]
    value: Option<Value>,
    #[serde(default)]
    error: Option<Refusal>,
    #[serde(default)]
    event: Option<String>,
    #[serde(default)]
    data: Option<Value>,
}

fn dispatch(message: Message, shared: &Shared) {
    let mut pending = shared.pending();
    if let Some(name) = message.event {
        let data = message.data.unwrap_or_else(|| json!({}));
        if let Some(events) = &pending.events {
            // No receiver is no error: events are only hints.
            let _ = events.send(Event { name, data });
        }
        return;
    }
    let answer = match message.error {
        Some(refusal) => Err(refusal),
        None => Ok(message.value.unwrap_or(Value::Null)),
    };
    let waiting = message.id.and_then(|id| pending.answers.remove(&id));
    match waiting {
        // The caller may have given up in this instant.
        Some(sender) => drop(sender.send(answer)),
        None => tracing::debug!(id = message.id, "an answer that nobody waits for"),
    }
}

fn describe(error: &LineError) -> String {
    match error {
        LineError::Io(source) => format!("{error}: {source}"),
        LineError::TooLong { .. } | LineError::Torn => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
