//! The core of a host: which of its documents counts, and what the newest one and the connection say to each incarnation.
//!
//! **Owns:** the newest document, the lease, and whose `go` is taken.
//!
//! **Does not know:** what an order leads to ([`crate::Core`]), how documents arrive, and where the last one is kept.
//!
//! **Start here:** [`HostCore`].
//!
//! A document that arrives counts in two steps, with a crash possible in between: [`HostCore::admits`] it, the shell makes
//! it durable, and then it is [`HostCore::obey`]ed.

use std::collections::BTreeSet;

use model::document::{HostDocument, Order, VmDocument};
use model::report::{RunState, RunStatus};
use model::{HostId, Incarnation, Reason, VmId};

use crate::types::{Input, Lease};

/// What the host's documents and connection say to one incarnation: always the latest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orders {
    /// The newest document's revision, and what it says of the incarnation.
    pub desired: Option<(u64, Option<Box<VmDocument>>)>,
    /// Why there is no document.
    pub unreadable: Option<Reason>,
    /// The connection.
    pub lease: Lease,
}

impl Orders {
    /// What a core that was told `old` has to be told. Documents come before the lease that they make fresh.
    pub fn news(self, old: &Self) -> Vec<Input> {
        let unreadable = self
            .unreadable
            .filter(|reason| old.unreadable.as_ref() != Some(reason));
        let desired = self
            .desired
            .filter(|desired| old.desired.as_ref() != Some(desired));
        let lease = Some(self.lease).filter(|lease| *lease != old.lease);
        let desired = desired.map(|(revision, document)| Input::Desired { revision, document });
        let unreadable = unreadable.map(Input::Unreadable).into_iter();
        unreadable.chain(desired).chain(lease.map(Input::Lease)).collect()
    }
}

/// What a host obeys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCore {
    id: HostId,
    /// Of the last document that was obeyed, also by an agent before this one.
    revision: u64,
    document: Option<HostDocument>,
    unreadable: Option<Reason>,
    lease: Lease,
}

impl HostCore {
    /// A host whose journal says that it obeyed the document of `revision` last, with what was kept of it: it counts, and
    /// is not fresh.
    pub fn new(id: HostId, revision: u64, kept: Result<Option<HostDocument>, Reason>) -> Self {
        let (document, unreadable) = match kept {
            Ok(document) => (document, None),
            Err(reason) => (None, Some(reason)),
        };
        Self {
            id,
            revision,
            document,
            unreadable,
            lease: Lease::default(),
        }
    }

    /// Why there is no document, if one that was obeyed cannot be used.
    pub const fn unreadable(&self) -> Option<&Reason> {
        self.unreadable.as_ref()
    }

    /// The revision of the last document that was obeyed.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// A server answers.
    pub fn connected(&mut self) {
        self.lease = Lease {
            live: true,
            fresh: false,
        };
    }

    /// No server is heard any more.
    pub fn lost(&mut self) {
        self.lease = Lease::default();
    }

    /// Whether a document may be obeyed once it is durable.
    pub fn admits(&self, document: &HostDocument) -> bool {
        document.host == self.id && document.revision >= self.revision
    }

    /// Obeys a document that is admitted and durable, and was read in the connection that there is.
    pub fn obey(&mut self, document: HostDocument) {
        self.revision = document.revision;
        self.unreadable = None;
        self.document = Some(document);
        self.lease = Lease {
            live: true,
            fresh: true,
        };
    }

    /// The incarnations that the document names.
    pub fn named(&self) -> BTreeSet<(VmId, Incarnation)> {
        let vms = self.document.iter().flat_map(|document| &document.vms);
        vms.map(|(vm, document)| (*vm, document.incarnation)).collect()
    }

    /// What is said to an incarnation now.
    pub fn orders(&self, vm: VmId, incarnation: Incarnation) -> Orders {
        let is_unreadable = |document: &HostDocument| document.unreadable.contains(&vm);
        if self.document.as_ref().is_some_and(is_unreadable) {
            let message =
                "the VM's stored record cannot be read, so nothing is changed about it: see the server's log";
            return Orders {
                desired: None,
                unreadable: Some(Reason::new("record-unreadable", message)),
                lease: self.lease,
            };
        }
        let desired = self.document.as_ref().map(|document| {
            let about = document
                .vms
                .get(&vm)
                .filter(|about| about.incarnation == incarnation);
            (document.revision, about.cloned().map(Box::new))
        });
        Orders {
            desired,
            unreadable: self.unreadable.clone(),
            lease: self.lease,
        }
    }

    /// The host from which `go` for M is taken, if this one is to be its target.
    pub fn source_of(&self, vm: VmId, from: Incarnation, to: Incarnation) -> Option<HostId> {
        let about = self.document.as_ref()?.vms.get(&vm)?;
        match &about.order {
            Order::Target(target) if about.incarnation == to && target.from == from => Some(target.host),
            _ => None,
        }
    }
}

/// Whether a document that was kept is the one that the journal speaks of. It is written before its revision is: it may
/// be ahead, and counts only when a server repeats it.
pub fn is_kept(document: &HostDocument, host: HostId, revision: u64) -> bool {
    document.revision == revision && document.host == host
}

/// Whether a target's guest is here: the answer to `go`.
pub fn has_arrived(run: &RunStatus) -> bool {
    run.ran && matches!(run.state, RunState::Running | RunState::Paused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostId {
        "01900000-0000-7000-8000-00000000000a".parse().unwrap()
    }

    fn vm() -> VmId {
        "01900000-0000-7000-8000-000000000001".parse().unwrap()
    }

    fn document(revision: u64) -> HostDocument {
        HostDocument {
            revision,
            host: host(),
            vms: Default::default(),
            unreadable: Default::default(),
            networks: Default::default(),
        }
    }

    #[test]
    fn documents_count_by_rising_revision_and_only_for_their_host() {
        let mut core = HostCore::new(host(), 5, Ok(Some(document(5))));
        assert!(!core.admits(&document(4)));
        assert!(core.admits(&document(5)), "a server repeats it");
        core.obey(document(7));
        assert!(!core.admits(&document(6)));
        let other = HostDocument {
            host: "01900000-0000-7000-8000-00000000000b".parse().unwrap(),
            ..document(8)
        };
        assert!(!core.admits(&other));
    }

    #[test]
    fn a_kept_document_is_not_fresh_and_a_new_connection_makes_none_so() {
        let mut core = HostCore::new(host(), 5, Ok(Some(document(5))));
        let lease = |core: &HostCore| core.orders(vm(), Incarnation(1)).lease;
        assert_eq!(lease(&core), Lease::default());
        core.obey(document(6));
        assert!(lease(&core).fresh);
        core.lost();
        core.connected();
        assert_eq!(
            lease(&core),
            Lease {
                live: true,
                fresh: false
            }
        );
    }

    #[test]
    fn a_vm_whose_record_is_unreadable_is_told_so_and_nothing_else() {
        let mut core = HostCore::new(host(), 0, Ok(None));
        core.obey(HostDocument {
            unreadable: [vm()].into(),
            ..document(1)
        });
        let orders = core.orders(vm(), Incarnation(1));
        assert_eq!(orders.desired, None);
        assert!(orders.unreadable.is_some());
    }

    #[test]
    fn a_document_is_told_before_the_lease_that_it_makes_fresh() {
        let mut core = HostCore::new(host(), 0, Ok(None));
        let before = core.orders(vm(), Incarnation(1));
        core.obey(document(1));
        let news = core.orders(vm(), Incarnation(1)).news(&before);
        assert!(matches!(
            news[..],
            [Input::Desired { revision: 1, .. }, Input::Lease(_)]
        ));
        let orders = core.orders(vm(), Incarnation(1));
        assert_eq!(orders.clone().news(&orders), []);
    }
}
