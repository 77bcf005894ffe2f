//! Typed QMP commands about migration, and about saving to and restoring from a file, which QEMU treats alike.
//!
//! *Owns:* their names and shapes. *Does not know:* which settings to use (see [`crate::migration_settings`]) and when to
//! issue which command (the protocol's table).
//! *Start here:* [`MigrationInfo`]; note that it shows the *last* migration, in either direction, until the next begins.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Qmp, QmpError};

/// The status of the last migration. Names that are unknown here are kept, not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MigrationStatus {
    /// There has been none in this QEMU.
    None,
    /// Connecting, or waiting for the source.
    Setup,
    /// Pre-copy. A cut link leaves it here.
    Active,
    /// The vCPUs are stopped, and the last pass waits for `migrate-continue`.
    PreSwitchover,
    /// Devices are sent.
    Device,
    /// All was sent and acknowledged, or received.
    Completed,
    /// It ended with an error.
    Failed,
    /// A cancel is under way.
    Cancelling,
    /// It was cancelled.
    Cancelled,
    /// Post-copy: the target runs, or may run.
    PostcopyActive,
    /// Post-copy, link lost.
    PostcopyPaused,
    /// Any other, in QEMU's word.
    Other(String),
}

impl MigrationStatus {
    fn from_name(name: &str) -> Self {
        match name {
            "none" => Self::None,
            "setup" => Self::Setup,
            "active" => Self::Active,
            "pre-switchover" => Self::PreSwitchover,
            "device" => Self::Device,
            "completed" => Self::Completed,
            "failed" => Self::Failed,
            "cancelling" => Self::Cancelling,
            "cancelled" => Self::Cancelled,
            "postcopy-active" => Self::PostcopyActive,
            "postcopy-paused" => Self::PostcopyPaused,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Whether QEMU will change it no more: completed, failed or cancelled.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl<'de> Deserialize<'de> for MigrationStatus {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Ok(Self::from_name(&name))
    }
}

/// The answer of `query-migrate`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// Where it stands.
    #[serde(default = "no_status")]
    pub status: MigrationStatus,
    /// From its start, in milliseconds.
    #[serde(default, rename = "total-time")]
    pub total_time_ms: Option<u64>,
    /// From the stop of the vCPUs to the end, on the source, in milliseconds; known when completed.
    #[serde(default, rename = "downtime")]
    pub downtime_ms: Option<u64>,
    /// What QEMU expects of a stop now, in milliseconds.
    #[serde(default, rename = "expected-downtime")]
    pub expected_downtime_ms: Option<u64>,
    /// From `migrate` to the first page, in milliseconds.
    #[serde(default, rename = "setup-time")]
    pub setup_time_ms: Option<u64>,
    /// How memory is getting on; absent before it starts and on a target.
    #[serde(default)]
    pub ram: Option<RamProgress>,
    /// QEMU's words on a failure.
    #[serde(default)]
    pub error_desc: Option<String>,
    /// Where a target listens.
    #[serde(default)]
    socket_address: Vec<Value>,
}

fn no_status() -> MigrationStatus {
    MigrationStatus::None
}

impl MigrationInfo {
    /// The TCP port that a target listens on, also where it was asked for port 0.
    pub fn listening_port(&self) -> Option<u16> {
        let address = self.socket_address.first()?;
        address.get("port")?.as_str()?.parse().ok()
    }
}

/// How the transfer of memory is getting on. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RamProgress {
    /// Sent so far.
    #[serde(rename = "transferred")]
    pub transferred_bytes: u64,
    /// Still to send in this pass; at the start of a pass, what was found dirty.
    #[serde(rename = "remaining")]
    pub remaining_bytes: u64,
    /// The guest's memory.
    #[serde(rename = "total")]
    pub total_bytes: u64,
    /// Bytes sent in answer to post-copy page faults are counted in pages of this size.
    #[serde(rename = "page-size")]
    pub page_size_bytes: u64,
    /// Throughput in megabits a second.
    pub mbps: f64,
    /// Pages dirtied a second, as QEMU saw it in the last pass.
    pub dirty_pages_rate: u64,
    /// The number of the pass, from 1.
    pub dirty_sync_count: u64,
    /// Pages that were zero, and cost nearly nothing.
    #[serde(default)]
    pub duplicate: u64,
}

/// Where a migration goes to or comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MigrationChannel {
    /// To or at an address of a host; a target may ask for port 0 and read [`MigrationInfo::listening_port`].
    Tcp(SocketAddr),
    /// The file that [`Qmp::hand_over_state`] gave: suspend and restore.
    State,
}

impl MigrationChannel {
    fn arguments(&self) -> Value {
        let address = match self {
            Self::Tcp(socket) => tcp_address(socket.ip(), socket.port()),
            Self::State => {
                let path = format!("/dev/fdset/{STATE_SET}");
                json!({"transport": "file", "filename": path, "offset": 0})
            }
        };
        json!([{"channel-type": "main", "addr": address}])
    }
}

fn tcp_address(ip: IpAddr, port: u16) -> Value {
    json!({"transport": "socket", "type": "inet", "host": ip.to_string(), "port": port.to_string()})
}

/// Where QEMU keeps the file that its guest's state goes to or comes from; far from those that it was started with.
const STATE_SET: u32 = 100;

impl Qmp {
    /// Gives QEMU the file that its guest's state goes to, open for writing only, or comes from, open for reading only. It
    /// replaces one that was given before.
    pub async fn hand_over_state(&self, file: File) -> Result<(), QmpError> {
        self.drop_state().await;
        let arguments = json!({"fdset-id": STATE_SET});
        let given = self.execute_with_file("add-fd", arguments, file.into()).await;
        given.map(drop)
    }

    /// Has QEMU close that file, if it has one.
    pub async fn drop_state(&self) {
        if let Err(error) = self.act("remove-fd", json!({"fdset-id": STATE_SET})).await {
            tracing::trace!(%error, "there was no file for the guest's state");
        }
    }

    /// The last migration of this QEMU, or the one under way.
    pub async fn query_migrate(&self) -> Result<MigrationInfo, QmpError> {
        self.query("query-migrate").await
    }

    /// Sets capabilities as built by [`crate::migration_settings`]. Refused while a migration is under way.
    pub async fn migrate_set_capabilities(&self, capabilities: Value) -> Result<(), QmpError> {
        let arguments = json!({"capabilities": capabilities});
        self.act("migrate-set-capabilities", arguments).await
    }

    /// Sets parameters as built by [`crate::migration_settings`]; some may be changed while a migration is under way.
    pub async fn migrate_set_parameters(&self, parameters: Value) -> Result<(), QmpError> {
        self.act("migrate-set-parameters", parameters).await
    }

    /// Starts sending. The answer comes at once; the outcome is in [`Qmp::query_migrate`].
    pub async fn migrate(&self, to: &MigrationChannel) -> Result<(), QmpError> {
        self.act("migrate", json!({"channels": to.arguments()})).await
    }

    /// Starts listening, or reading a file, in a QEMU started for incoming state. A failure does not end QEMU, so that its
    /// error can be read.
    pub async fn migrate_incoming(&self, from: &MigrationChannel) -> Result<(), QmpError> {
        let arguments = json!({"channels": from.arguments(), "exit-on-error": false});
        self.act("migrate-incoming", arguments).await
    }

    /// Goes on from `pre-switchover`. Refused in any other state.
    pub async fn migrate_continue(&self) -> Result<(), QmpError> {
        self.act("migrate-continue", json!({"state": "pre-switchover"}))
            .await
    }

    /// Shuts the connections of the migration under way, which then fails. Refused where there are none.
    pub async fn yank_migration(&self) -> Result<(), QmpError> {
        self.act("yank", json!({"instances": [{"type": "migration"}]}))
            .await
    }

    /// Cancels what is under way. The answer comes before the status is final.
    pub async fn migrate_cancel(&self) -> Result<(), QmpError> {
        self.act("migrate_cancel", json!({})).await
    }

    /// Announces the guest's addresses to the network, five times from 50 ms on, growing.
    pub async fn announce_self(&self) -> Result<(), QmpError> {
        let arguments = json!({"initial": 50, "max": 550, "rounds": 5, "step": 100});
        self.act("announce-self", arguments).await
    }
}
