//! The store as decisions see it: every object with its parts, kept up to date by applying changes.
//!
//! An object that cannot be read is kept apart under its key with the cause; nothing is decided about it, and the rest
//! goes on.

mod copies;
mod indexes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use model::datastore::DatastoreSpec;
use model::event::EventSpec;
use model::host::{HostContact, HostIntent, HostSpec, HostStatus, Reservations, Reserved};
use model::image::{ImageContent, ImageSpec, ImageStatus};
use model::key::{self, Part};
use model::lifecycle::{self, Availability, Facts, Phase};
use model::migration::{MigrationIntent, MigrationPhase, MigrationSpec};
use model::network::NetworkSpec;
use model::operation::{OperationSpec, OperationStatus};
use model::record::Unreadable;
use model::report::RunStatus;
use model::restored::Restored;
use model::template::{TemplateIntent, TemplateSpec};
use model::vm::{VmIntent, VmSpec};
use model::{HostId, ImageId, Incarnation, Kind, MigrationId, Object, OperationId, TemplateId, VmId};
use uuid::Uuid;

use self::copies::awaited_vm;

use crate::flatten;
use crate::hardware::Capacity;
use crate::profiles::Profiles;
use crate::versions::Versions;

mod parts;

use parts::{read, set_index, set_parts, set_plain};

/// A stored part with the revision that last changed it: what a plan compares.
#[derive(Debug, Clone, PartialEq)]
pub struct At<T> {
    /// The part.
    pub value: T,
    /// The revision.
    pub revision: u64,
}

/// A VM with its parts.
#[derive(Debug, Clone, Default)]
pub struct Vm {
    /// The user's.
    pub object: Option<At<Object<VmSpec>>>,
    /// The controller's; apart, since VMs that were never started have none.
    pub intent: Option<Box<At<VmIntent>>>,
    /// The agents', by incarnation.
    pub runs: BTreeMap<Incarnation, RunStatus>,
    /// The revisions of `runs`.
    pub run_revisions: BTreeMap<Incarnation, u64>,
}

/// A host with its parts.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// The operator's.
    pub object: Option<At<Object<HostSpec>>>,
    /// The agent's.
    pub status: Option<At<HostStatus>>,
    /// The controller's.
    pub reservations: Option<At<Reservations>>,
    /// What the reservations come to: every placement looks at that of every host.
    pub reserved: Capacity,
    /// The server's.
    pub contact: Option<At<HostContact>>,
    /// The controller's, beside the reservations.
    pub intent: Option<At<HostIntent>>,
}

/// A migration with its parts.
#[derive(Debug, Clone, Default)]
pub struct Migration {
    /// The user's.
    pub object: Option<At<Object<MigrationSpec>>>,
    /// The controller's.
    pub intent: Option<At<MigrationIntent>>,
}

/// An object with a status of its own.
#[derive(Debug, Clone)]
pub struct WithStatus<S, T> {
    /// The user's part.
    pub object: Option<At<Object<S>>>,
    /// The other part.
    pub status: Option<At<T>>,
}

impl<S, T> Default for WithStatus<S, T> {
    fn default() -> Self {
        Self {
            object: None,
            status: None,
        }
    }
}

/// Everything, at one revision.
#[derive(Debug, Default)]
pub struct View {
    /// The revision up to which changes were applied.
    pub revision: u64,
    /// VMs.
    pub vms: BTreeMap<VmId, Arc<Vm>>,
    /// Hosts.
    pub hosts: BTreeMap<HostId, Arc<Host>>,
    /// Migrations.
    pub migrations: BTreeMap<MigrationId, Migration>,
    /// Images.
    pub images: BTreeMap<Uuid, WithStatus<ImageSpec, ImageStatus>>,
    /// Templates.
    pub templates: BTreeMap<Uuid, At<Object<TemplateSpec>>>,
    /// The earlier versions of templates.
    pub template_versions: Versions,
    /// What was done to keep templates warm.
    pub template_intents: BTreeMap<TemplateId, At<TemplateIntent>>,
    /// Profiles.
    pub profiles: Profiles,
    /// Networks.
    pub networks: BTreeMap<Uuid, At<Object<NetworkSpec>>>,
    /// Datastores.
    pub datastores: BTreeMap<Uuid, At<Object<DatastoreSpec>>>,
    /// Operations.
    pub operations: BTreeMap<Uuid, Operation>,
    /// Events.
    pub events: BTreeMap<Uuid, Box<At<Object<EventSpec>>>>,
    /// Ids by kind, project and name; events have no names but their ids.
    pub names: BTreeMap<(Kind, Option<String>, String), Uuid>,
    /// The addresses in use, by network.
    pub addresses: BTreeMap<Uuid, BTreeSet<IpAddr>>,
    /// When a VM was placed last as the first of a group that shall be together.
    pub first_of_group: u64,
    /// That the store was restored, until it goes on.
    pub restored: Option<At<Restored>>,
    /// What could not be read, by key.
    pub unreadable: BTreeMap<String, Unreadable>,
    /// The VMs that each host has to do with: open, left behind, or as a migration's side.
    by_host: BTreeMap<HostId, BTreeSet<VmId>>,
    /// The VMs that keep away from others: placement has to look at them whatever it places.
    keeping_apart: BTreeSet<VmId>,
    /// The migrations of each VM that are not over.
    active_migrations: BTreeMap<VmId, BTreeSet<MigrationId>>,
    /// The VMs that wait for a copy of each VM's disk, or may again, deleted ones among them.
    clones_of: BTreeMap<VmId, BTreeSet<VmId>>,
    images_of: BTreeMap<VmId, BTreeSet<Uuid>>,
    /// The VMs whose hosts are told to copy their disks for an image.
    copied_for: BTreeMap<Uuid, BTreeSet<VmId>>,
    /// The warm VMs of each template.
    warm_forms: BTreeMap<TemplateId, BTreeSet<VmId>>,
    /// The operations on each VM, in the order of their making.
    operations_on: BTreeMap<VmId, BTreeSet<Uuid>>,
    /// The VMs, and the templates with any version, that name each image.
    users_of_image: BTreeMap<Uuid, BTreeSet<(Kind, Uuid)>>,
}

/// An operation with its parts.
pub type Operation = WithStatus<OperationSpec, OperationStatus>;

/// Whether a key is of a part of a host that nothing else's status depends on: what is reserved on it, and what the
/// controller notes about it. These change with every VM that comes and goes.
pub fn is_host_own(key: &str) -> bool {
    matches!(
        key::parse(key),
        Some((Kind::Host, _, Part::Reservations | Part::Intent))
    )
}

/// One key's change.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// The key.
    pub key: &'a str,
    /// The new value; `None` if the key is gone.
    pub value: Option<&'a [u8]>,
    /// The revision of the change.
    pub revision: u64,
}

impl View {
    /// Applies one change and says which object it concerned.
    pub fn apply(&mut self, change: Change<'_>) -> Option<(Kind, Uuid)> {
        self.revision = self.revision.max(change.revision);
        if change.key == key::FIRST_OF_GROUP {
            self.first_of_group = change.value.map_or(0, |_| change.revision);
        }
        if change.key == key::RESTORED {
            self.set_restored(change);
        }
        let (kind, id, part) = key::parse(change.key)?;
        self.unreadable.remove(change.key);
        self.unlink(kind, id);
        if let Err(cause) = self.set(kind, id, part, change) {
            self.unreadable.insert(change.key.to_owned(), cause);
        }
        self.link(kind, id);
        Some((kind, id))
    }

    fn set_restored(&mut self, change: Change<'_>) {
        self.unreadable.remove(change.key);
        self.restored = None;
        match read(change) {
            Ok(restored) => self.restored = restored,
            Err(cause) => drop(self.unreadable.insert(change.key.to_owned(), cause)),
        }
    }

    /// Whether nothing may be decided: the store was restored, and hosts may run what it does not know.
    pub fn is_held(&self) -> bool {
        self.restored.is_some() || self.unreadable.contains_key(key::RESTORED)
    }

    /// Whether all that is stored of an object can be read: nothing is decided for it otherwise.
    pub(crate) fn is_readable(&self, kind: Kind, id: Uuid) -> bool {
        self.unreadable_objects().all(|damaged| damaged != (kind, id))
    }

    fn unreadable_objects(&self) -> impl Iterator<Item = (Kind, Uuid)> {
        let parts = self.unreadable.keys().filter_map(|key| key::parse(key));
        parts.map(|(kind, id, _)| (kind, id))
    }

    /// The VMs of which some part, or whose migration, cannot be read.
    pub fn unreadable_vms(&self) -> BTreeSet<VmId> {
        let vms = self.unreadable_objects().filter_map(|(kind, id)| match kind {
            Kind::Vm => Some(VmId(id)),
            Kind::Migration => self.vm_of_migration(MigrationId(id)),
            _ => None,
        });
        vms.collect()
    }

    fn vm_of_migration(&self, id: MigrationId) -> Option<VmId> {
        let object = self.migrations.get(&id)?.object.as_ref();
        let intends = |vm: &Vm| {
            vm.intent
                .as_ref()
                .is_some_and(|at| at.value.migration == Some(id))
        };
        object.map(|object| object.value.spec.vm).or_else(|| {
            let mut vms = self.vms.iter();
            vms.find(|(_, vm)| intends(vm)).map(|(vm, _)| *vm)
        })
    }

    fn set(&mut self, kind: Kind, id: Uuid, part: Part, change: Change<'_>) -> Result<(), Unreadable> {
        match (kind, part) {
            (Kind::Vm, part) => self.set_vm(VmId(id), part, change)?,
            (Kind::Host, part) => self.set_host(HostId(id), part, change)?,
            (Kind::Migration, Part::Object) => {
                let slot = self.migrations.entry(MigrationId(id)).or_default();
                slot.object = None;
                slot.object = read(change)?;
            }
            (Kind::Migration, Part::Intent) => {
                let slot = self.migrations.entry(MigrationId(id)).or_default();
                slot.intent = None;
                slot.intent = read(change)?;
            }
            (Kind::Image, part) => set_parts(self.images.entry(id).or_default(), part, change)?,
            (Kind::Operation, part) => set_parts(self.operations.entry(id).or_default(), part, change)?,
            (Kind::Template, Part::Object) => set_plain(&mut self.templates, id, change)?,
            (Kind::Template, Part::Version(number)) => {
                self.template_versions.set(id, number, None);
                self.template_versions.set(id, number, read(change)?);
            }
            (Kind::Template, Part::Intent) => {
                self.template_intents.remove(&TemplateId(id));
                let intent = read(change)?.map(|intent| (TemplateId(id), intent));
                self.template_intents.extend(intent);
            }
            (Kind::Profile, Part::Object) => set_plain(&mut self.profiles.stored, id, change)?,
            (Kind::Network, Part::Object) => set_plain(&mut self.networks, id, change)?,
            (Kind::Network, Part::Address(address)) => {
                set_index(&mut self.addresses, id, address, change.value.is_some());
            }
            (Kind::Datastore, Part::Object) => set_plain(&mut self.datastores, id, change)?,
            (Kind::Event, Part::Object) => {
                self.events.remove(&id);
                self.events
                    .extend(read(change)?.map(|event| (id, Box::new(event))));
            }
            _ => {}
        }
        Ok(())
    }

    fn set_vm(&mut self, id: VmId, part: Part, change: Change<'_>) -> Result<(), Unreadable> {
        let slot = Arc::make_mut(self.vms.entry(id).or_default());
        match part {
            Part::Object => {
                slot.object = None;
                slot.object = read(change)?;
            }
            Part::Intent => {
                slot.intent = None;
                slot.intent = read(change)?.map(Box::new);
            }
            Part::Run(incarnation) => {
                slot.runs.remove(&incarnation);
                slot.run_revisions.remove(&incarnation);
                if let Some(run) = read::<RunStatus>(change)? {
                    slot.runs.insert(incarnation, run.value);
                    slot.run_revisions.insert(incarnation, run.revision);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn set_host(&mut self, id: HostId, part: Part, change: Change<'_>) -> Result<(), Unreadable> {
        let slot = Arc::make_mut(self.hosts.entry(id).or_default());
        match part {
            Part::Object => {
                slot.object = None;
                slot.object = read(change)?;
            }
            Part::Status => {
                slot.status = None;
                slot.status = read(change)?;
            }
            Part::Reservations => {
                (slot.reservations, slot.reserved) = (None, Capacity::default());
                slot.reservations = read::<Reservations>(change)?;
                slot.reserved = slot
                    .reservations
                    .as_ref()
                    .map_or_else(Capacity::default, |at| Capacity {
                        memory_mib: at.value.memory_mib(),
                        vcpus: at.value.vcpus(),
                    });
            }
            Part::Contact => {
                slot.contact = None;
                slot.contact = read(change)?;
            }
            Part::Intent => {
                slot.intent = None;
                slot.intent = read(change)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The warm VMs of a template, in the order of their making.
    pub fn warm_forms(&self, template: TemplateId) -> impl DoubleEndedIterator<Item = VmId> + '_ {
        self.warm_forms.get(&template).into_iter().flatten().copied()
    }

    /// The templates that are kept warm or may be, and those that are no more and were.
    pub fn kept_templates(&self) -> BTreeSet<TemplateId> {
        let there = self.templates.keys().map(|id| TemplateId(*id));
        there.chain(self.template_intents.keys().copied()).collect()
    }

    /// The VMs and templates that name an image, in the order of their making.
    pub fn users_of_image(&self, image: Uuid) -> impl ExactSizeIterator<Item = (Kind, Uuid)> {
        static NOBODY: BTreeSet<(Kind, Uuid)> = BTreeSet::new();
        self.users_of_image.get(&image).unwrap_or(&NOBODY).iter().copied()
    }

    /// The operations on a VM that can be read, in the order of their making.
    pub fn operations_on(&self, vm: VmId) -> impl Iterator<Item = (OperationId, &Operation)> {
        let ids = self.operations_on.get(&vm).into_iter().flatten();
        let ids = ids.filter(|id| self.is_readable(Kind::Operation, **id));
        ids.filter_map(|id| {
            self.operations
                .get(id)
                .map(|operation| (OperationId(*id), operation))
        })
    }

    /// The VMs that there are, and those of which operations are left.
    pub fn vms_and_former(&self) -> impl Iterator<Item = VmId> {
        let all: BTreeSet<VmId> = self
            .vms
            .keys()
            .chain(self.operations_on.keys())
            .copied()
            .collect();
        all.into_iter()
    }

    /// The VMs that a host's document may have to name.
    pub fn vms_of_host(&self, host: HostId) -> impl Iterator<Item = VmId> + '_ {
        let held = self.by_host.get(&host).into_iter().flatten().copied();
        let moving = self.active_migrations.iter().filter(move |(_, ids)| {
            ids.iter()
                .filter_map(|id| self.migrations.get(id)?.intent.as_ref()?.value.route.as_ref())
                .any(|route| route.source == host || route.target == host)
        });
        let all: BTreeSet<VmId> = held.chain(moving.map(|(vm, _)| *vm)).collect();
        all.into_iter()
    }

    /// The VMs that keep away from others, of those that have room on a host.
    pub(crate) fn keeping_apart_on<'a>(&'a self, all: &'a Reservations) -> impl Iterator<Item = VmId> + 'a {
        let keeping_apart = self.keeping_apart.iter().copied();
        keeping_apart.filter(|vm| all.vms.get(vm).is_some_and(Reserved::has_guest))
    }

    /// A VM's migrations that are not over.
    pub fn active_migrations(&self, vm: VmId) -> impl Iterator<Item = (MigrationId, &Migration)> {
        let ids = self.active_migrations.get(&vm).into_iter().flatten();
        ids.filter_map(|id| self.migrations.get(id).map(|migration| (*id, migration)))
    }

    /// All migrations that are not over.
    pub fn all_active_migrations(&self) -> impl Iterator<Item = (MigrationId, &Migration)> {
        let ids = self.active_migrations.values().flatten();
        ids.filter_map(|id| self.migrations.get(id).map(|migration| (*id, migration)))
    }

    /// A copy of what names are read from (hosts, images, templates, profiles, networks, datastores) and of these VMs and
    /// migrations.
    pub fn excerpt(&self, objects: impl Iterator<Item = (Kind, Uuid)>) -> Self {
        let mut copy = Self {
            revision: self.revision,
            hosts: self.hosts.clone(),
            images: self.images.clone(),
            templates: self.templates.clone(),
            template_versions: self.template_versions.clone(),
            template_intents: self.template_intents.clone(),
            profiles: self.profiles.clone(),
            networks: self.networks.clone(),
            datastores: self.datastores.clone(),
            ..Self::default()
        };
        for (kind, id) in objects {
            match kind {
                Kind::Vm => copy.take_vm(self, VmId(id)),
                Kind::Migration => {
                    let found = self.migrations.get(&MigrationId(id)).cloned();
                    copy.migrations
                        .extend(found.map(|migration| (MigrationId(id), migration)));
                    copy.index_migration(MigrationId(id), true);
                }
                Kind::Template => self
                    .warm_forms(TemplateId(id))
                    .for_each(|form| copy.take_vm(self, form)),
                Kind::Image => {
                    let users = self.users_of_image(id).filter(|(kind, _)| *kind == Kind::Vm);
                    let vms = users.filter_map(|(_, vm)| Some((VmId(vm), self.vms.get(&VmId(vm))?.clone())));
                    copy.vms.extend(vms);
                    // Whether that is there says what becomes of the image.
                    let source = self.images.get(&id).and_then(awaited_vm);
                    copy.vms
                        .extend(source.and_then(|vm| Some((vm, self.vms.get(&vm)?.clone()))));
                    copy.users_of_image
                        .extend(self.users_of_image.get(&id).map(|all| (id, all.clone())));
                }
                _ => {}
            }
        }
        copy
    }

    /// The hosts that a VM has to do with: the one that holds it, and its migration's sides.
    pub fn hosts_of_vm(&self, vm: VmId) -> BTreeSet<HostId> {
        let holds = self.vms.get(&vm).and_then(|vm| vm.intent.as_ref()?.value.host);
        let routes = self
            .active_migrations(vm)
            .filter_map(|(_, migration)| migration.intent.as_ref()?.value.route.as_ref());
        let hosts = routes.flat_map(|route| [route.source, route.target]);
        hosts.chain(holds).collect()
    }

    /// The hosts with a drain, of those that a VM has to do with.
    fn draining_hosts_of(&self, vm: VmId) -> BTreeSet<HostId> {
        let mut hosts = self.hosts_of_vm(vm);
        hosts.retain(|id| self.hosts.get(id).is_some_and(|host| host.drain().is_some()));
        hosts
    }

    /// The objects whose status depends on this one.
    pub fn affected(&self, kind: Kind, id: Uuid) -> Vec<(Kind, Uuid)> {
        match kind {
            Kind::Host => self.vms_of_host(HostId(id)).map(|vm| (Kind::Vm, vm.0)).collect(),
            Kind::Migration => {
                let object = self
                    .migrations
                    .get(&MigrationId(id))
                    .and_then(|migration| migration.object.as_ref());
                let vm = object.map(|object| object.value.spec.vm);
                let drained = vm.into_iter().flat_map(|vm| self.draining_hosts_of(vm));
                let vm = vm.map(|vm| (Kind::Vm, vm.0));
                vm.into_iter()
                    .chain(drained.map(|host| (Kind::Host, host.0)))
                    .collect()
            }
            Kind::Vm => {
                let migrations = self
                    .active_migrations(VmId(id))
                    .map(|(id, _)| (Kind::Migration, id.0));
                let drained = self.draining_hosts_of(VmId(id)).into_iter();
                let copies = self.sides_of_copies(VmId(id)).into_iter();
                let vm = self.vms.get(&VmId(id)).and_then(|vm| vm.object.as_ref());
                let warms = vm.and_then(|at| at.value.spec.warms);
                let images = self.images_of.get(&VmId(id)).into_iter().flatten();
                migrations
                    .chain(drained.map(|host| (Kind::Host, host.0)))
                    .chain(copies.map(|vm| (Kind::Vm, vm.0)))
                    .chain(images.map(|image| (Kind::Image, *image)))
                    .chain(warms.map(|template| (Kind::Template, template.0)))
                    .collect()
            }
            Kind::Image => {
                let vms = self.sources_of(id).into_iter();
                vms.map(|vm| (Kind::Vm, vm.0)).collect()
            }
            Kind::Operation => {
                let object = self
                    .operations
                    .get(&id)
                    .and_then(|operation| operation.object.as_ref());
                let vm = object.map(|at| VmId(at.value.spec.object));
                let vm = vm.filter(|vm| self.vms.contains_key(vm));
                vm.map(|vm| (Kind::Vm, vm.0)).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The names and times of an object.
    pub fn meta(&self, kind: Kind, id: Uuid) -> Option<&model::Meta> {
        match kind {
            Kind::Vm => self.vms.get(&VmId(id))?.object.as_ref().map(|at| &at.value.meta),
            Kind::Host => self
                .hosts
                .get(&HostId(id))?
                .object
                .as_ref()
                .map(|at| &at.value.meta),
            Kind::Migration => self
                .migrations
                .get(&MigrationId(id))?
                .object
                .as_ref()
                .map(|at| &at.value.meta),
            Kind::Image => self.images.get(&id)?.object.as_ref().map(|at| &at.value.meta),
            Kind::Operation => self.operations.get(&id)?.object.as_ref().map(|at| &at.value.meta),
            Kind::Template => self.templates.get(&id).map(|at| &at.value.meta),
            Kind::Profile => self.profiles.get(id).map(|at| &at.value.meta),
            Kind::Network => self.networks.get(&id).map(|at| &at.value.meta),
            Kind::Datastore => self.datastores.get(&id).map(|at| &at.value.meta),
            Kind::Event => self.events.get(&id).map(|at| &at.value.meta),
        }
    }

    /// All that an object names and cannot be without, by kind and id.
    pub fn needs(&self, kind: Kind, id: Uuid) -> BTreeSet<(Kind, Uuid)> {
        let vm = || Some(flatten::needs(self.vms.get(&VmId(id))?).collect());
        match kind {
            Kind::Vm => vm().unwrap_or_default(),
            Kind::Template => self.template_needs(id),
            _ => BTreeSet::new(),
        }
    }

    /// Of any version, and of the newest one its profile, which its next change asks.
    fn template_needs(&self, id: Uuid) -> BTreeSet<(Kind, Uuid)> {
        let newest = self.templates.get(&id).map(|at| &at.value.spec);
        let earlier = self.template_versions.of(id).map(|(_, at)| &at.value.spec);
        let profile = newest.and_then(|spec| spec.profile.as_ref());
        let profile = profile.map(|from| (Kind::Profile, from.profile.0));
        let specs = newest.into_iter().chain(earlier);
        specs.flat_map(TemplateSpec::needs).chain(profile).collect()
    }

    /// The revision of an object that others may need, its parts left out.
    pub fn object_revision(&self, kind: Kind, id: Uuid) -> Option<u64> {
        match kind {
            Kind::Image => Some(self.images.get(&id)?.object.as_ref()?.revision),
            Kind::Network => Some(self.networks.get(&id)?.revision),
            Kind::Datastore => Some(self.datastores.get(&id)?.revision),
            Kind::Profile => Some(self.profiles.get(id)?.revision),
            _ => None,
        }
    }

    /// The ids of a kind, in the order of their making.
    pub fn ids(&self, kind: Kind) -> Vec<Uuid> {
        match kind {
            Kind::Vm => self.vms.keys().map(|id| id.0).collect(),
            Kind::Host => self.hosts.keys().map(|id| id.0).collect(),
            Kind::Migration => self.migrations.keys().map(|id| id.0).collect(),
            Kind::Image => self.images.keys().copied().collect(),
            Kind::Operation => self.operations.keys().copied().collect(),
            Kind::Template => self.templates.keys().copied().collect(),
            Kind::Profile => self.profiles.ids(),
            Kind::Network => self.networks.keys().copied().collect(),
            Kind::Datastore => self.datastores.keys().copied().collect(),
            Kind::Event => self.events.keys().copied().collect(),
        }
    }

    /// An image's content, once it is there.
    pub fn image_content(&self, image: ImageId) -> Option<&ImageContent> {
        self.images.get(&image.0)?.status.as_ref()?.value.content.as_ref()
    }

    /// The id that a name or an id's text stands for.
    pub fn find(&self, kind: Kind, project: Option<&str>, name: &str) -> Option<Uuid> {
        let by_name = self
            .names
            .get(&(kind, project.map(str::to_owned), name.to_owned()))
            .copied();
        let of_family = || {
            (kind == Kind::Profile)
                .then(|| Profiles::of_family(name))
                .flatten()
        };
        let by_name = by_name.or_else(of_family);
        by_name.or_else(|| name.parse().ok().filter(|id| self.meta(kind, *id).is_some()))
    }

    /// Phase and availability of a VM. From what cannot be read, neither follows.
    pub fn phase(&self, id: VmId) -> Option<(Phase, Availability)> {
        let facts = self.facts(id)?;
        if self.unreadable_vms().contains(&id) {
            return Some((Phase::Unknown, Availability::Inactive));
        }
        Some(lifecycle::project(facts))
    }

    /// What a VM's phase is computed from.
    pub fn facts(&self, id: VmId) -> Option<Facts<'_>> {
        let vm = self.vms.get(&id)?;
        let object = &vm.object.as_ref()?.value;
        let intent = vm.intent.as_ref().map(|intent| &intent.value);
        let host = intent
            .and_then(|intent| intent.host)
            .and_then(|host| self.hosts.get(&host));
        let migration = intent
            .and_then(|intent| intent.migration)
            .and_then(|id| self.migrations.get(&id));
        Some(Facts {
            spec: &object.spec,
            deleted: object.meta.deleted_at.is_some(),
            intent,
            runs: &vm.runs,
            host_silent: host.is_some_and(|host| host.is_silent()),
            migration: migration.map(Migration::phase),
        })
    }
}

impl<S, T> WithStatus<S, T> {
    fn is_empty(&self) -> bool {
        self.object.is_none() && self.status.is_none()
    }
}

impl Vm {
    fn is_empty(&self) -> bool {
        self.object.is_none() && self.intent.is_none() && self.runs.is_empty()
    }
}

impl Host {
    fn is_empty(&self) -> bool {
        self.object.is_none()
            && self.status.is_none()
            && self.reservations.is_none()
            && self.contact.is_none()
            && self.intent.is_none()
    }

    /// Whether nothing is heard from it.
    pub fn is_silent(&self) -> bool {
        self.contact
            .as_ref()
            .is_some_and(|contact| contact.value.silent_since.is_some())
    }

    /// Whether it counts as fenced: a person said so.
    pub fn is_dead(&self) -> bool {
        self.object
            .as_ref()
            .is_some_and(|object| object.value.spec.confirmed_dead_at.is_some())
    }

    /// Whether its operator wants no new VM on it.
    pub fn is_cordoned(&self) -> bool {
        self.object
            .as_ref()
            .is_some_and(|object| object.value.spec.cordoned)
    }

    /// The wish that its VMs leave it, if there is one.
    pub fn drain(&self) -> Option<&model::host::Drain> {
        self.object.as_ref()?.value.spec.drain.as_ref()
    }

    /// Its name, or a dash if its object is unreadable.
    pub fn name(&self) -> &str {
        self.object
            .as_ref()
            .map_or("-", |object| object.value.meta.name.as_str())
    }
}

impl Migration {
    /// The stored phase; Planned before the controller has seen it.
    pub fn phase(&self) -> MigrationPhase {
        self.intent
            .as_ref()
            .map_or(MigrationPhase::Planned, |intent| intent.value.phase)
    }
}
