//! A host's drain as it is shown, and the actions that begin and end it.

use api::Problem;
use api::drain::{DrainStanding, DrainState, DrainStatus, DrainVm};
use model::host::{Drain, HostSpec};
use model::limits::check_range;
use model::{HostId, Kind, Object, Reason};
use planner::View;
use planner::drain::{Held, Outlook, PARALLEL_MAX, Progress, Standing, progress};
use planner::migration::MAX_PER_HOST;
use planner::view::At;

use super::{host_name, name_of};
use crate::service::Context;

/// How far a host's drain is, if it has one.
pub(super) fn status(view: &View, id: HostId) -> Option<DrainStatus> {
    let drain = view.hosts.get(&id)?.drain()?;
    let progress = progress(view, id, drain);
    let runs = |held: &&Held| !matches!(held.standing, Standing::Rests(_));
    let left = progress.held.iter().filter(runs).count();
    let total = progress
        .moved
        .saturating_add(u32::try_from(left).unwrap_or(u32::MAX));
    Some(DrainStatus {
        state: state(&progress),
        asked_at: drain.asked_at,
        parallel: drain.parallel,
        moved: progress.moved,
        total,
        left_ms: progress.predicted_ms(drain.parallel),
        vms: progress
            .held
            .into_iter()
            .map(|held| shown(view, id, held))
            .collect(),
    })
}

fn state(progress: &Progress) -> DrainState {
    match progress.outlook() {
        Outlook::Draining => DrainState::Draining,
        Outlook::Stuck => DrainState::Stuck,
        Outlook::Drained => DrainState::Drained,
    }
}

fn shown(view: &View, host: HostId, held: Held) -> DrainVm {
    let vm = name_of(view, Kind::Vm, held.vm.0);
    let mut shown = DrainVm {
        vm: vm.clone(),
        standing: DrainStanding::Moves,
        to: None,
        migration: None,
        attempts: held.attempts,
        reason: held.failed.map(|(reason, _)| reason),
        next_commands: Vec::new(),
    };
    match held.standing {
        Standing::Moves(migration) => {
            let name = name_of(view, Kind::Migration, migration.0);
            shown.next_commands = vec![format!("sterna migration cancel {name}")];
            let parts = view.migrations.get(&migration);
            let route = parts.and_then(|parts| parts.intent.as_ref()?.value.route.as_ref());
            shown.to = route.map(|route| host_name(view, route.target));
            shown.migration = Some(name);
        }
        Standing::Ready(to) => {
            shown.standing = DrainStanding::Queued;
            shown.to = Some(host_name(view, to));
        }
        Standing::Waits(reason) => {
            shown.standing = DrainStanding::Waits;
            shown.reason = Some(reason);
        }
        Standing::Stays(reason) => {
            shown.standing = DrainStanding::Stays;
            shown.next_commands = leads_on(&reason, &vm, &host_name(view, host));
            shown.reason = Some(reason);
        }
        Standing::Rests(reason) => {
            shown.standing = DrainStanding::Rests;
            shown.reason = Some(reason);
            shown.next_commands = vec![format!("sterna host undrain {}", host_name(view, host))];
        }
    }
    shown
}

/// What a person can do about a VM that stays.
fn leads_on(reason: &Reason, vm: &str, host: &str) -> Vec<String> {
    match reason.code.as_str() {
        "no-host-fits" => vec![
            format!("sterna vm explain {vm}"),
            format!("sterna vm shutdown {vm}"),
        ],
        _ => vec![
            format!("sterna vm migrate {vm}"),
            format!("sterna host drain {host}"),
        ],
    }
}

/// What is wrong with a drain, if it does not go on by itself.
pub(super) fn reason(status: &DrainStatus) -> Option<Reason> {
    if status.state != DrainState::Stuck {
        return None;
    }
    let stays = |vm: &&DrainVm| vm.standing == DrainStanding::Stays;
    let stuck: Vec<&DrainVm> = status.vms.iter().filter(stays).collect();
    let first = stuck.first()?;
    let why = first.reason.as_ref().map_or("", |reason| reason.message.as_str());
    let message = format!(
        "its drain moved {} of {} VMs, and {} cannot leave it; {}: {why}",
        status.moved,
        status.total,
        stuck.len(),
        first.vm
    );
    Some(Reason::new("drain-stuck", message))
}

/// The wish that a host be empty. One that goes on already stays as it is; one that is stuck begins again.
pub(super) fn wished(
    context: &Context<'_>,
    at: &At<Object<HostSpec>>,
    parallel: Option<u32>,
) -> Result<Drain, Problem> {
    let usual = u32::try_from(MAX_PER_HOST).unwrap_or(1);
    let parallel = parallel.unwrap_or(usual);
    check_range("parallel", u64::from(parallel), 1, u64::from(PARALLEL_MAX))?;
    let id = HostId(at.value.meta.id);
    if context.view.hosts.get(&id).is_some_and(|host| host.is_dead()) {
        let detail = format!(
            "host {} was declared dead: its VMs start elsewhere by themselves",
            at.value.meta.name
        );
        return Err(Problem::conflict("host-dead", detail));
    }
    if let Some(present) = &at.value.spec.drain {
        let goes_on = progress(context.view, id, present).outlook() == Outlook::Draining;
        if goes_on {
            return Ok(Drain {
                parallel,
                ..present.clone()
            });
        }
    }
    Ok(Drain {
        id: context.new_id,
        asked_at: context.now,
        asked_by: context.user.name.clone(),
        parallel,
    })
}
