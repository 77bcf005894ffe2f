//! A restored store: what hosts run is found out before anything is decided.
//!
//! A backup does not know what was granted after it. A VM that it shows on one host may run on another by now, and a new
//! incarnation of it would be a second copy. So a restored store is *held*: no incarnation is granted, and hosts are told
//! nothing, until each has said all that it runs, or is dead, and the store knows all of it.

use jiff::Timestamp;
use model::report::Report;
use model::restored::{PutBack, Restored};
use model::{HostId, Incarnation, VmId, key};

use crate::plan::Plan;
use crate::reports;
use crate::view::{At, Host, View};

/// The latest document that a host says it has obeyed; 0 if it says nothing of any.
pub fn obeyed_revision(report: &Report) -> u64 {
    let obeyed = report.runs.iter().map(|run| run.run.document_revision);
    obeyed.max().unwrap_or(0)
}

/// Holds a store that has not reached a revision which a host has obeyed: documents are made from what is stored, so this is
/// an older database than the one that told the host. `None` if it is held already.
pub fn put_back(view: &View, host: HostId, obeyed_revision: u64, now: Timestamp) -> Option<Plan> {
    if view.is_held() {
        return None;
    }
    let restored = Restored {
        at: now,
        from_revision: view.revision,
        ends_unknown: false,
        put_back: Some(PutBack {
            host: view.hosts.get(&host).map_or("?", |host| host.name()).to_owned(),
            obeyed_revision,
        }),
    };
    let mut plan = Plan::new("hold a store that was put back by hand");
    plan.create(key::RESTORED.to_owned(), &restored);
    Some(plan)
}

/// What a host runs and the store does not know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The host's name.
    pub host: String,
    /// The VM.
    pub vm: VmId,
    /// The incarnation.
    pub incarnation: Incarnation,
}

/// What keeps a restored store from going on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unsettled {
    /// The names of the hosts that have not said what they run.
    pub silent: Vec<String>,
    /// What runs and is not known.
    pub unknown: Vec<Unknown>,
}

/// What is in the way; `open` is what a host has said that it has open, if it has said everything.
pub fn unsettled<'r>(view: &View, open: impl Fn(HostId) -> Option<&'r [(VmId, Incarnation)]>) -> Unsettled {
    let mut found = Unsettled::default();
    let living = view
        .hosts
        .iter()
        .filter(|(_, host)| host.object.is_some() && !host.is_dead());
    for (id, host) in living {
        match open(*id) {
            None => found.silent.push(host.name().to_owned()),
            Some(open) => found.unknown.extend(unknown(view, *id, host, open)),
        }
    }
    found
}

fn unknown(view: &View, id: HostId, host: &Host, open: &[(VmId, Incarnation)]) -> Vec<Unknown> {
    let unknown = reports::unknown(view, id, open).into_iter();
    let named = unknown.map(|(vm, incarnation)| Unknown {
        host: host.name().to_owned(),
        vm,
        incarnation,
    });
    named.collect()
}

/// How a restored store goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Only if nothing is in the way.
    Settled,
    /// What is not known is ended first.
    EndUnknown,
}

/// The next step towards a store that decides again; none if there is none, or if it has been made already.
pub fn plan(restored: &At<Restored>, unsettled: &Unsettled, way: Way) -> Option<Plan> {
    // Its revisions and incarnations would be granted a second time.
    if restored.value.put_back.is_some() || !unsettled.silent.is_empty() {
        return None;
    }
    let key = key::RESTORED.to_owned();
    if unsettled.unknown.is_empty() {
        let mut plan = Plan::new("go on after a restore");
        plan.remove(key, restored.revision);
        return Some(plan);
    }
    if way == Way::Settled || restored.value.ends_unknown {
        return None;
    }
    let mut plan = Plan::new("end what the restored store does not know");
    let ending = Restored {
        ends_unknown: true,
        ..restored.value.clone()
    };
    plan.replace(key, restored.revision, &ending);
    Some(plan)
}
