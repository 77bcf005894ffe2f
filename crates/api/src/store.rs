//! How the cloud's own data is: the store, and what keeps a restored one from going on.

use model::{Incarnation, Timestamp, VmId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the store is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoreStatus {
    /// Its engine.
    pub backend: String,
    /// The current revision.
    pub revision: u64,
    /// The oldest revision that can be read and watched.
    pub compacted: u64,
    /// The number of keys.
    pub keys: u64,
    /// What it takes on disk; `null` if it is in memory only.
    pub size_bytes: Option<u64>,
    /// What of `size_bytes` is free for what comes: compaction empties space within the file.
    pub free_bytes: Option<u64>,
    /// Present from a restore on until the restored store goes on.
    pub restored: Option<RestoredStatus>,
}

/// A store that was restored. Nothing is decided, and hosts are told nothing, until it goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestoredStatus {
    /// When it was restored.
    pub at: Timestamp,
    /// The revision that the backup held.
    pub from_revision: u64,
    /// Whether hosts are ending what the store does not know.
    pub ends_unknown: bool,
    /// The hosts that have not said yet what they run.
    pub silent_hosts: Vec<String>,
    /// What hosts run and the store does not know.
    pub unknown: Vec<UnknownRun>,
}

/// An incarnation that was granted after the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnknownRun {
    /// The host that runs it.
    pub host: String,
    /// The VM.
    pub vm: VmId,
    /// Its name, if the store knows the VM.
    pub name: Option<String>,
    /// The incarnation.
    pub incarnation: Incarnation,
}

/// How a restored store shall go on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ResumeBody {
    /// End what hosts run and the store does not know. Its disks stay.
    pub end_unknown: bool,
}
