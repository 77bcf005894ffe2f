//! Content that a client sends, or a host that has copied a disk, over one connection or several.
//!
//! **Owns:** the file that it comes into, who of several clients is listened to, and where an upload goes on.
//!
//! **Does not know:** what the content is: that is `super::take`'s.
//!
//! **Start here:** [`upload`], [`sent`]. An upload goes on if the digest of what the client takes for sent is that of what
//! lies here: nothing else is remembered of it, so that a server may be killed at any time.

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::Problem;
use api::kinds::{Image, UploadStatus};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use model::audit::Actor;
use model::image::{ImageContent, ImageStatus, ImportProgress};
use model::vm::Copied;
use model::{ImageId, Incarnation, Kind};
use planner::copies::Copier;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::import::Telling;
use super::take::{Held, Incoming, Source, take};
use super::{failed, import, keep};
use crate::answer::{Path, Refused, commit_problem};
use crate::auth::{Agent, PROJECT, User};
use crate::kinds::{Served, render, takes_content, takes_copy};
use crate::routes::{App, QueryOf, find, query};
use crate::shared::Cloud;

/// How long a client that sends content may be silent.
const SILENCE_DEADLINE: Duration = Duration::from_secs(60);
/// How the names of files begin that clients' content comes into, and how they end.
const PREFIX: &str = "incoming-";
const SENT: &str = ".sent";
/// The codes of what leaves an upload where it is.
const BROKEN: &str = "upload-broken";
const OVERTAKEN: &str = "upload-overtaken";
const DIFFERS: &str = "upload-differs";

/// What may stand behind the `?` of content.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UploadQuery {
    from: u64,
    held_sha256: Option<String>,
}

/// The name of the file that an image's content comes into.
pub(super) fn name(image: Uuid) -> String {
    format!("{PREFIX}{image}{SENT}")
}

/// The image that a file of this name is for.
pub(super) fn image_of(name: &str) -> Option<Uuid> {
    name.strip_prefix(PREFIX)?.strip_suffix(SENT)?.parse().ok()
}

fn file(app: &App, image: Uuid) -> PathBuf {
    app.images.join(name(image))
}

/// How much lies there.
fn held_bytes(path: &FilePath) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

/// Removes what was made of content beside it when the server ended.
pub(crate) fn sweep(images: &FilePath) {
    let entries = std::fs::read_dir(images).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        if name.starts_with(PREFIX) && image_of(name).is_none() {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// The uploads under way.
#[derive(Debug, Default)]
pub struct Uploads(Mutex<BTreeMap<Uuid, Turns>>);

/// Who sends an image's content, one at a time.
#[derive(Debug, Clone, Default)]
struct Turns {
    lock: Arc<tokio::sync::Mutex<()>>,
    overtaken: CancellationToken,
}

/// The right to write an image's file.
struct Turn {
    _held: OwnedMutexGuard<()>,
    overtaken: CancellationToken,
}

impl Uploads {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Uuid, Turns>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, turns| Arc::strong_count(&turns.lock) > 1);
        all
    }

    /// Whether somebody sends it now.
    pub(super) fn is_under_way(&self, image: Uuid) -> bool {
        self.all().contains_key(&image)
    }

    /// Ends who sent it before, who may be a connection that is lost without anybody having noticed.
    async fn take_over(&self, image: Uuid) -> Turn {
        let (lock, overtaken) = {
            let mut all = self.all();
            let turns = all.entry(image).or_default();
            turns.overtaken.cancel();
            turns.overtaken = CancellationToken::new();
            (turns.lock.clone(), turns.overtaken.clone())
        };
        Turn {
            _held: lock.lock_owned().await,
            overtaken,
        }
    }
}

/// Says how much of an image's content has been sent by now.
pub async fn sent(State(app): State<App>, _: User, Path(name): Path<String>) -> Result<Response, Refused> {
    let id = find::<Image>(&app.cache.view(), &name)?;
    let bytes = held_bytes(&file(&app, id));
    Ok(axum::Json(UploadStatus { bytes }).into_response())
}

/// Takes an image's content, or the rest of it.
pub async fn upload(
    State(app): State<App>,
    user: User,
    Path(name): Path<String>,
    found: QueryOf<UploadQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let query = query(found)?;
    let image = app.cache.view().find(Kind::Image, Some(PROJECT), &name);
    let image = image.ok_or_else(|| Problem::not_found(Kind::Image, &name))?;
    let upload = Upload {
        app: app.clone(),
        by: By::User(user.actor()),
        image,
        query,
        bytes: length(&headers),
    };
    upload.begin(body).await?;
    let view = app.cache.view();
    let object =
        render::<Image>(&app.heard, &view, image).ok_or_else(|| Problem::not_found(Kind::Image, &name))?;
    Ok(axum::Json(object).into_response())
}

/// Says to a host how much of an image's content has been sent by now.
pub async fn sent_by_host(
    State(app): State<App>,
    agent: Agent,
    Path((image, incarnation)): Path<(Uuid, Incarnation)>,
) -> Result<Response, Refused> {
    let by = Copier {
        host: agent.host,
        incarnation,
        is_frozen: false,
    };
    takes_copy(&app.cache.view(), image, by, app.env.now())?;
    let bytes = held_bytes(&file(&app, image));
    Ok(axum::Json(UploadStatus { bytes }).into_response())
}

/// What may stand behind the `?` of a copy's content.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CopyQuery {
    from: u64,
    held_sha256: Option<String>,
    frozen: bool,
}

/// Takes the copy of a VM's disk as an image's content from the host that made it, or the rest of it.
pub async fn upload_by_host(
    State(app): State<App>,
    agent: Agent,
    Path((image, incarnation)): Path<(Uuid, Incarnation)>,
    found: QueryOf<CopyQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let query = query(found)?;
    let upload = Upload {
        app: app.clone(),
        by: By::Host(
            Copier {
                host: agent.host,
                incarnation,
                is_frozen: query.frozen,
            },
            agent.actor(),
        ),
        image,
        query: UploadQuery {
            from: query.from,
            held_sha256: query.held_sha256,
        },
        bytes: length(&headers),
    };
    upload.begin(body).await?;
    Ok(axum::Json(json!({})).into_response())
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Who sends content.
enum By {
    /// Somebody who has a file.
    User(Actor),
    /// A host that has copied a VM's disk for the image.
    Host(Copier, Actor),
}

/// One request with content.
struct Upload {
    app: App,
    by: By,
    image: Uuid,
    query: UploadQuery,
    /// How much is going to come.
    bytes: Option<u64>,
}

impl Upload {
    async fn begin(self, body: Body) -> Result<(), Problem> {
        self.takes()?;
        // It ends in order when its client is gone: nothing writes the file any more when the next one begins.
        let done = tokio::spawn(self.run(body)).await;
        done.unwrap_or_else(|error| Err(broken(&error.to_string())))
    }

    /// Whether the image takes content from whoever sends it; of which instant of a disk it is, if it is a copy of one.
    fn takes(&self) -> Result<Option<Copied>, Problem> {
        let view = self.app.cache.view();
        match &self.by {
            By::User(_) => takes_content(&view, self.image).map(|()| None),
            By::Host(by, _) => takes_copy(&view, self.image, *by, self.app.env.now()).map(Some),
        }
    }

    async fn run(self, body: Body) -> Result<(), Problem> {
        let turn = self.app.uploads.take_over(self.image).await;
        let path = file(&self.app, self.image);
        let taken = {
            let held = self.held(&path)?;
            let incoming = Incoming { path: &path, held };
            let body = sent_body(body, self.bytes, turn.overtaken.clone());
            let telling = matches!(self.by, By::Host(..)).then(|| Telling::of(&self.app, self.image));
            let body = told(body, telling, self.query.from, self.bytes);
            take(incoming, body, self.expected()?.as_deref()).await
        };
        if let Err(problem) = &taken
            && problem.code == OVERTAKEN
        {
            return taken.map(drop);
        }
        let _one_at_a_time = self.app.keeping.lock().await;
        let kept = taken.and_then(|taken| keep(&self.app, &path, taken));
        if !matches!(&kept, Err(problem) if problem.code == BROKEN) {
            let _ = std::fs::remove_file(&path);
        }
        let stored = self.store(kept).await;
        if stored.is_err() {
            self.app.discarded.notify_one();
        }
        stored
    }

    /// The digest that the image's maker gave. It may have come, or be gone, while this one waited.
    fn expected(&self) -> Result<Option<String>, Problem> {
        self.takes()?;
        let view = self.app.cache.view();
        let stored = Image::stored(&view, self.image).ok_or_else(|| self.gone())?;
        Ok(stored.value.spec.expected_sha256.clone())
    }

    /// What is gone on with.
    fn held(&self, path: &FilePath) -> Result<Option<Held>, Problem> {
        let bytes = self.query.from;
        if bytes == 0 {
            let _ = std::fs::remove_file(path);
            return Ok(None);
        }
        let Some(sha256) = self.query.held_sha256.clone() else {
            let detail = "there is `from` without `held_sha256`: give the SHA-256 of what was sent before";
            return Err(Problem::invalid("invalid-digest", detail));
        };
        let there = held_bytes(path);
        if bytes > there {
            let detail =
                format!("{there} bytes of it are here: send what follows them, not what follows {bytes}");
            return Err(Problem::conflict(DIFFERS, detail));
        }
        Ok(Some(Held {
            bytes,
            sha256: Some(sha256.to_ascii_lowercase()),
        }))
    }

    /// Stores what became of it, unless the image takes nothing any more.
    async fn store(&self, kept: Result<ImageContent, Problem>) -> Result<(), Problem> {
        let copied = self.takes()?;
        let status = match &kept {
            Ok(content) => ImageStatus {
                copied,
                ..ImageStatus::ready(content.clone())
            },
            // The host sends it again.
            Err(problem) if copied.is_some() && [BROKEN, DIFFERS].contains(&problem.code.as_str()) => {
                return kept.map(drop);
            }
            Err(problem) => failed(problem),
        };
        let (By::User(actor) | By::Host(_, actor)) = &self.by;
        store_status(&self.app, self.image, &status, actor).await?;
        kept.map(drop)
    }

    fn gone(&self) -> Problem {
        Problem::not_found(Kind::Image, &self.image.to_string())
    }
}

/// Stores that an image has the content that a host gave, if that host was told to copy a disk for it.
pub async fn store_copy(
    cloud: &Cloud,
    image: Uuid,
    by: Copier,
    actor: &Actor,
    content: ImageContent,
) -> Result<(), Problem> {
    let copied = takes_copy(&cloud.cache.view(), image, by, cloud.env.now())?;
    let status = ImageStatus {
        copied: Some(copied),
        ..ImageStatus::ready(content)
    };
    store_status(cloud, image, &status, actor).await
}

/// Stores what became of an image's content, unless the image is gone or has its content.
async fn store_status(
    cloud: &Cloud,
    image: Uuid,
    status: &ImageStatus,
    actor: &Actor,
) -> Result<(), Problem> {
    let is_open = |stored: &ImageStatus| stored.content.is_none();
    let plan = import::status_plan(cloud, ImageId(image), status, is_open);
    let plan = plan.ok_or_else(|| Problem::not_found(Kind::Image, &image.to_string()))?;
    let committed = controller::commit::commit(cloud.writer(actor), plan);
    let revision = committed.await.map_err(commit_problem)?;
    cloud.cache.reach(revision, Duration::from_secs(5)).await;
    Ok(())
}

/// What a client sends, as long as it does and no other one begins. All of it, or a problem at its end.
fn sent_body(body: Body, bytes: Option<u64>, overtaken: CancellationToken) -> Source<'static> {
    let begun = (body.into_data_stream(), 0_u64);
    let sent = stream::unfold(begun, move |(mut body, mut came)| {
        let overtaken = overtaken.clone();
        async move {
            let next = tokio::select! {
                next = timeout(SILENCE_DEADLINE, body.next()) => next,
                () = overtaken.cancelled() => return Some((Err(another()), (body, came))),
            };
            let chunk: Result<Bytes, Problem> = match next {
                Ok(Some(chunk)) => {
                    chunk.map_err(|error| broken(&format!("the content ended early ({error})")))
                }
                Ok(None) if bytes.is_none_or(|bytes| bytes == came) => return None,
                Ok(None) => Err(broken("the content ended early")),
                Err(_) => Err(broken(&format!(
                    "nothing came for {} s",
                    SILENCE_DEADLINE.as_secs()
                ))),
            };
            came = came.saturating_add(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
            Some((chunk, (body, came)))
        }
    });
    sent.boxed()
}

/// The same, of which it is told how much has come.
fn told(body: Source<'static>, telling: Option<Telling>, from: u64, rest: Option<u64>) -> Source<'static> {
    let Some(telling) = telling else { return body };
    let tell = telling.tell();
    let mut bytes_done = from;
    let body = body.inspect(move |chunk| {
        let _until_the_end = &telling;
        bytes_done += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        tell(ImportProgress {
            bytes_done,
            bytes_total: rest.map(|rest| from.saturating_add(rest)),
            trouble: None,
        });
    });
    body.boxed()
}

fn broken(why: &str) -> Problem {
    let detail = format!("{why}: send the rest; the same `sterna image import` goes on where it stopped");
    Problem::new(400, BROKEN, detail)
}

fn another() -> Problem {
    Problem::conflict(
        OVERTAKEN,
        "somebody else began to send this image's content: wait for its end",
    )
}
