//! Whether what is stored agrees with itself: every value can be read, and what refers to something refers to what is
//! there.

use std::collections::{BTreeMap, BTreeSet};

use model::audit::AuditRecord;
use model::host::JoinToken;
use model::network::AddressHolder;
use model::record::{self, Stored, Unreadable};
use model::token::{RequestRecord, TokenRecord};
use model::vm::VmSpec;
use model::{Kind, Object, VmId, key};
use uuid::Uuid;

use crate::profiles::is_of_family;
use crate::view::{Change, View};

/// A key with what is wrong with it.
pub type Fault = (String, String);

/// Everything that is wrong with these keys and values.
pub fn faults<'k>(stored: impl IntoIterator<Item = (&'k str, &'k [u8])>) -> Vec<Fault> {
    let stored: BTreeMap<&str, &[u8]> = stored.into_iter().collect();
    let mut view = View::default();
    let mut found = Vec::new();
    for (key, value) in &stored {
        let change = Change {
            key,
            value: Some(value),
            revision: 1,
        };
        if view.apply(change).is_none() {
            found.extend(
                beside_objects(key, value)
                    .err()
                    .map(|why| ((*key).to_owned(), why)),
            );
        }
    }
    let unreadable = view.unreadable.iter();
    found.extend(unreadable.map(|(key, why)| (key.clone(), why.to_string())));
    found.extend(names(&stored, &view));
    found.extend(view.vms.iter().flat_map(|(id, vm)| {
        let object = vm.object.as_ref().map(|at| &at.value);
        object.map_or_else(|| without_object(*id), |vm| references(&view, *id, vm))
    }));
    found.extend(reservations(&view));
    found.extend(
        stored
            .iter()
            .filter_map(|(key, value)| address(&view, key, value)),
    );
    found.sort();
    found.dedup();
    found
}

/// A key that is no object's: each kind of them can be read.
fn beside_objects(key: &str, value: &[u8]) -> Result<(), String> {
    let first = key.split('/').nth(1).unwrap_or_default();
    let read = match first {
        "audit" => read::<AuditRecord>(value),
        "token" => read::<TokenRecord>(value),
        "token-name" | "signature" => read::<String>(value),
        "join" => read::<JoinToken>(value),
        "request" => read::<RequestRecord>(value),
        "index" => read::<Uuid>(value),
        "placement" | "restored" | "server" => Ok(()),
        _ => return Err("no key of this release begins so".to_owned()),
    };
    read.map_err(|why| why.to_string())
}

fn read<T: Stored>(value: &[u8]) -> Result<(), Unreadable> {
    record::decode::<T>(value).map(drop)
}

/// Every object has its name, and every name its object.
fn names(stored: &BTreeMap<&str, &[u8]>, view: &View) -> Vec<Fault> {
    let named = |key: &str| {
        stored
            .get(key)
            .and_then(|value| record::decode::<Uuid>(value).ok())
    };
    let mut found = Vec::new();
    let mut right = BTreeSet::new();
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Event) {
        for id in view.ids(kind).into_iter().filter(|id| !is_of_family(*id)) {
            let Some(meta) = view.meta(kind, id) else { continue };
            let index = key::name_index(kind, meta.project.as_deref(), &meta.name);
            if named(&index) != Some(id) {
                let why = format!("its name {} is not its own: {index} says otherwise", meta.name);
                found.push((key::object(kind, id), why));
            }
            right.insert(index);
        }
    }
    let lone = stored
        .keys()
        .filter(|key| key.starts_with("/index/") && !right.contains(**key));
    found.extend(lone.map(|key| ((*key).to_owned(), "there is no object of that name".to_owned())));
    found
}

fn without_object(id: VmId) -> Vec<Fault> {
    vec![(
        key::object(Kind::Vm, id.0),
        "parts of the VM are there, and the VM itself is not or cannot be read".to_owned(),
    )]
}

/// What a VM is made of is there.
fn references(view: &View, id: VmId, vm: &Object<VmSpec>) -> Vec<Fault> {
    // What came to nothing goes before the VM that it was to be made of.
    let is_given_up = vm.meta.deleted_at.is_some();
    let builds = vm.spec.builds.as_ref().filter(|_| is_given_up);
    let image = builds.map(|builds| (Kind::Image, builds.image.0));
    let missing = view.needs(Kind::Vm, id.0).into_iter();
    let missing = missing.filter(|needed| Some(*needed) != image);
    missing
        .filter(|(kind, id)| view.meta(*kind, *id).is_none())
        .map(|(kind, needed)| {
            let why = format!("it needs {kind} {needed}, which is not there");
            (key::object(Kind::Vm, id.0), why)
        })
        .collect()
}

/// What is open is spoken for on its host.
fn reservations(view: &View) -> Vec<Fault> {
    let open = view.vms.iter().filter_map(|(id, vm)| {
        let intent = &vm.intent.as_ref()?.value;
        Some((*id, intent.host?, intent.open.as_ref()?.incarnation))
    });
    open.filter(|(id, host, incarnation)| {
        let reserved = view.hosts.get(host).and_then(|host| host.reservations.as_ref());
        let reserved = reserved.and_then(|at| at.value.vms.get(id));
        reserved.is_none_or(|reserved| reserved.incarnation != *incarnation)
    })
    .map(|(id, host, incarnation)| {
        let why = format!("incarnation {incarnation} is open on host {host} and not reserved there");
        (key::vm_intent(id), why)
    })
    .collect()
}

/// Whether an address of a network is held by a VM that has it.
fn address(view: &View, key: &str, value: &[u8]) -> Option<Fault> {
    let (Kind::Network, _, key::Part::Address(address)) = key::parse(key)? else {
        return None;
    };
    let fault = |why: String| Some((key.to_owned(), why));
    let holder = match record::decode::<AddressHolder>(value) {
        Ok(holder) => holder.vm,
        Err(why) => return fault(why.to_string()),
    };
    let vm = view.vms.get(&holder).and_then(|vm| vm.object.as_ref());
    let holds = vm.is_some_and(|vm| vm.value.spec.nics.iter().any(|nic| nic.address == Some(address)));
    if holds {
        return None;
    }
    fault(format!("VM {holder}, which holds the address, does not have it"))
}
