//! What users ask of templates and images, and what must be left of that when all is over.
//!
//! **Owns:** templates that are kept warm, VMs that start from them, builds, captures, and the ends of all these.
//!
//! **Does not know:** what a host does for them: see [`crate::effects`] and [`crate::disks`].
//!
//! **Start here:** [`World::ask_of_templates`], [`World::left_of_templates`].

use std::collections::{BTreeMap, BTreeSet};

use api::Problem;
use api::kinds::{Image, Template, Vm};
use model::lifecycle::Phase;
use model::operation::Action;
use model::{ImageId, Kind, TemplateId, VmId};
use planner::keep_warm::{Warmth, warmth};
use planner::{Plan, warm};
use serde_json::json;
use server::routes::decide_change;
use server::service::Context;

use crate::script::{Catalog, Step};
use crate::users::{named, vm_name};
use crate::world::World;

/// The template that is there from the beginning.
pub(crate) const TEMPLATE: &str = "small";
/// How many warm forms of a template may be begun when nothing breaks any more: the one that is wanted, one for each failure
/// that is tried again in time, and what was under way.
const FORMS_MAX: usize = 4;

/// How many warm forms of each template have been begun.
#[derive(Debug, Default)]
pub(crate) struct Forms {
    begun: BTreeMap<TemplateId, BTreeSet<VmId>>,
    begun_before_the_end: BTreeMap<TemplateId, usize>,
}

impl Forms {
    pub(crate) fn note(&mut self, template: TemplateId, form: VmId) {
        self.begun.entry(template).or_default().insert(form);
    }

    /// From now on nothing breaks.
    pub(crate) fn mended(&mut self) {
        let counts = self.begun.iter().map(|(id, forms)| (*id, forms.len()));
        self.begun_before_the_end = counts.collect();
    }

    fn too_many(&self) -> Option<(TemplateId, usize)> {
        let late = self.begun.iter().map(|(id, forms)| {
            let before = self.begun_before_the_end.get(id).copied().unwrap_or_default();
            (*id, forms.len().saturating_sub(before))
        });
        { late }.find(|(_, count)| *count > FORMS_MAX)
    }
}

/// The nth of these names, counted round and round.
fn nth_of<'n>(names: impl Iterator<Item = &'n String>, nth: usize) -> Option<String> {
    let names: Vec<&String> = names.collect();
    let at = nth.checked_rem(names.len())?;
    names.get(at).map(|name| (*name).clone())
}

impl World {
    /// A wish of the script that is about templates or images reaches a server.
    pub(crate) fn ask_of_templates(&mut self, n: usize, wish: &Catalog) {
        match wish {
            Catalog::KeepWarm { nth, on } => {
                let keep = if *on { json!({}) } else { json!(null) };
                self.change_template(n, *nth, "keep_warm", keep);
            }
            Catalog::Change { nth, memory_mib } => {
                self.change_template(n, *nth, "memory_mib", json!(memory_mib));
            }
            Catalog::Start { vm, nth } => {
                let Some(template) = self.nth_named(Kind::Template, *nth) else {
                    return;
                };
                self.make_vm(
                    n,
                    vm_name(*vm),
                    json!({ "template": template, "start": "instant" }),
                );
            }
            Catalog::Refresh { nth } => {
                let Some(template) = self.nth_named(Kind::Template, *nth) else {
                    return;
                };
                let builds = json!({ "template": template, "refresh": true, "script": "true" });
                self.make_vm(n, format!("b{n}"), json!({ "builds": builds }));
            }
            Catalog::Build { of } => {
                let builds = json!({ "template": format!("t{n}"), "from_vm": vm_name(*of) });
                self.make_vm(n, format!("b{n}"), json!({ "builds": builds }));
            }
            Catalog::Capture { of } => {
                let request = named(Some(format!("i{n}")), json!({ "from_vm": vm_name(*of) }));
                self.request_new::<Image>(n, request);
            }
            Catalog::Delete { nth } => {
                let Some(name) = self.nth_named(Kind::Template, *nth) else {
                    return;
                };
                self.request_end::<Template>(n, name);
            }
            Catalog::DeleteImage { nth } => {
                let Some(name) = self.nth_named(Kind::Image, *nth) else {
                    return;
                };
                self.request_end::<Image>(n, name);
            }
            Catalog::GiveUp { nth } => {
                let Some(name) = self.nth_builder(*nth) else {
                    return;
                };
                self.request_end::<Vm>(n, name);
            }
        }
    }

    fn make_vm(&mut self, n: usize, name: String, spec: serde_json::Value) {
        self.request_new::<Vm>(n, named(Some(name), spec));
    }

    fn change_template(&mut self, n: usize, nth: usize, field: &'static str, value: serde_json::Value) {
        let Some(name) = self.nth_named(Kind::Template, nth) else {
            return;
        };
        let decide = move |context: &Context<'_>, plan: &mut Plan| {
            decide_change::<Template>(context, plan, &name, None, |mut present| {
                present["spec"][field] = value.clone();
                serde_json::from_value(present).map_err(|error| Problem::invalid("test", error.to_string()))
            })
        };
        self.request::<Template>(n, 200, Box::new(decide));
    }

    /// The name of one of those that are there, in the order of their names.
    fn nth_named(&self, kind: Kind, nth: usize) -> Option<String> {
        let of_kind = self.checks.view.names.keys().filter(|(one, ..)| *one == kind);
        nth_of(of_kind.map(|(.., name)| name), nth)
    }

    fn nth_builder(&self, nth: usize) -> Option<String> {
        let objects = self.checks.view.vms.values().filter_map(|vm| vm.object.as_ref());
        let builders = objects.filter(|at| at.value.spec.builds.is_some());
        nth_of(builders.map(|at| &at.value.meta.name), nth)
    }

    /// What is left of templates, builds and captures though they are over, or goes on though it has no reason to.
    pub(crate) fn left_of_templates(&self) -> Vec<String> {
        let mut wrong = self.left_builders();
        wrong.extend(self.left_captures());
        wrong.extend(self.left_forms());
        wrong.extend(self.not_warm());
        let too_many = self.checks.forms.too_many();
        wrong.extend(too_many.map(|(id, count)| format!("{count} warm forms of {id:?} were begun at rest")));
        wrong
    }

    /// One that has no place, or waits for what it begins with, may be there still.
    fn left_builders(&self) -> Vec<String> {
        let view = &self.checks.view;
        let is_left = |id: &VmId| view.phase(*id).is_some_and(|(phase, _)| phase != Phase::Pending);
        let builders = view
            .vms
            .iter()
            .filter_map(|(id, vm)| Some((id, &vm.object.as_ref()?.value)));
        let left = builders.filter(|(id, vm)| vm.spec.builds.is_some() && is_left(id));
        let mut wrong: Vec<String> = left
            .map(|(_, vm)| format!("builder {} is left", vm.meta.name))
            .collect();
        for operation in view.operations.values() {
            let Some(spec) = operation.object.as_ref().map(|at| &at.value.spec) else {
                continue;
            };
            let is_open = planner::operation::status(operation).ended_at.is_none();
            if spec.action == Action::Build && is_open && !view.vms.contains_key(&VmId(spec.object)) {
                wrong.push(format!("the build of {:?} has no end", spec.object));
            }
        }
        wrong
    }

    /// No image waits for a disk that could be copied.
    fn left_captures(&self) -> Vec<String> {
        let view = &self.checks.view;
        let mut wrong = Vec::new();
        for (id, image) in &view.images {
            let Some(object) = image.object.as_ref().map(|at| &at.value) else {
                continue;
            };
            let status = image.status.as_ref().map(|at| &at.value);
            let is_over = status.is_some_and(|status| status.content.is_some() || status.failure.is_some());
            let Some(source) = object.spec.from_vm.filter(|_| !is_over) else {
                continue;
            };
            let awaited = planner::copies::awaited_by_image(view, ImageId(*id), object.meta.updated_at);
            if matches!(awaited, Some(Err(_))) {
                // It is told that this one will not come.
                continue;
            }
            let builds = view.vms.get(&source).and_then(|vm| vm.object.as_ref());
            let is_built = builds.is_some_and(|at| at.value.spec.builds.is_some());
            let phase = view.phase(source).map(|(phase, _)| phase);
            if !is_built && matches!(phase, Some(Phase::Off | Phase::Running)) {
                wrong.push(format!(
                    "image {} waits for a disk that is {phase:?}",
                    object.meta.name
                ));
            }
        }
        wrong
    }

    /// A warm form is there for a template that shall be warm, or for VMs whose disks lie over its own.
    fn left_forms(&self) -> Vec<String> {
        let view = &self.checks.view;
        let mut wrong = Vec::new();
        for (id, vm) in &view.vms {
            let Some(object) = vm.object.as_ref().map(|at| &at.value) else {
                continue;
            };
            let Some(template) = object.spec.warms else {
                continue;
            };
            let keeps = view
                .templates
                .get(&template.0)
                .is_some_and(|at| at.value.spec.keep_warm.is_some());
            let is_needed = keeps && warm::outdated(view, *id).is_none();
            if !is_needed && warm::users_of(view, *id).next().is_none() {
                wrong.push(format!("warm form {} is left", object.meta.name));
            }
        }
        wrong
    }

    /// What shall be warm is, unless its forms have failed or have no place.
    fn not_warm(&self) -> Vec<String> {
        let view = &self.checks.view;
        let mut wrong = Vec::new();
        for (id, at) in &view.templates {
            let Some((stands, intent)) = warmth(view, TemplateId(*id)) else {
                continue;
            };
            let failures = intent.map_or(0, |intent| intent.failures);
            let is_fine = match &stands {
                Warmth::Ready(_) => true,
                Warmth::GivenUp => failures > 0,
                Warmth::Due(_) => failures > 0,
                Warmth::Making(form) => view
                    .phase(*form)
                    .is_some_and(|(phase, _)| phase == Phase::Pending),
            };
            if !is_fine {
                wrong.push(format!(
                    "template {} shall be warm, and is {stands:?}: {intent:?}",
                    at.value.meta.name
                ));
            }
        }
        wrong
    }

    /// Whoever was answered that a VM is made of a template must find it.
    pub(crate) fn is_made_for_good(step: &Step) -> bool {
        matches!(
            step,
            Step::Create { .. } | Step::Clone { .. } | Step::Of(Catalog::Start { .. })
        )
    }
}
