//! Watches: a line of JSON per change, resumable from a revision. A slow reader gets fewer, newer lines, never a queue
//! without end. Who cannot read a stream polls: the same changes, a request for each time something has changed.

use std::convert::Infallible;
use std::time::Duration;

use api::client::ObjectOf;
use api::{Change, ChangeType, Changes, Problem};
use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use controller::cache::{Changed, Since};
use futures_util::stream;
use planner::View;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use crate::auth::{Standing, User};
use crate::kinds::Served;
use crate::lists::{Shown, Wanted};
use crate::places::{OfConnection, Place, Way};
use crate::routes::App;

/// How often an empty line shows a quiet reader that the connection lives.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long a poll waits if nobody says.
const POLL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a poll waits at most: proxies give up after a minute.
const POLL_TIMEOUT_MAX: Duration = Duration::from_secs(55);

/// The answer to a watch.
pub fn stream<R: Served>(
    app: App,
    user: &User,
    connection: Option<&OfConnection>,
    from: Option<u64>,
    wanted: Wanted,
) -> Result<Response, Problem> {
    let place = app.places.take(Way::Watch, R::KIND, connection)?;
    let (seen, first) = begin::<R>(&app, from, &wanted)?;
    let revisions = app.cache.subscribe();
    let state = Watcher {
        app,
        seen,
        wanted,
        revisions,
        // In HTTP/2 an empty piece is an empty frame, after a hundred of which clients end a connection.
        pending: Some(first).filter(|first| !first.is_empty()),
        _place: place,
    };
    let state = (state, Standing::of(user));
    let lines = stream::unfold(state, |(mut watcher, mut standing)| async move {
        if !standing.holds(&watcher.app).await {
            return None;
        }
        let chunk = watcher.next::<R>().await?;
        Some((Ok::<Bytes, Infallible>(Bytes::from(chunk)), (watcher, standing)))
    });
    let body = Body::from_stream(lines);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// Where a watch begins, and its first lines.
fn begin<R: Served>(app: &App, from: Option<u64>, wanted: &Wanted) -> Result<(u64, Vec<u8>), Problem> {
    let view = app.cache.view();
    let Some(from) = from else {
        return Ok((view.revision, everything::<R>(app, &view, wanted)));
    };
    match app.cache.since(from) {
        Since::Changes(_) => Ok((from, Vec::new())),
        Since::Compacted(oldest) => Err(compacted(from, oldest)),
    }
}

fn compacted(from: u64, oldest: u64) -> Problem {
    let detail = format!(
        "changes after revision {from} are no longer kept, only after {oldest}: list again, and watch from there"
    );
    Problem::new(410, "compacted", detail).at_revision(oldest)
}

struct Watcher {
    app: App,
    seen: u64,
    wanted: Wanted,
    revisions: watch::Receiver<u64>,
    pending: Option<Vec<u8>>,
    _place: Place,
}

impl Watcher {
    /// The next lines; `None` ends the stream.
    async fn next<R: Served>(&mut self) -> Option<Vec<u8>> {
        if let Some(first) = self.pending.take() {
            return Some(first);
        }
        let quiet_until = Instant::now() + KEEP_ALIVE;
        loop {
            self.revisions.borrow_and_update();
            match self.news::<R>() {
                Err(oldest) => {
                    tracing::debug!(oldest, "a watch fell too far behind and is ended");
                    return None;
                }
                Ok(changes) if !changes.is_empty() => return Some(lines(&changes)),
                Ok(_) => {}
            }
            match until_changed(&mut self.revisions, quiet_until).await {
                Waited::Changed => {}
                Waited::Closed => return None,
                Waited::Quiet => return Some(b"\n".to_vec()),
            }
        }
    }

    /// The changes since the last ones; or the oldest revision that is kept, if not everything since then is. Whoever
    /// holds the view has all the changes up to it and none after it, so nothing is told twice.
    fn news<R: Served>(&mut self) -> Result<Vec<ChangeOf<R>>, u64> {
        let app = self.app.clone();
        let view = app.cache.view();
        if view.revision <= self.seen {
            return Ok(Vec::new());
        }
        let changes = match app.cache.since(self.seen) {
            Since::Changes(changes) => self.shown::<R>(&view, changes),
            Since::Compacted(oldest) => return Err(oldest),
        };
        self.seen = view.revision;
        Ok(changes)
    }

    fn shown<R: Served>(&self, view: &View, changes: Vec<Changed>) -> Vec<ChangeOf<R>> {
        let mut shown = Vec::new();
        for changed in changes.into_iter().filter(|changed| changed.kind == R::KIND) {
            let (change_type, object) = match &changed.gone {
                Some(former) => (
                    ChangeType::Deleted,
                    self.wanted.render::<R>(&self.app.heard, former, changed.id),
                ),
                None => (
                    self.change_type::<R>(view, changed.id),
                    self.wanted.render::<R>(&self.app.heard, view, changed.id),
                ),
            };
            if let Some(object) = object.and_then(|object| self.wanted.show(object)) {
                shown.push(Change {
                    change_type,
                    object,
                    revision: changed.revision,
                });
            }
        }
        shown
    }

    /// An object whose own part was written for the first time after what the reader has seen is new to it.
    fn change_type<R: Served>(&self, view: &View, id: Uuid) -> ChangeType {
        let at = R::stored(view, id);
        let is_new = at.is_some_and(|at| {
            at.revision > self.seen && at.value.meta.created_at == at.value.meta.updated_at
        });
        if is_new {
            ChangeType::Added
        } else {
            ChangeType::Modified
        }
    }
}

/// A change as it was asked for.
type ChangeOf<R> = Change<Shown<ObjectOf<R>>>;

/// Every object, as a watch without a revision begins.
fn everything<R: Served>(app: &App, view: &View, wanted: &Wanted) -> Vec<u8> {
    let objects = view.ids(R::KIND).into_iter();
    let shown = objects.filter_map(|id| wanted.show(wanted.render::<R>(&app.heard, view, id)?));
    let added = shown.map(|object| Change {
        change_type: ChangeType::Added,
        object,
        revision: view.revision,
    });
    lines(&added.collect::<Vec<_>>())
}

fn lines<T: Serialize>(values: &[T]) -> Vec<u8> {
    let mut lines = Vec::new();
    values.iter().for_each(|value| push(&mut lines, value));
    lines
}

/// Answers what changed after a revision: at once if something did, else as soon as something does, or with nothing when
/// the time is over.
pub async fn poll<R: Served>(
    app: App,
    connection: Option<&OfConnection>,
    from: u64,
    wanted: Wanted,
    timeout_s: Option<u64>,
) -> Result<Changes<Shown<ObjectOf<R>>>, Problem> {
    let place = app.places.take(Way::Poll, R::KIND, connection)?;
    let timeout = timeout_s
        .map_or(POLL_TIMEOUT, Duration::from_secs)
        .min(POLL_TIMEOUT_MAX);
    let over_at = Instant::now() + timeout;
    let mut watcher = Watcher {
        revisions: app.cache.subscribe(),
        app,
        seen: from,
        wanted,
        pending: None,
        _place: place,
    };
    loop {
        watcher.revisions.borrow_and_update();
        let items = watcher
            .news::<R>()
            .map_err(|oldest| compacted(watcher.seen, oldest))?;
        let revision = watcher.seen;
        if !items.is_empty() {
            return Ok(Changes { items, revision });
        }
        match until_changed(&mut watcher.revisions, over_at).await {
            Waited::Changed => {}
            Waited::Quiet => return Ok(Changes { items, revision }),
            Waited::Closed => {
                return Err(Problem::new(
                    503,
                    "store-unavailable",
                    "the store was closed: try again",
                ));
            }
        }
    }
}

/// What ended a wait for the next revision.
pub(crate) enum Waited {
    /// The store moved on, whether or not the reader cares.
    Changed,
    /// The reader has heard nothing for so long that an empty line is due.
    Quiet,
    /// There will be no more revisions.
    Closed,
}

/// Waits for the next revision. A store that never rests does not put the empty line off.
pub(crate) async fn until_changed(revisions: &mut watch::Receiver<u64>, quiet_until: Instant) -> Waited {
    if Instant::now() >= quiet_until {
        return Waited::Quiet;
    }
    match tokio::time::timeout_at(quiet_until, revisions.changed()).await {
        Ok(Ok(())) => Waited::Changed,
        Ok(Err(_)) => Waited::Closed,
        Err(_) => Waited::Quiet,
    }
}

/// Adds a line.
pub(crate) fn push<T: Serialize>(lines: &mut Vec<u8>, value: &T) {
    match serde_json::to_vec(value) {
        Ok(line) => {
            lines.extend(line);
            lines.push(b'\n');
        }
        Err(error) => tracing::error!(%error, "a line of a stream cannot be written"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_that_never_rests_does_not_put_the_empty_line_off() {
        let (sender, mut revisions) = watch::channel(0);
        sender.send_replace(1);
        let over = Instant::now();
        assert!(matches!(until_changed(&mut revisions, over).await, Waited::Quiet));
        let later = over + KEEP_ALIVE;
        assert!(matches!(
            until_changed(&mut revisions, later).await,
            Waited::Changed
        ));
        drop(sender);
        assert!(matches!(
            until_changed(&mut revisions, later).await,
            Waited::Closed
        ));
    }
}
