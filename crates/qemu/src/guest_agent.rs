//! A client of the guest agent (qemu-ga) over its unix socket.
//!
//! *Owns:* finding the beginning of the conversation again, bounds in size and time, the shapes of the answers used.
//! *Does not know:* VMs or retries. *Start here:* [`GuestAgent::connect`], then [`GuestAgent::execute`].
//!
//! The other side is the guest: it may send anything, at any speed, or nothing. So there is one command at a time, each call
//! has a deadline and a bound, and after any failure the next call first finds the conversation again: a byte 0xFF, which
//! ends whatever the agent was parsing, then `guest-sync-delimited` with a number that was never used before; all up to the
//! 0xFF before the answer with that number is thrown away. Texts from the guest are data: whoever shows them escapes them.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use crate::json_line::{LineError, LineReader};
use crate::unix_socket;

/// The longest answer that is accepted from a guest; it bounds the output of a command run in it, too.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// How many answers that belong to nothing are skipped before giving up.
const STALE_ANSWERS_MAX: usize = 64;
const DELIMITER: u8 = 0xFF;
const INTERFACES_MAX: usize = 64;
const ADDRESSES_MAX: usize = 256;

/// Why the guest agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum GuestAgentError {
    /// The socket could not be connected to.
    #[error("cannot connect to the guest agent's socket {}: is its QEMU running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// No answer in time: the guest has no agent, has not booted yet, or is too busy.
    #[error("the guest agent did not answer `{command}` within {deadline_ms} ms")]
    Timeout {
        /// The command's name.
        command: String,
        /// How long it was waited for.
        deadline_ms: u64,
    },
    /// The agent refused the command.
    #[error("the guest agent refused `{command}`: {desc}")]
    Command {
        /// The command's name.
        command: String,
        /// Its words.
        desc: String,
    },
    /// The guest sent what is no answer.
    #[error("the guest sent no readable answer to `{command}`: {detail}")]
    Garbage {
        /// The command's name.
        command: String,
        /// What is wrong with it.
        detail: String,
    },
    /// QEMU closed the socket.
    #[error("the guest agent's socket closed before `{command}` was answered")]
    Closed {
        /// The command's name.
        command: String,
    },
}

/// A connection to one guest's agent. QEMU serves one client at a time.
#[derive(Debug)]
pub struct GuestAgent {
    reader: LineReader<UnixStream>,
    deadline: Duration,
    next_sync: u64,
    conversation: Conversation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conversation {
    InSync,
    Lost,
}

/// An interface of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name in the guest.
    pub name: String,
    /// Its hardware address in the guest's spelling, if it has one.
    pub mac: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// How a command in the guest ended, or that it still runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecStatus {
    /// Not ended yet.
    Running,
    /// Ended.
    Ended(ExecOutput),
}

/// The end of a command in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit code, if it was not ended by a signal.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it printed on standard error.
    pub stderr: Vec<u8>,
}

/// How to end a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownMode {
    /// Off.
    Powerdown,
    /// Off, then on.
    Reboot,
}

/// The guest's operating system; all of it as the guest says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct OsInfo {
    /// Such as `debian`.
    pub id: Option<String>,
    /// Such as `Debian GNU/Linux 13 (trixie)`.
    pub pretty_name: Option<String>,
    /// The kernel's release.
    pub kernel_release: Option<String>,
    /// Such as `x86_64`.
    pub machine: Option<String>,
}

impl GuestAgent {
    /// Connects to the socket at `path`, which succeeds with or without an agent in the guest. `deadline` bounds each call.
    /// `nonce` begins the numbers by which answers are recognised: a random one that earlier connections did not use.
    pub async fn connect(
        path: &Path,
        deadline: Duration,
        nonce: u32,
    ) -> Result<Self, GuestAgentError> {
        let connected = unix_socket::connect(path).await;
        let stream = connected.map_err(|source| GuestAgentError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            reader: LineReader::new(stream, ANSWER_BYTES_MAX),
            deadline,
            // The agent answers with a signed number of 64 bits.
            next_sync: u64::from(nonce) << 31,
            conversation: Conversation::Lost,
        })
    }

    /// Executes one command and gives its `return` value.
    pub async fn execute(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<Value, GuestAgentError> {
        let until = Instant::now() + self.deadline;
        self.bounded(command, until, async |agent: &mut Self| {
            agent.synchronize(command).await?;
            agent.send(command, &arguments).await?;
            agent.answer(command).await
        })
        .await
    }

    /// Runs `call`; unless it ends well, the conversation counts as lost, also when this future is dropped half-way.
    async fn bounded<T>(
        &mut self,
        command: &str,
        until: Instant,
        call: impl AsyncFnOnce(&mut Self) -> Result<T, GuestAgentError>,
    ) -> Result<T, GuestAgentError> {
        let before = std::mem::replace(&mut self.conversation, Conversation::Lost);
        let deadline = self.deadline;
        if before == Conversation::Lost {
            self.reader.clear();
        }
        let attempt = async {
            if before == Conversation::InSync {
                self.conversation = Conversation::InSync;
            }
            let result = call(self).await;
            let is_answer = matches!(result, Ok(_) | Err(GuestAgentError::Command { .. }));
            if !is_answer {
                self.conversation = Conversation::Lost;
            }
            result
        };
        let ended = timeout_at(until, attempt).await;
        ended.unwrap_or_else(|_| {
            Err(GuestAgentError::Timeout {
                command: command.to_owned(),
                deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
            })
        })
    }
}
