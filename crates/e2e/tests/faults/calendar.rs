//! Clocks that are set, and certificates that are made anew because the calendar says so.
//!
//! **Owns:** what must hold meanwhile: hosts are heard, guests go on, and the difference is named. **Does not know:**
//! the guest's stage.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use api::client::ObjectOf;
use api::kinds::{Host, HostState, Vm};
use serde_json::json;
use testkit::clocks::SERVER;
use testkit::counter::Ear;
use testkit::pair::{HOSTS, WEB};
use testkit::wait;
use testkit::world::World;
use tokio::time::{sleep, timeout};

const DAY_S: i64 = 86_400;
/// More than half of a certificate's life of 90 days, and less than all of it.
const RENEWED_AFTER_S: i64 = 50 * DAY_S;
/// Agents say with each heartbeat what they see, and look for new certificates as often.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

/// By a day back, and ahead.
pub(super) async fn host_clock_is_set(world: &World, host: &str, ear: &mut Ear) -> anyhow::Result<()> {
    for ahead_s in [-DAY_S, DAY_S] {
        world.set_clock(host, ahead_s)?;
        is_apart(world, host, ahead_s).await?;
        ear.goes_on().await?;
    }
    is_right_again(world).await
}

/// As [`host_clock_is_set`], back alone.
pub(super) async fn is_set_back(world: &World, host: &str) -> anyhow::Result<()> {
    world.set_clock(host, -DAY_S)?;
    is_apart(world, host, -DAY_S).await
}

/// By a day back, with a restart there and another one after it was set right: writes stay in their order.
pub(super) async fn server_clock_is_set(world: &World, ear: &mut Ear) -> anyhow::Result<()> {
    label(world, "before").await?;
    world.set_clock(SERVER, -DAY_S)?;
    for host in HOSTS {
        is_apart(world, host, DAY_S).await?;
    }
    world.kill_server().await?;
    for host in HOSTS {
        is_apart(world, host, DAY_S).await?;
    }
    ear.goes_on().await?;
    label(world, "back").await?;
    is_right_again(world).await?;
    label(world, "right").await?;
    let order = labels(world).await?;
    ensure!(
        order.ends_with(&["before", "back", "right"].map(str::to_owned)),
        "the writes of {WEB} are not in their order, or not all of them: {order:?}"
    );
    Ok(())
}

/// Half of their lives passes by the server's clock, which says when they are due.
pub(super) async fn all_have_new_certificates(world: &World) -> anyhow::Result<()> {
    let before = certificates(world);
    world.set_clock(SERVER, RENEWED_AFTER_S)?;
    let are_new = || {
        let now = certificates(world);
        now.iter().zip(&before).all(|(now, before)| now != before)
    };
    wait::until_it_holds("every host has new certificates", PATIENCE, are_new).await
}

/// All clocks agree, and nothing is wrong with any host.
pub(super) async fn is_right_again(world: &World) -> anyhow::Result<()> {
    for who in HOSTS.into_iter().chain([SERVER]) {
        world.set_clock(who, 0)?;
    }
    for host in HOSTS {
        let is_it = |host: &ObjectOf<Host>| host.status.clock_ahead_s == Some(0) && !names_it(host);
        judged(world, host, "says that its clock is right", is_it).await?;
    }
    Ok(())
}

/// The host's status says so.
async fn is_apart(world: &World, host: &str, ahead_s: i64) -> anyhow::Result<()> {
    let is_it = |host: &ObjectOf<Host>| {
        // Whole seconds are said, and time passes between the two.
        let said = host.status.clock_ahead_s.unwrap_or(0);
        said.abs_diff(ahead_s) <= 10 && names_it(host)
    };
    judged(world, host, "says that its clock is apart", is_it).await
}

fn names_it(host: &ObjectOf<Host>) -> bool {
    let reason = host.status.reason.as_ref();
    reason.is_some_and(|reason| reason.message.contains("its clock is"))
}

/// Waits until a host that is heard is as wanted. What only heartbeats say is not watched.
async fn judged(
    world: &World,
    host: &str,
    what: &str,
    is_it: impl Fn(&ObjectOf<Host>) -> bool,
) -> anyhow::Result<()> {
    let mut last = None;
    let asking = async {
        loop {
            if let Ok(seen) = world.client().get::<Host>(host).await {
                if seen.status.state == HostState::Up && is_it(&seen) {
                    return;
                }
                last = Some(seen.status);
            }
            sleep(PAUSE).await;
        }
    };
    let ended = timeout(PATIENCE, asking).await;
    ended.with_context(|| format!("not so within {PATIENCE:?}: {host} {what}; seen last: {last:?}"))
}

/// Writes a label.
async fn label(world: &World, value: &str) -> anyhow::Result<()> {
    let labels = json!({ "labels": { "calendar": value } });
    world.client().patch::<Vm>(WEB, &labels, None).await?;
    Ok(())
}

/// The labels that were written, by the VM's history.
async fn labels(world: &World) -> anyhow::Result<Vec<String>> {
    let history = world.client().history::<Vm>(WEB, 1000, false).await?;
    let changes = history.items.iter().flat_map(|entry| &entry.changes);
    let written = changes.filter(|change| change.field == "meta.labels.calendar");
    Ok(written
        .filter_map(|change| change.after.as_str().map(str::to_owned))
        .collect())
}

fn certificates(world: &World) -> Vec<Option<Vec<u8>>> {
    let files = |host: &str| -> [PathBuf; 2] {
        let pki = world.host(host).join("pki");
        [pki.join("agent-cert.pem"), pki.join("migration/server-cert.pem")]
    };
    let files = HOSTS.into_iter().flat_map(files);
    files.map(|file| fs::read(file).ok()).collect()
}
