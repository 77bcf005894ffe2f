//! Images' content: taken from people once, checked, kept under its digest, given to agents.

mod confined;
pub mod import;
mod sink;
mod take;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use api::Problem;
use api::kinds::Image;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use model::image::{ImageContent, ImageStatus};
use model::{ImageId, Kind, Reason};
use tokio::fs::File;
use tokio::time::timeout;
use uuid::Uuid;

use self::take::{Incoming, Source, Taken, Temporary, disk_problem, take};
use crate::answer::{Path, Refused, commit_problem};
use crate::auth::{Agent, PROJECT, User};
use crate::kinds::{Served, render, takes_content};
use crate::routes::App;

/// How long a client that sends content may be silent.
const SILENCE_DEADLINE: Duration = Duration::from_secs(60);

/// Where a content is kept.
pub fn path(dir: &FilePath, sha256: &str) -> PathBuf {
    dir.join(sha256)
}

/// Takes an image's content.
pub async fn upload(
    State(app): State<App>,
    user: User,
    Path(name): Path<String>,
    body: Body,
) -> Result<Response, Refused> {
    let id = app.cache.view().find(Kind::Image, Some(PROJECT), &name);
    let id = id.ok_or_else(|| Problem::not_found(Kind::Image, &name))?;
    let expected = {
        let view = app.cache.view();
        takes_content(&view, id)?;
        Image::stored(&view, id).and_then(|at| at.value.spec.expected_sha256.clone())
    };
    let file = Temporary(app.images.join(format!("incoming-{}", app.env.next_id())));
    let incoming = Incoming {
        path: &file.0,
        held_bytes: 0,
    };
    let taken = take(incoming, sent(body), expected.as_deref()).await;
    let _one_at_a_time = app.keeping.lock().await;
    let taken = taken.and_then(|taken| keep(&app, &file.0, taken));
    let status = match &taken {
        Ok(content) => ImageStatus::ready(content.clone()),
        Err(problem) => failed(problem),
    };
    store_status(&app, &user, id, &status).await?;
    taken?;
    let view = app.cache.view();
    let object =
        render::<Image>(&app.heard, &view, id).ok_or_else(|| Problem::not_found(Kind::Image, &name))?;
    Ok(axum::Json(object).into_response())
}

/// What a client sends, as long as it does.
fn sent(body: Body) -> Source<'static> {
    let sent = stream::unfold(body.into_data_stream(), |mut body| async move {
        let chunk = match timeout(SILENCE_DEADLINE, body.next()).await {
            Ok(chunk) => chunk?.map_err(|error| broken(&format!("the content ended early ({error})"))),
            Err(_) => Err(broken(&format!(
                "nothing came for {} s",
                SILENCE_DEADLINE.as_secs()
            ))),
        };
        Some((chunk, body))
    });
    sent.boxed()
}

/// The status of an image whose import came to nothing.
fn failed(problem: &Problem) -> ImageStatus {
    ImageStatus::failed(Reason::new(&problem.code, problem.detail.clone()))
}

fn broken(why: &str) -> Problem {
    Problem::new(400, "upload-broken", format!("{why}: send it again"))
}

/// Stores what became of a client's content, unless the image takes none any more.
async fn store_status(app: &App, user: &User, id: Uuid, status: &ImageStatus) -> Result<(), Problem> {
    takes_content(&app.cache.view(), id)?;
    let plan = import::status_plan(app, ImageId(id), status, |stored| stored.content.is_none());
    let plan = plan.ok_or_else(|| Problem::not_found(Kind::Image, &id.to_string()))?;
    let actor = user.actor();
    let revision = controller::commit::commit(app.writer(&actor), plan)
        .await
        .map_err(commit_problem)?;
    app.cache.reach(revision, Duration::from_secs(5)).await;
    Ok(())
}

/// Gives content its name.
fn keep(app: &App, incoming: &FilePath, taken: Taken) -> Result<ImageContent, Problem> {
    let file = taken.file(incoming);
    let kept = fs::set_permissions(file, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(file, path(&app.images, &taken.content.sha256)));
    kept.map_err(|error| disk_problem("keeping", &error))?;
    Ok(taken.content)
}

/// Gives an image's content to an agent.
pub async fn download(
    State(app): State<App>,
    _: Agent,
    Path(sha256): Path<String>,
) -> Result<Response, Refused> {
    let missing = || Problem::new(404, "no-content", "this server has no content with that digest");
    if !model::limits::is_sha256(&sha256) {
        return Err(missing().into());
    }
    let file = File::open(path(&app.images, &sha256))
        .await
        .map_err(|_| missing())?;
    let length = file
        .metadata()
        .await
        .map_err(|error| disk_problem("reading", &error))?
        .len();
    Ok((
        [(header::CONTENT_LENGTH, length.to_string())],
        Body::from_stream(crate::backup::chunks(file)),
    )
        .into_response())
}
