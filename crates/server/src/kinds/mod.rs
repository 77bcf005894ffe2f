//! What a request means for each kind, and how its objects look from outside: the one place where stored types and wire
//! types meet.

mod action;
mod base;
mod build;
mod catalog;
mod clone;
mod drain;
mod flatten;
mod given;
mod host;
mod image;
mod media;
mod migration;
mod placement;
mod profile;
mod record;
mod start;
mod template;
mod vm;
mod warm;

pub use action::action as vm_action;
pub(crate) use action::leads_on as vm_leads_on;
pub(crate) use catalog::check_ssh_keys;
pub use host::{Host as HostActions, host_action};
pub use image::image_import;
pub(crate) use image::{takes_content, takes_copy};
pub use placement::explanation;
pub(crate) use template::{delete_version, versions};
pub(crate) use vm::exceeds_reservation;

use api::{Object as WireObject, Problem, Resource};
use model::profile::FAMILY_NAMES;
use model::{HostId, Kind, MigrationId, Object, Timestamp, VmId};
use planner::view::At;
use planner::{Plan, View};
use uuid::Uuid;

use crate::service::{self, Context};
use crate::shared::Heard;

/// A kind that the server serves.
pub trait Served: Resource {
    /// Its stored spec.
    type Stored: model::record::Spec + Clone + Send + Sync;

    /// The user's part of an object.
    fn stored(view: &View, id: Uuid) -> Option<&At<Object<Self::Stored>>>;

    /// The spec as it is shown.
    fn spec(view: &View, stored: &Self::Stored) -> Self::Spec;

    /// Leaves out of a spec what may have secrets, for those who only read.
    fn hide_secrets(_spec: &mut Self::Spec) {}

    /// The same of a status.
    fn hide_in_status(_status: &mut Self::Status) {}

    /// The status as it is shown.
    fn status(heard: &Heard, view: &View, id: Uuid) -> Option<Self::Status>;

    /// Makes a new object, or says why not. The name is checked; `plan` takes what else has to be written.
    fn create(
        context: &Context<'_>,
        name: &str,
        spec: Self::Spec,
        plan: &mut Plan,
    ) -> Result<Self::Stored, Problem>;

    /// The name of a new object.
    fn name(_context: &Context<'_>, given: Option<&str>, _spec: &Self::Spec) -> Result<String, Problem> {
        let missing = || Problem::invalid("name-missing", format!("a {} needs a `name`", Self::KIND));
        given.map(str::to_owned).ok_or_else(missing)
    }

    /// The stored spec after a change, or why it cannot be changed so.
    fn change(
        context: &Context<'_>,
        old: &Object<Self::Stored>,
        spec: Self::Spec,
    ) -> Result<Self::Stored, Problem>;

    /// What else than the object's last change a change depends on: a key, and its revision.
    fn relies_on(_: &View, _: &Object<Self::Stored>, _: &Self::Stored) -> Option<(String, u64)> {
        None
    }

    /// Keeps of an object what a change of it would lose.
    fn keep(
        _context: &Context<'_>,
        _old: &At<Object<Self::Stored>>,
        _new: &Self::Stored,
        _plan: &mut Plan,
    ) -> Result<(), Problem> {
        Ok(())
    }

    /// What else of the view an object's status is made of: it is there when a write is answered before it is made.
    fn shown_with(_view: &View) -> Vec<(Kind, Uuid)> {
        Vec::new()
    }

    /// What the planner would do next with an object: shown by a dry run.
    fn next_step(_view: &View, _id: Uuid, _now: Timestamp) -> Option<Plan> {
        None
    }

    /// Deletes an object. Those that own nothing go at once.
    fn delete(
        context: &Context<'_>,
        at: &At<Object<Self::Stored>>,
        plan: &mut Plan,
    ) -> Result<Uuid, Problem> {
        remove_at_once::<Self>(context, at, plan)
    }
}

/// Deletes an object that owns nothing, unless others need it.
fn remove_at_once<R: Served + ?Sized>(
    context: &Context<'_>,
    at: &At<Object<R::Stored>>,
    plan: &mut Plan,
) -> Result<Uuid, Problem> {
    let meta = &at.value.meta;
    check_unused::<R>(context.view, at)?;
    plan.action = format!("delete {} {}", R::KIND, meta.name);
    plan.remove(model::key::object(R::KIND, meta.id), at.revision);
    plan.writes.insert(
        model::key::name_index(R::KIND, meta.project.as_deref(), &meta.name),
        None,
    );
    if R::KIND == Kind::Image {
        let parts = [model::key::image_status, model::key::image_signature];
        plan.writes.extend(parts.map(|part| (part(meta.id.into()), None)));
    }
    Ok(meta.id)
}

/// Refuses if there is somebody who needs the object.
fn check_unused<R: Served + ?Sized>(view: &View, at: &At<Object<R::Stored>>) -> Result<(), Problem> {
    let meta = &at.value.meta;
    let users = users(view, R::KIND, meta.id);
    if users.is_empty() {
        return Ok(());
    }
    Err(in_use(R::KIND, &meta.name, &users))
}

/// How many of those that need an object are named.
const USERS_NAMED: usize = 10;

fn in_use(kind: Kind, name: &str, users: &[(Kind, String)]) -> Problem {
    let named = users.iter().take(USERS_NAMED);
    let mut named: Vec<String> = named.map(|(kind, name)| format!("{kind} {name}")).collect();
    let rest = users.len().saturating_sub(USERS_NAMED);
    named.extend((rest > 0).then(|| format!("and {rest} more")));
    let first = users
        .first()
        .map(|(kind, name)| format!("`sterna {kind} delete {name}`"));
    let detail = format!(
        "{kind} {name} is used by {}: delete what you can do without, as with {}",
        named.join(", "),
        first.unwrap_or_default()
    );
    Problem::conflict("in-use", detail)
}

/// Everything that needs this object, by kind and name.
fn users(view: &View, kind: Kind, id: Uuid) -> Vec<(Kind, String)> {
    if kind == Kind::Image {
        let users = view.users_of_image(id);
        return users
            .map(|(kind, user)| (kind, name_of(view, kind, user)))
            .collect();
    }
    let templates = view.templates.values().map(|at| &at.value);
    let templates = templates
        .filter(|template| view.needs(Kind::Template, template.meta.id).contains(&(kind, id)))
        .map(|template| (Kind::Template, template.meta.name.clone()));
    let vms = view.vms.iter().filter_map(|(vm_id, vm)| {
        let meta = &vm.object.as_ref()?.value.meta;
        view.needs(Kind::Vm, vm_id.0)
            .contains(&(kind, id))
            .then_some(meta)
    });
    templates
        .chain(vms.map(|meta| (Kind::Vm, meta.name.clone())))
        .collect()
}

/// An object as it is shown.
pub fn render<R: Served>(heard: &Heard, view: &View, id: Uuid) -> Option<WireObject<R::Spec, R::Status>> {
    let object = &R::stored(view, id)?.value;
    let meta = object.meta.clone();
    Some(WireObject {
        kind: R::KIND,
        id,
        name: meta.name,
        project: meta.project,
        owner: meta.owner,
        labels: meta.labels,
        revision: revision(view, R::KIND, id),
        created_at: meta.created_at,
        updated_at: meta.updated_at,
        deleted_at: meta.deleted_at,
        spec: R::spec(view, &object.spec),
        status: R::status(heard, view, id)?,
    })
}

/// The revision that last changed any part of an object.
fn revision(view: &View, kind: Kind, id: Uuid) -> u64 {
    let parts: Vec<Option<u64>> = match kind {
        Kind::Vm => view.vms.get(&VmId(id)).map_or_else(Vec::new, |vm| {
            let own = [
                vm.object.as_ref().map(|at| at.revision),
                vm.intent.as_ref().map(|at| at.revision),
            ];
            own.into_iter()
                .chain(vm.run_revisions.values().map(|revision| Some(*revision)))
                .collect()
        }),
        Kind::Host => view.hosts.get(&HostId(id)).map_or_else(Vec::new, |host| {
            vec![
                host.object.as_ref().map(|at| at.revision),
                host.status.as_ref().map(|at| at.revision),
                host.reservations.as_ref().map(|at| at.revision),
                host.contact.as_ref().map(|at| at.revision),
                host.intent.as_ref().map(|at| at.revision),
            ]
        }),
        Kind::Migration => view
            .migrations
            .get(&MigrationId(id))
            .map_or_else(Vec::new, |migration| {
                vec![
                    migration.object.as_ref().map(|at| at.revision),
                    migration.intent.as_ref().map(|at| at.revision),
                ]
            }),
        Kind::Image => view.images.get(&id).map_or_else(Vec::new, |image| {
            vec![
                image.object.as_ref().map(|at| at.revision),
                image.status.as_ref().map(|at| at.revision),
            ]
        }),
        Kind::Operation => view.operations.get(&id).map_or_else(Vec::new, |operation| {
            vec![
                operation.object.as_ref().map(|at| at.revision),
                operation.status.as_ref().map(|at| at.revision),
            ]
        }),
        Kind::Template => {
            let earlier = view.template_versions.of(id).map(|(_, at)| Some(at.revision));
            earlier
                .chain([view.templates.get(&id).map(|at| at.revision)])
                .collect()
        }
        Kind::Profile => vec![view.profiles.get(id).map(|at| at.revision)],
        Kind::Network => vec![view.networks.get(&id).map(|at| at.revision)],
        Kind::Datastore => vec![view.datastores.get(&id).map(|at| at.revision)],
        Kind::Event => vec![view.events.get(&id).map(|at| at.revision)],
    };
    parts.into_iter().flatten().max().unwrap_or(0)
}

/// The id that a reference stands for.
fn find(context: &Context<'_>, kind: Kind, name: &str) -> Result<Uuid, Problem> {
    let project = (!kind.is_cloud_wide()).then(|| context.project());
    context.view.find(kind, project, name).ok_or_else(|| {
        let mut problem = missing(context.view, kind, project, name);
        problem.status = 422;
        problem.title = api::problem::title(422).into();
        problem
    })
}

/// How alike names are, from 0 to 1, for one to be offered for another.
const ALIKE: f64 = 0.8;

/// What is named is not there; perhaps another is meant.
pub fn missing(view: &View, kind: Kind, project: Option<&str>, name: &str) -> Problem {
    let mut problem = Problem::not_found(kind, name);
    let first = (kind, project.map(str::to_owned), String::new());
    let same = |(of, at, _): &&(Kind, Option<String>, String)| *of == kind && at.as_deref() == project;
    let names = view
        .names
        .range(first..)
        .map(|(key, _)| key)
        .take_while(same)
        .map(|(.., name)| name.as_str());
    let family: &[&str] = if kind == Kind::Profile { &FAMILY_NAMES } else { &[] };
    let alike = names
        .chain(family.iter().copied())
        .map(|other| (strsim::jaro_winkler(name, other), other));
    let best = alike
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((_, other)) = best {
        problem.detail =
            format!("there is no {kind} {name:?}: did you mean {other:?}? `sterna {kind} list` shows all");
    }
    problem
}

/// The name of an object, or its id if it is gone.
fn name_of(view: &View, kind: Kind, id: Uuid) -> String {
    view.meta(kind, id)
        .map_or_else(|| id.to_string(), |meta| meta.name.clone())
}

/// The name of a host.
fn host_name(view: &View, id: HostId) -> String {
    name_of(view, Kind::Host, id.0)
}

/// Puts a changed spec into a plan.
fn set<R: Served>(
    context: &Context<'_>,
    at: &At<Object<R::Stored>>,
    stored: R::Stored,
    plan: &mut Plan,
) -> Uuid {
    service::replace_object(context, R::KIND, at, |object| object.spec = stored, plan)
}

/// Refuses to change what can only be chosen once.
fn immutable(kind: Kind, what: &str) -> Problem {
    Problem::invalid(
        "immutable",
        format!("{what} of a {kind} cannot be changed: create another {kind}"),
    )
}
