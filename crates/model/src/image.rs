//! An image: the content of a disk, kept once by its digest.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::vm::Copied;
use crate::{Reason, VmId};

/// What the user says of an image; its content is sent apart, or a server takes it from its source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// What the content must hash to, as lower-case hexadecimal SHA-256, if the user knows.
    pub expected_sha256: Option<String>,
    /// Where a server takes the content from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ImageSource>,
    /// The VM whose disk it is a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_vm: Option<VmId>,
}

/// Where content comes from. There is never a credential in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSource {
    /// Where the file is.
    pub url: String,
    /// Where a list of digests is, in which the file stands by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256sums_url: Option<String>,
    /// Who has it, if it is an object in an object store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<ObjectStore>,
}

/// An object store that speaks S3. What lets a server in is stored apart: [`crate::key::image_signature`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectStore {
    /// Its URL.
    pub endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket stands in the path of its objects' URLs, not in the host's name.
    #[serde(default)]
    pub path_style: bool,
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

/// What became of the content. Written by the server that took it; by the controller, if a VM's disk could not be copied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    /// The content, when it is whole and checked.
    pub content: Option<ImageContent>,
    /// Why the last import failed.
    pub failure: Option<Reason>,
    /// The run of a server that takes it from its source now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importer: Option<Uuid>,
    /// Of which instant of a VM's disk the content is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied: Option<Copied>,
}

impl ImageStatus {
    /// Of an image that can be used.
    pub fn ready(content: ImageContent) -> Self {
        Self {
            content: Some(content),
            ..Self::default()
        }
    }

    /// Of an image whose import came to nothing.
    pub fn failed(why: Reason) -> Self {
        Self {
            failure: Some(why),
            ..Self::default()
        }
    }
}

/// How far an import is: never stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImportProgress {
    /// What has come of the source's content, in bytes.
    pub bytes_done: u64,
    /// How much that is in all, if the source said so.
    pub bytes_total: Option<u64>,
    /// Why nothing comes at the moment, if the source is being tried again.
    pub trouble: Option<String>,
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
    /// It is an installation medium, which goes into a drive, and no disk's content.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_medium: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}
