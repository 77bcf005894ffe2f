//! Profiles: those that are stored, and the default family, of which one gives way to a stored one of its name.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use model::Object;
use model::profile::{ProfileSpec, family};
use uuid::Uuid;

use crate::view::At;

/// A profile and the revision that last changed it.
pub type Profile = At<Object<ProfileSpec>>;

static FAMILY: LazyLock<BTreeMap<Uuid, Profile>> = LazyLock::new(|| {
    let at = |(id, value)| (id, At { value, revision: 0 });
    family().into_iter().map(at).collect()
});

/// Whether a profile is of the default family, which nobody writes.
pub fn is_of_family(id: Uuid) -> bool {
    FAMILY.contains_key(&id)
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Profiles {
    /// Those that are stored.
    pub stored: BTreeMap<Uuid, Profile>,
}

impl Profiles {
    /// One of them.
    pub fn get(&self, id: Uuid) -> Option<&Profile> {
        self.stored.get(&id).or_else(|| FAMILY.get(&id))
    }

    /// Those of the family that no stored one stands in front of, and the stored ones.
    pub fn ids(&self) -> Vec<Uuid> {
        let stands = |name: &str| self.stored.values().any(|own| own.value.meta.name == name);
        let family = FAMILY.iter().filter(|(_, at)| !stands(&at.value.meta.name));
        family
            .map(|(id, _)| *id)
            .chain(self.stored.keys().copied())
            .collect()
    }

    /// The one of the family with this name.
    pub fn of_family(name: &str) -> Option<Uuid> {
        let named = FAMILY.iter().find(|(_, at)| at.value.meta.name == name);
        named.map(|(id, _)| *id)
    }
}
