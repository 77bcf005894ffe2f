//! What a copy of a VM's root disk is for, and of what kind it is. A disk that is made whole is a copy that comes to be in its
//! own place.

use std::fmt;
use std::str::FromStr;

use crate::{ImageId, VmId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// How an image is told from a VM where both are text.
const IMAGE: &str = "image-";
/// The same of a VM's own disk.
const ITSELF: &str = "itself-";

/// Whose content a copy of a VM's root disk becomes. As text it is the VM's id, the image's behind
/// `image-`, or the number of the request behind `itself-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CopyTo {
    /// A VM's disk.
    Vm(VmId),
    /// An image.
    Image(ImageId),
    /// The VM's own disk, which is made whole where it is: it needs nothing under it any more.
    Itself {
        /// Counts how often that was asked for.
        request: u64,
    },
}

impl CopyTo {
    /// The VM, if it is for one.
    pub const fn vm(self) -> Option<VmId> {
        match self {
            Self::Vm(vm) => Some(vm),
            Self::Image(_) | Self::Itself { .. } => None,
        }
    }

    /// The image, if it is for one.
    pub const fn image(self) -> Option<ImageId> {
        match self {
            Self::Image(image) => Some(image),
            Self::Vm(_) | Self::Itself { .. } => None,
        }
    }

    /// Whether it is the disk itself that is made whole.
    pub const fn is_itself(self) -> bool {
        matches!(self, Self::Itself { .. })
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
            Self::Itself { request } => write!(f, "{ITSELF}{request}"),
        }
    }
}

/// What is not the text of anything that a disk is copied for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotACopy(String);

impl fmt::Display for NotACopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is nothing that a disk is copied for", self.0)
    }
}

impl std::error::Error for NotACopy {}

impl FromStr for CopyTo {
    type Err = NotACopy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = if let Some(image) = text.strip_prefix(IMAGE) {
            image.parse().map(Self::Image).ok()
        } else if let Some(request) = text.strip_prefix(ITSELF) {
            request.parse().map(|request| Self::Itself { request }).ok()
        } else {
            text.parse().map(Self::Vm).ok()
        };
        found.ok_or_else(|| NotACopy(text.to_owned()))
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
