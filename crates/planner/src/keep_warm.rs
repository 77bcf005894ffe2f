//! Templates that are kept warm: whether each has a warm form that VMs can start from, and the next one if not.
//!
//! **Owns:** when a warm form is made and when one is deleted, how often that is tried, and how it all stands.
//!
//! **Does not know:** how a form is made once it is there as a VM: that is [`crate::warm`]'s.
//!
//! That a template shall be warm is a wish beside what it gives, and it holds until it is taken back. What is to be done
//! follows, each time it is looked at, from the forms that are there; kept is only how often making one has failed, and for
//! what that counts. So it goes on after a restart where it was. One form is made at a time. One that failed is deleted with
//! the note of why; one that is out of date when no VM's disk lies over its own. After [`FAILURES_MAX`] failures nothing is
//! tried until the template or the hosts' QEMUs are others. What was made for a template goes as it does when it shall be warm
//! no more, also when it is no more itself.
//!
//! Nothing is looked at from time to time: a form that is to go and is needed waits for the first of those that need it.
//!
//! **Start here:** [`warmth`], which says how a template stands; [`plan`] does the next thing.

use std::collections::{BTreeMap, BTreeSet};

use model::lifecycle::{self, Phase};
use model::template::{KeepWarm, TemplateIntent, TemplateSpec};
use model::{Kind, Meta, Object, Reason, TemplateId, Timestamp, VmId, key};
use uuid::Uuid;

use crate::plan::{Decision, Plan};
use crate::view::{At, View};
use crate::vm::later;
use crate::warm::{form_spec, outdated, users_of};

/// How often in a row making a form may fail.
pub const FAILURES_MAX: u32 = 5;
/// How long after a form was begun the next may be, if that one did not fail.
const PAUSE_MS: i64 = 60_000;
/// The same after the first failure; each further one makes it four times as long.
const FIRST_RETRY_MS: i64 = 30_000;
/// How long a guest may take until its memory is kept, from its grant on.
const MAKING_MAX_MS: i64 = 1_800_000;

/// How a warm form is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// VMs can start from it.
    Ready,
    /// It is being made.
    Making,
    /// It could not be made.
    Failed(Reason),
    /// VMs cannot start from it any more.
    Outdated(Reason),
}

/// How a template stands that shall be warm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warmth {
    /// VMs can start from this form.
    Ready(VmId),
    /// This form is being made.
    Making(VmId),
    /// There is none, and the next is made at once, or then.
    Due(Option<Timestamp>),
    /// No more are made until something changes.
    GivenUp,
}

/// How a template stands, and what was done last for it; `None` if it is not kept warm.
pub fn warmth(view: &View, id: TemplateId) -> Option<(Warmth, Option<&TemplateIntent>)> {
    let keeper = Keeper::of(view, id);
    let intent = keeper.intent.map(|at| &at.value);
    keeper.kept().map(|_| (keeper.warmth(&keeper.forms()), intent))
}

/// What is to be done about a template now. `next_id` makes the id of what is created.
pub fn plan(view: &View, id: TemplateId, now: Timestamp, next_id: &mut dyn FnMut() -> Uuid) -> Decision {
    if !view.is_readable(Kind::Template, id.0) {
        return Decision::nothing();
    }
    let keeper = Keeper::of(view, id);
    match keeper.kept() {
        Some((template, keep)) => keeper.next(template, keep, now, next_id),
        None => keeper.let_go(now),
    }
}

struct Keeper<'v> {
    view: &'v View,
    id: TemplateId,
    /// `None` once it is no more.
    template: Option<&'v At<Object<TemplateSpec>>>,
    intent: Option<&'v At<TemplateIntent>>,
}

impl<'v> Keeper<'v> {
    fn of(view: &'v View, id: TemplateId) -> Self {
        Self {
            view,
            id,
            template: view.templates.get(&id.0),
            intent: view.template_intents.get(&id),
        }
    }

    /// The template, if it shall be warm.
    fn kept(&self) -> Option<(&'v Object<TemplateSpec>, &'v KeepWarm)> {
        let template = &self.template?.value;
        Some((template, template.spec.keep_warm.as_ref()?))
    }

    /// The forms that nobody has deleted, the newest first.
    fn forms(&self) -> Vec<(VmId, Form)> {
        let all = self.view.warm_forms(self.id).rev();
        all.filter_map(|id| Some((id, self.form(id)?))).collect()
    }

    fn form(&self, id: VmId) -> Option<Form> {
        let vm = self.view.vms.get(&id)?;
        if vm.object.as_ref()?.value.meta.deleted_at.is_some() {
            return None;
        }
        let facts = self.view.facts(id)?;
        let (phase, _) = lifecycle::project(facts);
        let is_saved = facts.intent.is_some_and(|intent| intent.saved.is_some());
        Some(if let Some(reason) = outdated(self.view, id) {
            Form::Outdated(reason)
        } else if is_saved {
            Form::Ready
        } else if phase == Phase::Failed {
            let unknown = || Reason::new("warming-failed", "its memory was not kept");
            Form::Failed(lifecycle::reason(facts, phase).unwrap_or_else(unknown))
        } else {
            Form::Making
        })
    }

    fn warmth(&self, forms: &[(VmId, Form)]) -> Warmth {
        let first = |is: Form| forms.iter().find(|(_, form)| *form == is).map(|(id, _)| *id);
        if let Some(form) = first(Form::Ready) {
            return Warmth::Ready(form);
        }
        if let Some(form) = first(Form::Making) {
            return Warmth::Making(form);
        }
        let counts = |at: &&&At<TemplateIntent>| at.value.made_for == self.made_for();
        match self.intent.as_ref().filter(counts).map(|at| &at.value) {
            None => Warmth::Due(None),
            Some(intent) if intent.failures >= FAILURES_MAX => Warmth::GivenUp,
            Some(intent) => Warmth::Due(Some(next_at(intent))),
        }
    }

    /// What failures are counted for: when it is another, what failed may succeed.
    fn made_for(&self) -> String {
        let statuses = self.view.hosts.values().filter_map(|host| host.status.as_ref());
        let builds: BTreeSet<String> = statuses.map(|at| at.value.build()).collect();
        let builds: Vec<String> = builds.into_iter().collect();
        let version = self.template.map_or(0, |at| at.value.spec.version);
        format!("version {version}; {}", builds.join("; "))
    }

    fn next(
        &self,
        template: &Object<TemplateSpec>,
        keep: &KeepWarm,
        now: Timestamp,
        next_id: &mut dyn FnMut() -> Uuid,
    ) -> Decision {
        let forms = self.forms();
        if let Some(plan) = forms
            .iter()
            .find_map(|(id, form)| self.note_failure(*id, form, now))
        {
            return plan.into();
        }
        let warmth = self.warmth(&forms);
        let is_due = matches!(warmth, Warmth::Due(at) if at.is_none_or(|at| at <= now));
        if is_due {
            return self.make(template, keep, &forms, now, next_id()).into();
        }
        if let Some(plan) = forms.iter().find_map(|(id, form)| self.tidy(*id, form, now)) {
            return plan.into();
        }
        let outdated = forms.iter().filter(|(_, form)| matches!(form, Form::Outdated(_)));
        let users = self.first_users(outdated.map(|(id, _)| *id));
        let decision = match warmth {
            Warmth::Ready(_) if self.intent.is_some_and(|at| at.value.failures > 0) => self.succeed().into(),
            Warmth::Ready(_) | Warmth::GivenUp => Decision::wait_for_room(),
            Warmth::Making(form) => Decision::nothing().and_at(self.late_at(form)),
            Warmth::Due(at) => Decision::wait_for_room().and_at(at),
        };
        decision.and_after(users)
    }

    /// Of each form, one that needs it: as long as that does, it does not matter who else does.
    fn first_users(&self, forms: impl Iterator<Item = VmId>) -> Vec<VmId> {
        forms
            .filter_map(|form| users_of(self.view, form).next())
            .collect()
    }

    /// The end of a form that nobody can use any more, nor needs.
    fn tidy(&self, id: VmId, form: &Form, now: Timestamp) -> Option<Plan> {
        let is_free = matches!(form, Form::Outdated(_)) && users_of(self.view, id).next().is_none();
        is_free.then(|| self.delete(id, now)).flatten()
    }

    /// The end of a form that failed.
    fn note_failure(&self, id: VmId, form: &Form, now: Timestamp) -> Option<Plan> {
        let is_late = *form == Form::Making && self.late_at(id).is_some_and(|at| at <= now);
        let reason = match form {
            Form::Failed(reason) => reason.clone(),
            _ if is_late => late(),
            _ => return None,
        };
        let mut plan = self.delete(id, now)?;
        if let Some(at) = self.intent {
            let mut intent = at.value.clone();
            intent.failures = intent.failures.saturating_add(1);
            intent.failed = Some(reason);
            plan.replace(key::template_intent(self.id), at.revision, &intent);
        }
        Some(plan)
    }

    /// When something is to have come of a form that is being made.
    fn late_at(&self, id: VmId) -> Option<Timestamp> {
        let intent = &self.view.vms.get(&id)?.intent.as_ref()?.value;
        Some(later(intent.open.as_ref()?.granted_at, MAKING_MAX_MS))
    }

    fn begin(&self, what: &str) -> Plan {
        let name = self.template.map(|at| at.value.meta.name.clone());
        let name = name.unwrap_or_else(|| self.id.to_string());
        let mut plan = Plan::new(format!("keep template {name} warm: {what}"));
        let revision = self.template.map_or(0, |at| at.revision);
        plan.rely(key::object(Kind::Template, self.id.0), revision);
        plan
    }

    fn delete(&self, id: VmId, now: Timestamp) -> Option<Plan> {
        let at = self.view.vms.get(&id)?.object.as_ref()?;
        let mut object = at.value.clone();
        let mut plan = self.begin(&format!("delete {}", object.meta.name));
        object.meta.deleted_at = Some(now);
        object.meta.updated_at = now;
        plan.replace(key::object(Kind::Vm, id.0), at.revision, &object);
        Some(plan)
    }

    /// There is a form: what failed before counts no more.
    fn succeed(&self) -> Plan {
        let mut plan = self.begin("it is warm");
        if let Some(at) = self.intent {
            let intent = TemplateIntent {
                failures: 0,
                failed: None,
                ..at.value.clone()
            };
            plan.replace(key::template_intent(self.id), at.revision, &intent);
        }
        plan
    }

    fn make(
        &self,
        template: &Object<TemplateSpec>,
        keep: &KeepWarm,
        forms: &[(VmId, Form)],
        now: Timestamp,
        new_id: Uuid,
    ) -> Plan {
        let name = self.free_name(&template.meta);
        let mut plan = self.begin(&format!("make {name}"));
        let meta = Meta {
            id: new_id,
            name,
            labels: BTreeMap::new(),
            created_at: now,
            updated_at: now,
            deleted_at: None,
            ..template.meta.clone()
        };
        let spec = form_spec(self.id, &template.spec, new_id, keep.datastore);
        let index = key::name_index(Kind::Vm, meta.project.as_deref(), &meta.name);
        plan.create(index, &new_id);
        plan.create(key::object(Kind::Vm, new_id), &Object { meta, spec });
        let made_for = self.made_for();
        let before = self
            .intent
            .map(|at| &at.value)
            .filter(|it| it.made_for == made_for);
        let intent = TemplateIntent {
            made_for,
            failures: before.map_or(0, |before| before.failures),
            tried_at: now,
            form: VmId(new_id),
            why: why(forms, before),
            failed: before.and_then(|before| before.failed.clone()),
        };
        let revision = self.intent.map_or(0, |at| at.revision);
        plan.replace(key::template_intent(self.id), revision, &intent);
        plan
    }

    /// `small-warm-1`, or the next that no VM is called.
    fn free_name(&self, meta: &Meta) -> String {
        let short: String = meta.name.chars().take(48).collect();
        let name = |number: u64| format!("{short}-warm-{number}");
        let is_free = |name: &String| {
            let entry = (Kind::Vm, meta.project.clone(), name.clone());
            !self.view.names.contains_key(&entry)
        };
        (1..).map(name).find(is_free).unwrap_or_else(|| name(0))
    }

    /// The wish was taken back, or the template is no more: what was made for it goes when nobody needs it. Forms that users asked
    /// for later are theirs.
    fn let_go(&self, now: Timestamp) -> Decision {
        let Some(at) = self.intent else {
            return Decision::nothing();
        };
        let forms = self.forms().into_iter().map(|(id, _)| id);
        let ours: Vec<VmId> = forms.filter(|id| *id <= at.value.form).collect();
        let unused = ours.iter().find(|id| users_of(self.view, **id).next().is_none());
        if let Some(plan) = unused.and_then(|id| self.delete(*id, now)) {
            return plan.into();
        }
        if !ours.is_empty() {
            return Decision::wait_for(self.first_users(ours.into_iter()));
        }
        let mut plan = self.begin("no longer");
        plan.remove(key::template_intent(self.id), at.revision);
        plan.into()
    }
}

/// When the next form may be begun.
fn next_at(intent: &TemplateIntent) -> Timestamp {
    let doublings = intent.failures.saturating_sub(1).saturating_mul(2).min(16);
    let retry_ms = FIRST_RETRY_MS.saturating_mul(1 << doublings);
    let pause_ms = if intent.failures == 0 { PAUSE_MS } else { retry_ms };
    later(intent.tried_at, pause_ms)
}

/// Why another form is made.
fn why(forms: &[(VmId, Form)], before: Option<&TemplateIntent>) -> Reason {
    let outdated = forms.iter().find_map(|(_, form)| match form {
        Form::Outdated(reason) => Some(reason.clone()),
        _ => None,
    });
    let failed = || before.and_then(|before| before.failed.clone());
    let none = || {
        Reason::new(
            "warm-form-missing",
            "it shall be warm, and there is no warm form of it",
        )
    };
    outdated.or_else(failed).unwrap_or_else(none)
}

fn late() -> Reason {
    let message =
        "its guest was not ready, or its memory not kept, within half an hour: it needs the QEMU guest agent";
    Reason::new("warming-late", message)
}
