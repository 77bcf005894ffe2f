//! The desired document of a host, as a function of the view.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::build::BuildWork;
use model::copy::{CopyShape, CopyTo};
use model::document::{
    Cdrom, Disk, HostDocument, ImageFile, Machine, MigrateTo, NetworkDocument, Order, Port, StartFrom, Stop,
    Target, TargetState, VmDocument,
};
use model::migration::{MigrationIntent, MigrationPhase, Route};
use model::report::{OutgoingState, RunState, RunStatus};
use model::user_data::UserData;
use model::vm::{self, BootDevice, Goal, GuestConfig, Open, Reboot, Start, VmIntent, VmSpec};
use model::{HostId, ImageId, Incarnation, VmId};

use crate::copies;
use crate::flatten::{disk_bytes_of, image_of};
use crate::migration::unwanted;
use crate::operation;
use crate::view::{Migration, View, Vm};

/// How long a transfer may take before its source gives up: a base, and a time per MiB of memory.
const TRANSFER_BASE_MS: u64 = 60_000;
const TRANSFER_MS_PER_MIB: u64 = 40;
/// Texts for a guest that are no longer are not worth another document without them.
const TEXT_SENT_ALWAYS_BYTES: usize = 16 << 10;
/// How much longer the target waits than the source.
const TARGET_PATIENCE_MS: u64 = 60_000;

/// All that a host shall do. Its revision is the view's.
pub fn build(view: &View, host: HostId) -> HostDocument {
    // A host that knows one of them must not take its absence for an order to end it.
    let mut unreadable = view.unreadable_vms();
    let mut vms = BTreeMap::new();
    for id in view.vms_of_host(host) {
        let Some((incarnation, order)) = order(view, host, id, &mut unreadable) else {
            continue;
        };
        match machine(view, id, incarnation) {
            Some(machine) => {
                vms.insert(
                    id,
                    VmDocument {
                        incarnation,
                        reboot: reboot(view, id, &order),
                        copies: copies(view, id, &order),
                        order,
                        machine,
                        cause: operation::cause(view, id),
                    },
                );
            }
            None => {
                unreadable.insert(id);
            }
        }
    }
    vms.retain(|id, _| !unreadable.contains(id));
    let vnis = vms
        .values()
        .flat_map(|vm| vm.machine.nics.iter().map(|nic| nic.vni));
    let vnis: BTreeSet<u32> = vnis.collect();
    let peers = if vnis.is_empty() {
        Vec::new()
    } else {
        peers(view, host)
    };
    let networks = vnis
        .into_iter()
        .map(|vni| (vni, NetworkDocument { peers: peers.clone() }));
    let networks = networks.collect();
    HostDocument {
        revision: view.revision,
        host,
        vms,
        unreadable,
        networks,
    }
}

/// The other hosts' addresses.
fn peers(view: &View, host: HostId) -> Vec<IpAddr> {
    let others = view
        .hosts
        .iter()
        .filter(|(id, other)| **id != host && !other.is_dead());
    others
        .filter_map(|(_, other)| Some(other.status.as_ref()?.value.peer_address?.ip()))
        .collect()
}

/// What the host shall do with a VM; a VM of which the user's part is missing is unreadable.
fn order(
    view: &View,
    host: HostId,
    id: VmId,
    unreadable: &mut BTreeSet<VmId>,
) -> Option<(Incarnation, Order)> {
    let vm = view.vms.get(&id)?;
    if vm.object.is_none() {
        unreadable.insert(id);
    }
    let intent = &vm.intent.as_ref()?.value;
    side_of_migration(view, host, id, vm).or_else(|| held(vm, intent, host))
}

/// The order for a VM that the host holds by itself.
fn held(vm: &Vm, intent: &VmIntent, host: HostId) -> Option<(Incarnation, Order)> {
    if intent.host != Some(host) {
        return None;
    }
    let is_deleted = vm.object.as_ref()?.value.meta.deleted_at.is_some();
    match &intent.open {
        Some(open) if is_deleted => Some((open.incarnation, Order::Stop(Stop::Remove))),
        Some(open) => Some((open.incarnation, open_order(open))),
        None if is_deleted && intent.has_volumes => {
            Some((intent.last_incarnation, Order::Stop(Stop::Remove)))
        }
        None => None,
    }
}

/// The reboot that goes with an order: of a guest that runs and stays.
fn reboot(view: &View, id: VmId, order: &Order) -> Option<Reboot> {
    let intent = &view.vms.get(&id)?.intent.as_ref()?.value;
    let open = intent
        .open
        .as_ref()
        .filter(|_| matches!(order, Order::Run { .. }))?;
    open.reboot
}

/// The copies that are made meanwhile of the disk of a VM that stays where it is.
fn copies(view: &View, id: VmId, order: &Order) -> BTreeMap<CopyTo, CopyShape> {
    let intent = view.vms.get(&id).and_then(|vm| vm.intent.as_ref());
    let open = intent.and_then(|at| at.value.open.as_ref());
    let open = open.filter(|_| matches!(order, Order::Run { .. } | Order::Stop(Stop::Prepare)));
    let copies = open.into_iter().flat_map(|open| &open.copies);
    copies.map(|to| (*to, copies::shape(view, id, *to))).collect()
}

fn open_order(open: &Open) -> Order {
    match open.goal {
        Goal::Run { paused } => Order::Run {
            paused,
            resume: open.resume,
            start: match &open.start {
                Start::Disk => StartFrom::Disk,
                Start::Saved(saved) => StartFrom::Saved {
                    incarnation: saved.incarnation,
                    saved_in: saved.saved_in,
                },
                Start::Stream => StartFrom::Never,
                Start::Warm { vm, incarnation } => StartFrom::Warm {
                    vm: *vm,
                    incarnation: *incarnation,
                },
            },
        },
        Goal::Shutdown { force_at } => Order::Stop(Stop::Shutdown { force_at }),
        Goal::Kill => Order::Stop(Stop::Kill),
        Goal::Suspend => Order::Stop(Stop::Suspend),
        Goal::Stop => Order::Stop(Stop::Store),
        Goal::Warm => Order::Stop(Stop::Warm),
        Goal::Prepare | Goal::Copy => Order::Stop(Stop::Prepare),
    }
}

/// The order for a VM that is on its way from or to the host.
fn side_of_migration(view: &View, host: HostId, id: VmId, vm: &Vm) -> Option<(Incarnation, Order)> {
    view.active_migrations(id).find_map(|(_, migration)| {
        let intent = &migration.intent.as_ref()?.value;
        let route = intent.route.as_ref()?;
        if route.target == host {
            return target_order(view, vm, intent, route);
        }
        if route.source == host {
            return source_order(view, vm, migration, intent, route);
        }
        None
    })
}

fn target_order(
    view: &View,
    vm: &Vm,
    intent: &MigrationIntent,
    route: &Route,
) -> Option<(Incarnation, Order)> {
    let state = match intent.phase {
        MigrationPhase::Preparing => TargetState::Prepare,
        MigrationPhase::Transferring | MigrationPhase::SwitchingOver => TargetState::Granted,
        MigrationPhase::Decided => TargetState::Decided,
        MigrationPhase::Aborting | MigrationPhase::Revoking => TargetState::Revoked,
        // From the commit on the target's incarnation is the VM's own.
        _ => return None,
    };
    let open = vm.intent.as_ref().and_then(|at| at.value.open.as_ref());
    let order = Order::Target(Target {
        from: route.from,
        host: route.source,
        host_name: view
            .hosts
            .get(&route.source)
            .map_or("-", |host| host.name())
            .to_owned(),
        state,
        paused: open.is_some_and(|open| matches!(open.goal, Goal::Run { paused: true })),
        timeout_ms: timeout_ms(open).saturating_add(TARGET_PATIENCE_MS),
    });
    Some((route.to, order))
}

fn timeout_ms(open: Option<&Open>) -> u64 {
    let memory_mib = open.map_or(0, |open| open.memory_mib);
    TRANSFER_BASE_MS.saturating_add(memory_mib.saturating_mul(TRANSFER_MS_PER_MIB))
}

fn source_order(
    view: &View,
    vm: &Vm,
    migration: &Migration,
    intent: &MigrationIntent,
    route: &Route,
) -> Option<(Incarnation, Order)> {
    match intent.phase {
        MigrationPhase::Activated => return Some((route.from, Order::Stop(Stop::Release))),
        MigrationPhase::Preparing
        | MigrationPhase::Transferring
        | MigrationPhase::SwitchingOver
        | MigrationPhase::Decided
        | MigrationPhase::Revoking => {}
        _ => return None,
    }
    let open = vm.intent.as_ref().and_then(|at| at.value.open.as_ref());
    let target = vm.runs.get(&route.to);
    let target_host = view.hosts.get(&route.target);
    let target_is_lost =
        target_host.is_none_or(|host| host.is_dead()) || target.is_some_and(|run| run.state.is_closed());
    let granted = intent.phase.is_granted();
    let spec = &migration.object.as_ref()?.value.spec;
    let order = Order::MigrateTo(MigrateTo {
        to: route.to,
        host: route.target,
        host_name: target_host.map_or("-", |host| host.name()).to_owned(),
        stream: target.and_then(|run| run.stream.clone()),
        peer: target_host.and_then(|h| Some(h.status.as_ref()?.value.peer_address?.to_string())),
        granted,
        cancel: granted && (target_is_lost || unwanted(spec, vm).is_some()),
        paused: open.is_some_and(|open| matches!(open.goal, Goal::Run { paused: true })),
        timeout_ms: timeout_ms(open),
    });
    Some((route.from, order))
}

fn machine(view: &View, id: VmId, incarnation: Incarnation) -> Option<Machine> {
    let vm = view.vms.get(&id)?;
    let intent = &vm.intent.as_ref()?.value;
    let object = &vm.object.as_ref()?.value;
    let spec = &object.spec;
    let image = match image_of(vm) {
        Some(image) => Some(image_file(view, image)?),
        None => None,
    };
    let datastore = &view.datastores.get(&spec.datastore.0)?.value.spec;
    // One that only copies its disk holds none of what the machine needs.
    let open = intent.open.as_ref().filter(|open| open.goal != Goal::Copy);
    let (memory_mib, vcpus) = open.map_or((spec.memory_mib, spec.vcpus), |open| {
        (open.memory_mib, open.vcpus)
    });
    let nics = spec.nics.iter().filter_map(|nic| {
        Some(Port {
            vni: view.networks.get(&nic.network.0)?.value.spec.vni,
            mac: nic.mac.clone(),
            address: nic.address,
            prefix_len: nic.prefix_len,
        })
    });
    Some(Machine {
        name: object.meta.name.clone(),
        uuid: id.0,
        vcpus,
        memory_mib,
        disk: Disk {
            datastore: datastore.path.clone(),
            coherent: datastore.coherent,
            image,
            bytes: disk_bytes_of(view, vm)?,
            layer: intent.layer,
        },
        nics: nics.collect(),
        guest: guest(&object.meta.name, &spec.guest, vm.runs.get(&incarnation)),
        cdrom: match &spec.cdrom {
            Some(cdrom) => Some(drive(view, cdrom)?),
            None => None,
        },
        boot: boot(spec),
        firmware: spec.firmware,
        keeps_memory: spec.warms.is_some(),
        build: build_work(spec, intent),
    })
}

/// What is still to be done in the guest of a VM that builds a template.
fn build_work(spec: &VmSpec, intent: &VmIntent) -> Option<BuildWork> {
    let builds = spec.builds.as_ref().filter(|_| intent.built.is_none())?;
    Some(BuildWork {
        script: builds.script.clone(),
    })
}

/// What a VM boots from, the first choice first.
pub fn boot(spec: &VmSpec) -> Vec<BootDevice> {
    if spec.boot.is_empty() {
        BootDevice::USUAL.into()
    } else {
        spec.boot.clone()
    }
}

fn drive(view: &View, cdrom: &vm::Cdrom) -> Option<Cdrom> {
    let medium = match cdrom.medium {
        Some(image) => Some(image_file(view, image)?),
        None => None,
    };
    Some(Cdrom {
        medium,
        force: cdrom.force,
    })
}

/// Whether another medium is wanted in a VM's drive than its host has said is in it.
pub(crate) fn changes_medium(view: &View, vm: &Vm, incarnation: Incarnation) -> bool {
    let spec = vm.object.as_ref().map(|at| &at.value.spec);
    let wanted = spec.and_then(|spec| spec.cdrom.as_ref());
    let present = vm.runs.get(&incarnation).and_then(|run| run.cdrom.as_ref());
    let (Some(wanted), Some(present)) = (wanted, present) else {
        return false;
    };
    let content = wanted.medium.and_then(|image| view.image_content(image));
    content.map(|content| &content.sha256) != present.medium.as_ref()
}

/// An image as hosts find it; `None` while its content has not come.
fn image_file(view: &View, image: ImageId) -> Option<ImageFile> {
    let content = view.image_content(image)?;
    Some(ImageFile {
        sha256: content.sha256.clone(),
        format: content.format,
    })
}

/// What the guest is told, as its seed has it. Long texts are left out once the seed is made, which an incarnation's is
/// once: a document is sent whole whenever it changes, and a host may have many such VMs.
fn guest(name: &str, told: &GuestConfig, run: Option<&RunStatus>) -> GuestConfig {
    let has_seed = run.is_some_and(|run| has_seed(run.state));
    let text = |data: &Option<UserData>| {
        let data = data.as_ref()?;
        let is_sent = !has_seed || data.bytes() <= TEXT_SENT_ALWAYS_BYTES;
        is_sent.then(|| UserData::Text(data.merged()))
    };
    GuestConfig {
        hostname: Some(told.hostname.clone().unwrap_or_else(|| name.to_owned())),
        ssh_keys: told.ssh_keys.clone(),
        user_data: text(&told.user_data),
        vendor_data: text(&told.vendor_data),
        seed: told.seed,
    }
}

/// Whether an incarnation's QEMU was started, with its seed: it is launched once at most. What shall be saved or stopped may
/// not have been launched yet, and may still be, if that is taken back.
const fn has_seed(state: RunState) -> bool {
    use RunState::{Booting, Incoming, Loaded, Paused, Running};
    matches!(state, Booting | Running | Paused | Incoming | Loaded)
}

/// Whether a source has said that it stopped its guest for the last round: shown to people, never decided on.
pub fn is_switching_over(vm: &Vm, route: &Route) -> bool {
    let run = vm
        .runs
        .get(&route.from)
        .filter(|run| run.state != RunState::Closed);
    let outgoing = run
        .and_then(|run| run.outgoing.as_ref())
        .filter(|outgoing| outgoing.to == route.to);
    outgoing.is_some_and(|outgoing| {
        matches!(
            outgoing.state,
            OutgoingState::SwitchingOver | OutgoingState::Completed
        )
    })
}
