//! Which hosts are heard, and which VMs they say take more memory than is reserved. Heartbeats and samples stay in memory;
//! what is stored is the change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use controller::commit::commit;
use model::audit::Actor;
use model::host::HostContact;
use model::{HostId, VmId, key};
use planner::Plan;
use planner::view::Host;

use crate::kinds::exceeds_reservation;
use crate::shared::Cloud;

/// After this long without a report a host is silent.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often what VMs take is looked at: hosts measure it each minute.
const MEMORY_EVERY: Duration = Duration::from_secs(5);

/// Watches over all hosts until the task is dropped. A starting server gives every host its full time.
pub async fn run(cloud: Arc<Cloud>) {
    let mut first_seen: BTreeMap<HostId, Duration> = BTreeMap::new();
    let mut memory_at: Option<Duration> = None;
    let mut returns = cloud.heard.returns.subscribe();
    loop {
        let now = cloud.env.monotonic();
        for (host, contact) in silences(&cloud, &mut first_seen, now) {
            let action = match contact.silent_since {
                Some(_) => "note that a host is silent",
                None => "note that a host is heard again",
            };
            note(&cloud, host, contact, action).await;
        }
        if memory_at.is_none_or(|at| now.saturating_sub(at) >= MEMORY_EVERY) {
            memory_at = Some(now);
            for (host, contact) in excesses(&cloud) {
                let action = "note which VMs take more memory than is reserved";
                note(&cloud, host, contact, action).await;
            }
        }
        tokio::select! {
            biased;
            _ = returns.changed() => {}
            () = cloud.env.sleep(LOOK_EVERY) => {}
        }
    }
}

/// The hosts whose silence, or whose being heard, is not what is stored.
fn silences(
    cloud: &Cloud,
    first_seen: &mut BTreeMap<HostId, Duration>,
    now: Duration,
) -> Vec<(HostId, HostContact)> {
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
            let silent_since = is_silent.then(|| cloud.env.now());
            let contact = HostContact {
                silent_since,
                ..contact(host)
            };
            found.push((*id, contact));
        }
    }
    found
}

/// The hosts whose VMs that take more memory than is reserved are not those that are stored. A VM that is not measured
/// now, because its agent has just started, is taken to be as it was.
fn excesses(cloud: &Cloud) -> Vec<(HostId, HostContact)> {
    let view = cloud.cache.view();
    let mut found = Vec::new();
    for (id, host) in &view.hosts {
        let Some(reservations) = &host.reservations else {
            continue;
        };
        let old = contact(host);
        let exceeds = |vm: &&VmId| {
            let measured = exceeds_reservation(&cloud.heard, &view, **vm);
            measured.unwrap_or_else(|| old.over_reservation.contains(*vm))
        };
        let over_reservation = reservations.value.vms.keys().filter(exceeds).copied().collect();
        if over_reservation != old.over_reservation {
            let silent_since = old.silent_since;
            found.push((
                *id,
                HostContact {
                    silent_since,
                    over_reservation,
                },
            ));
        }
    }
    found
}

fn contact(host: &Host) -> HostContact {
    let stored = host.contact.as_ref();
    stored.map(|at| at.value.clone()).unwrap_or_default()
}

async fn note(cloud: &Cloud, host: HostId, contact: HostContact, action: &str) {
    let mut plan = Plan::new(action);
    {
        let view = cloud.cache.view();
        let Some(found) = view.hosts.get(&host) else {
            return;
        };
        let revision = found.contact.as_ref().map_or(0, |contact| contact.revision);
        plan.replace(key::host_contact(host), revision, &contact);
    }
    let actor = Actor {
        name: "server".to_owned(),
        from: None,
        request: None,
    };
    match commit(cloud.writer(&actor), plan).await {
        Ok(revision) => {
            cloud.cache.reach(revision, Duration::from_secs(2)).await;
        }
        Err(error) => tracing::debug!(%error, "a host's contact was not noted; it is looked at again"),
    }
}
