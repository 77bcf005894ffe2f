//! Images' content: taken from people once, checked, kept under its digest, given to agents.

pub(crate) mod collect;
mod confined;
pub mod import;
pub mod needed;
mod sink;
mod take;
pub mod upload;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path as FilePath, PathBuf};

use api::Problem;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use model::Reason;
use model::image::{ImageContent, ImageStatus};
use tokio::fs::File;

use self::take::{Taken, disk_problem};
use crate::answer::{Path, Refused};
use crate::auth::Agent;
use crate::routes::App;

/// Where a content is kept.
pub fn path(dir: &FilePath, sha256: &str) -> PathBuf {
    dir.join(sha256)
}

/// The status of an image whose import came to nothing.
fn failed(problem: &Problem) -> ImageStatus {
    ImageStatus::failed(Reason::new(&problem.code, problem.detail.clone()))
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
