//! Emptying a host: which of its VMs leave, which cannot and why, and the next migration to ask for.
//!
//! A drain is a wish in the host's spec, and it holds until it is taken back. What is left to do follows, each time it is
//! looked at, from the VMs that the host holds then; all that is kept is how often each of them was tried. So it goes on
//! after a restart where it was, a VM that comes late leaves too, and nothing is tried for ever: a VM for which no host
//! has room is not tried at all until a host has, and one that failed [`ATTEMPTS_MAX`] times is left to its operator.
//!
//! **Start here:** [`progress`], which says of each VM how it stands; [`plan`] only begins the next move.

use model::host::{Drain, DrainMove, DrainRecord, HostSpec};
use model::migration::MigrationSpec;
use model::report::RunState;
use model::vm::{Goal, Open};
use model::{HostId, Kind, Meta, MigrationId, Object, Reason, Timestamp, VmId, key};
use scheduler::Fleet;
use uuid::Uuid;

use crate::migration::{name, predict};
use crate::placement::{Sees, host_views, move_request, no_host_fits};
use crate::plan::{Decision, Plan};
use crate::view::{At, Host, Migration, View, Vm};
use crate::vm::later;

/// How often a VM is tried to be moved in one drain.
pub const ATTEMPTS_MAX: u32 = 3;
/// The most VMs that leave a host at a time.
pub const PARALLEL_MAX: u32 = 8;
/// How long after a failed attempt the next one begins.
const RETRY_MS: i64 = 5_000;

/// Where a VM stands in a drain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is on its way.
    Moves(MigrationId),
    /// It can go now, to this host as things are.
    Ready(HostId),
    /// Nothing can be done now, and that changes by itself.
    Waits(Reason),
    /// It stays unless somebody does something about it.
    Stays(Reason),
    /// It does not run and has its state on the host's disk: it is no reason to keep the machine on.
    Rests(Reason),
}

/// A VM that a draining host still holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Which one.
    pub vm: VmId,
    /// How often this drain has tried to move it.
    pub attempts: u32,
    /// What is to be done about it.
    pub standing: Standing,
    /// Why the last attempt failed, and when the next one may begin.
    pub failed: Option<(Reason, Timestamp)>,
    /// How long its move is expected to take.
    pub predicted_ms: u64,
}

/// How far a drain is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many VMs of those that it has moved, or tried to, are gone.
    pub moved: u32,
    /// What the host still holds.
    pub held: Vec<Held>,
}

/// What is to be expected of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// It goes on by itself.
    Draining,
    /// All that is left needs somebody to do something.
    Stuck,
    /// Nothing runs on the host.
    Drained,
}

impl Progress {
    /// What is to be expected.
    pub fn outlook(&self) -> Outlook {
        let stands = |is: fn(&Standing) -> bool| self.held.iter().any(|held| is(&held.standing));
        if stands(|s| matches!(s, Standing::Moves(_) | Standing::Ready(_) | Standing::Waits(_))) {
            Outlook::Draining
        } else if stands(|s| matches!(s, Standing::Stays(_))) {
            Outlook::Stuck
        } else {
            Outlook::Drained
        }
    }

    /// How long the moves that are left are expected to take.
    pub fn predicted_ms(&self, parallel: u32) -> u64 {
        let leaves = |held: &&Held| matches!(held.standing, Standing::Moves(_) | Standing::Ready(_));
        let all: u64 = self
            .held
            .iter()
            .filter(leaves)
            .map(|held| held.predicted_ms)
            .sum();
        all / u64::from(parallel.max(1))
    }

    fn moving(&self) -> usize {
        let moves = |held: &&Held| matches!(held.standing, Standing::Moves(_));
        self.held.iter().filter(moves).count()
    }
}

/// The next migration of a drain, if one can begin.
pub fn plan(view: &View, id: HostId, now: Timestamp, next_id: &mut dyn FnMut() -> Uuid) -> Decision {
    let Some((host, object)) = with_object(view, id) else {
        return Decision::nothing();
    };
    let Some(drain) = &object.value.spec.drain else {
        return forget(id, host, object);
    };
    let progress = progress(view, id, drain);
    if progress.moving() >= usize::try_from(drain.parallel).unwrap_or(usize::MAX) {
        return Decision::nothing();
    }
    let ready = progress
        .held
        .iter()
        .filter(|held| matches!(held.standing, Standing::Ready(_)));
    let not_before = |held: &Held| held.failed.as_ref().map_or(now, |(_, again)| *again);
    if let Some(held) = ready.clone().find(|held| not_before(held) <= now) {
        return begin(view, object, drain, held, next_id(), now).map_or_else(Decision::nothing, Into::into);
    }
    Decision {
        look_again_at: ready.map(not_before).min(),
        is_waiting: progress.outlook() != Outlook::Drained,
        ..Decision::nothing()
    }
}

fn with_object(view: &View, id: HostId) -> Option<(&Host, &At<Object<HostSpec>>)> {
    let host = view.hosts.get(&id)?;
    Some((host, host.object.as_ref()?))
}

/// The drain was taken back: what it has tried does not matter any more.
fn forget(id: HostId, host: &Host, object: &At<Object<HostSpec>>) -> Decision {
    let Some(at) = host.intent.as_ref().filter(|at| at.value.drain.is_some()) else {
        return Decision::nothing();
    };
    let mut plan = Plan::new(format!("end the drain of host {}", object.value.meta.name));
    plan.rely(key::object(Kind::Host, id.0), object.revision);
    let mut intent = at.value.clone();
    intent.drain = None;
    plan.replace(key::host_intent(id), at.revision, &intent);
    plan.into()
}

/// Asks for a migration, and counts it, in one transaction.
fn begin(
    view: &View,
    host: &At<Object<HostSpec>>,
    drain: &Drain,
    held: &Held,
    new_id: Uuid,
    now: Timestamp,
) -> Option<Plan> {
    let id = HostId(host.value.meta.id);
    let vm = view.vms.get(&held.vm)?;
    let (object, intent) = (vm.object.as_ref()?, vm.intent.as_ref()?);
    let vm_name = &object.value.meta.name;
    let mut plan = Plan::new(format!(
        "drain host {}: move {vm_name}, attempt {} of {ATTEMPTS_MAX}",
        host.value.meta.name,
        held.attempts.saturating_add(1)
    ));
    plan.rely(key::object(Kind::Host, id.0), host.revision);
    plan.rely(key::object(Kind::Vm, held.vm.0), object.revision);
    plan.rely(key::vm_intent(held.vm), intent.revision);
    let meta = Meta {
        id: new_id,
        name: name(view, held.vm),
        project: object.value.meta.project.clone(),
        owner: drain.asked_by.clone(),
        labels: std::collections::BTreeMap::new(),
        created_at: now,
        updated_at: now,
        deleted_at: None,
    };
    let index = key::name_index(Kind::Migration, meta.project.as_deref(), &meta.name);
    let spec = MigrationSpec {
        vm: held.vm,
        to: None,
        cancel: false,
        drain: Some(drain.id),
        request_id: None,
    };
    plan.create(key::object(Kind::Migration, new_id), &Object { meta, spec });
    plan.create(index, &new_id);
    count(view, &mut plan, id, drain, held, MigrationId(new_id));
    Some(plan)
}

fn count(view: &View, plan: &mut Plan, id: HostId, drain: &Drain, held: &Held, migration: MigrationId) {
    let at = view.hosts.get(&id).and_then(|host| host.intent.as_ref());
    let mut intent = at.map(|at| at.value.clone()).unwrap_or_default();
    let mut record = intent
        .drain
        .filter(|record| record.drain == drain.id)
        .unwrap_or_else(|| DrainRecord {
            drain: drain.id,
            moves: std::collections::BTreeMap::new(),
        });
    let attempts = held.attempts.saturating_add(1);
    record.moves.insert(held.vm, DrainMove { attempts, migration });
    intent.drain = Some(record);
    plan.replace(key::host_intent(id), at.map_or(0, |at| at.revision), &intent);
}

/// How each VM on a host stands, if the host is drained so. The largest VMs come first: for them it is hardest to find
/// room.
pub fn progress(view: &View, id: HostId, drain: &Drain) -> Progress {
    let mut look = Look {
        view,
        id,
        record: record(view, id, drain),
        fleet: Fleet::new(host_views(view, Sees::All, drain.asked_at)),
    };
    let mut vms: Vec<(VmId, &Vm)> = view
        .vms_of_host(id)
        .filter_map(|vm| Some((vm, view.vms.get(&vm)?.as_ref())))
        .collect();
    let memory = |vm: &Vm| open_of(vm).map_or(0, |open| open.memory_mib);
    vms.sort_by_key(|(vm, parts)| {
        (
            look.migration(*vm).is_none(),
            std::cmp::Reverse(memory(parts)),
            *vm,
        )
    });
    let held: Vec<Held> = vms
        .into_iter()
        .filter_map(|(vm, parts)| {
            Some(Held {
                vm,
                attempts: look.tried(vm).map_or(0, |tried| tried.attempts),
                standing: look.standing(vm, parts)?,
                failed: look.failed(vm),
                predicted_ms: predict(memory(parts)).total_ms,
            })
        })
        .collect();
    let is_gone = |vm: &&VmId| !held.iter().any(|held| held.vm == **vm);
    let tried = look.record.into_iter().flat_map(|record| record.moves.keys());
    let moved = u32::try_from(tried.filter(is_gone).count()).unwrap_or(u32::MAX);
    Progress { moved, held }
}

/// What this drain has tried, not what another one before it had.
fn record<'v>(view: &'v View, id: HostId, drain: &Drain) -> Option<&'v DrainRecord> {
    let intent = view.hosts.get(&id)?.intent.as_ref()?;
    intent
        .value
        .drain
        .as_ref()
        .filter(|record| record.drain == drain.id)
}

fn open_of(vm: &Vm) -> Option<&Open> {
    vm.intent.as_ref()?.value.open.as_ref()
}

/// What the standing of a host's VMs is found from.
struct Look<'v> {
    view: &'v View,
    id: HostId,
    record: Option<&'v DrainRecord>,
    /// What is left on the other hosts once the VMs that were looked at before have their room.
    fleet: Fleet<'v>,
}

impl<'v> Look<'v> {
    fn tried(&self, vm: VmId) -> Option<&'v DrainMove> {
        self.record?.moves.get(&vm)
    }

    /// The migration of a VM that is under way.
    fn migration(&self, vm: VmId) -> Option<(MigrationId, &'v Migration)> {
        self.view.active_migrations(vm).next()
    }

    /// How a VM stands; `None` if it is nothing to the host.
    fn standing(&mut self, id: VmId, vm: &'v Vm) -> Option<Standing> {
        if let Some((migration, parts)) = self.migration(id) {
            return Some(self.moving(vm, migration, parts));
        }
        let intent = &vm.intent.as_ref()?.value;
        let holds = intent.host == Some(self.id);
        let Some(open) = intent.open.as_ref().filter(|_| holds) else {
            let rests = intent.saved.as_ref().is_some_and(|saved| saved.host == self.id);
            return rests.then(|| {
                let message =
                    "it is suspended, and its saved state is on this host: it can be resumed here only";
                Standing::Rests(Reason::new("suspended", message))
            });
        };
        Some(
            self.not_now(vm, open)
                .or_else(|| self.after_attempts(id))
                .unwrap_or_else(|| self.room(vm, open)),
        )
    }

    fn moving(&mut self, vm: &'v Vm, id: MigrationId, migration: &Migration) -> Standing {
        let route = migration.intent.as_ref().and_then(|at| at.value.route.as_ref());
        let Some(route) = route else {
            // It has not begun, so that no room is reserved for it yet.
            if let Some(open) = open_of(vm) {
                self.room(vm, open);
            }
            return Standing::Moves(id);
        };
        if route.source == self.id {
            return Standing::Moves(id);
        }
        let message = "it is just being moved to this host, and leaves when it is there";
        Standing::Waits(Reason::new("arriving", message))
    }

    /// Why a VM cannot be moved at this moment, if so.
    fn not_now(&self, vm: &Vm, open: &Open) -> Option<Standing> {
        let waits = |code: &str, message: &str| Some(Standing::Waits(Reason::new(code, message)));
        let host = self.view.hosts.get(&self.id);
        if host.is_none_or(|host| host.is_silent() || host.is_dead()) {
            return waits(
                "host-silent",
                "its host is not heard from, so that nothing is decided about it",
            );
        }
        let is_deleted = vm
            .object
            .as_ref()
            .is_some_and(|object| object.value.meta.deleted_at.is_some());
        if is_deleted || !matches!(open.goal, Goal::Run { .. }) {
            return waits("ending", "it is ending by itself");
        }
        let run = vm.runs.get(&open.incarnation);
        let runs = run.is_some_and(|run| matches!(run.state, RunState::Running | RunState::Paused));
        if runs {
            None
        } else {
            waits("starting", "it is starting, and leaves when it runs")
        }
    }

    /// Whether what was tried forbids another attempt.
    fn after_attempts(&self, vm: VmId) -> Option<Standing> {
        let tried = self.tried(vm)?;
        let last = self.view.migrations.get(&tried.migration);
        let object = last.and_then(|last| last.object.as_ref());
        if object.is_some_and(|object| object.value.spec.cancel) {
            let message = "its move was cancelled, so it is left where it is";
            return Some(Standing::Stays(Reason::new("move-cancelled", message)));
        }
        if tried.attempts < ATTEMPTS_MAX {
            return None;
        }
        let failed = self.failed(vm);
        let why = failed.map_or_else(|| "its record is gone".to_owned(), |(reason, _)| reason.message);
        let message = format!("{ATTEMPTS_MAX} attempts to move it failed, the last one because: {why}");
        Some(Standing::Stays(Reason::new("attempts-failed", message)))
    }

    /// Why the last attempt failed, and when the next one may begin.
    fn failed(&self, vm: VmId) -> Option<(Reason, Timestamp)> {
        let last = self.view.migrations.get(&self.tried(vm)?.migration)?;
        let intent = &last.intent.as_ref()?.value;
        let reason = intent.reason.clone().filter(|_| intent.phase.is_final())?;
        Some((reason, later(intent.entered_at, RETRY_MS)))
    }

    /// Whether a host takes it; the room is taken then.
    fn room(&mut self, vm: &'v Vm, open: &Open) -> Standing {
        let Some(object) = &vm.object else {
            let message = "its object cannot be read: see the server's log";
            return Standing::Stays(Reason::new("unreadable", message));
        };
        let request = move_request(self.view, &object.value, open, self.id);
        match self.fleet.place(&request, Timestamp::UNIX_EPOCH) {
            Ok(placed) => Standing::Ready(placed.host),
            Err(record) => Standing::Stays(no_host_fits(&record.refused)),
        }
    }
}
