//! Images that the server itself takes from a source.
//!
//! **Owns:** which imports are under way on this server: so many at a time, each a task.
//!
//! **Does not know:** what a content is: that is `super::take`'s.
//!
//! **Start here:** [`run`], then [`one`].
//!
//! An import is wanted when an image has a source and neither content nor a failure; that is all there is to know of it. So a
//! server that starts again goes on with it, of several servers the one whose run is in the status does it ([`claims`]), and
//! an image that is deleted ends it.

mod addresses;
mod claims;
mod download;
mod ftp;
mod http;
mod nfs;
mod one;
mod origin;
pub mod outlet;
mod partial;
mod place;
mod reach;
pub mod source;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use model::ImageId;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use uuid::Uuid;

pub(super) use self::claims::status_plan;
use self::claims::{Wanted, claim, wanted};
pub(super) use self::one::Telling;
use self::partial::Partial;
use crate::routes::App;

pub use self::addresses::{Addresses, Range};
pub use self::reach::{Authorities, Reach};

/// More at a time would only take the network and the disk from each other.
const AT_ONCE_MAX: usize = 4;
/// How soon is looked again at what another server does, or what could not be taken on.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Where the number of the last run in this directory is.
const RUN_FILE: &str = "run";

/// Imports what is wanted, until it is dropped.
pub async fn run(app: App) {
    let mut revisions = app.cache.subscribe();
    let mut imports = Imports::begin(app);
    loop {
        let is_all = imports.look().await;
        tokio::select! {
            Some(ended) = imports.tasks.join_next_with_id() => imports.ended(ended),
            _ = revisions.changed() => {}
            () = imports.app.env.sleep(LOOK_AGAIN), if !is_all => {}
        }
    }
}

struct Imports {
    app: App,
    /// The run before this one, whose imports go on here.
    former: Option<Uuid>,
    tasks: JoinSet<()>,
    running: BTreeMap<ImageId, AbortHandle>,
}

impl Imports {
    fn begin(app: App) -> Self {
        let wanted = wanted(&app.cache.view());
        partial::sweep(&app.images, |image| wanted.iter().any(|it| it.image == image));
        Self {
            former: succeed(&app.data_dir.join(RUN_FILE), app.server),
            app,
            tasks: JoinSet::new(),
            running: BTreeMap::new(),
        }
    }

    /// Ends what is not wanted here any more, and begins what is. Whether there is nothing else to be looked at.
    async fn look(&mut self) -> bool {
        let wanted = {
            let view = self.app.cache.view();
            if view.is_held() { Vec::new() } else { wanted(&view) }
        };
        for (image, task) in &self.running {
            let is_here = |it: &Wanted| it.image == *image && it.importer == Some(self.app.server);
            if !wanted.iter().any(is_here) {
                task.abort();
            }
        }
        let mut is_all = true;
        for import in wanted {
            if self.running.len() >= AT_ONCE_MAX {
                break;
            }
            if !self.running.contains_key(&import.image) {
                is_all &= self.take_on(import).await;
            }
        }
        is_all
    }

    async fn take_on(&mut self, import: Wanted) -> bool {
        match claim(&self.app, &import, self.former).await {
            Ok(true) => {
                let task = one::import(self.app.clone(), import.image, import.spec);
                self.running.insert(import.image, self.tasks.spawn(task));
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::debug!(%error, "an import was not taken on; it is looked at again");
                false
            }
        }
    }

    /// Leaves nothing behind of an import that was ended from outside.
    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let (id, is_done) = match ended {
            Ok((id, ())) => (id, true),
            Err(error) => (error.id(), false),
        };
        let Some(image) = self
            .running
            .iter()
            .find(|(_, task)| task.id() == id)
            .map(|(image, _)| *image)
        else {
            return;
        };
        self.running.remove(&image);
        if !is_done {
            Partial::of(&self.app.images, image, "").remove();
        }
    }
}

/// Notes this run as the last one in its directory; the one before it.
fn succeed(path: &Path, run: Uuid) -> Option<Uuid> {
    let former = std::fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    if let Err(error) = std::fs::write(path, format!("{run}\n")) {
        tracing::warn!(%error, "this run is not noted: the next one goes on with imports when this one's lease is over");
    }
    former
}
