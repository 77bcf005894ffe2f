//! What a copy of a VM's root disk is for, and of what kind it is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use crate::{ImageId, VmId};

/// How an image is told from a VM where both are text.
const IMAGE: &str = "image-";

/// Whose content a copy of a VM's root disk becomes. As text it is the VM's id, or the image's behind `image-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CopyTo {
    /// A VM's disk.
    Vm(VmId),
    /// An image.
    Image(ImageId),
}

impl CopyTo {
    /// The VM, if it is for one.
    pub const fn vm(self) -> Option<VmId> {
        match self {
            Self::Vm(vm) => Some(vm),
            Self::Image(_) => None,
        }
    }

    /// The id alone.
    pub const fn id(self) -> Uuid {
        match self {
            Self::Vm(VmId(id)) | Self::Image(ImageId(id)) => id,
        }
    }
}

impl From<VmId> for CopyTo {
    fn from(vm: VmId) -> Self {
        Self::Vm(vm)
    }
}

impl From<ImageId> for CopyTo {
    fn from(image: ImageId) -> Self {
        Self::Image(image)
    }
}

impl fmt::Display for CopyTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(vm) => vm.fmt(f),
            Self::Image(image) => write!(f, "{IMAGE}{image}"),
        }
    }
}

impl FromStr for CopyTo {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix(IMAGE) {
            Some(image) => image.parse().map(Self::Image),
            None => text.parse().map(Self::Vm),
        }
    }
}

impl Serialize for CopyTo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CopyTo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Of what kind a copy is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyShape {
    /// It has all that the guest sees, also what comes from the image. Otherwise it has what is above the image, and is over
    /// the same one.
    #[serde(default)]
    pub whole: bool,
    /// The size that its guest shall see, if that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}
