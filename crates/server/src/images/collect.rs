//! Files with images' contents that are of no use any more.
//!
//! **Owns:** which of them go, and when that is looked at.
//!
//! **Does not know:** how content comes in; what hosts have of it.
//!
//! A content that was there before this start of the server, and that no image had since, is kept for a day: the server may have
//! been started on another store than the one that knows it.
//!
//! **Start here:** [`run`], [`collect`]. Whoever gives content its name holds [`crate::shared::Shared::keeping`] until an
//! image has it, and so does this from its look into the store to its end: the store, since the view may be behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use controller::cache::{Cache, Since};
use model::{Kind, Timestamp};
use store::StoreError;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::needed::Needed;
use super::upload;
use crate::routes::App;

/// How soon is looked again at what nobody told of, and what has become too old.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// Images that are deleted one after another are looked at together.
const PAUSE: Duration = Duration::from_millis(500);
/// How long what was sent of an upload is kept for somebody to go on with it.
const UPLOAD_KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a content is kept of which this start of the server knows nothing.
const UNKNOWN_KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

/// Collects what is of no use, until it is dropped.
pub(crate) async fn run(app: App) {
    let mut changes = Changes::of(app.cache.clone());
    let mut time = Instant::now();
    let mut known = Known::since(app.env.now());
    loop {
        let needed = Needed::by(&app.cache.view());
        known.had.extend(needed.contents.iter().cloned());
        let is_time = time <= Instant::now();
        let due = known.due(superfluous(&app, &needed), Instant::now());
        if is_time || !due.is_empty() {
            time = Instant::now() + LOOK_EVERY;
            if let Err(error) = collect(&app, &mut known).await {
                tracing::warn!(%error, "contents that no image has were not looked for; that is done again");
            }
        }
        tokio::select! {
            () = changes.any_image() => sleep(PAUSE).await,
            () = app.discarded.notified() => {}
            () = sleep_until(time) => {}
        }
    }
}

/// Tells of images that have changed. Most changes are of other things, and nothing is looked at for them.
struct Changes {
    cache: Arc<Cache>,
    revisions: watch::Receiver<u64>,
    seen: u64,
}

impl Changes {
    fn of(cache: Arc<Cache>) -> Self {
        let revisions = cache.subscribe();
        let seen = *revisions.borrow();
        Self {
            cache,
            revisions,
            seen,
        }
    }

    /// Waits until an image has changed. Nothing is missed if this is dropped.
    async fn any_image(&mut self) {
        while self.revisions.changed().await.is_ok() {
            let at = self.cache.revision();
            let since = self.cache.since(self.seen);
            self.seen = at;
            match since {
                Since::Changes(all) if all.iter().all(|changed| changed.kind != Kind::Image) => {}
                _ => return,
            }
        }
        std::future::pending().await
    }
}

/// What this start of the server knows of contents.
#[derive(Debug)]
struct Known {
    since: SystemTime,
    /// Those that images had.
    had: BTreeSet<String>,
    /// Those that were there before and that no image had, with the first time that they were seen.
    strange: BTreeMap<PathBuf, Instant>,
}

impl Known {
    fn since(start: Timestamp) -> Self {
        Self {
            since: start.into(),
            had: BTreeSet::new(),
            strange: BTreeMap::new(),
        }
    }

    /// Those of the files that are not needed which may go.
    fn due(&mut self, superfluous: Vec<PathBuf>, now: Instant) -> Vec<PathBuf> {
        self.strange.retain(|path, _| superfluous.contains(path));
        let may_go = |path: &PathBuf| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let is_own = upload::image_of(name).is_some() || self.had.contains(name);
            if is_own || written(path).is_some_and(|at| at >= self.since) {
                return true;
            }
            let seen = self.strange.entry(path.clone()).or_insert(now);
            now.saturating_duration_since(*seen) >= UNKNOWN_KEPT_FOR
        };
        superfluous.into_iter().filter(may_go).collect()
    }

    fn forget(&mut self, path: &Path) {
        let name = path.file_name().and_then(|name| name.to_str());
        self.had.remove(name.unwrap_or_default());
        self.strange.remove(path);
    }
}

/// Removes contents that no image has, and what was sent for images that take nothing any more.
async fn collect(app: &App, known: &mut Known) -> Result<(), StoreError> {
    let _nothing_is_named_meanwhile = app.keeping.lock().await;
    let Some(needed) = Needed::now(app).await? else {
        return Ok(());
    };
    for path in known.due(superfluous(app, &needed), Instant::now()) {
        if fs::remove_file(&path).is_ok() {
            known.forget(&path);
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
        !is_needed(name) || upload::image_of(name).is_some() && is_old(&entry.path())
    });
    superfluous.map(|entry| entry.path()).collect()
}

fn is_old(path: &Path) -> bool {
    let age = written(path).and_then(|at| at.elapsed().ok());
    age.is_some_and(|age| age > UPLOAD_KEPT_FOR)
}

fn written(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use uuid::Uuid;

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

    #[tokio::test(start_paused = true)]
    async fn what_another_store_may_know_stays_for_a_day() {
        let directory = tempfile::tempdir().unwrap();
        let [had, own, strange] = ["had", "own", "strange"].map(|name| directory.path().join(name));
        for path in [&had, &own, &strange] {
            let file = File::create(path).unwrap();
            let written = if path == &own {
                Duration::from_secs(10)
            } else {
                Duration::ZERO
            };
            file.set_modified(SystemTime::UNIX_EPOCH + written).unwrap();
        }
        let mut known = Known::since(Timestamp::from_second(5).unwrap());
        known.had.insert("had".to_owned());
        let all = vec![had.clone(), own.clone(), strange.clone()];
        let begun = Instant::now();
        assert_eq!(known.due(all, begun), [had, own]);
        let mut due_after = |time| known.due(vec![strange.clone()], begun + time);
        assert!(due_after(UNKNOWN_KEPT_FOR - Duration::from_secs(1)).is_empty());
        assert_eq!(due_after(UNKNOWN_KEPT_FOR), std::slice::from_ref(&strange));
        // It was needed in between.
        assert!(known.due(Vec::new(), begun).is_empty());
        assert!(known.due(vec![strange], begun + UNKNOWN_KEPT_FOR).is_empty());
    }
}
