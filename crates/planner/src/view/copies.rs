//! Who waits for a copy of whose disk, and who is told to make it.

use std::collections::BTreeSet;

use model::copy::CopyTo;
use model::image::{ImageSpec, ImageStatus};
use model::{ImageId, VmId};
use uuid::Uuid;

use super::{View, Vm, WithStatus, set_index};

impl View {
    /// The VMs whose disks shall be copies of this one's and are not yet, in the order of their making: also those that
    /// are not to be made now.
    pub fn clones_of(&self, source: VmId) -> impl Iterator<Item = VmId> + '_ {
        self.clones_of.get(&source).into_iter().flatten().copied()
    }

    /// What a VM's disk shall be copied for and is not yet: VMs in the order of their making, then images.
    pub fn copies_of(&self, source: VmId) -> impl Iterator<Item = CopyTo> + '_ {
        let images = self.images_of.get(&source).into_iter().flatten();
        let images = images.map(|image| CopyTo::Image(ImageId(*image)));
        self.clones_of(source).map(CopyTo::Vm).chain(images)
    }

    pub(super) fn index_image(&mut self, id: Uuid, add: bool) {
        if let Some(source) = self.images.get(&id).and_then(awaited_vm) {
            set_index(&mut self.images_of, source, id, add);
        }
    }

    /// The VMs that an image's copy has to do with: the one that it is of, and whose host makes it.
    pub(super) fn sources_of(&self, image: Uuid) -> BTreeSet<VmId> {
        let source = self.images.get(&image).and_then(awaited_vm);
        let ordered = self.copied_for.get(&image).into_iter().flatten().copied();
        ordered.chain(source).collect()
    }

    /// The VMs that a VM's copies have to do with: those that it is copied to, and the one that it is a copy of.
    pub(super) fn sides_of_copies(&self, id: VmId) -> BTreeSet<VmId> {
        let open = |id: VmId| self.vms.get(&id)?.intent.as_ref()?.value.open.as_ref();
        let source = || self.vms.get(&id)?.object.as_ref()?.value.spec.clone_of;
        let is_at_it = |source: VmId| open(source).is_some_and(|open| open.copies.contains(&id.into()));
        let waits = self.vms.get(&id).is_some_and(|vm| awaited_source(vm).is_some());
        let source = source().filter(|source| waits || is_at_it(*source));
        let ordered = open(id).into_iter().flat_map(|open| &open.copies);
        let ordered = ordered.filter_map(|to| to.vm());
        self.clones_of(id).chain(ordered).chain(source).collect()
    }
}

/// The VM whose disk this one's shall be a copy of, while it is not.
pub(super) fn awaited_source(vm: &Vm) -> Option<VmId> {
    let is_made = vm.intent.as_ref().is_some_and(|at| at.value.copied.is_some());
    vm.object.as_ref()?.value.spec.clone_of.filter(|_| !is_made)
}

/// The VM whose disk this image shall be a copy of, while it has no content and is not given up.
pub(super) fn awaited_vm(image: &WithStatus<ImageSpec, ImageStatus>) -> Option<VmId> {
    let is_over = |status: &ImageStatus| status.content.is_some() || status.failure.is_some();
    let is_over = image.status.as_ref().is_some_and(|at| is_over(&at.value));
    image.object.as_ref()?.value.spec.from_vm.filter(|_| !is_over)
}
