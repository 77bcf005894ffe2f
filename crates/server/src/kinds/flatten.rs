//! A VM's disk that is made whole: what is asked for, and how it is.

use api::Problem;
use api::kinds::{DiskStatus, Vm};
use model::vm::VmSpec;
use model::{Kind, Object, VmId};
use planner::view::At;
use planner::{Plan, View, flatten};
use uuid::Uuid;

use super::set;
use crate::service::Context;
use crate::shared::Heard;

/// Asks for a whole disk. Of one that is whole, or is being made so, nothing more is asked.
pub(super) fn ask(context: &Context<'_>, at: &At<Object<VmSpec>>, plan: &mut Plan) -> Result<Uuid, Problem> {
    let (meta, spec) = (&at.value.meta, &at.value.spec);
    let id = VmId(meta.id);
    let intent = context.view.vms.get(&id).and_then(|vm| vm.intent.as_ref());
    let has_disk = intent.is_some_and(|at| at.value.has_volumes);
    if !has_disk && !spec.power.needs_host() {
        let name = &meta.name;
        let detail =
            format!("VM {name} has no disk yet to be made whole: `sterna vm start {name} --wait` first");
        return Err(Problem::conflict("vm-has-no-disk", detail));
    }
    let answered = intent.map_or(0, |at| at.value.flattening.answered_request);
    if flatten::needs_nothing(context.view, id) || spec.flatten_request > answered {
        return Ok(meta.id);
    }
    plan.action = format!("flatten vm {}", meta.name);
    let next = VmSpec {
        flatten_request: spec.flatten_request.saturating_add(1),
        ..spec.clone()
    };
    Ok(set::<Vm>(context, at, next, plan))
}

/// How a VM's disk is.
pub(super) fn status(heard: &Heard, view: &View, id: VmId) -> Option<DiskStatus> {
    let vm = view.vms.get(&id)?;
    let spec = &vm.object.as_ref()?.value.spec;
    let intent = vm.intent.as_ref().map(|at| &at.value);
    let flattening = intent.map(|intent| intent.flattening.clone()).unwrap_or_default();
    let whole = flatten::needs_nothing(view, id);
    let flattening_now = !whole && spec.flatten_request > flattening.answered_request;
    let host = intent.and_then(|intent| intent.host).filter(|_| flattening_now);
    Some(DiskStatus {
        whole,
        whole_since: flattening.whole.map(|whole| whole.at),
        flattening: flattening_now,
        progress: host.and_then(|host| heard.flattened(host, id)),
        reason: flattening.failed.filter(|_| !flattening_now),
        bytes: flatten::disk_bytes_of(view, vm),
    })
}

/// The image that a VM shows that it was made of; nobody knows the name of one that it does not need and that is gone.
pub(super) fn image_of(view: &View, spec: &VmSpec) -> Option<model::ImageId> {
    spec.image
        .filter(|image| view.meta(Kind::Image, image.0).is_some())
}
