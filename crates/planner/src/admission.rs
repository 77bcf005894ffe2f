//! The one function that every write passes: it adds the audit record, the events and the operation that the write stands
//! for.
//!
//! Whoever commits a plan reads the objects that it touches, calls [`admit`], and compares every key that it has read,
//! so that *before* in the audit record is what was there when the write was made.

use std::collections::{BTreeMap, BTreeSet};

use model::audit::{Actor, AuditRecord, Change as AuditChange};
use model::event::{EventSpec, Lifecycle, What};
use model::lifecycle::{self, Availability, Phase};
use model::user_data::{self, NOT_SHOWN};
use model::vm::{VmIntent, VmSpec};
use model::{Kind, Meta, MigrationId, Object, Reason, TemplateId, Timestamp, VmId, key};
use serde_json::Value;
use uuid::Uuid;

use crate::flatten::disk_bytes;
use crate::operation;
use crate::plan::Plan;
use crate::view::{Change, Migration, View};

/// Where what a guest printed is in the status of an operation.
const OUTPUT: &str = "/applied/output";
/// The same in what is reported and noted of a guest that a template is made of.
const BUILT_OUTPUT: &str = "/built/applied/output";
/// What stands in the audit trail for one that was not the same before.
const CHANGED: &str = "[not shown, changed]";

/// A value as it was read, with its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Before {
    /// The value.
    pub value: Vec<u8>,
    /// The revision that last changed it.
    pub revision: u64,
}

/// Who writes, and when. Ids are made by the caller, one for the audit record and one for each event.
pub struct Stamp<'a> {
    /// Who.
    pub actor: &'a Actor,
    /// When.
    pub now: Timestamp,
    /// Makes ids.
    pub next_id: &'a mut dyn FnMut() -> Uuid,
}

/// The prefixes whose keys have to be read before [`admit`] is called: all parts of every object that is written, and
/// of what its phase depends on.
pub fn prefixes(plan: &Plan, view: &View) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = BTreeSet::new();
    for key in plan.writes.keys() {
        let Some((kind, id, _)) = key::parse(key) else {
            continue;
        };
        if kind == Kind::Network {
            continue;
        }
        all.insert(key::object(kind, id));
        let intent = view
            .vms
            .get(&VmId(id))
            .filter(|_| kind == Kind::Vm)
            .and_then(|vm| vm.intent.as_ref());
        if let Some(migration) = intent.and_then(|at| at.value.migration) {
            all.insert(key::object(Kind::Migration, migration.0));
        }
        if let Some(host) = intent.and_then(|at| at.value.host) {
            all.insert(key::host_contact(host));
        }
    }
    all
}

/// Adds to a plan what it stands for. `before` holds every key under [`prefixes`] and every key that is written; `view` is
/// what the plan was made on.
pub fn admit(plan: &mut Plan, view: &View, before: &BTreeMap<String, Before>, stamp: &mut Stamp<'_>) {
    let old = view_of(before, &BTreeMap::new());
    let new = view_of(before, &plan.writes);
    let mut events = Vec::new();
    let mut asked = Vec::new();
    for (kind, id) in plan
        .writes
        .keys()
        .filter_map(|key| key::parse(key))
        .map(|(k, id, _)| (k, id))
        .collect::<BTreeSet<_>>()
    {
        asked.extend(
            (kind == Kind::Vm)
                .then(|| operation::asked(&old, &new, VmId(id)))
                .flatten(),
        );
        events.extend(match kind {
            Kind::Vm => vm_event(view, &old, &new, VmId(id), stamp.now),
            Kind::Migration => migration_event(&old, &new, MigrationId(id), stamp.now),
            Kind::Host => contact_event(&old, &new, id, stamp.now),
            Kind::Template => warm_event(view, &old, &new, TemplateId(id), stamp.now),
            _ => None,
        });
        if kind == Kind::Host {
            events.extend(memory_events(view, &old, &new, id, stamp.now));
        }
    }
    let audit = audit_record(plan, before, stamp);
    for (key, was) in before {
        if plan.writes.contains_key(key) {
            plan.relies_on.entry(key.clone()).or_insert(was.revision);
        }
    }
    for asked in asked {
        operation::create(plan, view, &asked, stamp);
    }
    for (project, owner, spec) in events {
        let id = (stamp.next_id)();
        let meta = Meta {
            id,
            name: id.to_string(),
            project,
            owner,
            labels: BTreeMap::new(),
            created_at: stamp.now,
            updated_at: stamp.now,
            deleted_at: None,
        };
        plan.create(key::object(Kind::Event, id), &Object { meta, spec });
    }
    plan.create(key::audit((stamp.next_id)()), &audit);
}

type Event = (Option<String>, String, EventSpec);

/// A view of the few objects concerned, before or after.
fn view_of(before: &BTreeMap<String, Before>, writes: &BTreeMap<String, Option<Vec<u8>>>) -> View {
    let mut view = View::default();
    for (key, was) in before {
        view.apply(Change {
            key,
            value: Some(&was.value),
            revision: was.revision,
        });
    }
    for (key, value) in writes {
        view.apply(Change {
            key,
            value: value.as_deref(),
            revision: u64::MAX,
        });
    }
    view
}

fn audit_record(plan: &Plan, before: &BTreeMap<String, Before>, stamp: &Stamp<'_>) -> AuditRecord {
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
    let shown = |(key, after): (&String, &Option<Vec<u8>>)| {
        let mut before = before.get(key).and_then(|was| json(&was.value));
        let mut after = after.as_deref().and_then(json);
        leave_texts_out(&mut before, &mut after);
        AuditChange {
            key: key.clone(),
            before,
            after,
        }
    };
    let is_left_out =
        |key: &str| key.starts_with(key::REQUEST_PREFIX) || key.starts_with(key::SIGNATURE_PREFIX);
    let changes = plan
        .writes
        .iter()
        .filter(|(key, _)| !is_left_out(key))
        .map(shown)
        .collect();
    AuditRecord {
        actor: stamp.actor.clone(),
        at: stamp.now,
        action: plan.action.clone(),
        changes,
    }
}

/// The audit trail is kept for good: it says that a guest has texts and whether they changed, not what they are.
pub fn leave_texts_out(before: &mut Option<Value>, after: &mut Option<Value>) {
    for pointer in user_data::IN_OBJECT.into_iter().chain([OUTPUT, BUILT_OUTPUT]) {
        let (mut old, mut new) = (text(before, pointer), text(after, pointer));
        let has_changed = old.is_some() && old != new;
        if let Some(old) = &mut old {
            **old = NOT_SHOWN.into();
        }
        if let Some(new) = &mut new {
            **new = if has_changed { CHANGED } else { NOT_SHOWN }.into();
        }
    }
}

fn text<'v>(value: &'v mut Option<Value>, pointer: &str) -> Option<&'v mut Value> {
    let text = value.as_mut()?.get_mut("data")?.pointer_mut(pointer)?;
    (!text.is_null()).then_some(text)
}

fn vm_event(view: &View, old: &View, new: &View, id: VmId, now: Timestamp) -> Option<Event> {
    let from = old.phase(id);
    let to = new.phase(id);
    let object = new
        .vms
        .get(&id)
        .or_else(|| old.vms.get(&id))?
        .object
        .as_ref()
        .or_else(|| old.vms.get(&id).and_then(|vm| vm.object.as_ref()))?;
    let (phase, availability) = to.unwrap_or((Phase::Done, Availability::Inactive));
    if from.map(|(phase, _)| phase) == Some(phase) {
        return None;
    }
    let spec = &object.value.spec;
    let intent = new
        .vms
        .get(&id)
        .and_then(|vm| vm.intent.as_ref())
        .map(|at| &at.value);
    let reason = new.facts(id).and_then(|facts| lifecycle::reason(facts, phase));
    let what = What::Lifecycle(Lifecycle {
        from: from.map(|(phase, _)| phase),
        ..lifecycle(spec, view, intent, (phase, availability))
    });
    Some(event(Kind::Vm, &object.value.meta, now, what, reason))
}

/// What a VM holds from now on. Memory and processors are held while an incarnation is open.
fn lifecycle(spec: &VmSpec, view: &View, intent: Option<&VmIntent>, to: (Phase, Availability)) -> Lifecycle {
    let (to, availability) = to;
    let open = intent
        .and_then(|intent| intent.open.as_ref())
        .filter(|_| to != Phase::Done);
    let has_volumes = to != Phase::Done && intent.is_some_and(|intent| intent.has_volumes);
    let disk_bytes = disk_bytes(view, spec, intent).filter(|_| has_volumes);
    Lifecycle {
        from: None,
        to,
        availability,
        vcpus: open.map_or(0, |open| open.vcpus),
        memory_mib: open.map_or(0, |open| open.memory_mib),
        disk_bytes: disk_bytes.unwrap_or(0),
        host: intent.and_then(|intent| intent.host),
        incarnation: open.map(|open| open.incarnation),
    }
}

fn migration_event(old: &View, new: &View, id: MigrationId, now: Timestamp) -> Option<Event> {
    let migration = new.migrations.get(&id)?;
    let object = migration.object.as_ref()?;
    let phase = migration.phase();
    if old.migrations.get(&id).map(Migration::phase) == Some(phase) {
        return None;
    }
    let reason = migration.intent.as_ref().and_then(|at| at.value.reason.clone());
    Some(event(
        Kind::Migration,
        &object.value.meta,
        now,
        What::Migration { phase },
        reason,
    ))
}

fn warm_event(view: &View, old: &View, new: &View, id: TemplateId, now: Timestamp) -> Option<Event> {
    let intent = &new.template_intents.get(&id)?.value;
    let before = old.template_intents.get(&id).map(|at| &at.value);
    let has_failed = before.is_some_and(|before| intent.failures > before.failures);
    let is_begun = before.is_none_or(|before| before.form != intent.form);
    if !has_failed && !is_begun {
        return None;
    }
    let failed = intent.failed.as_ref().filter(|_| has_failed);
    let meta = &view.templates.get(&id.0)?.value.meta;
    let what = What::WarmForm {
        failures: intent.failures,
        has_failed,
    };
    Some(event(
        Kind::Template,
        meta,
        now,
        what,
        Some(failed.unwrap_or(&intent.why).clone()),
    ))
}

fn contact_event(old: &View, new: &View, id: Uuid, now: Timestamp) -> Option<Event> {
    let host = new.hosts.get(&id.into())?;
    let silent = host.is_silent();
    let was_silent = old.hosts.get(&id.into()).is_some_and(|host| host.is_silent());
    if silent == was_silent {
        return None;
    }
    let reason = silent.then(|| Reason::new("host-silent", "nothing was heard from its agent"));
    Some(event(
        Kind::Host,
        &host.object.as_ref()?.value.meta,
        now,
        What::HostContact { silent },
        reason,
    ))
}

/// One for each VM on a host whose QEMU began to take more than is reserved, or takes no more.
fn memory_events(view: &View, old: &View, new: &View, host: Uuid, now: Timestamp) -> Vec<Event> {
    let over = |view: &View| {
        let contact = view.hosts.get(&host.into()).and_then(|host| host.contact.clone());
        contact.map(|at| at.value.over_reservation).unwrap_or_default()
    };
    let (before, after) = (over(old), over(new));
    let changed = before.symmetric_difference(&after);
    let event_of = |vm: &VmId| {
        let meta = &view.vms.get(vm)?.object.as_ref()?.value.meta;
        let exceeded = after.contains(vm);
        let message = "its QEMU takes more of its host's memory than is reserved for it: `sterna vm get` has the figures";
        let reason = exceeded.then(|| Reason::new("memory-over-reservation", message));
        Some(event(
            Kind::Vm,
            meta,
            now,
            What::MemoryReservation { exceeded },
            reason,
        ))
    };
    changed.filter_map(event_of).collect()
}

fn event(kind: Kind, meta: &Meta, at: Timestamp, what: What, reason: Option<Reason>) -> Event {
    let spec = EventSpec {
        object_kind: kind,
        object: meta.id,
        object_name: meta.name.clone(),
        at,
        what,
        reason,
    };
    (meta.project.clone(), meta.owner.clone(), spec)
}
