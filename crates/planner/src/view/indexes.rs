//! What is found by another thing than its own id: the indexes, which follow each change of an object.

use std::collections::BTreeMap;

use model::{HostId, Kind, MigrationId, VmId};
use uuid::Uuid;

use super::copies::awaited_source;
use super::{Migration, View, WithStatus, set_index};
use crate::flatten;

impl View {
    /// Takes an object out of the indexes before it changes.
    pub(super) fn unlink(&mut self, kind: Kind, id: Uuid) {
        match kind {
            Kind::Vm => self.index_vm(VmId(id), false),
            Kind::Migration => self.index_migration(MigrationId(id), false),
            Kind::Operation => self.index_operation(id, false),
            Kind::Template => self.index_template(id, false),
            Kind::Image => self.index_image(id, false),
            _ => {}
        }
        if let Some(entry) = self.name_entry(kind, id) {
            self.names.remove(&entry);
        }
    }

    /// Puts an object into the indexes after it changed, and drops it if nothing of it is left.
    pub(super) fn link(&mut self, kind: Kind, id: Uuid) {
        if let Some(entry) = self.name_entry(kind, id) {
            self.names.insert(entry, id);
        }
        match kind {
            Kind::Vm => {
                drop_if(&mut self.vms, VmId(id), |vm| vm.is_empty());
                self.index_vm(VmId(id), true);
            }
            Kind::Host => drop_if(&mut self.hosts, HostId(id), |host| host.is_empty()),
            Kind::Migration => {
                let is_empty = |m: &Migration| m.object.is_none() && m.intent.is_none();
                drop_if(&mut self.migrations, MigrationId(id), is_empty);
                self.index_migration(MigrationId(id), true);
            }
            Kind::Image => {
                drop_if(&mut self.images, id, WithStatus::is_empty);
                self.index_image(id, true);
            }
            Kind::Operation => {
                drop_if(&mut self.operations, id, WithStatus::is_empty);
                self.index_operation(id, true);
            }
            Kind::Template => self.index_template(id, true),
            _ => {}
        }
    }

    fn name_entry(&self, kind: Kind, id: Uuid) -> Option<(Kind, Option<String>, String)> {
        let meta = self.meta(kind, id).filter(|_| kind != Kind::Event)?;
        Some((kind, meta.project.clone(), meta.name.clone()))
    }

    pub(super) fn index_vm(&mut self, id: VmId, add: bool) {
        let object = self.vms.get(&id).and_then(|vm| vm.object.as_ref());
        if let Some((at, vm)) = object.zip(self.vms.get(&id)) {
            let built = at.value.spec.builds.as_ref().map(|builds| builds.image);
            for image in flatten::images(vm).chain(built) {
                set_index(&mut self.users_of_image, image.0, (Kind::Vm, id.0), add);
            }
        }
        if object.is_some_and(|at| at.value.spec.placement.keeps_apart_from_vms()) {
            if add {
                self.keeping_apart.insert(id);
            } else {
                self.keeping_apart.remove(&id);
            }
        }
        if let Some(source) = self.vms.get(&id).and_then(|vm| awaited_source(vm)) {
            set_index(&mut self.clones_of, source, id, add);
        }
        if let Some(template) = object.and_then(|at| at.value.spec.warms) {
            set_index(&mut self.warm_forms, template, id, add);
        }
        let Some(intent) = self.vms.get(&id).and_then(|vm| vm.intent.as_ref()) else {
            return;
        };
        let (host, open) = (intent.value.host, intent.value.open.as_ref());
        let images = open.into_iter().flat_map(|open| &open.copies);
        for image in images.filter_map(|to| to.image()) {
            set_index(&mut self.copied_for, image.0, id, add);
        }
        if let Some(host) = host {
            set_index(&mut self.by_host, host, id, add);
        }
    }

    fn index_template(&mut self, id: Uuid, add: bool) {
        let newest = self.templates.get(&id).map(|at| at.value.spec.image);
        let earlier = self.template_versions.of(id).map(|(_, at)| at.value.spec.image);
        for image in newest.into_iter().chain(earlier) {
            set_index(&mut self.users_of_image, image.0, (Kind::Template, id), add);
        }
    }

    pub(super) fn index_migration(&mut self, id: MigrationId, add: bool) {
        let Some(migration) = self.migrations.get(&id) else {
            return;
        };
        let Some(vm) = migration.object.as_ref().map(|object| object.value.spec.vm) else {
            return;
        };
        let phase = migration.phase();
        if !phase.is_final() {
            set_index(&mut self.active_migrations, vm, id, add);
        }
    }

    fn index_operation(&mut self, id: Uuid, add: bool) {
        let object = self
            .operations
            .get(&id)
            .and_then(|operation| operation.object.as_ref());
        let Some(spec) = object.map(|at| &at.value.spec) else {
            return;
        };
        if spec.object_kind == Kind::Vm {
            set_index(&mut self.operations_on, VmId(spec.object), id, add);
        }
    }
}

/// Removes an entry of which nothing is left.
fn drop_if<K: Ord, V>(all: &mut BTreeMap<K, V>, id: K, is_empty: impl Fn(&V) -> bool) {
    if all.get(&id).is_some_and(is_empty) {
        all.remove(&id);
    }
}
