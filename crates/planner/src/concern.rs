//! Whose desired document may have changed: what spares looking at every host's whenever anything changes.
//!
//! **Owns:** what of the store stood in hosts' documents when it was looked at last.
//!
//! **Does not know:** what the documents say: [`crate::document`] builds them, and whoever is told here to look again
//! may find that nothing changed.
//!
//! **Start here:** [`Concerns::next`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::{HostId, Kind, MigrationId, VmId};
use uuid::Uuid;

use crate::view::View;

/// The hosts whose documents may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concerned {
    /// Any host's.
    All,
    /// These, and no others.
    Hosts(BTreeSet<HostId>),
}

/// What stood in documents.
#[derive(Debug, Clone, Default)]
pub struct Concerns {
    /// The hosts that each VM had to do with.
    hosts_of: BTreeMap<VmId, BTreeSet<HostId>>,
    /// Each network's number.
    vnis: BTreeMap<Uuid, u32>,
    /// Where the hosts that are alive are reached by others.
    addresses: BTreeMap<HostId, IpAddr>,
    /// Something stands in all documents, or in none.
    is_odd: bool,
}

impl Concerns {
    /// Every host knows its document as it is now.
    pub fn new(view: &View) -> Self {
        let vms = view.vms.keys().map(|id| (*id, view.hosts_of_vm(*id)));
        let hosts = view.hosts.keys();
        Self {
            hosts_of: vms.filter(|(_, hosts)| !hosts.is_empty()).collect(),
            vnis: view
                .networks
                .keys()
                .filter_map(|id| Some((*id, vni(view, *id)?)))
                .collect(),
            addresses: hosts.filter_map(|id| Some((*id, address(view, *id)?))).collect(),
            is_odd: is_odd(view),
        }
    }

    /// Whom it concerns that these objects have changed, and led to this view.
    pub fn next(&mut self, view: &View, changed: impl IntoIterator<Item = (Kind, Uuid)>) -> Concerned {
        let was_odd = std::mem::replace(&mut self.is_odd, is_odd(view));
        let mut hosts = BTreeSet::new();
        let mut is_all = was_odd || self.is_odd;
        for (kind, id) in changed {
            match kind {
                Kind::Vm => self.note_vm(view, VmId(id), &mut hosts),
                Kind::Migration => {
                    let object = view
                        .migrations
                        .get(&MigrationId(id))
                        .and_then(|it| it.object.as_ref());
                    if let Some(object) = object {
                        self.note_vm(view, object.value.spec.vm, &mut hosts);
                    }
                }
                Kind::Host => self.note_host(view, HostId(id), &mut hosts),
                Kind::Network => is_all |= set(&mut self.vnis, id, vni(view, id)),
                Kind::Image | Kind::Datastore => is_all = true,
                Kind::Template | Kind::Profile | Kind::Operation | Kind::Event => {}
            }
        }
        if is_all {
            Concerned::All
        } else {
            Concerned::Hosts(hosts)
        }
    }

    /// Those that it leaves hear of it too.
    fn note_vm(&mut self, view: &View, id: VmId, hosts: &mut BTreeSet<HostId>) {
        let now = view.hosts_of_vm(id);
        hosts.extend(&now);
        let before = if now.is_empty() {
            self.hosts_of.remove(&id)
        } else {
            self.hosts_of.insert(id, now)
        };
        hosts.extend(before.into_iter().flatten());
    }

    /// A host that is reached elsewhere concerns all that have VMs, for the sake of their networks.
    fn note_host(&mut self, view: &View, id: HostId, hosts: &mut BTreeSet<HostId>) {
        hosts.insert(id);
        if set(&mut self.addresses, id, address(view, id)) {
            hosts.extend(self.hosts_of.values().flatten());
        }
    }
}

/// Whether that is something else than before.
fn set<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    let is_same = map.get(&key) == value.as_ref();
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
    !is_same
}

fn vni(view: &View, id: Uuid) -> Option<u32> {
    Some(view.networks.get(&id)?.value.spec.vni)
}

fn address(view: &View, id: HostId) -> Option<IpAddr> {
    let host = view.hosts.get(&id).filter(|host| !host.is_dead())?;
    Some(host.status.as_ref()?.value.peer_address?.ip())
}

/// What is unreadable stands in every document; and a store that is held has none.
fn is_odd(view: &View) -> bool {
    view.is_held() || !view.unreadable.is_empty()
}
