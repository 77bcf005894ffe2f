//! How one part of an object is read from a change, and how an index follows it.

use std::collections::{BTreeMap, BTreeSet};

use model::key::Part;
use model::record::{self, Spec, Stored, Unreadable};
use model::{Object, VmId};
use uuid::Uuid;

use super::{At, Change, View, WithStatus};

pub(super) fn set_index<K: Ord + Copy, V: Ord + Copy>(
    index: &mut BTreeMap<K, BTreeSet<V>>,
    key: K,
    value: V,
    add: bool,
) {
    let entry = index.entry(key).or_default();
    if add {
        entry.insert(value);
        return;
    }
    entry.remove(&value);
    if entry.is_empty() {
        index.remove(&key);
    }
}

pub(super) fn read<T: Stored>(change: Change<'_>) -> Result<Option<At<T>>, Unreadable> {
    let Some(bytes) = change.value else {
        return Ok(None);
    };
    record::decode(bytes).map(|value| {
        Some(At {
            value,
            revision: change.revision,
        })
    })
}

pub(super) fn set_parts<S: Spec, T: Stored>(
    slot: &mut WithStatus<S, T>,
    part: Part,
    change: Change<'_>,
) -> Result<(), Unreadable> {
    match part {
        Part::Object => {
            slot.object = None;
            slot.object = read(change)?;
        }
        Part::Status => {
            slot.status = None;
            slot.status = read(change)?;
        }
        _ => {}
    }
    Ok(())
}

pub(super) fn set_plain<S: Spec>(
    all: &mut BTreeMap<Uuid, At<Object<S>>>,
    id: Uuid,
    change: Change<'_>,
) -> Result<(), Unreadable> {
    all.remove(&id);
    if let Some(object) = read(change)? {
        all.insert(id, object);
    }
    Ok(())
}

impl View {
    /// Takes a VM over from another view, if it is there.
    pub(super) fn take_vm(&mut self, from: &Self, id: VmId) {
        let found = from.vms.get(&id).cloned();
        self.vms.extend(found.map(|vm| (id, vm)));
        self.index_vm(id, true);
    }
}
