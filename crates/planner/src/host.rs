//! The next step of a host: keep what it is made of, then move its VMs away if it shall be empty.

use model::{HostId, Kind, Timestamp};
use uuid::Uuid;

use crate::plan::{Decision, Plan};
use crate::view::View;
use crate::{drain, hardware};

/// What is to be done about a host now. `next_id` makes the ids of what is created.
pub fn plan(view: &View, id: HostId, now: Timestamp, next_id: &mut dyn FnMut() -> Uuid) -> Decision {
    plan_beside(view, id, &[], now, next_id)
}

/// The same; if what it is made of is to be kept, that of these others is kept by the same plan.
pub fn plan_beside(
    view: &View,
    id: HostId,
    others: &[HostId],
    now: Timestamp,
    next_id: &mut dyn FnMut() -> Uuid,
) -> Decision {
    if !view.is_readable(Kind::Host, id.0) {
        return Decision::nothing();
    }
    let note = |id: &HostId| hardware::plan(*id, view.hosts.get(id)?);
    let Some(mut plan) = note(&id) else {
        return drain::plan(view, id, now, next_id);
    };
    let beside: Vec<Plan> = others
        .iter()
        .filter(|other| **other != id)
        .filter_map(note)
        .collect();
    if !beside.is_empty() {
        plan.action = format!("note what {} hosts are made of", beside.len() + 1);
    }
    beside.into_iter().for_each(|other| plan.join(other));
    plan.into()
}
