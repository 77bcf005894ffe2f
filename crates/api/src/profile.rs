//! Profiles: sizes that many VMs share, as they are on the wire.

use std::collections::BTreeMap;

use model::Kind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::resource::{Labels, Object, Resource};

/// A profile.
pub struct Profile;

/// Sizes that many VMs share. A VM or a template keeps what it was given when it was created.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileSpec {
    /// Virtual processors.
    pub vcpus: u32,
    /// Main memory, in MiB.
    pub memory_mib: u64,
    /// The size of the root disk, in bytes; the template's or the image's if `null`.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// Such VMs run only on hosts with all of these labels.
    #[serde(default)]
    #[schemars(with = "Labels")]
    pub host_labels: BTreeMap<String, String>,
}

/// How a profile is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProfileStatus {
    /// Whether it is one of the default family, which nobody writes. One that is created with its name takes its place.
    pub is_default: bool,
}

impl Resource for Profile {
    const KIND: Kind = Kind::Profile;
    const COLUMNS: &'static [&'static str] = &["VCPUS", "MEMORY", "DISK", "HOST LABELS", "DEFAULT"];
    type Spec = ProfileSpec;
    type Status = ProfileStatus;

    fn row(profile: &Object<ProfileSpec, ProfileStatus>) -> Vec<String> {
        let spec = &profile.spec;
        let mib = |bytes: u64| format!("{} MiB", bytes.div_ceil(1 << 20));
        let labels = spec
            .host_labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        vec![
            spec.vcpus.to_string(),
            format!("{} MiB", spec.memory_mib),
            spec.disk_bytes.map(mib).unwrap_or_default(),
            labels.collect::<Vec<_>>().join(","),
            if profile.status.is_default { "yes" } else { "" }.to_owned(),
        ]
    }
}
