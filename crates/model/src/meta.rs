//! What every object has in common: its kind, id, name, project, labels and times.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The kinds of objects that people and programs see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A machine that runs VMs.
    Host,
    /// A virtual machine.
    Vm,
    /// The content of a disk, from which others are copied on write.
    Image,
    /// What new VMs are made from.
    Template,
    /// Sizes that many VMs share.
    Profile,
    /// A virtual network over hosts.
    Network,
    /// Where images and volumes are kept.
    Datastore,
    /// One move of a VM.
    Migration,
    /// One long action and how far it is.
    Operation,
    /// Something that happened to an object.
    Event,
}

impl Kind {
    /// Every kind, in the order in which help lists them.
    pub const ALL: [Self; 10] = [
        Self::Vm,
        Self::Host,
        Self::Image,
        Self::Template,
        Self::Profile,
        Self::Network,
        Self::Datastore,
        Self::Migration,
        Self::Operation,
        Self::Event,
    ];

    /// The word in keys, in objects' `kind` and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Vm => "vm",
            Self::Image => "image",
            Self::Template => "template",
            Self::Profile => "profile",
            Self::Network => "network",
            Self::Datastore => "datastore",
            Self::Migration => "migration",
            Self::Operation => "operation",
            Self::Event => "event",
        }
    }

    /// The word in paths of the API.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Host => "hosts",
            Self::Vm => "vms",
            Self::Image => "images",
            Self::Template => "templates",
            Self::Profile => "profiles",
            Self::Network => "networks",
            Self::Datastore => "datastores",
            Self::Migration => "migrations",
            Self::Operation => "operations",
            Self::Event => "events",
        }
    }

    /// Whether objects of this kind belong to the whole cloud and not to a project.
    pub const fn is_cloud_wide(self) -> bool {
        matches!(self, Self::Host | Self::Datastore)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or(())
    }
}

/// What every object has in common. Written by the API only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// UUID v7.
    pub id: Uuid,
    /// Unique among the objects of its kind in its project.
    pub name: String,
    /// `None` for kinds of the whole cloud.
    pub project: Option<String>,
    /// Who created it.
    pub owner: String,
    /// Free words for selection.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its spec or labels last changed.
    pub updated_at: Timestamp,
    /// When its deletion was asked for; it is gone when all that it owns is gone.
    #[serde(default)]
    pub deleted_at: Option<Timestamp>,
}

/// The user's part of an object, as it is stored under `/{kind}/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object<S> {
    /// Names and times.
    pub meta: Meta,
    /// What is wanted.
    pub spec: S,
}
