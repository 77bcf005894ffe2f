//! Warm forms of templates: VMs that are booted once, and whose memory others start from.

use api::Problem;
use api::kinds::VmSpec;
use api::template::{self, WarmState};
use model::template::{KeepWarm, TemplateIntent};
use model::vm::{self, StartChoice};
use model::{DatastoreId, Kind, Object, Reason, TemplateId, VmId, key};
use planner::keep_warm::Warmth;
use planner::view::At;
use planner::{Plan, View};

use super::vm::check_largest_host;
use super::{build, find, given, host_name, name_of, placement};
use crate::service::Context;

/// The stored form of a VM that shall be the warm form of the template of that name.
pub(super) fn create(
    context: &Context<'_>,
    template: &str,
    spec: VmSpec,
    plan: &mut Plan,
) -> Result<vm::VmSpec, Problem> {
    check_overrides(&spec)?;
    let id = find(context, Kind::Template, template)?;
    let Some(at) = context.view.templates.get(&id) else {
        return Err(Problem::conflict(
            "being-deleted",
            format!("template {template} is gone"),
        ));
    };
    plan.rely(key::object(Kind::Template, id), at.revision);
    let base = &at.value.spec;
    check_largest_host(context, base.memory_mib, base.vcpus)?;
    let datastore = spec.datastore.as_deref().unwrap_or("default");
    let mut rule = placement::rule(context, spec.placement)?;
    rule.batch = None;
    let datastore = DatastoreId(find(context, Kind::Datastore, datastore)?);
    let form = planner::warm::form_spec(TemplateId(id), base, context.new_id, datastore);
    Ok(vm::VmSpec {
        placement: rule,
        ..form
    })
}

/// All that makes it is its template's.
fn check_overrides(spec: &VmSpec) -> Result<(), Problem> {
    let Some(field) = given::first_beside(spec, &["warms", "datastore", "placement"]) else {
        return Ok(());
    };
    let detail =
        format!("a template's warm form has its template's `{field}`: leave it out, or leave `warms` out");
    Err(Problem::invalid("warm-form-has-its-templates", detail))
}

/// How a new VM is to be started, if that can be.
pub(super) fn start_choice(
    context: &Context<'_>,
    start: Option<StartChoice>,
    template: Option<TemplateId>,
) -> Result<StartChoice, Problem> {
    let start = start.unwrap_or_default();
    if start != StartChoice::AtOnce {
        return Ok(start);
    }
    let Some(template) = template else {
        let detail = "only a VM of a template is started from memory: give `template`, or leave `start` out";
        return Err(Problem::invalid("start-needs-template", detail));
    };
    if planner::warm::warm_forms(context.view, template).next().is_none() {
        let name = name_of(context.view, Kind::Template, template.0);
        let detail = format!(
            "template {name} is not warm: `sterna template warm {name} --wait` first, or `--start auto`"
        );
        return Err(Problem::conflict("template-not-warm", detail));
    }
    Ok(start)
}

/// Only names and labels of a warm form are changed.
pub(super) fn check_unchanged(view: &View, old: &Object<vm::VmSpec>, spec: &VmSpec) -> Result<(), Problem> {
    let shown = <api::kinds::Vm as super::Served>::spec(view, &old.spec);
    if *spec == shown {
        return Ok(());
    }
    match (&old.spec.warms, &old.spec.builds) {
        (None, None) => Ok(()),
        (Some(_), _) => Err(refusal(view, old)),
        (None, Some(builds)) => Err(build::refusal(&old.meta.name, builds)),
    }
}

/// A warm form is nothing that is started, stopped, moved, changed or copied.
pub(super) fn check_ordinary(view: &View, at: &At<Object<vm::VmSpec>>) -> Result<(), Problem> {
    let spec = &at.value.spec;
    match (&spec.warms, &spec.builds) {
        (None, None) => Ok(()),
        (Some(_), _) => Err(refusal(view, &at.value)),
        (None, Some(builds)) => Err(build::refusal(&at.value.meta.name, builds)),
    }
}

fn refusal(view: &View, object: &Object<vm::VmSpec>) -> Problem {
    let template = object.spec.warms.map(|id| name_of(view, Kind::Template, id.0));
    let detail = format!(
        "VM {} is the warm form of template {}: its memory and its disk are only read; it can be deleted",
        object.meta.name,
        template.unwrap_or_default()
    );
    Problem::conflict("vm-is-warm-form", detail)
}

/// A warm form is not deleted under the disks that lie over its own.
pub(super) fn check_deletable(view: &View, at: &At<Object<vm::VmSpec>>) -> Result<(), Problem> {
    if at.value.spec.warms.is_none() {
        return Ok(());
    }
    let users: Vec<String> = planner::warm::users_of(view, VmId(at.value.meta.id))
        .map(|id| name_of(view, Kind::Vm, id.0))
        .collect();
    let Some(first) = users.first() else {
        return Ok(());
    };
    let detail = format!(
        "the disks of {} VMs lie over that of {}, {first} among them: delete those first",
        users.len(),
        at.value.meta.name
    );
    Err(Problem::conflict("warm-form-in-use", detail))
}

/// The wish that a template is kept warm.
pub(super) fn kept(context: &Context<'_>, keep: template::KeepWarm) -> Result<KeepWarm, Problem> {
    let datastore = keep.datastore.as_deref().unwrap_or("default");
    Ok(KeepWarm {
        datastore: DatastoreId(find(context, Kind::Datastore, datastore)?),
    })
}

/// How a template is kept warm, if it is to be.
pub(super) fn warmth(view: &View, id: TemplateId) -> Option<template::Warmth> {
    let (warmth, intent) = planner::keep_warm::warmth(view, id)?;
    let (state, form, next_at) = match warmth {
        Warmth::Ready(form) => (WarmState::Ready, Some(form), None),
        Warmth::Making(form) => (WarmState::Making, Some(form), None),
        Warmth::Due(at) => (WarmState::Due, None, at),
        Warmth::GivenUp => (WarmState::GivenUp, None, None),
    };
    let of_form = form.and_then(|id| view.vms.get(&id)?.intent.as_ref());
    let saved = of_form.and_then(|at| at.value.saved.as_ref().map(|saved| saved.host));
    let host = saved.or_else(|| of_form.and_then(|at| at.value.host));
    let last = |intent: &TemplateIntent| intent.failed.clone().unwrap_or_else(|| intent.why.clone());
    let reason = match (state, intent) {
        (WarmState::GivenUp, Some(intent)) => Some(given_up(view, id, intent)),
        _ => intent.map(last),
    };
    Some(template::Warmth {
        state,
        form: form.map(|id| name_of(view, Kind::Vm, id.0)),
        host: host
            .filter(|id| view.hosts.contains_key(id))
            .map(|id| host_name(view, id)),
        failures: intent.map_or(0, |intent| intent.failures),
        reason,
        next_at,
    })
}

fn given_up(view: &View, id: TemplateId, intent: &TemplateIntent) -> Reason {
    let name = name_of(view, Kind::Template, id.0);
    let why = intent.failed.as_ref().unwrap_or(&intent.why);
    let message = format!(
        "{} warm forms in a row failed, the last one because: {}. Another is made when the template or the hosts' QEMUs change, or \
         after `sterna template warm {name} --off` and `sterna template warm {name}`",
        intent.failures, why.message
    );
    Reason::new("warming-given-up", message)
}

/// What people are told of a warm form that is of no more use.
pub(super) fn staleness(view: &View, id: VmId) -> Option<Reason> {
    planner::warm::outdated(view, id)
}
