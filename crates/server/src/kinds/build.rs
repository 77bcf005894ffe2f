//! VMs that templates are made of: what is asked for, checked, and all that it takes made with the request.

use std::collections::BTreeMap;

use api::Problem;
use api::kinds::{BuildSpec, NicSpec, VmSpec};
use model::build::{Builds, BuiltFrom};
use model::image::ImageSpec;
use model::limits::{VERSIONS_MAX, check_name, check_range};
use model::template::{FIRST_VERSION, TemplateSpec};
use model::user_data::NOT_SHOWN;
use model::vm::{self, GuestConfig, Power, StartChoice};
use model::{DatastoreId, ImageId, Kind, Object, TemplateId, VmId, key};
use planner::{Plan, View};
use uuid::Uuid;

use super::vm::{check_largest_host, nics};
use super::{clone, find, given, name_of, placement};
use crate::service::{self, Context};

/// The longest script: it is stored, and sent to the guest in one message.
const SCRIPT_MAX_BYTES: u64 = 256 << 10;

/// The stored form of a VM that a template is made of, and the image that its disk becomes.
pub(super) fn create(
    context: &Context<'_>,
    asked: BuildSpec,
    spec: VmSpec,
    plan: &mut Plan,
) -> Result<vm::VmSpec, Problem> {
    check_overrides(&spec)?;
    check_script(asked.script.as_deref())?;
    check_name(&asked.template)?;
    check_alone(context, &asked.template)?;
    let present = present(context, &asked, plan)?;
    let mut built = match &asked.from_vm {
        Some(vm) => of_vm(context, vm, spec, plan)?,
        None => of_template(context, &asked.template, present.as_ref(), spec, plan)?,
    };
    let image = ImageId(derived(context.new_id, 1));
    let version = present.as_ref().map_or(0, |(_, spec)| spec.version);
    let gives = match present {
        Some(_) => None,
        None => Some(gives(context, &built, image)?),
    };
    create_image(context, image, &asked.template, version.saturating_add(1), plan)?;
    let template = present.as_ref().map(|(id, _)| *id);
    built.builds = Some(Box::new(Builds {
        template: template.unwrap_or(TemplateId(derived(context.new_id, 2))),
        template_name: asked.template,
        image,
        gives,
        from: BuiltFrom {
            vm: built.clone_of.map(|id| name_of(context.view, Kind::Vm, id.0)),
            version: Some(version).filter(|_| built.clone_of.is_none()),
            script: asked.script.is_some(),
        },
        script: asked.script,
    }));
    Ok(built)
}

/// Only what it begins with is chosen, and its interfaces.
fn check_overrides(spec: &VmSpec) -> Result<(), Problem> {
    let Some(field) = given::first_beside(spec, &["builds", "datastore", "nics", "placement"]) else {
        return Ok(());
    };
    let detail = format!(
        "a VM that a template is made of has what it begins with, `{field}` too: leave it out, or leave `builds` out"
    );
    Err(Problem::invalid("build-has-its-sources", detail))
}

fn check_script(script: Option<&str>) -> Result<(), Problem> {
    let Some(script) = script else { return Ok(()) };
    if script == NOT_SHOWN {
        let detail =
            "the script is one that was not shown, and stands for another: take it as an operator sees it";
        return Err(Problem::invalid("user-data-not-shown", detail));
    }
    check_range(
        "the size of the script in bytes",
        script.len() as u64,
        1,
        SCRIPT_MAX_BYTES,
    )?;
    Ok(())
}

/// One at a time for each template.
fn check_alone(context: &Context<'_>, template: &str) -> Result<(), Problem> {
    let Some(other) = planner::build::under_way(context.view, template, Some(context.project())) else {
        return Ok(());
    };
    let name = &other.name;
    let detail = format!(
        "template {template} is being made of VM {name}: wait for its end (`sterna operation list`), or give it up with \
         `sterna vm delete {name}`"
    );
    Err(Problem::conflict("under-way", detail))
}

/// The template that is refreshed, which has room for another version; `None` for a new one, whose name is free.
fn present(
    context: &Context<'_>,
    asked: &BuildSpec,
    plan: &mut Plan,
) -> Result<Option<(TemplateId, TemplateSpec)>, Problem> {
    let name = &asked.template;
    if asked.refresh {
        let id = find(context, Kind::Template, name)?;
        let at = context.view.templates.get(&id);
        let at = at.ok_or_else(|| Problem::not_found(Kind::Template, name))?;
        plan.rely(key::object(Kind::Template, id), at.revision);
        if context.view.template_versions.of(id).count().saturating_add(2) > VERSIONS_MAX {
            let detail = format!(
                "template {name} has {VERSIONS_MAX} versions, and there can be no more: delete one that is not needed, as with \
                 `sterna template delete {name}@N`"
            );
            return Err(Problem::conflict("too-many-versions", detail));
        }
        return Ok(Some((TemplateId(id), at.value.spec.clone())));
    }
    let index = (Kind::Template, Some(context.project().to_owned()), name.clone());
    if context.view.names.contains_key(&index) {
        let detail = format!(
            "there is a template {name} already: make its next version with `sterna template refresh {name}`, or take another \
             name"
        );
        return Err(Problem::conflict("template-exists", detail));
    }
    Ok(None)
}

/// A copy of a VM's disk, which is told nothing of what that VM is told.
fn of_vm(context: &Context<'_>, source: &str, spec: VmSpec, plan: &mut Plan) -> Result<vm::VmSpec, Problem> {
    if spec.datastore.is_some() {
        let detail = "a copy of a VM is in its source's datastore: leave `datastore` out";
        return Err(Problem::invalid("build-has-its-sources", detail));
    }
    let asked = VmSpec {
        nics: Some(spec.nics.unwrap_or_default()),
        placement: spec.placement,
        power: Some(Power::Running),
        ..VmSpec::default()
    };
    let copy = clone::create(context, source, asked, plan)?;
    Ok(vm::VmSpec {
        guest: GuestConfig {
            seed: copy.guest.seed,
            ..GuestConfig::default()
        },
        cdrom: None,
        boot: Vec::new(),
        template: None,
        template_version: None,
        profile: None,
        ..copy
    })
}

/// A VM of the newest version's image, with its sizes.
fn of_template(
    context: &Context<'_>,
    name: &str,
    present: Option<&(TemplateId, TemplateSpec)>,
    spec: VmSpec,
    plan: &mut Plan,
) -> Result<vm::VmSpec, Problem> {
    let Some((_, base)) = present else {
        let detail = format!(
            "a new template begins with a VM's disk: give `from_vm`, as in `sterna template create {name} --from-vm VM`"
        );
        return Err(Problem::invalid("build-needs-source", detail));
    };
    check_largest_host(context, base.memory_mib, base.vcpus)?;
    let datastore = spec.datastore.as_deref().unwrap_or("default");
    let given: Vec<NicSpec> = spec.nics.unwrap_or_default();
    let mut rule = placement::rule(context, spec.placement)?;
    rule.batch = None;
    Ok(vm::VmSpec {
        template: None,
        template_version: None,
        profile: None,
        vcpus: base.vcpus,
        memory_mib: base.memory_mib,
        image: Some(base.image),
        disk_bytes: None,
        datastore: DatastoreId(find(context, Kind::Datastore, datastore)?),
        nics: nics(context, given, plan)?,
        guest: GuestConfig {
            seed: base.guest.seed,
            ..GuestConfig::default()
        },
        placement: rule,
        power: Power::Running,
        force: false,
        power_request: 1,
        reboot: None,
        cdrom: None,
        boot: Vec::new(),
        clone_of: None,
        firmware: base.firmware,
        start: StartChoice::Boot,
        warms: None,
        flatten_request: 0,
        builds: None,
    })
}

/// What a new template gives: the source's sizes, networks and firmware. What that was told it has carried out already.
fn gives(context: &Context<'_>, built: &vm::VmSpec, image: ImageId) -> Result<TemplateSpec, Problem> {
    let source = built
        .clone_of
        .and_then(|id| context.view.vms.get(&id)?.object.as_ref());
    let source =
        source.ok_or_else(|| Problem::conflict("being-deleted", "the VM that it begins with is gone"))?;
    let networks = source.value.spec.nics.iter().map(|nic| nic.network);
    Ok(TemplateSpec {
        image,
        vcpus: built.vcpus,
        memory_mib: built.memory_mib,
        disk_bytes: None,
        networks: networks.collect(),
        guest: built.guest.clone(),
        firmware: built.firmware,
        profile: None,
        version: FIRST_VERSION,
        made: None,
        keep_warm: None,
    })
}

fn create_image(
    context: &Context<'_>,
    image: ImageId,
    template: &str,
    version: u64,
    plan: &mut Plan,
) -> Result<(), Problem> {
    let mut meta = context.meta(
        Kind::Image,
        &free_name(context, template, version),
        BTreeMap::new(),
    );
    meta.id = image.0;
    let object = Object {
        meta,
        spec: ImageSpec {
            from_vm: Some(VmId(context.new_id)),
            ..ImageSpec::default()
        },
    };
    service::create_object(context, Kind::Image, &object, plan)?;
    Ok(())
}

/// `web-v2`, or `web-v2-2` if an image is called that. Of two builds that are asked for at once, both take the same one: so one of
/// them is refused, and looks again.
fn free_name(context: &Context<'_>, template: &str, version: u64) -> String {
    let short: String = template.chars().take(48).collect();
    let name = format!("{short}-v{version}");
    let project = Some(context.project().to_owned());
    let is_free = |name: &String| {
        let index = (Kind::Image, project.clone(), name.clone());
        !context.view.names.contains_key(&index)
    };
    let more = (2..).map(|count: u64| format!("{name}-{count}"));
    let mut all = std::iter::once(name.clone()).chain(more);
    all.find(is_free).unwrap_or(name.clone())
}

/// Another id for what is made with an object, as random as that one's.
fn derived(id: Uuid, which: u128) -> Uuid {
    Uuid::from_u128(id.as_u128() ^ which)
}

/// What it builds, as it is shown.
pub(super) fn shown(view: &View, stored: &vm::VmSpec) -> Option<BuildSpec> {
    let builds = stored.builds.as_ref()?;
    Some(BuildSpec {
        template: builds.template_name.clone(),
        from_vm: stored.clone_of.map(|id| name_of(view, Kind::Vm, id.0)),
        refresh: builds.gives.is_none(),
        script: builds.script.clone(),
    })
}

/// Leaves out the script, which may hold passwords.
pub(super) fn hide_script(builds: &mut BuildSpec) {
    if let Some(script) = &mut builds.script {
        *script = NOT_SHOWN.to_owned();
    }
}

/// Such a VM is nothing that is started, stopped, moved, changed or copied.
pub(super) fn refusal(name: &str, builds: &Builds) -> Problem {
    let detail = format!(
        "VM {name} is there for template {0}, which is made of it, and is deleted then: wait for that, or give it up with \
         `sterna vm delete {name}`",
        builds.template_name
    );
    Problem::conflict("vm-builds-template", detail)
}
