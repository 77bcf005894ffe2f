//! VMs that templates are made of: a new template, or the next version of one that is there.
//!
//! **Owns:** what follows when on the way from a VM that is booted once to the template, and what becomes of it all when a
//! step of that fails.
//!
//! **Does not know:** what is done in the guest, and how a disk is copied.
//!
//! The VM, and the image that its disk becomes, are made with the request. Its host has done in its guest what is to be done, and
//! says so; it is shut down; its disk is copied for the image. When that is ready the template is written, the operation ends, and
//! the VM is marked as deleted, all by one plan. A failure ends the operation, removes the image and marks the VM likewise,
//! whichever step it was. Such a VM is started once: what a guest left when it was lost is no template's.
//!
//! **Start here:** [`Step::build`].

use model::build::{Builds, Built};
use model::limits::VERSIONS_MAX;
use model::operation::{Action, Applied, OperationPhase, OperationStatus};

use model::template::{FIRST_VERSION, Made, TemplateSpec, TemplateVersion, made};
use model::vm::{Goal, Open, Outcome, VmIntent};
use model::{ImageId, Kind, Meta, Object, OperationId, Reason, TemplateId, Timestamp, VmId, key};

use crate::operation;
use crate::plan::Plan;
use crate::view::{Operation, View};
use crate::vm::{SHUTDOWN_GRACE_MS, Step, later};

/// How long a guest's agent may take to answer, from the grant on.
const BOOT_MAX_MS: i64 = 900_000;
/// How long all that is done in the guest may take after that: its agent gives a script an hour.
const GUEST_MAX_MS: i64 = 2 * 3_600_000;

/// The VM that builds a template of that name, if one does.
pub fn under_way<'v>(view: &'v View, template: &str, project: Option<&str>) -> Option<&'v Meta> {
    let objects = view.vms.values().filter_map(|vm| vm.object.as_ref());
    let builds = |at: &&crate::view::At<Object<model::vm::VmSpec>>| {
        let builds = at.value.spec.builds.as_ref();
        builds.is_some_and(|builds| builds.template_name == template)
            && at.value.meta.deleted_at.is_none()
            && at.value.meta.project.as_deref() == project
    };
    objects.filter(builds).map(|at| &at.value.meta).next()
}

/// How far a build is, for people.
pub(crate) fn stage(view: &View, vm: VmId) -> Option<Reason> {
    let vm = view.vms.get(&vm)?;
    let spec = &vm.object.as_ref()?.value.spec;
    let builds = spec.builds.as_ref()?;
    let intent = vm.intent.as_ref().map(|at| &at.value);
    let open = intent.and_then(|intent| intent.open.as_ref());
    let run = open.and_then(|open| vm.runs.get(&open.incarnation));
    let is_copy = spec.clone_of.is_some() && intent.is_none_or(|intent| intent.copied.is_none());
    let is_built = intent.is_some_and(|intent| intent.built.is_some());
    let (code, message) = match (open, run) {
        _ if is_copy => ("build-copies", "the disk that it begins with is copied"),
        (None, _) if is_built => ("build-captures", "its disk is copied for the template's image"),
        (Some(open), _) if open.goal == Goal::Copy => {
            ("build-captures", "its disk is copied for the template's image")
        }
        (Some(_), _) if is_built => ("build-ends", "its guest is shut down"),
        (Some(_), Some(run)) if run.ready && builds.script.is_some() => (
            "build-in-guest",
            "the script is run in its guest, which then forgets who it is",
        ),
        (Some(_), Some(run)) if run.ready => ("build-in-guest", "its guest forgets who it is"),
        _ => ("build-boots", "it boots, and its guest's agent is waited for"),
    };
    Some(Reason::new(code, message))
}

impl Step<'_> {
    fn builds(&self) -> Option<&Builds> {
        self.spec().builds.as_deref()
    }

    /// The end of a build, one way or the other, if it has come.
    pub(crate) fn build(&self) -> Option<Plan> {
        let builds = self.builds()?;
        if self.object.value.meta.deleted_at.is_some() {
            return self.drop_image(builds);
        }
        let reason = self.why_not_built(builds);
        if let Some(reason) = reason {
            return Some(self.fail_build(builds, reason));
        }
        self.view.image_content(builds.image)?;
        Some(match self.write_template(builds) {
            Ok(plan) => plan,
            Err(reason) => self.fail_build(builds, reason),
        })
    }

    /// When something is to have come of it that has not. Of one that is given up, or done, nothing is waited for by that time: it
    /// may be past for long.
    pub(crate) fn build_is_late_at(&self) -> Option<Timestamp> {
        self.builds()?;
        let intent = self.vm.intent.as_ref().map(|at| &at.value)?;
        let is_over = self.object.value.meta.deleted_at.is_some() || intent.built.is_some();
        if is_over || self.built_by_run().is_some() {
            return None;
        }
        let open = intent
            .open
            .as_ref()
            .filter(|open| matches!(open.goal, Goal::Run { .. }))?;
        let is_ready = self.vm.runs.get(&open.incarnation).is_some_and(|run| run.ready);
        let more_ms = if is_ready { GUEST_MAX_MS } else { 0 };
        Some(later(open.granted_at, BOOT_MAX_MS.saturating_add(more_ms)))
    }

    /// The first step that has failed.
    fn why_not_built(&self, builds: &Builds) -> Option<Reason> {
        let intent = self.intent();
        let image = self.view.images.get(&builds.image.0);
        let Some(image) = image.filter(|image| image.object.is_some()) else {
            return Some(Reason::new(
                "build-image-gone",
                "the image that it was to become was deleted",
            ));
        };
        let status = image.status.as_ref().map(|at| &at.value);
        if let Some(failure) = status
            .filter(|status| status.content.is_none())
            .and_then(|status| status.failure.as_ref())
        {
            return Some(at_step("copying its disk for the image", failure));
        }
        if builds.gives.is_none() && !self.view.templates.contains_key(&builds.template.0) {
            return Some(Reason::new("template-gone", "the template was deleted meanwhile"));
        }
        if builds.gives.is_some() && is_taken(self.view, builds, self.object.value.meta.project.as_deref()) {
            return Some(taken(builds));
        }
        let built = self.built_by_run().or(intent.built.as_ref());
        if let Some(reason) = built.and_then(|built| built.reason.clone()) {
            return Some(reason);
        }
        if let Some(ended) = &intent.ended {
            let is_fine = ended.outcome == Outcome::Off && intent.built.is_some();
            return (!is_fine).then(|| self.why_ended(ended.outcome, ended.reason.as_ref()));
        }
        let is_late = self.build_is_late_at().is_some_and(|at| at <= self.now);
        (is_late && built.is_none()).then(|| {
            let message = "its guest was not ready in time: a template is made of guests with a QEMU guest agent (install \
                           qemu-guest-agent in it)";
            Reason::new("build-late", message)
        })
    }

    fn why_ended(&self, outcome: Outcome, reason: Option<&Reason>) -> Reason {
        let unknown = || match outcome {
            Outcome::Fenced => Reason::new("host-dead", "its host was declared dead"),
            _ => Reason::new("ended-otherwise", "it ended before it was done"),
        };
        let step = if self.intent().copied.is_none() && self.spec().clone_of.is_some() {
            "copying the disk that it begins with"
        } else {
            "its guest's run"
        };
        at_step(step, &reason.cloned().unwrap_or_else(unknown))
    }

    fn built_by_run(&self) -> Option<&Built> {
        let open = self.vm.intent.as_ref()?.value.open.as_ref()?;
        self.vm.runs.get(&open.incarnation)?.built.as_ref()
    }

    /// What its host shall do with it: shut it down as soon as its guest has forgotten who it is.
    pub(crate) fn building_goal(&self, open: &Open, goal: Goal, intent: &mut VmIntent) -> Goal {
        let built = self
            .vm
            .runs
            .get(&open.incarnation)
            .and_then(|run| run.built.as_ref());
        match (goal, built) {
            (Goal::Run { .. }, Some(built)) if self.builds().is_some() && built.reason.is_none() => {
                intent.built = Some(built.clone());
                Goal::Shutdown {
                    force_at: later(self.now, SHUTDOWN_GRACE_MS),
                }
            }
            (goal, _) => goal,
        }
    }

    /// It has been started, and is never started again.
    pub(crate) fn has_been_built(&self) -> bool {
        self.builds().is_some() && self.intent().ended.is_some()
    }

    /// Whether its disk may be copied for that image: not before it is what the template shall have.
    pub(crate) fn may_be_captured(&self, image: ImageId) -> bool {
        let is_its_own = self.builds().is_some_and(|builds| builds.image == image);
        let intent = self.intent();
        let is_running = intent.open.as_ref().is_some_and(|open| open.goal != Goal::Copy);
        !is_its_own || intent.built.is_some() && !is_running
    }

    /// The template, or its next version, the operation's end and the VM's.
    fn write_template(&self, builds: &Builds) -> Result<Plan, Reason> {
        let mut plan = self.begin("make the template of");
        let image = self
            .view
            .images
            .get(&builds.image.0)
            .and_then(|image| image.object.as_ref());
        plan.rely(
            key::object(Kind::Image, builds.image.0),
            image.map_or(0, |at| at.revision),
        );
        let meta = &self.object.value.meta;
        let made = Made {
            at: self.now,
            by: meta.owner.clone(),
            built_from: Some(builds.from.clone()),
        };
        match &builds.gives {
            Some(gives) => {
                for (kind, id) in gives.needs() {
                    let revision = self.view.object_revision(kind, id);
                    plan.rely(key::object(kind, id), revision.unwrap_or(0));
                }
                let meta = Meta {
                    id: builds.template.0,
                    name: builds.template_name.clone(),
                    labels: std::collections::BTreeMap::new(),
                    created_at: self.now,
                    updated_at: self.now,
                    ..meta.clone()
                };
                let spec = TemplateSpec {
                    made: Some(made),
                    version: FIRST_VERSION,
                    ..gives.clone()
                };
                let index = key::name_index(Kind::Template, meta.project.as_deref(), &meta.name);
                plan.create(index, &meta.id);
                plan.create(key::object(Kind::Template, meta.id), &Object { meta, spec });
            }
            None => next_version(self.view, &mut plan, builds, made, self.now)?,
        }
        let applied = self.intent().built.map(|built| built.applied);
        self.end_build(&mut plan, OperationPhase::Done, None, applied);
        Ok(plan)
    }

    fn fail_build(&self, builds: &Builds, reason: Reason) -> Plan {
        let mut plan = self.begin("give up the template of");
        remove_image(self.view, &mut plan, builds.image);
        let built = self.built_by_run().cloned().or_else(|| self.intent().built);
        let applied = built.map(|built| built.applied);
        let message = format!("no template was made: {}", reason.message);
        let reason = Reason::new(&reason.code, message);
        self.end_build(&mut plan, OperationPhase::Failed, Some(reason), applied);
        plan
    }

    /// Its record says how it ended, and nothing of the VM is kept.
    fn end_build(
        &self,
        plan: &mut Plan,
        phase: OperationPhase,
        reason: Option<Reason>,
        applied: Option<Applied>,
    ) {
        if let Some(at) = &self.vm.intent {
            plan.rely(key::vm_intent(self.id), at.revision);
        }
        if let Some((id, operation)) = self.build_operation() {
            let status = OperationStatus {
                phase,
                ended_at: Some(self.now),
                reason,
                applied,
                ..operation::status(operation)
            };
            operation::set_status(plan, id, operation, &status);
        }
        let mut object = self.object.value.clone();
        object.meta.deleted_at = Some(self.now);
        object.meta.updated_at = self.now;
        plan.replace(key::object(Kind::Vm, self.id.0), self.object.revision, &object);
    }

    fn build_operation(&self) -> Option<(OperationId, &Operation)> {
        self.view.operations_on(self.id).find(|(_, operation)| {
            let spec = operation.object.as_ref().map(|at| &at.value.spec);
            spec.is_some_and(|spec| spec.action == Action::Build)
                && operation::status(operation).ended_at.is_none()
        })
    }

    /// It is deleted before its end: the image that nothing was made of goes with it.
    fn drop_image(&self, builds: &Builds) -> Option<Plan> {
        let is_there = self.view.images.contains_key(&builds.image.0);
        let mut users = self.view.users_of_image(builds.image.0);
        if !is_there || users.any(|(_, user)| user != self.id.0) {
            return None;
        }
        let mut plan = self.begin("remove the image of");
        remove_image(self.view, &mut plan, builds.image);
        (!plan.writes.is_empty()).then_some(plan)
    }
}

fn at_step(step: &str, reason: &Reason) -> Reason {
    Reason::new(
        &reason.code,
        format!("{step} came to nothing: {}", reason.message),
    )
}

fn is_taken(view: &View, builds: &Builds, project: Option<&str>) -> bool {
    let name = (
        Kind::Template,
        project.map(str::to_owned),
        builds.template_name.clone(),
    );
    view.names.contains_key(&name)
}

fn taken(builds: &Builds) -> Reason {
    let name = &builds.template_name;
    let message = format!(
        "another template {name} was created meanwhile: build it under another name, or delete that one"
    );
    Reason::new("template-exists", message)
}

/// What the newest version gives, with the image that was built.
fn next_version(
    view: &View,
    plan: &mut Plan,
    builds: &Builds,
    by: Made,
    now: Timestamp,
) -> Result<(), Reason> {
    let TemplateId(id) = builds.template;
    let gone = || Reason::new("template-gone", "the template was deleted meanwhile");
    let at = view.templates.get(&id).ok_or_else(gone)?;
    if view.template_versions.of(id).count().saturating_add(2) > VERSIONS_MAX {
        let message = format!(
            "template {0} has {VERSIONS_MAX} versions: delete one that is not needed, as with `sterna template delete {0}@N`",
            builds.template_name
        );
        return Err(Reason::new("too-many-versions", message));
    }
    let number = at.value.spec.version;
    let kept = TemplateVersion {
        made: made(&at.value),
        spec: TemplateSpec {
            keep_warm: None,
            ..at.value.spec.clone()
        },
    };
    plan.create(key::template_version(builds.template, number), &kept);
    let mut object = at.value.clone();
    object.meta.updated_at = now;
    object.spec.image = builds.image;
    object.spec.version = number.saturating_add(1);
    object.spec.made = Some(by);
    plan.replace(key::object(Kind::Template, id), at.revision, &object);
    Ok(())
}

fn remove_image(view: &View, plan: &mut Plan, image: ImageId) {
    let Some(found) = view.images.get(&image.0) else {
        return;
    };
    if let Some(at) = &found.object {
        let meta = &at.value.meta;
        plan.remove(key::object(Kind::Image, image.0), at.revision);
        let index = key::name_index(Kind::Image, meta.project.as_deref(), &meta.name);
        plan.writes.insert(index, None);
    }
    if let Some(at) = &found.status {
        plan.remove(key::image_status(image), at.revision);
    }
}
