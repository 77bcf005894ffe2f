//! Which hosts are heard. Heartbeats stay in memory; what is stored is the change: a host became silent, or was heard
//! again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use controller::commit::commit;
use model::audit::Actor;
use model::host::HostContact;
use model::{HostId, key};
use planner::Plan;

use crate::shared::Cloud;

/// After this long without a report a host is silent.
const SILENT_AFTER: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Watches over all hosts until the task is dropped. A starting server gives every host its full time.
pub async fn run(cloud: Arc<Cloud>) {
    let mut first_seen: BTreeMap<HostId, Duration> = BTreeMap::new();
    let mut beats = cloud.heard.beats.subscribe();
    loop {
        for (host, silent) in changes(&cloud, &mut first_seen, cloud.env.monotonic()) {
            note(&cloud, host, silent).await;
        }
        tokio::select! {
            biased;
            _ = beats.changed() => {}
            () = cloud.env.sleep(LOOK_EVERY) => {}
        }
    }
}

/// The hosts whose stored contact is not what is so.
fn changes(cloud: &Cloud, first_seen: &mut BTreeMap<HostId, Duration>, now: Duration) -> Vec<(HostId, bool)> {
    let view = cloud.cache.view();
    first_seen.retain(|host, _| view.hosts.contains_key(host));
    let mut found = Vec::new();
    for (id, host) in view
        .hosts
        .iter()
        .filter(|(_, host)| host.object.is_some() && host.status.is_some())
    {
        let since = *first_seen.entry(*id).or_insert(now);
        let heard = cloud.heard.last(*id).map(|last| last.at);
        let is_silent = now.saturating_sub(heard.unwrap_or(since)) >= SILENT_AFTER;
        // A host that was silent before this server started stays so until it is heard.
        let was_silent = host.is_silent();
        let differs = if was_silent {
            heard.is_some() && !is_silent
        } else {
            is_silent
        };
        if differs {
            found.push((*id, is_silent));
        }
    }
    found
}

async fn note(cloud: &Cloud, host: HostId, silent: bool) {
    let now = cloud.env.now();
    let mut plan = Plan::new(if silent {
        "note that a host is silent"
    } else {
        "note that a host is heard again"
    });
    {
        let view = cloud.cache.view();
        let Some(found) = view.hosts.get(&host) else {
            return;
        };
        let revision = found.contact.as_ref().map_or(0, |contact| contact.revision);
        plan.replace(
            key::host_contact(host),
            revision,
            &HostContact {
                silent_since: silent.then_some(now),
            },
        );
    }
    let actor = Actor {
        name: "server".to_owned(),
        from: None,
    };
    match commit(cloud.writer(&actor), plan).await {
        Ok(revision) => {
            cloud.cache.reach(revision, Duration::from_secs(2)).await;
        }
        Err(error) => tracing::debug!(%error, "a host's contact was not noted; it is looked at again"),
    }
}
