//! A client of the guest agent (qemu-ga) over its unix socket.
//!
//! *Owns:* finding the beginning of the conversation again, bounds in size and time, the shapes of the answers used.
//! *Does not know:* VMs or retries. *Start here:* [`GuestAgent::connect`], then [`GuestAgent::execute`].
//!
//! The other side is the guest: it may send anything, at any speed, or nothing. So there is one command at a time, each call
//! has a deadline and a bound, and after any failure the next call first finds the conversation again: a byte 0xFF, which
//! ends whatever the agent was parsing, then `guest-sync-delimited` with a number that was never used before; all up to the
//! 0xFF before the answer with that number is thrown away. Texts from the guest are data: whoever shows them escapes them.

use std::collections::BTreeMap;
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
use tokio::time::timeout;

use crate::json_line::{LineError, LineReader};
use crate::unix_socket;

/// The longest answer that is accepted from a guest; it bounds the output of a command run in it, too.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// How many answers that belong to nothing are skipped before giving up.
const STALE_ANSWERS_MAX: usize = 64;
const DELIMITER: u8 = 0xFF;
const INTERFACES_MAX: usize = 64;
const ADDRESSES_MAX: usize = 256;
/// How long a guest may take to write out what it has not written yet, and to freeze.
const FREEZE_DEADLINE: Duration = Duration::from_secs(8);
/// How much longer a command may take for each KiB of its input: a guest may be emulated, and busy.
const INPUT_PATIENCE: Duration = Duration::from_millis(20);
/// How long a refusal to shut down is waited for.
const SHUTDOWN_REFUSAL_WAIT: Duration = Duration::from_millis(500);

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

const SYNC: &str = "guest-sync-delimited";

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

impl ExecOutput {
    /// How it ended, and the last that it said, for people: with what the guest could have sent to a terminal escaped.
    pub fn complaint(&self) -> String {
        let status = self
            .exit_code
            .map_or("no status".to_owned(), |code| format!("status {code}"));
        let said = String::from_utf8_lossy(&self.stderr);
        let said = said
            .lines()
            .next_back()
            .unwrap_or("it printed nothing")
            .escape_debug();
        format!("it ended with {status}: {said}")
    }
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
    pub async fn connect(path: &Path, deadline: Duration, nonce: u32) -> Result<Self, GuestAgentError> {
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

    /// Bounds each call by this from now on.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Executes one command and gives its `return` value.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, GuestAgentError> {
        self.execute_within(command, arguments, self.deadline).await
    }

    async fn execute_within(
        &mut self,
        command: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, GuestAgentError> {
        // Lost until the answer is there, also when this future is dropped half-way.
        let before = std::mem::replace(&mut self.conversation, Conversation::Lost);
        let exchange = self.exchange(before, command, arguments);
        let result = timeout(deadline, exchange).await;
        let result = result.unwrap_or_else(|_| Err(too_late(command, deadline)));
        if matches!(result, Ok(_) | Err(GuestAgentError::Command { .. })) {
            self.conversation = Conversation::InSync;
        }
        result
    }

    async fn exchange(
        &mut self,
        before: Conversation,
        command: &str,
        arguments: Value,
    ) -> Result<Value, GuestAgentError> {
        if before == Conversation::Lost {
            self.synchronize(command).await?;
        }
        let request = json!({"execute": command, "arguments": arguments});
        self.send(command, format!("{request}\n").as_bytes()).await?;
        let line = read(command, self.reader.next_line().await)?;
        let answer: Answer = parse(command, &line)?;
        match answer {
            Answer::Return(value) => Ok(value),
            Answer::Error { desc } => Err(GuestAgentError::Command {
                command: command.to_owned(),
                desc,
            }),
        }
    }

    async fn synchronize(&mut self, command: &str) -> Result<(), GuestAgentError> {
        self.reader.clear();
        self.next_sync += 1;
        let id = self.next_sync;
        let request = json!({"execute": SYNC, "arguments": {"id": id}});
        let mut bytes = vec![DELIMITER];
        bytes.extend_from_slice(format!("{request}\n").as_bytes());
        self.send(command, &bytes).await?;
        for _ in 0..STALE_ANSWERS_MAX {
            read(command, self.reader.next_until(DELIMITER).await)?;
            let line = read(command, self.reader.next_line().await)?;
            let answer = parse(command, &line);
            if answer.is_ok_and(|answer| answer == Answer::Return(json!(id))) {
                return Ok(());
            }
        }
        Err(GuestAgentError::Garbage {
            command: command.to_owned(),
            detail: format!("{STALE_ANSWERS_MAX} answers to questions of before"),
        })
    }

    async fn send(&mut self, command: &str, bytes: &[u8]) -> Result<(), GuestAgentError> {
        let written = self.reader.stream_mut().write_all(bytes).await;
        written.map_err(|_| GuestAgentError::Closed {
            command: command.to_owned(),
        })
    }

    async fn query<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<T, GuestAgentError> {
        let value = self.execute(command, arguments).await?;
        serde_json::from_value(value).map_err(|error| garbage(command, &error))
    }

    /// Whether an agent answers: the guest is ready. Finding the conversation is answer enough.
    pub async fn ping(&mut self) -> Result<(), GuestAgentError> {
        self.conversation = Conversation::Lost;
        let deadline = self.deadline;
        let found = timeout(deadline, self.synchronize(SYNC)).await;
        found.unwrap_or_else(|_| Err(too_late(SYNC, deadline)))?;
        self.conversation = Conversation::InSync;
        Ok(())
    }

    /// The guest's interfaces and addresses, the loopback included; at most 64 with 256 addresses in all.
    pub async fn network_interfaces(&mut self) -> Result<Vec<Interface>, GuestAgentError> {
        let command = "guest-network-get-interfaces";
        let wire: Vec<WireInterface> = self.query(command, json!({})).await?;
        let mut addresses_left = ADDRESSES_MAX;
        let mut interfaces = Vec::new();
        for interface in wire.into_iter().take(INTERFACES_MAX) {
            let texts = interface.addresses.iter().take(addresses_left);
            let parsed = texts.filter_map(|address| address.text.parse().ok());
            let addresses: Vec<IpAddr> = parsed.collect();
            addresses_left -= addresses.len();
            interfaces.push(Interface {
                name: interface.name,
                mac: interface.mac,
                addresses,
            });
        }
        Ok(interfaces)
    }

    /// For how long the guest has been up, as the times of its first processor add up: less than by the clock, if it
    /// stood still or lacked its share.
    pub async fn up_ms(&mut self) -> Result<u64, GuestAgentError> {
        let times: Vec<CpuTimes> = self.query("guest-get-cpustats", json!({})).await?;
        Ok(times.first().map_or(0, CpuTimes::sum_ms))
    }

    /// Has the guest write out its file systems and freeze them; says how many. Whatever the answer, it may be frozen then:
    /// [`GuestAgent::thaw`] it.
    pub async fn freeze(&mut self) -> Result<u64, GuestAgentError> {
        let command = "guest-fsfreeze-freeze";
        let value = self.execute_within(command, json!({}), FREEZE_DEADLINE).await?;
        serde_json::from_value(value).map_err(|error| garbage(command, &error))
    }

    /// Has the guest go on with its file systems, also if they are not frozen.
    pub async fn thaw(&mut self) -> Result<(), GuestAgentError> {
        let command = "guest-fsfreeze-thaw";
        self.execute_within(command, json!({}), FREEZE_DEADLINE)
            .await
            .map(drop)
    }

    /// Whether the guest's file systems are frozen.
    pub async fn is_frozen(&mut self) -> Result<bool, GuestAgentError> {
        let status: String = self.query("guest-fsfreeze-status", json!({})).await?;
        Ok(status == "frozen")
    }

    /// Asks the guest to end. The agent does not answer when it obeys, so silence and a closed socket are success; that the
    /// guest is off is seen by QMP.
    pub async fn shutdown(&mut self, mode: ShutdownMode) -> Result<(), GuestAgentError> {
        self.ping().await?;
        let mode = match mode {
            ShutdownMode::Powerdown => "powerdown",
            ShutdownMode::Reboot => "reboot",
        };
        let arguments = json!({"mode": mode});
        let answered = self.execute_within("guest-shutdown", arguments, SHUTDOWN_REFUSAL_WAIT);
        match answered.await {
            Ok(_) | Err(GuestAgentError::Timeout { .. } | GuestAgentError::Closed { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The agent's commands, and whether each may be used.
    pub async fn commands(&mut self) -> Result<BTreeMap<String, bool>, GuestAgentError> {
        #[derive(Deserialize)]
        struct Info {
            supported_commands: Vec<Command>,
        }
        #[derive(Deserialize)]
        struct Command {
            name: String,
            enabled: bool,
        }
        let info: Info = self.query("guest-info", json!({})).await?;
        let commands = info.supported_commands.into_iter();
        Ok(commands.map(|one| (one.name, one.enabled)).collect())
    }

    /// Starts a command in the guest, with its output kept there; gives its number for [`GuestAgent::exec_status`].
    pub async fn exec(&mut self, program: &str, arguments: &[&str]) -> Result<i64, GuestAgentError> {
        self.exec_with(program, arguments, "").await
    }

    /// The same with this, in Base64, on its standard input. It comes to the guest in one message, so the command is either
    /// not started or gets all of it.
    pub async fn exec_with(
        &mut self,
        program: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<i64, GuestAgentError> {
        #[derive(Deserialize)]
        struct Started {
            pid: i64,
        }
        let command = "guest-exec";
        let mut arguments = json!({"path": program, "arg": arguments, "capture-output": true});
        if !input.is_empty() {
            arguments["input-data"] = input.into();
        }
        let patience = self.deadline
            + INPUT_PATIENCE.saturating_mul(u32::try_from(input.len() >> 10).unwrap_or(u32::MAX));
        let value = self.execute_within(command, arguments, patience).await?;
        let started: Started = serde_json::from_value(value).map_err(|error| garbage(command, &error))?;
        Ok(started.pid)
    }

    /// Sets a user's password, given in Base64.
    pub async fn set_user_password(&mut self, user: &str, password: &str) -> Result<(), GuestAgentError> {
        let arguments = json!({"username": user, "password": password, "crypted": false});
        self.execute("guest-set-user-password", arguments).await.map(drop)
    }

    /// Lets the owners of these public keys log in as a user, beside those who may already.
    pub async fn add_ssh_keys(&mut self, user: &str, keys: &[String]) -> Result<(), GuestAgentError> {
        let arguments = json!({"username": user, "keys": keys, "reset": false});
        let command = "guest-ssh-add-authorized-keys";
        self.execute(command, arguments).await.map(drop)
    }

    /// How a command started by [`GuestAgent::exec`] is getting on. The agent forgets it once its end was told.
    pub async fn exec_status(&mut self, pid: i64) -> Result<ExecStatus, GuestAgentError> {
        let command = "guest-exec-status";
        let wire: WireExecStatus = self.query(command, json!({"pid": pid})).await?;
        if !wire.exited {
            return Ok(ExecStatus::Running);
        }
        let decode = |text: Option<String>| {
            let decoded = STANDARD.decode(text.unwrap_or_default());
            decoded.map_err(|error| garbage(command, &error))
        };
        Ok(ExecStatus::Ended(ExecOutput {
            exit_code: wire.exit_code,
            signal: wire.signal,
            stdout: decode(wire.out_data)?,
            stderr: decode(wire.err_data)?,
        }))
    }

    /// Opens a file in the guest, with a mode of C's `fopen`; gives its number for the next two.
    pub async fn file_open(&mut self, path: &str, mode: &str) -> Result<i64, GuestAgentError> {
        self.query("guest-file-open", json!({"path": path, "mode": mode}))
            .await
    }

    /// Writes to a file that is open. The guest may have it no sooner than when it is closed.
    pub async fn file_write(&mut self, file: i64, bytes: &[u8]) -> Result<(), GuestAgentError> {
        let arguments = json!({"handle": file, "buf-b64": STANDARD.encode(bytes)});
        self.execute("guest-file-write", arguments).await.map(drop)
    }

    /// Closes a file that is open.
    pub async fn file_close(&mut self, file: i64) -> Result<(), GuestAgentError> {
        let arguments = json!({"handle": file});
        self.execute("guest-file-close", arguments).await.map(drop)
    }

    /// The guest's operating system.
    pub async fn os_info(&mut self) -> Result<OsInfo, GuestAgentError> {
        self.query("guest-get-osinfo", json!({})).await
    }

    /// The guest's own name.
    pub async fn host_name(&mut self) -> Result<String, GuestAgentError> {
        #[derive(Deserialize)]
        struct HostName {
            #[serde(rename = "host-name")]
            host_name: String,
        }
        let answer: HostName = self.query("guest-get-host-name", json!({})).await?;
        Ok(answer.host_name)
    }
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Return(Value),
    Error { desc: String },
}

#[derive(Deserialize)]
struct WireInterface {
    name: String,
    #[serde(default, rename = "hardware-address")]
    mac: Option<String>,
    #[serde(default, rename = "ip-addresses")]
    addresses: Vec<WireAddress>,
}

#[derive(Deserialize)]
struct WireAddress {
    #[serde(rename = "ip-address")]
    text: String,
}

/// What a processor has done since the boot, in milliseconds.
#[derive(Default, Deserialize)]
#[serde(default)]
struct CpuTimes {
    user: u64,
    nice: u64,
    system: u64,
    idle: u64,
    iowait: u64,
    irq: u64,
    softirq: u64,
    steal: u64,
}

impl CpuTimes {
    fn sum_ms(&self) -> u64 {
        [
            self.user,
            self.nice,
            self.system,
            self.idle,
            self.iowait,
            self.irq,
            self.softirq,
            self.steal,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }
}

#[derive(Deserialize)]
struct WireExecStatus {
    exited: bool,
    #[serde(default, rename = "exitcode")]
    exit_code: Option<i32>,
    #[serde(default)]
    signal: Option<i32>,
    #[serde(default, rename = "out-data")]
    out_data: Option<String>,
    #[serde(default, rename = "err-data")]
    err_data: Option<String>,
}

fn read(command: &str, line: Result<Option<Vec<u8>>, LineError>) -> Result<Vec<u8>, GuestAgentError> {
    match line {
        Ok(Some(line)) => Ok(line),
        Err(error @ LineError::TooLong { .. }) => Err(garbage(command, &error)),
        Ok(None) | Err(LineError::Torn | LineError::Io(_)) => Err(GuestAgentError::Closed {
            command: command.to_owned(),
        }),
    }
}

fn parse(command: &str, line: &[u8]) -> Result<Answer, GuestAgentError> {
    serde_json::from_slice(line).map_err(|error| garbage(command, &error))
}

fn too_late(command: &str, deadline: Duration) -> GuestAgentError {
    GuestAgentError::Timeout {
        command: command.to_owned(),
        deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
    }
}

fn garbage(command: &str, error: &dyn std::error::Error) -> GuestAgentError {
    GuestAgentError::Garbage {
        command: command.to_owned(),
        detail: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
