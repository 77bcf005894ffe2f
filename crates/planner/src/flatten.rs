//! Root disks that are made whole, so that they need neither an image nor a warm form any more.
//!
//! **Owns:** when that is due, what goes before it, and what becomes of it.
//!
//! **Does not know:** how a disk is made whole.
//!
//! It is ordered as a copy of the disk is, of the disk to itself: by the incarnation that holds the VM, or at rest by one for
//! nothing else. Unlike a copy it loses nothing when it is broken off: what was fetched into the disk stays there, and the rest
//! follows later. So it gives way to whatever else is asked of the VM, and goes on afterwards, maybe on another host.
//!
//! Until it is known to be whole a disk has the same content with what lay under it and without: a host may have made it so and not
//! be heard again, and then it is opened as before.

use std::collections::BTreeSet;

use model::copy::CopyTo;
use model::report::CopyState;
use model::vm::{Flattening, Open, Outcome, Power, VmIntent, VmSpec, Whole};
use model::{ImageId, Kind, Reason, VmId};
use uuid::Uuid;

use crate::plan::Plan;
use crate::view::{View, Vm};
use crate::vm::Step;

impl Step<'_> {
    /// The request to make its disk whole, while it is open and there is a disk.
    pub(crate) fn flatten_due(&self) -> Option<CopyTo> {
        let intent = self.intent();
        let request = self.spec().flatten_request;
        let is_there = self.object.value.meta.deleted_at.is_none() && intent.has_volumes;
        let is_open = request > intent.flattening.answered_request && !intent.is_whole();
        (is_there && is_open && self.spec().warms.is_none()).then_some(CopyTo::Itself { request })
    }

    /// Of what is due the part that is made now: a disk is not copied while it is made whole, nor made whole while it is copied.
    pub(crate) fn apart(
        &self,
        due: impl Iterator<Item = CopyTo>,
        present: &BTreeSet<CopyTo>,
    ) -> BTreeSet<CopyTo> {
        let due: BTreeSet<CopyTo> = due.collect();
        let is_copied = due.iter().any(|to| !to.is_itself() && present.contains(to));
        match due.iter().copied().find(|to| to.is_itself()) {
            Some(itself) if !is_copied => BTreeSet::from([itself]),
            // Those that are made are ended first, and none is begun before it.
            Some(_) => due
                .into_iter()
                .filter(|to| !to.is_itself() && present.contains(to))
                .collect(),
            None => due,
        }
    }

    /// Whether what is asked of it is done as soon as the incarnation has ended that works on its disk alone.
    pub(crate) fn waits_at_rest(&self) -> bool {
        let intent = self.intent();
        let ended = intent.ended.as_ref().map(|ended| ended.outcome);
        let power = self.spec().power;
        let is_given_up = power == Power::Off && ended.is_some_and(|ended| ended != Outcome::Off);
        self.is_asked(&intent) && (power.needs_host() || is_given_up)
    }

    /// What its host has said of its disk, which was to be made whole. `ended`: it has ended, and why.
    pub(crate) fn note_flatten(
        &self,
        plan: &mut Plan,
        request: u64,
        state: Option<&CopyState>,
        ended: Option<Reason>,
    ) {
        let intent = self.intent();
        let failed = match state {
            Some(CopyState::Made { .. }) => None,
            Some(CopyState::Failed { reason }) => Some(reason.clone()),
            _ => match ended {
                Some(reason) => Some(reason),
                None => return,
            },
        };
        let bytes = disk_bytes_of(self.view, self.vm).filter(|_| failed.is_none());
        let whole = bytes.map(|bytes| Whole { at: self.now, bytes });
        let layer = intent.layer.filter(|_| whole.is_none());
        let flattening = Flattening {
            answered_request: request,
            whole,
            failed,
        };
        self.set_intent(
            plan,
            &VmIntent {
                flattening,
                layer,
                ..intent
            },
        );
    }

    /// What is known of a copy of this one's disk for that VM: it is whole if this one's is.
    pub(crate) fn whole_of_copy(&self, copy: &Self) -> Flattening {
        let before = copy.intent().flattening;
        if !self.intent().is_whole() || copy.spec().image.is_none() {
            return before;
        }
        let bytes = disk_bytes_of(self.view, self.vm).max(disk_bytes_of(self.view, copy.vm));
        Flattening {
            whole: bytes.map(|bytes| Whole { at: self.now, bytes }),
            ..before
        }
    }

    /// Whether its host makes its disk whole now.
    pub(crate) fn is_made_whole(open: &Open) -> bool {
        open.copies.iter().any(|to| to.is_itself())
    }
}

/// The image that a VM's root disk is over.
pub fn image_of(vm: &Vm) -> Option<ImageId> {
    let spec = &vm.object.as_ref()?.value.spec;
    spec.image.filter(|_| !is_whole(vm))
}

/// Whether a VM's disk needs nothing any more of what it was made over.
pub fn is_whole(vm: &Vm) -> bool {
    vm.intent.as_ref().is_some_and(|at| at.value.is_whole())
}

/// Whether a VM's disk needs nothing under it, or will not once it is made.
pub fn needs_nothing(view: &View, id: VmId) -> bool {
    let Some(vm) = view.vms.get(&id) else { return false };
    let layer = vm.intent.as_ref().and_then(|at| at.value.layer);
    image_of(vm).is_none() && layer.is_none()
}

/// The image that a VM was made over, if it has no use for it any more: what is in its drive may be the same.
fn outgrown(vm: &Vm) -> Option<ImageId> {
    let spec = &vm.object.as_ref()?.value.spec;
    let medium = spec.cdrom.as_ref().and_then(|cdrom| cdrom.medium);
    spec.image.filter(|image| is_whole(vm) && Some(*image) != medium)
}

fn spec_of(vm: &Vm) -> impl Iterator<Item = &VmSpec> {
    vm.object.iter().map(|at| &at.value.spec)
}

/// All that has to be there as long as a VM is.
pub(crate) fn needs(vm: &Vm) -> impl Iterator<Item = (Kind, Uuid)> {
    let outgrown = outgrown(vm).map(|image| (Kind::Image, image.0));
    spec_of(vm)
        .flat_map(VmSpec::needs)
        .filter(move |needed| Some(*needed) != outgrown)
}

/// The images that have to be there for a VM to run.
pub(crate) fn images(vm: &Vm) -> impl Iterator<Item = ImageId> {
    let outgrown = outgrown(vm);
    spec_of(vm)
        .flat_map(VmSpec::images)
        .filter(move |image| Some(*image) != outgrown)
}

/// The size of a VM's root disk. `None`: it is not known yet.
pub fn disk_bytes_of(view: &View, vm: &Vm) -> Option<u64> {
    let spec = &vm.object.as_ref()?.value.spec;
    disk_bytes(view, spec, vm.intent.as_ref().map(|at| &at.value))
}

/// The same: what its user wants, and no less than what it is over, or was when it was made whole.
pub(crate) fn disk_bytes(view: &View, spec: &VmSpec, intent: Option<&VmIntent>) -> Option<u64> {
    let whole = intent.and_then(|intent| intent.flattening.whole);
    let found = match whole {
        Some(whole) => Some(whole.bytes),
        None => {
            let content = spec.image.and_then(|image| view.image_content(image));
            content.map(|content| content.virtual_bytes)
        }
    };
    spec.disk_bytes.max(found)
}
