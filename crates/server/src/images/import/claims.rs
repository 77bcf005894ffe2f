//! Which server imports an image: the one whose run is named in the image's status.
//!
//! **Owns:** that name, from when a server takes an import on to its end.
//!
//! **Does not know:** how an import goes.
//!
//! **Start here:** [`claim`], [`conclude`]. A run that is gone, by its lease, has no claim; whoever lost its claim stores nothing.

use std::time::Duration;

use api::Problem;
use controller::commit::{CommitError, commit};
use model::audit::Actor;
use model::image::{ImageSpec, ImageStatus};
use model::{ImageId, Kind, key, record};
use planner::{Plan, View};
use store::{RangeRequest, StoreError};
use uuid::Uuid;

use crate::routes::App;
use crate::shared::Cloud;

/// How long is waited for the view to have a write, and before a store that failed is tried again.
const CATCH_UP: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(1);

/// An image whose content a server shall take.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) image: ImageId,
    pub(super) spec: ImageSpec,
    /// The run that does it.
    pub(super) importer: Option<Uuid>,
}

/// All that shall be imported and is neither ready nor failed, oldest first.
pub(super) fn wanted(view: &View) -> Vec<Wanted> {
    let all = view.images.iter().filter_map(|(id, image)| {
        let spec = &image.object.as_ref()?.value.spec;
        let status = image.status.as_ref().map(|at| &at.value);
        let is_over = status.is_some_and(|status| status.content.is_some() || status.failure.is_some());
        (spec.source.is_some() && !is_over).then(|| Wanted {
            image: ImageId(*id),
            spec: spec.clone(),
            importer: status.and_then(|status| status.importer),
        })
    });
    all.collect()
}

/// Takes an import on for this run, unless another run does it that is still there. `former` is the run before this one,
/// which has ended. Whether it is this one's now.
pub(super) async fn claim(app: &App, wanted: &Wanted, former: Option<Uuid>) -> Result<bool, CommitError> {
    if wanted.importer == Some(app.server) {
        return Ok(true);
    }
    // Until others can see this run, they would take what it claims for lost.
    if !is_there(app, app.server).await? {
        return Ok(false);
    }
    let other = wanted.importer.filter(|other| Some(*other) != former);
    if let Some(other) = other
        && is_there(app, other).await?
    {
        return Ok(false);
    }
    let status = ImageStatus {
        importer: Some(app.server),
        ..ImageStatus::default()
    };
    let plan = status_plan(app, wanted.image, &status, |stored| *stored == before(wanted));
    let Some(plan) = plan else { return Ok(false) };
    match write(app, plan).await {
        Ok(()) => Ok(true),
        Err(CommitError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn before(wanted: &Wanted) -> ImageStatus {
    ImageStatus {
        importer: wanted.importer,
        ..ImageStatus::default()
    }
}

async fn is_there(app: &App, server: Uuid) -> Result<bool, StoreError> {
    let found = app.store.range(RangeRequest::key(key::server(server))).await?;
    Ok(!found.items.is_empty())
}

/// What lets this server take an image's content from an object store.
pub(super) async fn signature(app: &App, image: ImageId) -> Result<String, Problem> {
    let found = loop {
        match app
            .store
            .range(RangeRequest::key(key::image_signature(image)))
            .await
        {
            Ok(found) => break found,
            Err(error) => {
                tracing::warn!(%error, %image, "the signature of an import was not read; it is tried again");
                app.env.sleep(AGAIN).await;
            }
        }
    };
    let kept = found.items.first().map(|kv| record::decode(&kv.value));
    kept.and_then(Result::ok).ok_or_else(|| {
        let detail = "what let the server in is gone: give the import again, which signs it anew";
        Problem::invalid("signature-missing", detail)
    })
}

/// Stores what became of an import. `false`: the image is gone, or its import is not this run's any more.
pub(super) async fn conclude(app: &App, image: ImageId, status: &ImageStatus) -> bool {
    loop {
        let plan = status_plan(app, image, status, |stored| {
            stored.importer == Some(app.server) && stored.content.is_none()
        });
        let Some(mut plan) = plan else { return false };
        // What let this server in ends with the import.
        plan.writes.insert(key::image_signature(image), None);
        match write(app, plan).await {
            Ok(()) => return true,
            Err(CommitError::Conflict { .. }) => {
                let next = app.cache.revision().saturating_add(1);
                app.cache.reach(next, AGAIN).await;
            }
            Err(CommitError::Store(error)) => {
                tracing::warn!(%error, %image, "what became of an import was not stored; it is tried again");
                app.env.sleep(AGAIN).await;
            }
        }
    }
}

/// A new status, if the image is there and its status is as it is expected to be.
pub(in crate::images) fn status_plan(
    cloud: &Cloud,
    image: ImageId,
    status: &ImageStatus,
    is_expected: impl FnOnce(&ImageStatus) -> bool,
) -> Option<Plan> {
    let view = cloud.cache.view();
    let found = view.images.get(&image.0)?;
    let object = found.object.as_ref()?;
    let (stored, revision) = match &found.status {
        Some(at) => (at.value.clone(), at.revision),
        None => (ImageStatus::default(), 0),
    };
    if !is_expected(&stored) {
        return None;
    }
    let mut plan = Plan::new(format!("import image {}", object.value.meta.name));
    plan.rely(key::object(Kind::Image, image.0), object.revision);
    plan.replace(key::image_status(image), revision, status);
    Some(plan)
}

async fn write(app: &App, plan: Plan) -> Result<(), CommitError> {
    let actor = Actor {
        name: "server".to_owned(),
        from: None,
        request: None,
    };
    let revision = commit(app.writer(&actor), plan).await?;
    app.cache.reach(revision, CATCH_UP).await;
    Ok(())
}
