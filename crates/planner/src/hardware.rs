//! What a host is made of, compared with what it was made of: a host that comes back as less is named.
//!
//! A host that has become more, or that holds nothing, is taken as it is. What it was is kept only while something on it
//! may depend on that.

use model::host::{HostIntent, HostSpec, HostStatus, Known};
use model::{HostId, Kind, Object, Reason, key};
use scheduler::VCPUS_PER_CPU;

use crate::plan::Plan;
use crate::view::{At, Host};

/// Keeps what a host is made of, when it is seen first or is taken as it is now.
pub fn plan(id: HostId, host: &Host) -> Option<Plan> {
    let object: &At<Object<HostSpec>> = host.object.as_ref()?;
    let status = &host.status.as_ref()?.value;
    let intent = host.intent.as_ref();
    let known = intent.and_then(|at| at.value.known.as_ref());
    let next = known_next(known, status, is_empty(host))?;
    let mut plan = Plan::new(format!("note what host {} is made of", object.value.meta.name));
    plan.rely(key::object(Kind::Host, id.0), object.revision);
    let reservations = host.reservations.as_ref().map_or(0, |at| at.revision);
    plan.rely(key::host_reservations(id), reservations);
    let next = HostIntent {
        known: Some(next),
        ..intent.map(|at| at.value.clone()).unwrap_or_default()
    };
    plan.replace(key::host_intent(id), intent.map_or(0, |at| at.revision), &next);
    Some(plan)
}

fn is_empty(host: &Host) -> bool {
    host.reservations
        .as_ref()
        .is_none_or(|at| at.value.vms.is_empty())
}

/// What to keep from now on, if that is something else than what is kept.
fn known_next(known: Option<&Known>, status: &HostStatus, is_empty: bool) -> Option<Known> {
    let present = Known {
        cpu_model: status.cpu_model.clone(),
        agent_version: status.agent_version.clone(),
    };
    let Some(known) = known.filter(|_| !is_empty) else {
        return (known != Some(&present)).then_some(present);
    };
    let next = Known {
        cpu_model: known.cpu_model.clone(),
        agent_version: newer(&known.agent_version, &present.agent_version).to_owned(),
    };
    (next != *known).then_some(next)
}

/// The later of two releases.
fn newer<'a>(a: &'a str, b: &'a str) -> &'a str {
    if release(a) < release(b) { b } else { a }
}

/// A release as numbers: `1.10.0` is later than `1.9.2`.
fn release(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// What a host takes altogether.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Memory, with QEMU's own part.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
}

/// What a host takes: what it has for guests, times what its operator promises of it.
pub fn capacity(host: &Host) -> Capacity {
    let Some(status) = host.status.as_ref().map(|at| &at.value) else {
        return Capacity::default();
    };
    let spec = host.object.as_ref().map(|at| &at.value.spec);
    let overcommit = spec.and_then(|spec| spec.overcommit);
    let percent = overcommit.map_or(100, |over| u64::from(over.memory_percent));
    let guests_mib = status.memory_mib.saturating_sub(status.reserved_mib);
    Capacity {
        memory_mib: guests_mib.saturating_mul(percent) / 100,
        vcpus: status
            .cpus
            .saturating_mul(overcommit.map_or(VCPUS_PER_CPU, |over| over.vcpus_per_cpu)),
    }
}

/// What is wrong with what a host is made of now.
pub fn attention(host: &Host) -> Vec<Reason> {
    let Some(status) = host.status.as_ref().map(|at| &at.value) else {
        return Vec::new();
    };
    let known = host.intent.as_ref().and_then(|at| at.value.known.as_ref());
    [
        too_small(capacity(host), host.reserved),
        known.and_then(|known| other_cpu(known, status)),
        known.and_then(|known| older_agent(known, status)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn too_small(capacity: Capacity, reserved: Capacity) -> Option<Reason> {
    let (mib, vcpus) = (reserved.memory_mib, reserved.vcpus);
    let message = if mib > capacity.memory_mib {
        let has = capacity.memory_mib;
        format!("{mib} MiB are reserved on it, and it has {has} MiB for guests now")
    } else if vcpus > capacity.vcpus {
        let most = capacity.vcpus;
        format!("{vcpus} virtual processors are reserved on it, and it takes {most} now")
    } else {
        return None;
    };
    let message = format!("{message}: no VM comes to it; move some away, as with `sterna vm migrate`");
    Some(Reason::new("host-shrunk", message))
}

fn other_cpu(known: &Known, status: &HostStatus) -> Option<Reason> {
    let (was, is) = (&known.cpu_model, &status.cpu_model);
    (was != is).then(|| {
        let message = format!(
            "its guests see the processor {is} now, and VMs that it holds were started with {was}: shut them down and \
             start them again, or bring the former hardware back"
        );
        Reason::new("cpu-model-changed", message)
    })
}

fn older_agent(known: &Known, status: &HostStatus) -> Option<Reason> {
    let (was, is) = (&known.agent_version, &status.agent_version);
    (release(is) < release(was)).then(|| {
        let message = format!(
            "its agent is release {is}, and was {was} when it took the VMs that it holds: install {was} again"
        );
        Reason::new("agent-older", message)
    })
}
