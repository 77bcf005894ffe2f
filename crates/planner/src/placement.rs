//! What placement is asked: the hosts with what is on them, and what a VM needs of one.

use model::host::{HostStatus, Reservations};
use model::placement::PlacementRule;
use model::vm::{Firmware, Open, RefusedGroup, SavedState, VmSpec};
use model::{HostId, Kind, Object, Reason, Timestamp, VmId, key};
use scheduler::{Closed, Failing, Guest, HostView, IS_SOURCE, NOT_ASKED, Placed, Request};

use crate::hardware::capacity;
use crate::plan::Plan;
use crate::view::{Host, View};

pub use scheduler::with_qemu_mib;

/// How many starts in a row fail on a host before it is avoided.
pub const FAILED_STARTS_MAX: u32 = 3;
/// For how long it is avoided after the last of them.
pub const AVOIDED_S: i64 = 300;

/// Which of the VMs on a host placement has to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sees {
    /// All, for a VM that has rules about VMs.
    All,
    /// Those that keep others away; mostly none, which spares the looking.
    KeepingApart,
}

impl Sees {
    /// What has to be seen for VMs with these rules.
    pub(crate) fn for_rules<'r>(mut rules: impl Iterator<Item = &'r PlacementRule>) -> Self {
        if rules.any(PlacementRule::names_vms) {
            Self::All
        } else {
            Self::KeepingApart
        }
    }
}

/// The hosts as placement sees them now.
pub(crate) fn host_views(view: &View, sees: Sees, now: Timestamp) -> impl Iterator<Item = HostView<'_>> {
    view.hosts.iter().filter_map(move |(id, host)| {
        let object = &host.object.as_ref()?.value;
        let status = host.status.as_ref().map(|status| &status.value);
        let reservations = host.reservations.as_ref().map(|at| &at.value);
        let capacity = capacity(host);
        Some(HostView {
            id: *id,
            name: &object.meta.name,
            labels: &object.meta.labels,
            closed: closed(view, *id, host, status),
            memory_mib: capacity.memory_mib,
            reserved_mib: host.reserved.memory_mib,
            vcpus: capacity.vcpus,
            reserved_vcpus: host.reserved.vcpus,
            cpu_model: status.map_or("", |status| status.cpu_model.as_str()),
            uefi: status.is_some_and(|status| status.uefi),
            failing: failing(view, *id, now),
            guests: reservations.map_or_else(Vec::new, |all| guests(view, sees, *id, all)),
        })
    })
}

fn closed(view: &View, id: HostId, host: &Host, status: Option<&HostStatus>) -> Option<Closed> {
    let spec = &host.object.as_ref()?.value.spec;
    if !view.is_readable(Kind::Host, id.0) {
        return Some(Closed::Unreadable);
    }
    if host.is_dead() {
        return Some(Closed::Dead);
    }
    if status.is_none() {
        return Some(Closed::NotReported);
    }
    if host.is_silent() {
        return Some(Closed::Silent);
    }
    if spec.drain.is_some() {
        return Some(Closed::Draining);
    }
    spec.cordoned.then_some(Closed::Cordoned)
}

/// A VM as other VMs' rules see it.
pub(crate) fn guest(object: &Object<VmSpec>) -> Guest<'_> {
    Guest {
        id: VmId(object.meta.id),
        name: &object.meta.name,
        labels: &object.meta.labels,
        rule: &object.spec.placement,
        is_leaving: false,
    }
}

fn guests<'a>(view: &'a View, sees: Sees, host: HostId, all: &Reservations) -> Vec<Guest<'a>> {
    match sees {
        Sees::All => all
            .vms
            .iter()
            .filter(|(_, reserved)| reserved.has_guest())
            .filter_map(|(vm, _)| guest_of(view, *vm, host))
            .collect(),
        Sees::KeepingApart => view
            .keeping_apart_on(all)
            .filter_map(|vm| guest_of(view, vm, host))
            .collect(),
    }
}

fn guest_of(view: &View, vm: VmId, host: HostId) -> Option<Guest<'_>> {
    let object = view.vms.get(&vm)?.object.as_ref()?;
    let routes = view
        .active_migrations(vm)
        .filter_map(|(_, migration)| migration.intent.as_ref()?.value.route.as_ref());
    Some(Guest {
        is_leaving: routes.into_iter().any(|route| route.source == host),
        ..guest(&object.value)
    })
}

/// The starts on a host that failed one after the other, with when the last one did.
pub fn failed_starts(view: &View, id: HostId) -> Option<(u32, Timestamp)> {
    let host = view.hosts.get(&id)?;
    let failed = host.intent.as_ref()?.value.failed_starts.as_ref()?;
    let guests = host.reservations.as_ref();
    let mut guests = guests.into_iter().flat_map(|at| at.value.vms.keys());
    let ran_since = guests.any(|vm| {
        let vm = view.vms.get(vm);
        let open = vm.and_then(|vm| vm.intent.as_ref()?.value.open.as_ref());
        let run = open.and_then(|open| vm?.runs.get(&open.incarnation));
        open.is_some_and(|open| open.granted_at > failed.last_at) && run.is_some_and(|run| run.ran)
    });
    (!ran_since).then_some((failed.in_row, failed.last_at))
}

/// Whether a host is avoided now because starts on it failed.
fn failing(view: &View, id: HostId, now: Timestamp) -> Option<Failing> {
    let (starts, last_at) = failed_starts(view, id)?;
    // Of a clock that was set back the time since then is not known: it is not waited for.
    let for_s = AVOIDED_S.saturating_sub(now.duration_since(last_at).as_secs().abs());
    let for_s = u64::try_from(for_s).ok().filter(|for_s| *for_s > 0)?;
    (starts >= FAILED_STARTS_MAX).then_some(Failing { starts, for_s })
}

/// When the first of the hosts that are avoided now is not avoided any more.
pub(crate) fn avoided_until(view: &View, now: Timestamp) -> Option<Timestamp> {
    let seconds = view.hosts.keys().filter_map(|id| failing(view, *id, now));
    let seconds = seconds.map(|failing| failing.for_s).min()?;
    now.checked_add(jiff::SignedDuration::from_secs(i64::try_from(seconds).ok()?))
        .ok()
}

/// What a VM that runs needs of another host.
pub(crate) fn move_request<'a>(
    view: &'a View,
    object: &'a Object<VmSpec>,
    open: &Open,
    source: HostId,
) -> Request<'a> {
    let status = view.hosts.get(&source).and_then(|host| host.status.as_ref());
    Request {
        guest: guest(object),
        memory_mib: with_qemu_mib(open.memory_mib, open.vcpus),
        vcpus: open.vcpus,
        only: None,
        except: Some(source),
        cpu_model: status.map(|status| status.value.cpu_model.as_str()),
        uefi: object.spec.firmware == Firmware::Uefi,
    }
}

/// Why no host takes a VM, with numbers.
pub(crate) fn no_host_fits(refused: &[RefusedGroup]) -> Reason {
    let mut telling: Vec<_> = refused
        .iter()
        .filter(|group| group.reason.code != NOT_ASKED)
        .collect();
    if telling.len() > 1 {
        telling.retain(|group| group.reason.code != IS_SOURCE);
    }
    let shown = |group: &&RefusedGroup| format!("{}: {}", group.hosts.join(", "), group.reason.message);
    let why: Vec<_> = telling.iter().map(shown).collect();
    let message = format!("no host can take it: {}", why.join("; "));
    Reason::new("no-host-fits", message)
}

/// What a VM needs of a host to start: what its saved state has, if there is one, or else what its spec says.
pub(crate) fn start_request<'a>(object: &'a Object<VmSpec>, saved: Option<&'a SavedState>) -> Request<'a> {
    let spec = &object.spec;
    let (memory_mib, vcpus) = saved.map_or((spec.memory_mib, spec.vcpus), |saved| {
        (saved.memory_mib, saved.vcpus)
    });
    Request {
        guest: guest(object),
        memory_mib: with_qemu_mib(memory_mib, vcpus),
        vcpus,
        only: saved
            .filter(|saved| saved.saved_in.is_host())
            .map(|saved| saved.host)
            .or(spec.placement.host),
        except: None,
        cpu_model: saved.and_then(|saved| saved.cpu_model.as_deref()),
        uefi: spec.firmware == Firmware::Uefi,
    }
}

/// Has a plan rest on what a choice was made on, beside the chosen host itself: two choices that would break a rule
/// together then exclude each other.
pub(crate) fn rest_on(view: &View, plan: &mut Plan, vm: VmId, placed: &Placed) {
    if placed.is_first {
        plan.replace(key::FIRST_OF_GROUP.to_owned(), view.first_of_group, &vm);
    }
    for other in &placed.company {
        let intent = view.vms.get(other).and_then(|vm| vm.intent.as_ref());
        plan.relies_on
            .entry(key::vm_intent(*other))
            .or_insert(intent.map_or(0, |at| at.revision));
    }
}
