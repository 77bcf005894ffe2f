//! Typed QMP commands about the VM as a whole: its run state, its objects, its disks.
//!
//! *Owns:* the names of commands and the shapes of their answers. *Does not know:* when to call them.
//! *Start here:* [`RunState`], which is half of what the protocol's table calls "QEMU".

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Qmp, QmpError};

/// QEMU's run state. Names that are unknown here are kept, not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Started with `-S`, never continued.
    Prelaunch,
    /// Waiting for, or receiving, an incoming migration.
    InMigrate,
    /// The vCPUs run.
    Running,
    /// Stopped by a command, also by the loading of a migration or saved state.
    Paused,
    /// A source stopped for its switch-over.
    FinishMigrate,
    /// A source whose migration completed.
    PostMigrate,
    /// The guest switched itself off, and `-action shutdown=pause` keeps QEMU.
    Shutdown,
    /// The guest panicked, and `-action panic=pause` keeps QEMU.
    GuestPanicked,
    /// A disk failed in a way that stops the guest.
    IoError,
    /// QEMU itself gave up on the guest.
    InternalError,
    /// Any other, in QEMU's word.
    Other(String),
}

impl RunState {
    fn from_name(name: &str) -> Self {
        match name {
            "prelaunch" => Self::Prelaunch,
            "inmigrate" => Self::InMigrate,
            "running" => Self::Running,
            "paused" => Self::Paused,
            "finish-migrate" => Self::FinishMigrate,
            "postmigrate" => Self::PostMigrate,
            "shutdown" => Self::Shutdown,
            "guest-panicked" => Self::GuestPanicked,
            "io-error" => Self::IoError,
            "internal-error" => Self::InternalError,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl<'de> Deserialize<'de> for RunState {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Ok(Self::from_name(&name))
    }
}

/// The answer of `query-status`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// The run state.
    pub status: RunState,
    /// Whether the vCPUs run.
    pub running: bool,
}

/// One device of `query-block`, as far as it is of use.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BlockDevice {
    /// The QOM path or id of the device that uses it.
    #[serde(default)]
    pub qdev: Option<String>,
    /// `ok`, `failed` or `nospace`; absent where the device has never failed.
    #[serde(default, rename = "io-status")]
    pub io_status: Option<String>,
    /// What is in it.
    #[serde(default)]
    pub inserted: Option<BlockNode>,
}

/// The root node of a [`BlockDevice`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BlockNode {
    /// The node's name, as given on the command line.
    #[serde(rename = "node-name")]
    pub node_name: String,
    /// The image's path.
    pub file: String,
    /// The driver.
    pub drv: String,
    /// Whether it is read-only.
    pub ro: bool,
}

impl Qmp {
    pub(super) async fn query<T: DeserializeOwned>(&self, command: &str) -> Result<T, QmpError> {
        let value = self.execute(command, json!({})).await?;
        serde_json::from_value(value).map_err(|error| QmpError::Protocol {
            command: command.to_owned(),
            detail: error.to_string(),
        })
    }

    pub(super) async fn act(&self, command: &str, arguments: Value) -> Result<(), QmpError> {
        self.execute(command, arguments).await.map(drop)
    }

    /// What the vCPUs do.
    pub async fn query_status(&self) -> Result<Status, QmpError> {
        self.query("query-status").await
    }

    /// The VM that this QEMU was started for.
    pub async fn query_uuid(&self) -> Result<Uuid, QmpError> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "UUID")]
            uuid: Uuid,
        }
        let answer: Answer = self.query("query-uuid").await?;
        Ok(answer.uuid)
    }

    /// The threads that execute the guest's processors, by their numbers in this process's namespace.
    pub async fn vcpu_threads(&self) -> Result<Vec<i32>, QmpError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Vcpu {
            thread_id: i32,
        }
        let vcpus: Vec<Vcpu> = self.query("query-cpus-fast").await?;
        Ok(vcpus.into_iter().map(|vcpu| vcpu.thread_id).collect())
    }

    /// The devices with a disk.
    pub async fn query_block(&self) -> Result<Vec<BlockDevice>, QmpError> {
        self.query("query-block").await
    }

    /// Lets the vCPUs run. QEMU accepts this also where it is wrong (on a completed source, on a target without the word of
    /// its source): the protocol's table says when it may be called.
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.act("cont", json!({})).await
    }

    /// Stops the vCPUs.
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.act("stop", json!({})).await
    }

    /// Ends QEMU. The answer comes before the process has gone.
    pub async fn quit(&self) -> Result<(), QmpError> {
        self.act("quit", json!({})).await
    }

    /// Presses the power button. A guest that does not listen yet loses it: repeat it.
    pub async fn system_powerdown(&self) -> Result<(), QmpError> {
        self.act("system_powerdown", json!({})).await
    }

    /// Which build QEMU is.
    pub async fn query_version(&self) -> Result<String, QmpError> {
        #[derive(Deserialize)]
        struct Answer {
            qemu: Version,
            package: String,
        }
        #[derive(Deserialize)]
        struct Version {
            major: u32,
            minor: u32,
            micro: u32,
        }
        let Answer { qemu, package } = self.query("query-version").await?;
        Ok(format!("{}.{}.{} {package}", qemu.major, qemu.minor, qemu.micro)
            .trim()
            .to_owned())
    }

    /// Sets the link of an interface up or down, as its guest sees it.
    pub async fn set_link(&self, name: &str, up: bool) -> Result<(), QmpError> {
        self.act("set_link", json!({"name": name, "up": up})).await
    }

    /// Presses the reset button.
    pub async fn system_reset(&self) -> Result<(), QmpError> {
        self.act("system_reset", json!({})).await
    }

    /// Makes a QOM object; `properties` holds `qom-type` and `id`.
    pub async fn object_add(&self, properties: Value) -> Result<(), QmpError> {
        self.act("object-add", properties).await
    }

    /// Removes a QOM object.
    pub async fn object_del(&self, id: &str) -> Result<(), QmpError> {
        self.act("object-del", json!({"id": id})).await
    }
}
