//! Events: what happened to an object. Life-cycle events carry sizes and times, so that use can be billed as intervals
//! that one event opens and the next one closes.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::lifecycle::{Availability, Phase};
use crate::{HostId, Incarnation, Kind, Reason};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventSpec {
    /// The kind of the object concerned.
    pub object_kind: Kind,
    /// The object concerned.
    pub object: Uuid,
    /// Its name at the time.
    pub object_name: String,
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
    /// Why, if anything is wrong.
    pub reason: Option<Reason>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum What {
    /// A VM entered a phase.
    Lifecycle(Lifecycle),
    /// A migration entered a phase.
    Migration {
        /// The phase entered.
        phase: crate::migration::MigrationPhase,
    },
    /// A host became silent, or was heard again.
    HostContact {
        /// Whether it is silent now.
        silent: bool,
    },
    /// A VM's QEMU takes more memory than is reserved for it, or no longer does.
    MemoryReservation {
        /// Whether it takes more now.
        exceeded: bool,
    },
    /// A warm form is made of a template that is kept warm, or could not be made.
    WarmForm {
        /// How many have failed in a row.
        failures: u32,
        /// Whether one has failed just now; else another is begun.
        has_failed: bool,
    },
}

/// A VM's change of phase with what it holds from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lifecycle {
    /// The phase left; `None` when the VM was created.
    pub from: Option<Phase>,
    /// The phase entered.
    pub to: Phase,
    /// The availability from now on.
    pub availability: Availability,
    /// Virtual processors held from now on.
    pub vcpus: u32,
    /// Main memory held from now on.
    pub memory_mib: u64,
    /// Volumes held from now on.
    pub disk_bytes: u64,
    /// The host from now on.
    pub host: Option<HostId>,
    /// The incarnation from now on.
    pub incarnation: Option<Incarnation>,
}
