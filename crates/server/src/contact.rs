//! Which hosts are heard, and which VMs they say take more memory than is reserved. Heartbeats and samples stay in memory;
//! what is stored is the change.
//!
//! Of several servers on one store each hears the hosts that report to it. The stored contact names the one that does, and
//! that one says when the host falls silent; any other does so only when that server is gone. So what is written is a
//! host's change from server to server, and nothing while there is one server only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use controller::commit::commit;
use model::audit::Actor;
use model::host::HostContact;
use model::{HostId, VmId, key};
use planner::Plan;
use planner::view::Host;
use uuid::Uuid;

use crate::kinds::exceeds_reservation;
use crate::servers::Servers;
use crate::shared::Cloud;

/// After this long without a report a host is silent.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often what VMs take is looked at: hosts measure it each minute.
const MEMORY_EVERY: Duration = Duration::from_secs(5);

/// Watches, as this run of a server, over all hosts until the task is dropped. A starting server gives every host its full time.
pub async fn run(cloud: Arc<Cloud>, own: Uuid) {
    let mut servers = Servers::new(own);
    let mut seen: BTreeMap<HostId, Seen> = BTreeMap::new();
    let mut memory_at: Option<Duration> = None;
    let mut returns = cloud.heard.returns.subscribe();
    loop {
        servers.look(&cloud).await;
        let now = cloud.env.monotonic();
        cloud.heard.speakers.look(now);
        for (host, contact) in changes(&cloud, &servers, &mut seen, now) {
            let action = match (contact.silent_since, contact.heard_by) {
                (Some(_), _) => "note that a host is silent",
                (None, Some(_)) => "note which server hears a host",
                (None, None) => "note that a host is heard again",
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

/// What this server has seen of a host.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Since when it is there.
    since: Duration,
    /// Who heard it at the last look, and since when: what came here before is older than that.
    heard_by: Option<Uuid>,
    changed: Duration,
}

/// The contacts that are not as they are stored: of hosts that this server hears, and of those whose silence is its to note.
fn changes(
    cloud: &Cloud,
    servers: &Servers,
    all: &mut BTreeMap<HostId, Seen>,
    now: Duration,
) -> Vec<(HostId, HostContact)> {
    let view = cloud.cache.view();
    all.retain(|host, _| view.hosts.contains_key(host));
    let reports = |host: &Host| host.object.is_some() && host.status.is_some();
    let mut found = Vec::new();
    for (id, host) in view.hosts.iter().filter(|(_, host)| reports(host)) {
        let stored = host.contact.as_ref().and_then(|at| at.value.heard_by);
        let seen = all.entry(*id).or_insert(Seen {
            since: now,
            heard_by: stored,
            changed: Duration::ZERO,
        });
        if seen.heard_by != stored {
            (seen.heard_by, seen.changed) = (stored, now);
        }
        let last = cloud.heard.last_at(*id);
        let quiet = now.saturating_sub(last.unwrap_or(seen.since));
        let hears = quiet < SILENT_AFTER && last.is_some_and(|at| at >= seen.changed);
        let heard_by = servers.has_others().then_some(servers.own);
        let new = if hears && (host.is_silent() || servers.has_others() && stored != heard_by) {
            (None, heard_by)
        } else if quiet >= SILENT_AFTER && !host.is_silent() && !servers.is_another(stored) {
            (Some(cloud.env.now()), None)
        } else {
            continue;
        };
        let (silent_since, heard_by) = new;
        found.push((
            *id,
            HostContact {
                silent_since,
                heard_by,
                ..contact(host)
            },
        ));
    }
    found
}

/// The hosts whose VMs that take more memory than is reserved are not those that are stored. A VM that is not measured
/// now, because its agent has just started, is taken to be as it was.
fn excesses(cloud: &Cloud) -> Vec<(HostId, HostContact)> {
    let view = cloud.cache.view();
    let mut found = Vec::new();
    for (id, host) in &view.hosts {
        let Some(reservations) = host.reservations.as_ref().filter(|_| is_heard(cloud, *id)) else {
            continue;
        };
        let old = contact(host);
        let exceeds = |vm: &&VmId| {
            let measured = exceeds_reservation(&cloud.heard, &view, **vm);
            measured.unwrap_or_else(|| old.over_reservation.contains(*vm))
        };
        let over_reservation = reservations.value.vms.keys().filter(exceeds).copied().collect();
        if over_reservation != old.over_reservation {
            found.push((
                *id,
                HostContact {
                    over_reservation,
                    ..old
                },
            ));
        }
    }
    found
}

/// What was heard long ago says nothing: another server may hear the host now.
fn is_heard(cloud: &Cloud, host: HostId) -> bool {
    let last = cloud.heard.last_at(host);
    last.is_some_and(|at| cloud.env.monotonic().saturating_sub(at) < SILENT_AFTER)
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
