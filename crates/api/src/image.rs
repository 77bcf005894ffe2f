//! Images: what disks are over and media are, as they are on the wire.

use model::image::{ImageFormat, ImportProgress};
use model::{Kind, Reason};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kinds::{CopyStatus, word};
use crate::object_store::ObjectStore;
use crate::resource::{Object, Resource};

/// An image.
pub struct Image;

/// What a user says of an image. Its content is sent to `/v1/images/NAME/content`, or the server takes it from a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImageSpec {
    /// What comes must hash to this, in hexadecimal; compressed, if it comes so.
    pub expected_sha256: Option<String>,
    /// Where the server takes the content from; `null` if it is sent.
    pub source: Option<ImageSource>,
    /// The VM whose disk it is a copy of, all of it, as it is at one instant; in place of the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_vm: Option<String>,
}

/// Where a server takes an image's content from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImageSource {
    /// An `http://`, `https://`, `ftp://` or `nfs://` URL without a password, `s3://BUCKET/KEY` of an object in a store, or
    /// `datastore://NAME/PATH` of a file in a datastore that the server sees. Everybody who may read the image reads it.
    pub url: String,
    /// The URL of a `SHA256SUMS` in which the file stands by its name; in place of `expected_sha256`.
    pub sha256sums_url: Option<String>,
    /// The store of an `s3://BUCKET/KEY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3: Option<ObjectStore>,
}

/// Whether an image can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageState {
    /// Its content has not come yet.
    Pending,
    /// The server takes its content from its source, or a host makes it of a VM's disk.
    Importing,
    /// It can be used.
    Ready,
    /// The last import failed.
    Failed,
}

/// How an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageStatus {
    /// Whether it can be used.
    pub state: ImageState,
    /// The digest of its content.
    pub sha256: Option<String>,
    /// The digest of what was sent, if that was compressed or of another format.
    pub source_sha256: Option<String>,
    /// Found from the content.
    pub format: Option<ImageFormat>,
    /// Whether it is an installation medium, which goes into a drive, and not the content of a disk.
    #[serde(default)]
    pub is_medium: Option<bool>,
    /// The size of the file.
    pub file_bytes: Option<u64>,
    /// The size that a guest sees.
    pub virtual_bytes: Option<u64>,
    /// How far the import is; `null` if there is none, or if another server does it.
    pub progress: Option<ImportProgress>,
    /// Of which instant of a VM's disk the content is.
    pub copied: Option<CopyStatus>,
    /// Why the last import failed, or what a copy of a VM's disk waits for.
    pub reason: Option<Reason>,
    /// What leads on, if it has no content.
    pub next_commands: Vec<String>,
    /// What needs it, and so keeps it from being deleted.
    #[serde(default)]
    pub used_by: ImageUsers,
}

/// How much of an image's content has been sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UploadStatus {
    /// The bytes that lie on this server, which need not be sent again.
    pub bytes: u64,
}

/// What needs an image. A change of this alone is no change of the image: a watch does not tell of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageUsers {
    /// How many VMs and templates there are.
    pub count: usize,
    /// The first ten of them, such as `vm web`.
    pub first: Vec<String>,
}

impl Resource for Image {
    const KIND: Kind = Kind::Image;
    const COLUMNS: &'static [&'static str] = &["STATE", "FORMAT", "FILE", "VIRTUAL", "USED", "SHA256"];
    type Spec = ImageSpec;
    type Status = ImageStatus;

    fn row(image: &Object<ImageSpec, ImageStatus>) -> Vec<String> {
        let size = |bytes: Option<u64>| {
            bytes
                .map(|n| format!("{} MiB", n.div_ceil(1 << 20)))
                .unwrap_or_default()
        };
        vec![
            word(&image.status.state),
            content_word(&image.status),
            size(image.status.file_bytes),
            size(image.status.virtual_bytes),
            image.status.used_by.count.to_string(),
            image
                .status
                .sha256
                .as_deref()
                .map(|hash| hash.chars().take(12).collect())
                .unwrap_or_default(),
        ]
    }
}

/// What sort of content it is.
fn content_word(image: &ImageStatus) -> String {
    match image.format {
        Some(_) if image.is_medium == Some(true) => "iso".to_owned(),
        Some(format) => word(&format),
        None => String::new(),
    }
}
