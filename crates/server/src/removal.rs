//! The removal of what others may need: an image, a network, a datastore, a profile.
//!
//! **Owns:** that nothing is named by somebody in the instant in which it is deleted, whichever of several servers is asked.
//!
//! **Does not know:** what needs what (`planner`), nor what else goes with an object (`kinds`).
//!
//! Who names something relies on its object as it was read. Who deletes it marks that object first: whatever was decided before
//! is overtaken by the mark if it was not committed, and whatever is decided later sees it. Then it is asked once more who
//! needs it, of a view that has all from before the mark. A mark whose server died is no harm: nothing new may need the
//! object, and the next request to delete it goes on from there.
//!
//! **Start here:** [`remove`], [`rely_on_needed`].

use api::Problem;
use model::{Kind, Object, key};
use planner::{Plan, View};
use uuid::Uuid;

use crate::auth::User;
use crate::kinds::Served;
use crate::routes::stored;
use crate::service::{self, Answer, Context, RequestId, replace_object};
use crate::shared::Cloud;

/// Whether objects of this kind are named by others that cannot be without them.
pub const fn may_be_needed(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Image | Kind::Network | Kind::Datastore | Kind::Profile
    )
}

/// Deletes an object that others may need, if none does.
pub async fn remove<R: Served>(
    cloud: &Cloud,
    user: &User,
    request: Option<RequestId>,
    name: &str,
    expected_revision: Option<u64>,
) -> Result<Answer, Problem> {
    if let Some(answer) = service::repeated::<R>(cloud, user, request.as_ref()).await? {
        return Ok(answer);
    }
    let mark = |context: &Context<'_>, plan: &mut Plan| {
        let at = stored::<R>(context, name, expected_revision)?;
        // What is refused is refused before anything is marked.
        R::delete(context, at, &mut Plan::default())?;
        if at.value.meta.deleted_at.is_some() {
            return Ok(at.value.meta.id);
        }
        plan.action = format!("begin to delete {} {}", R::KIND, at.value.meta.name);
        let change = |object: &mut Object<R::Stored>| object.meta.deleted_at = Some(context.now);
        Ok(replace_object(context, R::KIND, at, change, plan))
    };
    let marked = service::write::<R>(cloud, user, 200, None, mark).await?;
    let id: Uuid = serde_json::from_value(marked.body["id"].clone())
        .map_err(|error| Problem::new(500, "not-shown", error.to_string()))?;
    cloud.reach_all().await?;
    let gone = || Problem::not_found(R::KIND, &id.to_string());
    let delete = |context: &Context<'_>, plan: &mut Plan| {
        let at = R::stored(context.view, id).ok_or_else(gone)?;
        R::delete(context, at, plan)
    };
    let removed = service::write::<R>(cloud, user, 200, request, delete).await;
    if removed.as_ref().is_err_and(|problem| problem.code == "in-use") {
        let take_back = |context: &Context<'_>, plan: &mut Plan| {
            let at = R::stored(context.view, id).ok_or_else(gone)?;
            plan.action = format!("do not delete {} {}", R::KIND, at.value.meta.name);
            let change = |object: &mut Object<R::Stored>| object.meta.deleted_at = None;
            Ok(replace_object(context, R::KIND, at, change, plan))
        };
        service::write::<R>(cloud, user, 200, None, take_back).await?;
    }
    removed
}

/// Has a plan hold only while all is there, and stays, that its objects begin to need.
pub(crate) fn rely_on_needed(view: &View, after: &View, plan: &mut Plan) -> Result<(), Problem> {
    let written = plan.writes.keys().filter_map(|key| key::parse(key));
    let objects: Vec<(Kind, Uuid)> = written
        .filter(|(.., part)| *part == key::Part::Object)
        .map(|(kind, id, _)| (kind, id))
        .collect();
    for (kind, id) in objects {
        let before = view.needs(kind, id);
        for (kind, id) in after.needs(kind, id).difference(&before).copied() {
            let found = view.meta(kind, id).zip(view.object_revision(kind, id));
            // Whether there is one under that name was looked at by who made the plan.
            let Some((meta, revision)) = found else { continue };
            if meta.deleted_at.is_some() {
                let name = &meta.name;
                let detail = format!(
                    "{kind} {name} is being deleted: take another one (if nobody deletes it any more, `sterna {kind} \
                     delete {name}` ends what was begun)"
                );
                return Err(Problem::conflict("being-deleted", detail));
            }
            plan.rely(key::object(kind, id), revision);
        }
    }
    Ok(())
}
