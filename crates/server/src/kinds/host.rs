//! Hosts: they join by themselves; their operator cordons them and, when the machine is off, says so.

use api::Problem;
use api::drain::HostActionBody;
pub use api::kinds::Host;
use api::kinds::{HostSpec, HostState, HostStatus};
use model::limits::check_range;
use model::{HostId, Kind, Object, Reason};
use planner::view::At;
use planner::{Plan, View};
use uuid::Uuid;

use super::{Served, drain, set};
use crate::service::Context;
use crate::shared::Heard;

/// From how many seconds on the clocks of a host and of this server are said to be apart.
const CLOCKS_APART_S: u64 = 10;

impl Served for Host {
    type Stored = model::host::HostSpec;

    fn stored(view: &View, id: Uuid) -> Option<&At<Object<Self::Stored>>> {
        view.hosts.get(&HostId(id))?.object.as_ref()
    }

    fn spec(_: &View, stored: &Self::Stored) -> HostSpec {
        HostSpec {
            cordoned: stored.cordoned,
            draining: stored.drain.is_some(),
            overcommit: stored.overcommit,
            confirmed_dead: stored.confirmed_dead_at.is_some(),
        }
    }

    fn status(heard: &Heard, view: &View, id: Uuid) -> Option<HostStatus> {
        let host = view.hosts.get(&HostId(id))?;
        let name = host.name();
        let status = host.status.as_ref().map(|at| &at.value);
        let reservations = host.reservations.as_ref().map(|at| &at.value);
        let state = if host.is_dead() {
            HostState::Dead
        } else if status.is_none() {
            HostState::Joining
        } else if host.is_silent() {
            HostState::Silent
        } else {
            HostState::Up
        };
        let closed = match (host.drain(), host.is_cordoned()) {
            (Some(_), _) => "undrain",
            (None, true) => "uncordon",
            (None, false) => "cordon",
        };
        let drain = drain::status(view, HostId(id));
        let samples = heard
            .last(HostId(id))
            .filter(|_| state == HostState::Up)
            .map(|last| last.samples);
        let clock_ahead_s = samples.as_ref().and_then(|samples| samples.clock_ahead_s);
        Some(HostStatus {
            state,
            silent_since: host
                .contact
                .as_ref()
                .and_then(|contact| contact.value.silent_since),
            agent_version: status.map(|status| status.agent_version.clone()),
            qemu_version: status.map(|status| status.qemu_version.clone()),
            accelerator: status.map(|status| status.accelerator.clone()),
            qemu_user: status.and_then(|status| status.qemu_user.clone()),
            uefi: status.is_some_and(|status| status.uefi),
            cpu_model: status.map(|status| status.cpu_model.clone()),
            cpus: status.map(|status| status.cpus),
            memory_mib: status.map(|_| planner::hardware::capacity(host).memory_mib),
            reserved_mib: reservations.map_or(0, model::host::Reservations::memory_mib),
            vms: reservations.map_or(0, |all| u32::try_from(all.vms.len()).unwrap_or(u32::MAX)),
            load1_percent: samples.as_ref().map(|samples| samples.load1_percent),
            clock_ahead_s,
            lacks: status.map(|status| status.lacks.clone()).unwrap_or_default(),
            reason: joined(
                reason(state)
                    .into_iter()
                    .chain(heard.speakers.reason(HostId(id)))
                    .chain(planner::hardware::attention(host))
                    .chain(failing(view, HostId(id)))
                    .chain(clock_ahead_s.and_then(clock_apart))
                    .chain(drain.as_ref().and_then(drain::reason)),
            ),
            next_commands: next_commands(state, closed, name),
            drain,
        })
    }

    /// A drain is about VMs, their moves, and the VMs that they would meet.
    fn shown_with(view: &View) -> Vec<(Kind, Uuid)> {
        let vms = view.vms.keys().map(|id| (Kind::Vm, id.0));
        let moves = view
            .all_active_migrations()
            .map(|(id, _)| (Kind::Migration, id.0));
        vms.chain(moves).collect()
    }

    fn create(_: &Context<'_>, _: &str, _: HostSpec, _: &mut Plan) -> Result<Self::Stored, Problem> {
        let detail = "hosts join by themselves: make a token with `sterna host token`, and start `sterna agent` with it";
        Err(Problem::new(405, "hosts-join", detail))
    }

    fn change(
        context: &Context<'_>,
        old: &Object<Self::Stored>,
        spec: HostSpec,
    ) -> Result<Self::Stored, Problem> {
        if spec.draining != old.spec.drain.is_some() {
            let detail = "draining is set by `sterna host drain` and cleared by `sterna host undrain`";
            return Err(Problem::invalid("draining-by-action", detail));
        }
        if spec.confirmed_dead != old.spec.confirmed_dead_at.is_some() {
            let detail =
                "confirmed_dead is set by `sterna host confirm-dead` and cleared when the host joins again";
            return Err(Problem::invalid("confirmed-dead-by-action", detail));
        }
        let _ = context;
        if let Some(over) = spec.overcommit {
            check_range("memory_percent", u64::from(over.memory_percent), 50, 400)?;
            check_range("vcpus_per_cpu", u64::from(over.vcpus_per_cpu), 1, 64)?;
        }
        Ok(model::host::HostSpec {
            cordoned: spec.cordoned,
            overcommit: spec.overcommit,
            ..old.spec.clone()
        })
    }

    fn delete(
        context: &Context<'_>,
        at: &At<Object<Self::Stored>>,
        plan: &mut Plan,
    ) -> Result<Uuid, Problem> {
        let id = HostId(at.value.meta.id);
        let name = &at.value.meta.name;
        let held = held(context.view, id);
        if !held.is_empty() {
            let detail = format!(
                "host {name} holds {}: move them away with `sterna host drain {name}`, or delete them",
                held.join(", ")
            );
            return Err(Problem::conflict("host-holds-vms", detail));
        }
        let host = context.view.hosts.get(&id);
        super::remove_at_once::<Self>(context, at, plan)?;
        let revisions = [
            (
                model::key::host_status(id),
                host.and_then(|host| host.status.as_ref()).map(|at| at.revision),
            ),
            (
                model::key::host_reservations(id),
                host.and_then(|host| host.reservations.as_ref())
                    .map(|at| at.revision),
            ),
            (
                model::key::host_intent(id),
                host.and_then(|host| host.intent.as_ref()).map(|at| at.revision),
            ),
            (
                model::key::host_contact(id),
                host.and_then(|host| host.contact.as_ref()).map(|at| at.revision),
            ),
        ];
        for (key, revision) in revisions {
            plan.remove(key, revision.unwrap_or(0));
        }
        Ok(id.0)
    }
}

/// The VMs that a host runs, or whose saved state is on its disk. One that is off is held by no host.
fn held(view: &View, id: HostId) -> Vec<String> {
    let holds = |vm: &model::VmId| {
        let intent = view.vms.get(vm).and_then(|vm| vm.intent.as_ref());
        let is_moving = view.active_migrations(*vm).next().is_some();
        let saved =
            |intent: &model::vm::VmIntent| intent.saved.as_ref().is_some_and(|saved| saved.host == id);
        is_moving || intent.is_none_or(|at| at.value.open.is_some() || saved(&at.value))
    };
    let held = view.vms_of_host(id).filter(holds);
    held.map(|vm| super::name_of(view, Kind::Vm, vm.0)).collect()
}

/// That starts on a host failed one after the other.
fn failing(view: &View, id: HostId) -> Option<Reason> {
    let (starts, last_at) = planner::placement::failed_starts(view, id)?;
    (starts >= planner::placement::FAILED_STARTS_MAX).then(|| {
        let message = format!(
            "the last {starts} starts on it failed, the last one at {last_at}: it is avoided for {} s after that; see the \
             reasons of the failed VMs",
            planner::placement::AVOIDED_S
        );
        Reason::new("host-fails-starts", message)
    })
}

/// That host and server do not agree on the time.
fn clock_apart(ahead_s: i64) -> Option<Reason> {
    (ahead_s.unsigned_abs() >= CLOCKS_APART_S).then(|| {
        let by = jiff::SignedDuration::from_secs(ahead_s).abs();
        let way = if ahead_s > 0 { "ahead of" } else { "behind" };
        let message = format!(
            "its clock is {by:#} {way} this server's: let both follow a time server (`timedatectl set-ntp true`); nothing is \
             decided by the host's clock, but certificates are checked with it"
        );
        Reason::new("clocks-apart", message)
    })
}

/// Several things that are wrong, as one.
fn joined(reasons: impl IntoIterator<Item = Reason>) -> Option<Reason> {
    reasons.into_iter().reduce(|first, next| Reason {
        message: format!("{}; also: {}", first.message, next.message),
        ..first
    })
}

fn reason(state: HostState) -> Option<Reason> {
    match state {
        HostState::Up | HostState::Joining => None,
        HostState::Silent => Some(Reason::new(
            "host-silent",
            "nothing is heard from its agent: its VMs may run on, and nothing is decided about them",
        )),
        HostState::Dead => Some(Reason::new(
            "host-dead",
            "it was declared dead: its agent has to join again",
        )),
    }
}

fn next_commands(state: HostState, word: &str, name: &str) -> Vec<String> {
    match state {
        HostState::Joining | HostState::Up => vec![format!("sterna host {word} {name}")],
        HostState::Silent => vec![format!("sterna host confirm-dead {name}")],
        HostState::Dead => vec![
            "sterna host token".to_owned(),
            format!("sterna host delete {name}"),
        ],
    }
}

/// Cordon, uncordon, drain, undrain, or a person's word that the machine is off.
pub fn host_action(
    context: &Context<'_>,
    at: &At<Object<model::host::HostSpec>>,
    action: &str,
    body: &HostActionBody,
    plan: &mut Plan,
) -> Result<Uuid, Problem> {
    let meta = &at.value.meta;
    let mut spec = at.value.spec.clone();
    match action {
        "cordon" => spec.cordoned = true,
        "uncordon" => (spec.cordoned, spec.drain) = (false, None),
        "drain" => spec.drain = Some(drain::wished(context, at, body.parallel)?),
        "undrain" => spec.drain = None,
        "confirm-dead" => {
            let host = context.view.hosts.get(&HostId(meta.id));
            if !host.is_some_and(|host| host.is_silent() || host.is_dead()) {
                let detail = format!(
                    "host {} is heard, so it is not dead: switch the machine off first, or stop its agent and its VMs",
                    meta.name
                );
                return Err(Problem::conflict("host-is-heard", detail));
            }
            spec.confirmed_dead_at = spec.confirmed_dead_at.or(Some(context.now));
        }
        _ => {
            return Err(Problem::new(
                404,
                "no-such-action",
                format!("hosts have no action {action:?}"),
            ));
        }
    }
    if spec == at.value.spec {
        return Ok(meta.id);
    }
    plan.action = format!("{action} {} {}", Kind::Host, meta.name);
    Ok(set::<Host>(context, at, spec, plan))
}
