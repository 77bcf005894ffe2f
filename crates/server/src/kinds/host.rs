//! Hosts: they join by themselves; their operator cordons them and, when the machine is off, says so.

use api::Problem;
pub use api::kinds::Host;
use api::kinds::{HostSpec, HostState, HostStatus};
use model::{HostId, Kind, Object, Reason};
use planner::view::At;
use planner::{Plan, View};
use uuid::Uuid;

use super::{Served, set};
use crate::service::Context;
use crate::shared::Heard;

impl Served for Host {
    type Stored = model::host::HostSpec;

    fn stored(view: &View, id: Uuid) -> Option<&At<Object<Self::Stored>>> {
        view.hosts.get(&HostId(id))?.object.as_ref()
    }

    fn spec(_: &View, stored: &Self::Stored) -> HostSpec {
        HostSpec {
            cordoned: stored.cordoned,
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
        let samples = heard
            .last(HostId(id))
            .filter(|_| state == HostState::Up)
            .map(|last| last.samples);
        Some(HostStatus {
            state,
            silent_since: host
                .contact
                .as_ref()
                .and_then(|contact| contact.value.silent_since),
            agent_version: status.map(|status| status.agent_version.clone()),
            qemu_version: status.map(|status| status.qemu_version.clone()),
            accelerator: status.map(|status| status.accelerator.clone()),
            cpu_model: status.map(|status| status.cpu_model.clone()),
            cpus: status.map(|status| status.cpus),
            memory_mib: status.map(|status| status.memory_mib.saturating_sub(status.reserved_mib)),
            reserved_mib: reservations.map_or(0, model::host::Reservations::memory_mib),
            vms: reservations.map_or(0, |all| u32::try_from(all.vms.len()).unwrap_or(u32::MAX)),
            load1_percent: samples.map(|samples| samples.load1_percent),
            lacks: status.map(|status| status.lacks.clone()).unwrap_or_default(),
            reason: reason(state),
            next_commands: next_commands(state, host.is_cordoned(), name),
        })
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
        if spec.confirmed_dead != old.spec.confirmed_dead_at.is_some() {
            let detail =
                "confirmed_dead is set by `sterna host confirm-dead` and cleared when the host joins again";
            return Err(Problem::invalid("confirmed-dead-by-action", detail));
        }
        let _ = context;
        Ok(model::host::HostSpec {
            cordoned: spec.cordoned,
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
        let holds = context.view.vms_of_host(id).count();
        if holds > 0 {
            let detail = format!("host {name} holds {holds} VMs: migrate or delete them first");
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

fn next_commands(state: HostState, is_cordoned: bool, name: &str) -> Vec<String> {
    let cordon = if is_cordoned {
        format!("sterna host uncordon {name}")
    } else {
        format!("sterna host cordon {name}")
    };
    match state {
        HostState::Joining | HostState::Up => vec![cordon],
        HostState::Silent => vec![format!("sterna host confirm-dead {name}")],
        HostState::Dead => vec![
            "sterna host token".to_owned(),
            format!("sterna host delete {name}"),
        ],
    }
}

/// Cordon, uncordon, or a person's word that the machine is off.
pub fn host_action(
    context: &Context<'_>,
    at: &At<Object<model::host::HostSpec>>,
    action: &str,
    plan: &mut Plan,
) -> Result<Uuid, Problem> {
    let meta = &at.value.meta;
    let mut spec = at.value.spec.clone();
    match action {
        "cordon" => spec.cordoned = true,
        "uncordon" => spec.cordoned = false,
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
