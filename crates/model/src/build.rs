//! A VM that a template, or a template's next version, is made of: what is done in its guest, and what comes of it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::operation::Applied;
use crate::template::TemplateSpec;
use crate::{ImageId, Reason, TemplateId};

/// What a VM builds. It is booted once; what its guest has left on its disk then is the template's image, and it is deleted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builds {
    /// The template.
    pub template: TemplateId,
    /// Its name.
    pub template_name: String,
    /// The image that its disk becomes.
    pub image: ImageId,
    /// What a new template gives; `None`: it is the next version of one that is there, which gives what the newest does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gives: Option<TemplateSpec>,
    /// What it is built from.
    pub from: BuiltFrom,
    /// What is run in the guest before it is made nobody in particular.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
}

/// Scripts hold passwords, and what is formatted this way may end in a log.
impl fmt::Debug for Builds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builds")
            .field("template", &self.template)
            .field("image", &self.image)
            .field("from", &self.from)
            .field("script", &self.script.as_ref().map(String::len))
            .finish_non_exhaustive()
    }
}

/// What a version of a template was built from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BuiltFrom {
    /// The name that the VM had whose disk it is of.
    pub vm: Option<String>,
    /// The version before, whose image it is of.
    pub version: Option<u64>,
    /// Whether a script was run in it.
    pub script: bool,
}

/// What an agent does in the guest of such a VM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildWork {
    /// What is run first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
}

/// See [`Builds`].
impl fmt::Debug for BuildWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildWork")
            .field("script", &self.script.as_ref().map(String::len))
            .finish()
    }
}

/// What came of it in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Built {
    /// Of the script.
    pub applied: Applied,
    /// Why it failed; it is done if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}
