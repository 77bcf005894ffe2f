//! What every kind has in common: an object's shape, lists, changes, and the trait that gives a kind its routes, its
//! place in the OpenAPI document, its client calls and its table on the command line.

use std::collections::BTreeMap;

use model::{Kind, Timestamp};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A kind of object.
pub trait Resource: Send + Sync + 'static {
    /// Which one.
    const KIND: Kind;
    /// Whether users create objects of it.
    const CREATES: bool = true;
    /// Whether users change and delete objects of it.
    const CHANGES: bool = true;
    /// The titles of the table's columns after the name.
    const COLUMNS: &'static [&'static str];
    /// What is wanted.
    type Spec: Serialize + DeserializeOwned + JsonSchema + Send + Sync;
    /// What is.
    type Status: Serialize + DeserializeOwned + JsonSchema + Send + Sync;

    /// The cells of the table's row, in the order of [`Resource::COLUMNS`].
    fn row(object: &Object<Self::Spec, Self::Status>) -> Vec<String>;
}

/// Labels: keys and values. Only the schema is of this type, so that clients that are made from it have one for all.
#[derive(Debug, JsonSchema)]
pub struct Labels(pub BTreeMap<String, String>);

/// An object. Every key is always there, null if unknown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Object<S, T> {
    /// Its kind.
    pub kind: Kind,
    /// Its id, which never changes.
    pub id: Uuid,
    /// Its name, unique among its kind in its project.
    pub name: String,
    /// `null` for kinds of the whole cloud.
    pub project: Option<String>,
    /// Who created it.
    pub owner: String,
    /// For selection.
    #[schemars(with = "Labels")]
    pub labels: BTreeMap<String, String>,
    /// The revision of the store that last changed any part of it.
    pub revision: u64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its spec or labels last changed.
    pub updated_at: Timestamp,
    /// When its deletion was asked for.
    pub deleted_at: Option<Timestamp>,
    /// What is wanted.
    pub spec: S,
    /// What is.
    pub status: T,
}

/// The body that creates or replaces an object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Create<S> {
    /// Its name. Only migrations are named by the server, after their VM and incarnation.
    #[serde(default)]
    pub name: Option<String>,
    /// Its labels.
    #[serde(default)]
    #[schemars(with = "Labels")]
    pub labels: BTreeMap<String, String>,
    /// What is wanted.
    pub spec: S,
}

/// A page of objects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct List<O> {
    /// The objects, in the order of their making unless another is asked for.
    pub items: Vec<O>,
    /// The store's revision that the page shows, the same on every page: a watch from it misses nothing.
    pub revision: u64,
    /// What to pass as `after` for the next page; `null` on the last one.
    pub next: Option<String>,
}

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChangeType {
    /// It was there when the watch began, or was created since.
    Added,
    /// Some part of it changed.
    Modified,
    /// It is gone; the object is as it was last.
    Deleted,
}

/// One line of a watch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Change<O> {
    /// What happened.
    #[serde(rename = "type")]
    pub change_type: ChangeType,
    /// The object.
    pub object: O,
    /// The revision to resume from after this line.
    pub revision: u64,
}

/// The answer to a poll: what changed since the revision that was asked from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Changes<O> {
    /// The changes, oldest first, each object once; none if nothing changed in the time.
    pub items: Vec<Change<O>>,
    /// What to pass as `from` next time: nothing is missed.
    pub revision: u64,
}
