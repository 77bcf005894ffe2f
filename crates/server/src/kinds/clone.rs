//! A VM that is a copy of another: what it takes from that one, and what is its own.
//!
//! The other's image, sizes, networks and what its guest is told are taken over, as far as nothing else is asked for. Its name,
//! its identity and its addresses are its own.

use api::Problem;
use api::kinds::{CopyStatus, NicSpec, VmSpec};
use model::vm::{self, GuestConfig, Nic, Power};
use model::{Kind, Object, VmId, key};
use planner::view::At;
use planner::{Plan, View};

use super::vm::{check_largest_host, merged_guest, nics};
use super::{catalog, find, placement};
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
    super::warm::check_ordinary(context.view, at)?;
    // It is not deleted meanwhile.
    plan.rely(key::object(Kind::Vm, id.0), at.revision);
    let base = &at.value.spec;
    let vcpus = spec.vcpus.unwrap_or(base.vcpus);
    let memory_mib = spec.memory_mib.unwrap_or(base.memory_mib);
    catalog::check_sizes(vcpus, memory_mib, None)?;
    check_largest_host(context, memory_mib, vcpus)?;
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
        start: vm::StartChoice::Boot,
        ..base.clone()
    })
}

/// What is in a disk that is copied, or follows from it, is the source's.
fn check_overrides(spec: &VmSpec) -> Result<(), Problem> {
    let given = [
        ("template", spec.template.is_some()),
        ("image", spec.image.is_some()),
        ("disk_bytes", spec.disk_bytes.is_some()),
        ("datastore", spec.datastore.is_some()),
        ("cdrom", spec.cdrom.is_some()),
        ("boot", spec.boot.is_some()),
        ("start", spec.start.is_some()),
        ("warms", spec.warms.is_some()),
    ];
    let Some((field, _)) = given.into_iter().find(|(_, is_given)| *is_given) else {
        return Ok(());
    };
    let detail = format!("a copy of a VM has its source's `{field}`: leave it out, or leave `clone_of` out");
    Err(Problem::invalid("clone-has-its-sources", detail))
}

fn source_of<'v>(view: &'v View, id: VmId, name: &str) -> Result<&'v At<Object<vm::VmSpec>>, Problem> {
    let vm = view.vms.get(&id);
    let at = vm.and_then(|vm| vm.object.as_ref());
    let Some(at) = at.filter(|at| at.value.meta.deleted_at.is_none()) else {
        let detail = format!("VM {name} is being deleted: copy another one");
        return Err(Problem::conflict("being-deleted", detail));
    };
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
    let detail = format!(
        "VM {name} is being copied to {}: delete it when they have their disks, or delete them before it: `sterna vm delete {}`",
        waiting.join(", "),
        waiting.join(" ")
    );
    Err(Problem::conflict("vm-being-copied", detail))
}

/// Of which instant a VM's disk is a copy.
pub(super) fn status(view: &View, id: VmId) -> Option<CopyStatus> {
    let intent = view.vms.get(&id)?.intent.as_ref()?;
    let copied = intent.value.copied?;
    Some(CopyStatus {
        made_at: copied.at,
        consistency: copied.consistency,
    })
}
