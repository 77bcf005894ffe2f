//! Copies of its disk for other VMs and for images: beside a guest that is here, by its QEMU, and at rest, by the agent.
//!
//! Nothing of it is in the journal: a copy is whole when it has its name, and until then it is begun again. QEMU keeps an ended
//! copy until nobody asks for it any more, so that an agent that was started meanwhile still learns how it was made.

use std::collections::{BTreeMap, BTreeSet};

use model::copy::CopyTo;
use model::report::CopyState;

use super::{Core, Desired, Plan, STEADY_MS};
use crate::types::{CopyJobState, Effect, QemuState};

impl Core {
    /// The copies that are ordered.
    fn wanted_copies(&self) -> impl Iterator<Item = CopyTo> + '_ {
        let document = match &self.desired {
            Desired::Ordered(document) => Some(document),
            _ => None,
        };
        document
            .into_iter()
            .flat_map(|document| document.copies.keys())
            .copied()
    }

    /// What became of copies that are not ordered any more is of no more use.
    pub(super) fn forget_copies(&mut self) {
        let wanted: BTreeSet<CopyTo> = self.wanted_copies().collect();
        self.memory.copies.made.retain(|to, _| wanted.contains(to));
        self.memory.copies.failed.retain(|to, _| wanted.contains(to));
    }

    /// What there is to do beside a guest that is here: first what must be over before it may be moved or saved.
    pub(super) fn plan_beside_guest(&self, state: &QemuState) -> Option<Plan> {
        self.plan_copies(state).or_else(|| self.plan_cdrom(state))
    }

    /// The next step of the copies that QEMU makes; `None` if there is nothing to do about them now.
    fn plan_copies(&self, state: &QemuState) -> Option<Plan> {
        let jobs = state.copies.as_ref()?;
        if let Some(plan) = self.ends_copy() {
            return Some(plan);
        }
        let job = |to: &CopyTo| jobs.iter().find(|job| job.to == *to);
        let may_begin = self.lease.fresh && !self.is_outdated;
        // What is kept or sent of one takes its time, in which others may be made.
        let new = self.open_copies().find(|to| may_begin && job(to).is_none());
        let is_done = |to: &CopyTo| job(to).is_some_and(|job| job.state == CopyJobState::Done);
        let to = new.or_else(|| self.open_copies().find(is_done))?;
        Some(Plan::act(Effect::Copy { to }))
    }

    /// The next step of the copies that are made where there is no QEMU; `None` when none is left to be made.
    pub(super) fn plan_copies_at_rest(&self) -> Option<Plan> {
        if let Some(plan) = self.ends_copy() {
            return Some(plan);
        }
        let to = self.open_copies().next()?;
        let may = self.memory.copies.begun.contains(&to) || self.lease.fresh && !self.is_outdated;
        Some(if may {
            Plan::act(Effect::CopyAtRest { to })
        } else {
            Plan::wait_ms(STEADY_MS)
        })
    }

    /// Those of which it is not known yet what becomes of them.
    fn open_copies(&self) -> impl Iterator<Item = CopyTo> + '_ {
        let copies = &self.memory.copies;
        let is_open = |to: &CopyTo| !copies.made.contains_key(to) && !copies.failed.contains_key(to);
        self.wanted_copies().filter(is_open)
    }

    /// Something of a copy is left that failed, or is not wanted any more.
    pub(super) fn ends_copy(&self) -> Option<Plan> {
        let copies = &self.memory.copies;
        let is_over =
            |to: &&CopyTo| copies.failed.contains_key(to) || self.wanted_copies().all(|other| other != **to);
        let to = *copies.begun.iter().find(is_over)?;
        Some(Plan::act(Effect::DropCopy { to }))
    }

    /// What is reported of them.
    pub(super) fn copies_told(&self) -> BTreeMap<CopyTo, CopyState> {
        let copies = &self.memory.copies;
        let begun = copies.begun.iter().filter(|_| !self.marks.closed);
        let begun = begun.map(|to| (*to, CopyState::UnderWay));
        let made = copies.made.iter().map(|(to, is_frozen)| {
            let is_frozen = *is_frozen;
            (*to, CopyState::Made { is_frozen })
        });
        let failed = copies.failed.iter().map(|(to, reason)| {
            let reason = reason.clone();
            (*to, CopyState::Failed { reason })
        });
        begun.chain(made).chain(failed).collect()
    }
}
