//! VMs that are placed together for the first time, or not at all.

use model::vm::VmSpec;
use model::{Reason, VmId};

use crate::view::{View, Vm};

/// With whom a VM is placed.
pub(crate) enum Together {
    /// With these, itself among them; the first of them waits for room for all.
    With(Vec<VmId>),
    /// Not yet.
    Incomplete(Reason),
}

/// With whom a VM that shall start is placed.
pub(crate) fn together(view: &View, id: VmId, vm: &Vm, spec: &VmSpec) -> Together {
    let Some(batch) = spec.placement.batch.filter(|_| is_new(vm)) else {
        return Together::With(vec![id]);
    };
    let is_of_it = |vm: &Vm| {
        let object = vm.object.as_ref().map(|at| &at.value);
        let object = object.filter(|object| object.meta.deleted_at.is_none());
        object.is_some_and(|object| object.spec.placement.batch == Some(batch))
    };
    let all: Vec<(VmId, &Vm)> = view
        .vms
        .iter()
        .map(|(id, vm)| (*id, vm.as_ref()))
        .filter(|(_, vm)| is_of_it(vm))
        .collect();
    let (there, size) = (all.len(), batch.size);
    if u32::try_from(there).is_ok_and(|there| there < size) {
        let message = format!(
            "{there} of the {size} VMs that are placed together are there: create the others, or delete it and create \
             it anew"
        );
        return Together::Incomplete(Reason::new("batch-incomplete", message));
    }
    let unreadable = view.unreadable_vms();
    let members: Vec<VmId> = all
        .into_iter()
        .filter(|(id, vm)| !unreadable.contains(id) && is_new(vm) && needs_host(vm))
        .map(|(id, _)| id)
        .collect();
    Together::With(members)
}

/// Whether a VM has never had a place.
fn is_new(vm: &Vm) -> bool {
    vm.intent
        .as_ref()
        .is_none_or(|at| at.value.last_incarnation.0 == 0)
}

fn needs_host(vm: &Vm) -> bool {
    let object = vm.object.as_ref();
    object.is_some_and(|at| at.value.spec.power.needs_host())
}
