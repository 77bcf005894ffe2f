//! A datastore: where images and volumes are kept.

use serde::{Deserialize, Serialize};

/// A directory that every host sees under the same path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatastoreSpec {
    /// Absolute.
    pub path: String,
    /// Whether hosts see each other's writes without going past their page caches, as on one machine. Disks on other
    /// datastores are opened with `cache.direct=on`.
    #[serde(default)]
    pub coherent: bool,
}
