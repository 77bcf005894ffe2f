//! Waiting for an object by the server's watch, also across restarts of the server.
//!
//! **Owns:** looking, watching, looking again, up to a deadline. **Does not know:** single kinds.
//!
//! **Start here:** [`until`].

use std::time::Duration;

use anyhow::{Context, bail};
use api::client::{Client, ObjectOf};
use api::{ChangeType, Resource};
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};

/// The pause before a server that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// Where an object stands on its way to what is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is there.
    Reached,
    /// It may get there.
    NotYet,
    /// It will not get there.
    Never,
}

impl From<bool> for Verdict {
    fn from(is_reached: bool) -> Self {
        if is_reached { Self::Reached } else { Self::NotYet }
    }
}

/// Waits until the object of this name is as `judge` wants it. The error shows the object as it was seen last.
pub async fn until<R: Resource>(
    client: &Client,
    name: &str,
    what: &str,
    patience: Duration,
    judge: impl Fn(&ObjectOf<R>) -> Verdict,
) -> anyhow::Result<ObjectOf<R>> {
    let mut last = None;
    let ended = timeout(patience, follow::<R>(client, name, &judge, &mut last)).await;
    let why = match ended {
        Ok(Some(object)) => return Ok(object),
        Ok(None) => "cannot be any more".to_owned(),
        Err(_) => format!("was not within {patience:?}"),
    };
    let shown = serde_json::to_string(&last).context("showing what was seen last")?;
    bail!("{} {name} {why}: {what}; seen last: {shown}", R::KIND)
}

/// `None` if it can never be reached.
async fn follow<R: Resource>(
    client: &Client,
    name: &str,
    judge: &impl Fn(&ObjectOf<R>) -> Verdict,
    last: &mut Option<serde_json::Value>,
) -> Option<ObjectOf<R>> {
    loop {
        if let Ok(mut changes) = client.watch::<R>(None).await {
            while let Some(Ok(change)) = changes.next().await {
                let object = change.object;
                if object.name != name && object.id.to_string() != name {
                    continue;
                }
                *last = serde_json::to_value(&object).ok();
                let is_gone = change.change_type == ChangeType::Deleted;
                match judge(&object) {
                    Verdict::Reached => return Some(object),
                    Verdict::Never => return None,
                    Verdict::NotYet if is_gone => return None,
                    Verdict::NotYet => {}
                }
            }
        }
        sleep(PAUSE).await;
    }
}

/// Waits until no object has this name.
pub async fn until_gone<R: Resource>(client: &Client, name: &str, patience: Duration) -> anyhow::Result<()> {
    let gone = async {
        loop {
            if is_gone::<R>(client, name).await {
                return;
            }
            let Ok(mut changes) = client.watch::<R>(None).await else {
                sleep(PAUSE).await;
                continue;
            };
            // It may have gone before the watch began: then the list that it begins with does not have it.
            if is_gone::<R>(client, name).await {
                return;
            }
            while let Some(Ok(change)) = changes.next().await {
                if change.change_type == ChangeType::Deleted && change.object.name == name {
                    break;
                }
            }
        }
    };
    let ended = timeout(patience, gone).await;
    ended.with_context(|| format!("{} {name} is still there after {patience:?}", R::KIND))
}

/// Waits until something holds that nobody tells of.
pub async fn until_it_holds(
    what: &str,
    patience: Duration,
    mut holds: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    let waiting = async {
        while !holds() {
            sleep(PAUSE).await;
        }
    };
    timeout(patience, waiting)
        .await
        .with_context(|| format!("not so within {patience:?}: {what}"))
}

async fn is_gone<R: Resource>(client: &Client, name: &str) -> bool {
    client
        .get::<R>(name)
        .await
        .is_err_and(|error| error.code() == Some("not-found"))
}
