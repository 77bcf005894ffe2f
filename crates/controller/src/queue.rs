//! What has to be looked at: each item once, however often it is named, and the times at which to look again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use model::{HostId, Kind, MigrationId, TemplateId, Timestamp, VmId};
use planner::{Decision, View};
use uuid::Uuid;

/// Something that the planner has a next step for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// A VM, or what is left of one.
    Vm(VmId),
    /// A migration.
    Migration(MigrationId),
    /// A host that is being emptied.
    Host(HostId),
    /// A template that is kept warm, or was.
    Template(TemplateId),
}

/// The items to look at, in the order in which they were named first.
#[derive(Debug, Default)]
pub struct Queue {
    order: VecDeque<Item>,
    queued: BTreeSet<Item>,
    timers: BTreeMap<Item, Timestamp>,
    /// When it was asked last what is due.
    rung_at: Option<Timestamp>,
    /// Items that nothing could be done for: a change of any host or image may help.
    waiting: BTreeSet<Item>,
    /// The items that a VM's next change, or its end, may matter to.
    awaiting: BTreeMap<VmId, BTreeSet<Item>>,
}

impl Queue {
    /// Everything, as after a start.
    pub fn of(view: &View) -> Self {
        let mut queue = Self::default();
        for id in view.vms_and_former() {
            queue.push(Item::Vm(id));
        }
        for (id, _) in view.all_active_migrations() {
            queue.push(Item::Migration(id));
        }
        for id in view.hosts.keys() {
            queue.push(Item::Host(*id));
        }
        for id in view.kept_templates() {
            queue.push(Item::Template(id));
        }
        queue
    }

    /// Names an item; a no-op if it is named already.
    pub fn push(&mut self, item: Item) {
        if self.queued.insert(item) {
            self.order.push_back(item);
        }
    }

    /// Names all that a changed object may matter to.
    pub fn wake(&mut self, view: &View, kind: Kind, id: Uuid) {
        match kind {
            Kind::Vm => {
                self.push(Item::Vm(VmId(id)));
                for item in self.awaiting.remove(&VmId(id)).unwrap_or_default() {
                    self.push(item);
                }
            }
            Kind::Migration => {
                self.push(Item::Migration(MigrationId(id)));
                let waits = |migration: &planner::view::Migration| migration.intent.is_none();
                for (other, _) in view
                    .all_active_migrations()
                    .filter(|(_, migration)| waits(migration))
                {
                    self.push(Item::Migration(other));
                }
            }
            Kind::Host | Kind::Image => {
                self.wake_waiting();
                if kind == Kind::Host {
                    self.push(Item::Host(HostId(id)));
                }
            }
            Kind::Template => self.push(Item::Template(TemplateId(id))),
            _ => {}
        }
        // What of a host matters to its VMs is named as a change of theirs.
        let affected = if kind == Kind::Host {
            Vec::new()
        } else {
            view.affected(kind, id)
        };
        for (kind, id) in affected {
            match kind {
                Kind::Vm => self.push(Item::Vm(VmId(id))),
                Kind::Migration => self.push(Item::Migration(MigrationId(id))),
                Kind::Host => self.push(Item::Host(HostId(id))),
                Kind::Template => self.push(Item::Template(TemplateId(id))),
                _ => {}
            }
        }
    }

    /// Names all that waits for something to change elsewhere.
    pub fn wake_waiting(&mut self) {
        for item in std::mem::take(&mut self.waiting) {
            self.push(item);
        }
    }

    /// How many items are named.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The next so many items.
    pub fn next(&self, items: usize) -> impl Iterator<Item = Item> + '_ {
        self.order.iter().take(items).copied()
    }

    /// The next item.
    pub fn pop(&mut self) -> Option<Item> {
        let item = self.order.pop_front()?;
        self.queued.remove(&item);
        self.waiting.remove(&item);
        Some(item)
    }

    /// Nothing is to be done for an item now.
    pub fn wait(&mut self, item: Item, decision: &Decision) {
        if decision.is_waiting {
            self.waiting.insert(item);
        }
        for vm in &decision.awaits {
            self.awaiting.entry(*vm).or_default().insert(item);
        }
        match decision.look_again_at {
            Some(at) => self.timers.insert(item, at),
            None => self.timers.remove(&item),
        };
    }

    /// Names the items whose time has come; returns when the next one's comes. When the clock was set back all are named:
    /// what they wait for may be due a day later than it was meant to be.
    pub fn ring(&mut self, now: Timestamp) -> Option<Timestamp> {
        let went_back = self.rung_at.replace(now).is_some_and(|last| now < last);
        let due: Vec<_> = self
            .timers
            .iter()
            .filter(|(_, at)| went_back || **at <= now)
            .map(|(item, _)| *item)
            .collect();
        for item in due {
            self.timers.remove(&item);
            self.push(item);
        }
        self.timers.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_named_twice_is_looked_at_once_and_timers_ring() {
        let (a, b) = (
            Item::Vm(VmId(Uuid::from_u128(1))),
            Item::Vm(VmId(Uuid::from_u128(2))),
        );
        let mut queue = Queue::default();
        queue.push(a);
        queue.push(b);
        queue.push(a);
        assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some(a), Some(b), None));
        let at = Timestamp::from_second(10).unwrap();
        queue.wait(a, &Decision::wait_until(at));
        assert_eq!(queue.ring(Timestamp::from_second(9).unwrap()), Some(at));
        assert_eq!(queue.pop(), None);
        assert_eq!(queue.ring(at), None);
        assert_eq!(queue.pop(), Some(a));
    }

    #[test]
    fn a_clock_that_is_set_back_rings_all_timers() {
        let (a, b) = (
            Item::Vm(VmId(Uuid::from_u128(1))),
            Item::Vm(VmId(Uuid::from_u128(2))),
        );
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut queue = Queue::default();
        queue.wait(a, &Decision::wait_until(at(100_010)));
        queue.wait(b, &Decision::wait_until(at(200_000)));
        assert_eq!(queue.ring(at(100_000)), Some(at(100_010)));
        assert_eq!(queue.ring(at(13_600)), None);
        assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some(a), Some(b), None));
    }

    #[test]
    fn a_host_wakes_what_waits() {
        let a = Item::Vm(VmId(Uuid::from_u128(1)));
        let mut queue = Queue::default();
        queue.wait(a, &Decision::wait_for_room());
        queue.wake(&View::default(), Kind::Host, Uuid::from_u128(9));
        assert_eq!(queue.pop(), Some(a));
    }

    #[test]
    fn a_vm_wakes_what_waits_for_it_once() {
        let (vm, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let template = Item::Template(TemplateId(Uuid::from_u128(3)));
        let mut queue = Queue::default();
        let decision = Decision {
            awaits: vec![VmId(vm)],
            ..Decision::nothing()
        };
        queue.wait(template, &decision);
        for (id, woken) in [(other, None), (vm, Some(template)), (vm, None)] {
            queue.wake(&View::default(), Kind::Vm, id);
            assert_eq!(queue.pop(), Some(Item::Vm(VmId(id))));
            assert_eq!(queue.pop(), woken);
        }
    }
}
