//! Networks and datastores, and what is checked of sizes and of what guests are told.

use std::net::Ipv4Addr;

use api::Problem;
use api::kinds::{Datastore, DatastoreSpec, GuestSpec, Network, NetworkSpec, NoStatus};
use model::limits::{
    DISK_MAX_BYTES, GUEST_MAX_BYTES, MEMORY_MAX_MIB, MEMORY_MIN_MIB, SSH_KEYS_MAX, USER_DATA_MAX_BYTES,
    VCPUS_MAX, check_range,
};
use model::user_data::UserData;
use model::vm::GuestConfig;
use model::{Kind, Object};
use planner::view::At;
use planner::{Plan, View};
use uuid::Uuid;

use super::{Served, immutable};
use crate::service::Context;
use crate::shared::Heard;

/// What a guest is told, checked.
pub(super) fn guest(spec: GuestSpec) -> Result<GuestConfig, Problem> {
    if let Some(name) = &spec.hostname {
        model::limits::check_name(name)?;
    }
    check_ssh_keys(&spec.ssh_keys)?;
    let guest = GuestConfig {
        hostname: spec.hostname,
        ssh_keys: spec.ssh_keys,
        user_data: texts(spec.user_data)?,
        vendor_data: texts(spec.vendor_data)?,
        seed: spec.seed.unwrap_or_default(),
    };
    check_guest_size(&guest)?;
    Ok(guest)
}

/// Refuses keys that are none, and too many of them.
pub(crate) fn check_ssh_keys(keys: &[String]) -> Result<(), Problem> {
    check_range(
        "the number of ssh keys",
        keys.len() as u64,
        0,
        SSH_KEYS_MAX as u64,
    )?;
    if keys
        .iter()
        .any(|key| key.len() > 16 * 1024 || key.contains(['\n', '\r', '\0']))
    {
        return Err(Problem::invalid(
            "invalid-ssh-key",
            "an ssh key is one line: give each key as an entry of its own",
        ));
    }
    Ok(())
}

fn texts(data: Option<UserData>) -> Result<Option<UserData>, Problem> {
    let data = data.and_then(UserData::normal);
    data.as_ref().map(UserData::check).transpose()?;
    Ok(data)
}

/// Refuses what would not fit into the store.
pub(super) fn check_guest_size(guest: &GuestConfig) -> Result<(), Problem> {
    let texts = guest.user_data.iter().chain(&guest.vendor_data);
    let bytes: usize = texts.map(UserData::bytes).sum();
    check_range(
        "the size of user data and vendor data in bytes",
        bytes as u64,
        0,
        USER_DATA_MAX_BYTES as u64,
    )?;
    let json = serde_json::to_vec(guest).map_or(0, |json| json.len());
    if json <= GUEST_MAX_BYTES {
        return Ok(());
    }
    let detail = format!(
        "what the guest is told takes {json} bytes as JSON, with its ssh keys, and the store takes at most {GUEST_MAX_BYTES} of \
         it: have the user data fetch what is large (`#include` and a URL)"
    );
    Err(Problem::invalid("guest-too-large", detail))
}

/// What a guest is told, as it is shown.
pub(super) fn guest_spec(stored: &GuestConfig) -> GuestSpec {
    GuestSpec {
        hostname: stored.hostname.clone(),
        ssh_keys: stored.ssh_keys.clone(),
        user_data: stored.user_data.clone(),
        vendor_data: stored.vendor_data.clone(),
        seed: Some(stored.seed),
    }
}

/// Leaves out the texts, which hold passwords.
pub(super) fn hide_texts(guest: &mut GuestSpec) {
    for text in guest.user_data.iter_mut().chain(&mut guest.vendor_data) {
        *text = UserData::not_shown();
    }
}

/// Sizes that a machine can have.
pub(super) fn check_sizes(vcpus: u32, memory_mib: u64, disk_bytes: Option<u64>) -> Result<(), Problem> {
    check_range("vcpus", u64::from(vcpus), 1, u64::from(VCPUS_MAX))?;
    check_range("memory_mib", memory_mib, MEMORY_MIN_MIB, MEMORY_MAX_MIB)?;
    if let Some(bytes) = disk_bytes {
        check_range("disk_bytes", bytes, 512, DISK_MAX_BYTES)?;
    }
    Ok(())
}

impl Served for Network {
    type Stored = model::network::NetworkSpec;

    fn stored(view: &View, id: Uuid) -> Option<&At<Object<Self::Stored>>> {
        view.networks.get(&id)
    }

    fn spec(_: &View, stored: &Self::Stored) -> NetworkSpec {
        NetworkSpec {
            cidr: format!("{}/{}", stored.address, stored.prefix_len),
            vni: Some(stored.vni),
        }
    }

    fn status(_: &Heard, _: &View, _: Uuid) -> Option<NoStatus> {
        Some(NoStatus {})
    }

    fn create(
        context: &Context<'_>,
        _: &str,
        spec: NetworkSpec,
        _: &mut Plan,
    ) -> Result<Self::Stored, Problem> {
        let (address, prefix_len) = parse_cidr(&spec.cidr)?;
        let taken = |vni: u32| context.view.networks.values().any(|at| at.value.spec.vni == vni);
        let vni = match spec.vni {
            Some(vni) => vni,
            None => (1000..u32::MAX).find(|vni| !taken(*vni)).unwrap_or(1000),
        };
        check_range("vni", u64::from(vni), 1, (1 << 24) - 1)?;
        if taken(vni) {
            let detail = format!(
                "the VXLAN identifier {vni} is used by another network: leave it out, or take another"
            );
            return Err(Problem::conflict("vni-taken", detail));
        }
        Ok(model::network::NetworkSpec {
            address,
            prefix_len,
            vni,
        })
    }

    fn change(
        context: &Context<'_>,
        old: &Object<Self::Stored>,
        spec: NetworkSpec,
    ) -> Result<Self::Stored, Problem> {
        if spec == Self::spec(context.view, &old.spec) {
            return Ok(old.spec.clone());
        }
        Err(immutable(Kind::Network, "the addresses and the VXLAN identifier"))
    }
}

fn parse_cidr(cidr: &str) -> Result<(Ipv4Addr, u8), Problem> {
    let wrong = |why: &str| {
        let detail = format!("the cidr {cidr:?} cannot be used: {why}: give something like 10.1.0.0/24");
        Problem::invalid("invalid-cidr", detail)
    };
    let (address, length) = cidr
        .split_once('/')
        .ok_or_else(|| wrong("it has no prefix length"))?;
    let address: Ipv4Addr = address.parse().map_err(|_| wrong("it is not an IPv4 network"))?;
    let length: u8 = length
        .parse()
        .map_err(|_| wrong("its prefix length is not a number"))?;
    if !(8..=30).contains(&length) {
        return Err(wrong("its prefix length is not from 8 to 30"));
    }
    let mask = u32::MAX << (32 - u32::from(length));
    if u32::from(address) & !mask != 0 {
        return Err(wrong("it has bits after its prefix"));
    }
    Ok((address, length))
}

impl Served for Datastore {
    type Stored = model::datastore::DatastoreSpec;

    fn stored(view: &View, id: Uuid) -> Option<&At<Object<Self::Stored>>> {
        view.datastores.get(&id)
    }

    fn spec(_: &View, stored: &Self::Stored) -> DatastoreSpec {
        DatastoreSpec {
            path: stored.path.clone(),
            coherent: stored.coherent,
        }
    }

    fn status(_: &Heard, _: &View, _: Uuid) -> Option<NoStatus> {
        Some(NoStatus {})
    }

    fn create(_: &Context<'_>, _: &str, spec: DatastoreSpec, _: &mut Plan) -> Result<Self::Stored, Problem> {
        let plain =
            spec.path.starts_with('/') && spec.path.len() <= 1024 && !spec.path.contains(['\0', '\n']);
        if !plain || spec.path.split('/').any(|part| part == "..") {
            let detail = format!(
                "the path {:?} cannot be used: give an absolute path without `..`",
                spec.path
            );
            return Err(Problem::invalid("invalid-path", detail));
        }
        Ok(model::datastore::DatastoreSpec {
            path: spec.path,
            coherent: spec.coherent,
        })
    }

    fn change(
        context: &Context<'_>,
        old: &Object<Self::Stored>,
        spec: DatastoreSpec,
    ) -> Result<Self::Stored, Problem> {
        if spec == Self::spec(context.view, &old.spec) {
            return Ok(old.spec.clone());
        }
        Err(immutable(Kind::Datastore, "the path"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_that_cannot_be_are_refused_with_the_reason() {
        for (bad, why) in [
            ("10.0.0.0", "no prefix length"),
            ("10.0.0.0/31", "not from 8 to 30"),
            ("10.0.0.1/24", "bits after"),
            ("x/24", "not an IPv4"),
            ("10.0.0.0/x", "not a number"),
        ] {
            let problem = parse_cidr(bad).unwrap_err();
            assert!(problem.detail.contains(why), "{bad}: {}", problem.detail);
        }
        assert_eq!(
            parse_cidr("10.1.0.0/16").unwrap(),
            (Ipv4Addr::new(10, 1, 0, 0), 16)
        );
    }
}
