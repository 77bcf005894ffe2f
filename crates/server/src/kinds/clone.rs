//! A VM that is a copy of another: what it takes from that one, and what is its own.
//!
//! The other's image, sizes, networks and what its guest is told are taken over, as far as nothing else is asked for. Its name,
//! its identity and its addresses are its own.

use api::Problem;
use api::kinds::{CopyStatus, NicSpec, VmSpec};
use model::vm::{self, Copied, GuestConfig, Nic, Power};
use model::{Kind, Object, VmId, key};
use planner::view::At;
use planner::{Plan, View, flatten};

use super::vm::{check_largest_host, merged_guest, nics};
use super::{catalog, find, given, placement};
use crate::service::Context;

/// The stored form of a VM that shall be a copy of the one of that name.
pub(super) fn create(
    context: &Context<'_>,
    source: &str,
    spec: VmSpec,
    plan: &mut Plan,
) -> Result<vm::VmSpec, Problem> {
    check_overrides(&spec)?;
    let id = VmId(find(context, Kind::Vm, source)?);
    let at = source_of(context.view, id, source)?;
    // It is not deleted meanwhile.
    plan.rely(key::object(Kind::Vm, id.0), at.revision);
    let base = &at.value.spec;
    let vcpus = spec.vcpus.unwrap_or(base.vcpus);
    let memory_mib = spec.memory_mib.unwrap_or(base.memory_mib);
    catalog::check_sizes(vcpus, memory_mib, spec.disk_bytes)?;
    check_largest_host(context, memory_mib, vcpus)?;
    let of = context
        .view
        .vms
        .get(&id)
        .ok_or_else(|| Problem::not_found(Kind::Vm, source))?;
    let disk_bytes = disk_bytes(context.view, of, source, spec.disk_bytes)?;
    let image = flatten::image_of(of).filter(|_| spec.clone_full != Some(true));
    let networks = || base.nics.iter().map(same_network).collect();
    let guest = GuestConfig {
        hostname: None,
        ..base.guest.clone()
    };
    let mut rule = placement::rule(context, spec.placement)?;
    rule.batch = None;
    Ok(vm::VmSpec {
        vcpus,
        memory_mib,
        nics: nics(context, spec.nics.unwrap_or_else(networks), plan)?,
        guest: merged_guest(spec.guest, guest)?,
        placement: rule,
        power: spec.power.unwrap_or(Power::Running),
        force: false,
        power_request: 1,
        reboot: None,
        clone_of: Some(id),
        disk_bytes: match image {
            Some(_) => disk_bytes.or(base.disk_bytes),
            None => disk_bytes.or_else(|| flatten::disk_bytes_of(context.view, of)),
        },
        image,
        start: vm::StartChoice::Boot,
        flatten_request: 0,
        ..base.clone()
    })
}

/// What a copy may have of its own. All else is in the disk that is copied, or follows from it.
const OWN: [&str; 9] = [
    "clone_of",
    "clone_full",
    "vcpus",
    "memory_mib",
    "disk_bytes",
    "nics",
    "guest",
    "placement",
    "power",
];

fn check_overrides(spec: &VmSpec) -> Result<(), Problem> {
    let Some(field) = given::first_beside(spec, &OWN) else {
        return Ok(());
    };
    let detail = format!("a copy of a VM has its source's `{field}`: leave it out, or leave `clone_of` out");
    Err(Problem::invalid("clone-has-its-sources", detail))
}

/// The size that is asked for: the source's, or more.
fn disk_bytes(
    view: &View,
    source: &planner::view::Vm,
    name: &str,
    asked: Option<u64>,
) -> Result<Option<u64>, Problem> {
    let least = flatten::disk_bytes_of(view, source);
    if let (Some(asked), Some(least)) = (asked, least)
        && asked < least
    {
        let detail =
            format!("the disk would be smaller than that of VM {name}: give at least disk_bytes {least}");
        return Err(Problem::invalid("disk-too-small", detail));
    }
    Ok(asked)
}

fn source_of<'v>(view: &'v View, id: VmId, name: &str) -> Result<&'v At<Object<vm::VmSpec>>, Problem> {
    let vm = view.vms.get(&id);
    let at = vm.and_then(|vm| vm.object.as_ref());
    let Some(at) = at.filter(|at| at.value.meta.deleted_at.is_none()) else {
        let detail = format!("VM {name} is being deleted: copy another one");
        return Err(Problem::conflict("being-deleted", detail));
    };
    super::warm::check_ordinary(view, at)?;
    let intent = vm.and_then(|vm| vm.intent.as_ref());
    let has_disk = intent.is_some_and(|at| at.value.has_volumes);
    if !has_disk && !at.value.spec.power.needs_host() {
        let detail = format!("VM {name} has no disk yet to be copied: `sterna vm start {name} --wait` first");
        return Err(Problem::conflict("clone-source-empty", detail));
    }
    Ok(at)
}

fn same_network(nic: &Nic) -> NicSpec {
    NicSpec {
        network: nic.network.to_string(),
        mac: None,
        address: None,
    }
}

/// A source is not deleted under those that wait for a copy of its disk.
pub(super) fn check_deletable(view: &View, at: &At<Object<vm::VmSpec>>) -> Result<(), Problem> {
    let waiting = planner::copies::waiting_for(view, VmId(at.value.meta.id));
    if waiting.is_empty() {
        return Ok(());
    }
    let name = &at.value.meta.name;
    let named = |(kind, name): &(Kind, &str)| match kind {
        Kind::Vm => (*name).to_owned(),
        kind => format!("{kind} {name}"),
    };
    let all: Vec<String> = waiting.iter().map(named).collect();
    let commands = [Kind::Vm, Kind::Image].map(|kind| {
        let names = waiting.iter().filter(|(of, _)| *of == kind);
        let names: Vec<&str> = names.map(|(_, name)| *name).collect();
        (!names.is_empty()).then(|| format!("`sterna {kind} delete {}`", names.join(" ")))
    });
    let commands: Vec<String> = commands.into_iter().flatten().collect();
    let detail = format!(
        "VM {name} is being copied to {}: delete it when they have their disks, or delete them before it: {}",
        all.join(", "),
        commands.join(", ")
    );
    Err(Problem::conflict("vm-being-copied", detail))
}

/// Of which instant a VM's disk is a copy.
pub(super) fn status(view: &View, id: VmId) -> Option<CopyStatus> {
    let intent = view.vms.get(&id)?.intent.as_ref()?;
    intent.value.copied.map(copied)
}

/// The instant that a copy is of.
pub(super) const fn copied(copied: Copied) -> CopyStatus {
    CopyStatus {
        made_at: copied.at,
        consistency: copied.consistency,
    }
}

/// The VM whose disk shall be copied for an image: it has one, or will, and is not deleted meanwhile.
pub(super) fn for_image(context: &Context<'_>, name: &str, plan: &mut Plan) -> Result<VmId, Problem> {
    let id = VmId(find(context, Kind::Vm, name)?);
    let at = source_of(context.view, id, name)?;
    plan.rely(key::object(Kind::Vm, id.0), at.revision);
    Ok(id)
}
