//! An image: the content of a disk, kept once by its digest.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Reason;

/// What the user says of an image; its content is sent apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// What the content must hash to, as lower-case hexadecimal SHA-256, if the user knows.
    pub expected_sha256: Option<String>,
}

/// How disks' contents are laid out in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// QEMU's own format.
    Qcow2,
    /// Block by block.
    Raw,
}

/// What became of the content. Written by the server that took it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    /// The content, when it is whole and checked.
    pub content: Option<ImageContent>,
    /// Why the last import failed.
    pub failure: Option<Reason>,
}

/// The content of a ready image. It never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageContent {
    /// Lower-case hexadecimal; names the file on servers and datastores.
    pub sha256: String,
    /// Found from the content, not from the name.
    pub format: ImageFormat,
    /// The size of the file.
    pub file_bytes: u64,
    /// The size that a guest sees.
    pub virtual_bytes: u64,
    /// The digest of what was sent, if that was something else: compressed, or of another format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_sha256: Option<String>,
}
