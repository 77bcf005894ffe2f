//! Files with images' contents that are of no use any more.
//!
//! **Owns:** which of them go, and when that is looked at.
//!
//! **Does not know:** how content comes in; what hosts have of it.
//!
//! **Start here:** [`run`], [`collect`]. Whoever gives content its name holds [`crate::shared::Shared::keeping`] until an
//! image has it, and so does this from its look into the store to its end: the store, since the view may be behind.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry};
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::{Kind, key};
use planner::View;
use planner::view::Change;
use store::{RangeRequest, StoreError};
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::upload;
use crate::routes::App;

/// How soon is looked again at what nobody told of, and what has become too old.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// Images that are deleted one after another are looked at together.
const PAUSE: Duration = Duration::from_millis(500);
/// How long what was sent of an upload is kept for somebody to go on with it.
const UPLOAD_KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// Collects what is of no use, until it is dropped.
pub(crate) async fn run(app: App) {
    let mut revisions = app.cache.subscribe();
    let mut time = Instant::now();
    loop {
        let needed = Needed::by(&app.cache.view());
        let is_time = time <= Instant::now();
        if is_time || !superfluous(&app, &needed).is_empty() {
            time = Instant::now() + LOOK_EVERY;
            if let Err(error) = collect(&app).await {
                tracing::warn!(%error, "contents that no image has were not looked for; that is done again");
            }
        }
        tokio::select! {
            _ = revisions.changed() => sleep(PAUSE).await,
            () = app.discarded.notified() => {}
            () = sleep_until(time) => {}
        }
    }
}

/// What images have, and which of them take content.
#[derive(Debug, Default)]
struct Needed {
    contents: BTreeSet<String>,
    takers: BTreeSet<Uuid>,
}

impl Needed {
    fn by(view: &View) -> Self {
        let mut needed = Self::default();
        for (id, image) in &view.images {
            let content = image.status.as_ref().and_then(|at| at.value.content.as_ref());
            match content {
                Some(content) => needed.contents.insert(content.sha256.clone()),
                None => needed.takers.insert(*id),
            };
        }
        needed
    }

    fn has(&self, name: &str) -> bool {
        match upload::image_of(name) {
            Some(image) => self.takers.contains(&image),
            None => !model::limits::is_sha256(name) || self.contents.contains(name),
        }
    }
}

/// Removes contents that no image has, and what was sent for images that take nothing any more.
async fn collect(app: &App) -> Result<(), StoreError> {
    let _nothing_is_named_meanwhile = app.keeping.lock().await;
    let found = app
        .store
        .range(RangeRequest::prefix(key::kind_prefix(Kind::Image)))
        .await?;
    let mut view = View::default();
    for kv in &found.items {
        view.apply(Change {
            key: &kv.key,
            value: Some(&kv.value),
            revision: kv.mod_revision,
        });
    }
    // A restored store may not know all that it will, and an image that cannot be read may have any content.
    if app.cache.view().is_held() || !view.unreadable.is_empty() {
        return Ok(());
    }
    for path in superfluous(app, &Needed::by(&view)) {
        if fs::remove_file(&path).is_ok() {
            tracing::info!(path = %path.display(), "a file that no image needs was removed");
        }
    }
    Ok(())
}

fn superfluous(app: &App, needed: &Needed) -> Vec<PathBuf> {
    let is_needed = |name: &str| {
        let is_sent = upload::image_of(name).is_some_and(|image| app.uploads.is_under_way(image));
        is_sent || needed.has(name)
    };
    superfluous_in(&app.images, is_needed)
}

/// Files that are not needed, and uploads that nobody went on with.
fn superfluous_in(images: &Path, is_needed: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(images).into_iter().flatten().flatten();
    let superfluous = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        !is_needed(name) || upload::image_of(name).is_some() && is_old(entry)
    });
    superfluous.map(|entry| entry.path()).collect()
}

fn is_old(entry: &DirEntry) -> bool {
    let written = entry.metadata().and_then(|metadata| metadata.modified()).ok();
    let age = written.and_then(|written| written.elapsed().ok());
    age.is_some_and(|age| age > UPLOAD_KEPT_FOR)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn only_what_is_not_needed_and_what_nobody_went_on_with_goes() {
        let directory = tempfile::tempdir().unwrap();
        let [fresh, old] = [1, 2].map(|n| upload::name(Uuid::from_u128(n)));
        for name in ["needed", "not-needed", &fresh, &old] {
            File::create(directory.path().join(name)).unwrap();
        }
        for name in ["needed", &old] {
            let file = File::options().write(true).open(directory.path().join(name));
            file.unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        let superfluous = superfluous_in(directory.path(), |name| name != "not-needed");
        let superfluous: BTreeSet<PathBuf> = superfluous.into_iter().collect();
        let expected = ["not-needed", &old].map(|name| directory.path().join(name));
        assert_eq!(superfluous, BTreeSet::from(expected));
    }
}
