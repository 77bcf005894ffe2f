//! One import, from its source to an image that is ready or says why it is not.
//!
//! **Owns:** the order of it: the digest, the content, the status.
//!
//! **Does not know:** when it is this one's turn, and that it may be dropped at any time.
//!
//! **Start here:** [`import`].

use std::sync::Arc;
use std::time::Duration;

use api::Problem;
use futures_util::TryStreamExt;
use model::ImageId;
use model::image::{ImageContent, ImageSource, ImageSpec, ImageStatus, ImportProgress};
use tokio::time::timeout;
use url::Url;
use uuid::Uuid;

use super::download::{CHANGED, Download, Tell};
use super::partial::Partial;
use super::{claims, source};
use crate::images::take::{CONTENT_MAX_BYTES, Held, Incoming, Taken, take};
use crate::images::{failed, keep, path};
use crate::routes::App;
use crate::shared::Cloud;

/// How long an import may take in all.
const DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// How often content may begin again because its source has changed.
const BEGINNINGS_MAX: u32 = 4;
/// The longest list of digests.
const LIST_MAX_BYTES: u64 = 1 << 20;

/// Tells how far an import is for as long as this is kept.
pub(in crate::images) struct Telling {
    cloud: Arc<Cloud>,
    image: ImageId,
}

impl Telling {
    pub(in crate::images) fn of(app: &App, image: Uuid) -> Self {
        Self {
            cloud: app.cloud.clone(),
            image: ImageId(image),
        }
    }

    pub(in crate::images) fn tell(&self) -> Tell {
        let (cloud, image) = (self.cloud.clone(), self.image);
        Box::new(move |progress| cloud.heard.note_import(image, Some(progress)))
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.cloud.heard.note_import(self.image, None);
    }
}

/// What an import has led to.
enum Found {
    /// A file that can be kept.
    Taken(Taken),
    /// Content that is kept already.
    Here(ImageContent),
}

/// Imports an image, and stores what became of it. What has come stays on disk if this is dropped before.
pub(super) async fn import(app: App, image: ImageId, spec: ImageSpec) {
    let Some(source) = &spec.source else { return };
    let partial = Partial::of(&app.images, image, &source.url);
    let found = timeout(DEADLINE, find(&app, image, &spec, source, &partial)).await;
    let found = found.unwrap_or_else(|_| {
        let detail = format!("it has not come in {} hours", DEADLINE.as_secs() / 3600);
        Err(Problem::new(503, "source-unreachable", detail))
    });
    let concluded = match found {
        Ok(Found::Here(content)) => conclude_here(&app, image, content).await,
        Ok(Found::Taken(taken)) => conclude_taken(&app, image, &partial, taken).await,
        Err(problem) => {
            // First: there may be no room for the failure while this takes it.
            partial.remove();
            claims::conclude(&app, image, &failed(&problem)).await
        }
    };
    partial.remove();
    if !concluded {
        app.discarded.notify_one();
        tracing::info!(%image, "an import ended that nobody waits for any more");
    }
}

/// Keeps the file and stores that it is there.
async fn conclude_taken(app: &App, image: ImageId, partial: &Partial, taken: Taken) -> bool {
    let _one_at_a_time = app.keeping.lock().await;
    let status = match keep(app, &partial.sent(), taken) {
        Ok(content) => ImageStatus::ready(content),
        Err(problem) => failed(&problem),
    };
    claims::conclude(app, image, &status).await
}

/// Stores that the image has content which is here, if it still is.
async fn conclude_here(app: &App, image: ImageId, content: ImageContent) -> bool {
    let _nothing_is_collected = app.keeping.lock().await;
    let status = match path(&app.images, &content.sha256).exists() {
        true => ImageStatus::ready(content),
        false => failed(&Problem::new(
            503,
            "source-unreachable",
            "the image that had the same content was deleted just now: import it again",
        )),
    };
    claims::conclude(app, image, &status).await
}

async fn find(
    app: &App,
    image: ImageId,
    spec: &ImageSpec,
    source: &ImageSource,
    partial: &Partial,
) -> Result<Found, Problem> {
    let telling = Telling::of(app, image.0);
    let signature = match source.s3 {
        Some(_) => Some(claims::signature(app, image).await?),
        None => None,
    };
    let url = source::asked(source, signature.as_deref())?;
    let expected = match &source.sha256sums_url {
        Some(list) => Some(listed(app, &source::checked(list)?, &url).await?),
        None => spec.expected_sha256.clone(),
    };
    if let Some(content) = expected.as_deref().and_then(|digest| at_hand(app, digest)) {
        return Ok(Found::Here(content));
    }
    let mut beginnings = 0;
    loop {
        let mut download = Download::of(app, &url, CONTENT_MAX_BYTES, telling.tell())?;
        let held_bytes = download.go_on(partial, expected.is_some());
        let held = (held_bytes > 0).then_some(Held {
            bytes: held_bytes,
            sha256: None,
        });
        let incoming = Incoming {
            path: &partial.sent(),
            held,
        };
        beginnings += 1;
        match take(incoming, download.bytes(), expected.as_deref()).await {
            Err(problem) if begins_again(&problem, held_bytes) && beginnings < BEGINNINGS_MAX => {
                partial.remove()
            }
            taken => return taken.map(Found::Taken),
        }
    }
}

/// Whether another result can be had by taking all of it anew.
fn begins_again(problem: &Problem, held_bytes: u64) -> bool {
    problem.code == CHANGED || problem.code == "digest-differs" && held_bytes > 0
}

/// The digest of a file by the list that stands beside it.
async fn listed(app: &App, list: &Url, file: &Url) -> Result<String, Problem> {
    let silent: Tell = Box::new(|_: ImportProgress| {});
    let download = Download::of(app, list, LIST_MAX_BYTES, silent)?;
    let text: Vec<u8> = download
        .bytes()
        .try_fold(Vec::new(), |mut all, bytes| {
            all.extend_from_slice(&bytes);
            std::future::ready(Ok(all))
        })
        .await?;
    let name = source::file_name(file);
    formats::sums::sha256_of(&String::from_utf8_lossy(&text), &name).ok_or_else(|| {
        let detail = format!(
            "{}: there is no line for {name:?} in this list: give the right list, or --sha256",
            source::shown(list)
        );
        Problem::invalid("digest-not-listed", detail)
    })
}

/// The content that this is the digest of, kept or as it was sent, if an image has it and it is on this server.
fn at_hand(app: &App, digest: &str) -> Option<ImageContent> {
    let view = app.cache.view();
    let contents = view
        .images
        .values()
        .filter_map(|image| image.status.as_ref()?.value.content.clone());
    let mut same = contents
        .filter(|content| content.sha256 == digest || content.source_sha256.as_deref() == Some(digest));
    same.find(|content| path(&app.images, &content.sha256).exists())
}
