//! How far a transfer is, as a stream: heard from the source's agent, never stored.

use std::convert::Infallible;
use std::time::Duration;

use api::Problem;
use api::kinds::Migration;
use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use model::Kind;

use crate::answer::{Path, Refused};
use crate::auth::{PROJECT, User};
use crate::kinds::Served;
use crate::places::{OfConnection, Way};
use crate::routes::App;
use crate::watch::push;

/// How often an empty line shows that the connection lives.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A line per sample until the migration is over.
pub async fn follow(
    State(app): State<App>,
    _: User,
    connection: Option<Extension<OfConnection>>,
    Path(name): Path<String>,
) -> Result<Response, Refused> {
    let id = app.cache.view().find(Kind::Migration, Some(PROJECT), &name);
    let id = id.ok_or_else(|| Problem::not_found(Kind::Migration, &name))?;
    let place = app
        .places
        .take(Way::Watch, Kind::Migration, connection.as_deref())?;
    let beats = app.heard.beats.subscribe();
    let revisions = app.cache.subscribe();
    let lines = stream::unfold(
        (app, place, beats, revisions, None),
        move |(app, place, mut beats, mut revisions, last)| async move {
            let last = last;
            let quiet_until = tokio::time::Instant::now() + KEEP_ALIVE;
            loop {
                let status = {
                    let view = app.cache.view();
                    Migration::status(&app.heard, &view, id)
                };
                let status = status.filter(|status| !status.phase.is_final())?;
                if status.progress.is_some() && status.progress != last {
                    let mut line = Vec::new();
                    push(&mut line, &status.progress);
                    return Some((
                        Ok::<_, Infallible>(Bytes::from(line)),
                        (app, place, beats, revisions, status.progress),
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
