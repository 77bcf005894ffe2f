//! What agents and servers, and agents among themselves, say beside documents and reports.

use std::collections::BTreeSet;

use model::{HostId, Incarnation, Timestamp, VmId};
use serde::{Deserialize, Serialize};

/// How often a server sends an empty line on a document stream.
pub const KEEP_ALIVE_MS: u64 = 2_000;
/// After this long without any line the stream counts as lost.
pub const STREAM_LOST_MS: u64 = 10_000;
/// What a host's certificate carries beside its name: `<host id>` + this.
pub const HOST_SAN_SUFFIX: &str = ".host.sterna";

/// A header of the answer to a report: the server's time, in the form of RFC 3339. The usual `Date` is of no use: it is kept,
/// and not looked at again, while a clock that was set back has not caught up.
pub const TIME_HEADER: &str = "sterna-time";

/// A header of every request of an agent that has joined: what tells this start of its machine, and the directory that it
/// works in, from all others, as 64 hexadecimal digits from which nothing else can be learned. An agent of before has none.
pub const SPEAKER_HEADER: &str = "sterna-speaker";

/// What images have, for agents that look for files which no image has any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The directories of all datastores.
    pub datastores: Vec<String>,
    /// The digests of all images' contents.
    pub sha256: BTreeSet<String>,
}

/// A host that wants to join.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The one-time token that an operator made.
    pub token: String,
    /// The name that the host would like, if the token does not set one.
    pub name: Option<String>,
    /// What tells the machine from others, if it says: nothing else can be learned from it.
    #[serde(default)]
    pub machine: Option<String>,
    /// For the connection to the servers and to other agents.
    pub agent_csr_pem: String,
    /// For QEMU's migration streams: another key and another CA, since QEMU's user can read it.
    pub migration_csr_pem: String,
}

/// What a host gets that has joined.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinResponse {
    /// Its id.
    pub host_id: HostId,
    /// Its name.
    pub name: String,
    /// For the connection to the servers and to other agents.
    pub agent_certificate_pem: String,
    /// Who signs servers' and agents' certificates.
    pub agent_ca_pem: String,
    /// For QEMU's migration streams.
    pub migration_certificate_pem: String,
    /// Who signs those.
    pub migration_ca_pem: String,
    /// When to ask for new certificates, which is well before these expire; never if absent.
    #[serde(default)]
    pub renew_at: Option<Timestamp>,
}

/// A host that wants new certificates, for the keys that it has. It shows the present one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenewRequest {
    /// As in [`JoinRequest`]: hosts that joined before it was asked for say it now.
    #[serde(default)]
    pub machine: Option<String>,
    /// For the connection to the servers and to other agents.
    pub agent_csr_pem: String,
    /// For QEMU's migration streams.
    pub migration_csr_pem: String,
}

/// A server asks an agent to dial back, for a stream of bytes that has a connection of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// What the agent names when it dials: nobody guesses it.
    pub id: String,
    /// The VM.
    pub vm: VmId,
    /// What is to be streamed.
    pub what: CallFor,
}

/// What is to be streamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum CallFor {
    /// The console, in both directions.
    Console {
        /// Who asks, for the others at it.
        who: String,
        /// Whether to begin with what the guest wrote since it came to this host: for somebody who was at it elsewhere.
        from_start: bool,
    },
    /// The last part of the console's log.
    ConsoleLog,
    /// What is to be done in its guest: an [`crate::apply::ApplyOrder`] comes as JSON in binary messages, behind a text
    /// message with its length; an [`crate::apply::ApplyAnswer`] goes back as JSON in a text message.
    Apply,
}

/// From the source's agent to the target's: my QEMU completed, run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GoRequest {
    /// The VM.
    pub vm: VmId,
    /// N.
    pub from: Incarnation,
    /// M.
    pub to: Incarnation,
}

/// The guest runs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct GoResponse {
    /// For how long already, when this was sent: QEMU had said so, and the rest of the agent's work was no downtime.
    #[serde(default)]
    pub running_for_us: u64,
}
