//! How far something is, as a stream: heard lately, never stored.

use std::convert::Infallible;
use std::time::Duration;

use api::Problem;
use api::kinds::{Image, ImageState, Migration};
use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use model::image::ImportProgress;
use model::migration::Progress;
use serde::Serialize;

use crate::answer::{Path, Refused};
use crate::auth::{PROJECT, User};
use crate::kinds::Served;
use crate::places::{OfConnection, Way};
use crate::routes::App;
use crate::watch::push;

/// How often an empty line shows that the connection lives.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// What can be followed to its end.
pub trait Followed: Served {
    /// How far it is.
    type Sample: Serialize + PartialEq + Send;

    /// Whether it goes on, and the last sample of it.
    fn sample(status: Self::Status) -> (bool, Option<Self::Sample>);
}

impl Followed for Migration {
    type Sample = Progress;

    fn sample(status: Self::Status) -> (bool, Option<Progress>) {
        (!status.phase.is_final(), status.progress)
    }
}

impl Followed for Image {
    type Sample = ImportProgress;

    fn sample(status: Self::Status) -> (bool, Option<ImportProgress>) {
        (status.state == ImageState::Importing, status.progress)
    }
}

/// A line per sample until it is over.
pub async fn follow<R: Followed>(
    State(app): State<App>,
    _: User,
    connection: Option<Extension<OfConnection>>,
    Path(name): Path<String>,
) -> Result<Response, Refused> {
    let id = app.cache.view().find(R::KIND, Some(PROJECT), &name);
    let id = id.ok_or_else(|| Problem::not_found(R::KIND, &name))?;
    let place = app.places.take(Way::Watch, R::KIND, connection.as_deref())?;
    let beats = app.heard.beats.subscribe();
    let revisions = app.cache.subscribe();
    let lines = stream::unfold(
        (app, place, beats, revisions, None),
        move |(app, place, mut beats, mut revisions, last)| async move {
            let quiet_until = tokio::time::Instant::now() + KEEP_ALIVE;
            loop {
                let status = {
                    let view = app.cache.view();
                    R::status(&app.heard, &view, id)
                };
                let (goes_on, sample) = R::sample(status?);
                if !goes_on {
                    return None;
                }
                if sample.is_some() && sample != last {
                    let mut line = Vec::new();
                    push(&mut line, &sample);
                    return Some((
                        Ok::<_, Infallible>(Bytes::from(line)),
                        (app, place, beats, revisions, sample),
                    ));
                }
                let changed = async {
                    tokio::select! { _ = beats.changed() => {}, _ = revisions.changed() => {} }
                };
                if tokio::time::timeout_at(quiet_until, changed).await.is_err() {
                    let state = (app, place, beats, revisions, last);
                    return Some((Ok(Bytes::from_static(b"\n")), state));
                }
            }
        },
    );
    Ok((
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(lines),
    )
        .into_response())
}
