//! A profile: the sizes that many VMs share. Beside those that users make there is a default family, which is a part of the
//! release and not stored, so that it is there in every project and no upgrade has to write it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::meta::{Meta, Object};

/// Sizes, and what else many VMs share. A VM keeps what it was given when it was created.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileSpec {
    /// Virtual processors.
    pub vcpus: u32,
    /// Main memory.
    pub memory_mib: u64,
    /// The size of the root disk; the template's or the image's if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// The labels of the hosts on which such VMs run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub host_labels: BTreeMap<String, String>,
}

/// Who made the default family.
pub const FAMILY_OWNER: &str = "sterna";
/// The label that tells the family's branches apart.
pub const FAMILY_LABEL: &str = "family";

/// Name, branch, virtual processors and GiB of memory. The branches have 4, 2 and 8 GiB for each processor, as elsewhere; the
/// two smallest have one processor. What was once in a release is not removed: templates and VMs name it by its place.
const FAMILY: [(&str, &str, u32, u64); 14] = [
    ("small", "general", 1, 2),
    ("medium", "general", 1, 4),
    ("large", "general", 2, 8),
    ("xlarge", "general", 4, 16),
    ("2xlarge", "general", 8, 32),
    ("4xlarge", "general", 16, 64),
    ("cpu-large", "cpu", 2, 4),
    ("cpu-xlarge", "cpu", 4, 8),
    ("cpu-2xlarge", "cpu", 8, 16),
    ("cpu-4xlarge", "cpu", 16, 32),
    ("memory-large", "memory", 2, 16),
    ("memory-xlarge", "memory", 4, 32),
    ("memory-2xlarge", "memory", 8, 64),
    ("memory-4xlarge", "memory", 16, 128),
];

/// The names of the default family.
pub const FAMILY_NAMES: [&str; FAMILY.len()] = {
    let mut names = [""; FAMILY.len()];
    let mut place = 0;
    while place < names.len() {
        names[place] = FAMILY[place].0;
        place += 1;
    }
    names
};

/// What the family's ids begin with: no UUID v7 is so early.
const FAMILY_ID: u128 = 0x0000_0000_0000_7000_8000_7072_6f66_0000;

/// The default family, by id.
pub fn family() -> BTreeMap<Uuid, Object<ProfileSpec>> {
    let one = |(place, (name, branch, vcpus, memory_gib)): (u128, (&str, &str, u32, u64))| {
        let id = Uuid::from_u128(FAMILY_ID | place);
        let meta = Meta {
            id,
            name: name.to_owned(),
            project: None,
            owner: FAMILY_OWNER.to_owned(),
            labels: BTreeMap::from([(FAMILY_LABEL.to_owned(), branch.to_owned())]),
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
            deleted_at: None,
        };
        let spec = ProfileSpec {
            vcpus,
            memory_mib: memory_gib * 1024,
            ..ProfileSpec::default()
        };
        (id, Object { meta, spec })
    };
    (1..).zip(FAMILY).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{MEMORY_MAX_MIB, VCPUS_MAX, check_name};

    #[test]
    fn the_family_is_one_of_objects_that_could_be_made() {
        let family = family();
        assert_eq!(family.len(), FAMILY.len());
        for object in family.values() {
            check_name(&object.meta.name).unwrap();
            let ProfileSpec {
                vcpus, memory_mib, ..
            } = object.spec;
            assert!(vcpus <= VCPUS_MAX && memory_mib <= MEMORY_MAX_MIB);
            let per_vcpu = memory_mib / 1024 / u64::from(vcpus);
            let right = match object.meta.labels[FAMILY_LABEL].as_str() {
                "cpu" => per_vcpu == 2,
                "memory" => per_vcpu == 8,
                _ => per_vcpu == 4 || object.meta.name == "small",
            };
            assert!(right, "{object:?}");
        }
    }
}
