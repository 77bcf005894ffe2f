//! Which parts of a VM were given by hand.

use api::kinds::{PlacementSpec, VmSpec};

/// The first part that was given and is not among these. A new part of a VM is taken in here, or this is not compiled.
pub(super) fn first_beside(spec: &VmSpec, allowed: &[&str]) -> Option<&'static str> {
    let VmSpec {
        template,
        profile,
        vcpus,
        memory_mib,
        image,
        disk_bytes,
        datastore,
        nics,
        guest,
        placement,
        power,
        cdrom,
        boot,
        clone_of,
        firmware,
        clone_full,
        start,
        warms,
        builds,
    } = spec;
    let given = [
        ("template", template.is_some()),
        ("profile", profile.is_some()),
        ("vcpus", vcpus.is_some()),
        ("memory_mib", memory_mib.is_some()),
        ("image", image.is_some()),
        ("disk_bytes", disk_bytes.is_some()),
        ("datastore", datastore.is_some()),
        ("nics", nics.is_some()),
        ("guest", guest.is_some()),
        ("placement", *placement != PlacementSpec::default()),
        ("power", power.is_some()),
        ("cdrom", cdrom.is_some()),
        ("boot", boot.is_some()),
        ("clone_of", clone_of.is_some()),
        ("firmware", firmware.is_some()),
        ("clone_full", clone_full.is_some()),
        ("start", start.is_some()),
        ("warms", warms.is_some()),
        ("builds", builds.is_some()),
    ];
    let mut others = given.into_iter().filter(|(part, _)| !allowed.contains(part));
    others.find(|(_, is_given)| *is_given).map(|(part, _)| part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_is_named() {
        let spec = VmSpec {
            datastore: Some("default".to_owned()),
            clone_full: Some(true),
            ..VmSpec::default()
        };
        assert_eq!(first_beside(&spec, &["datastore"]), Some("clone_full"));
        assert_eq!(first_beside(&spec, &["clone_full", "datastore"]), None);
    }
}
