//! The end of a VM: its volumes, then its records.

use model::report::RunState;
use model::vm::VmIntent;
use model::{HostId, Kind, key};

use super::{Step, release};
use crate::operation;
use crate::plan::Decision;

impl Step<'_> {
    /// Nothing runs and the VM is to go: its volumes first, then its records.
    pub(super) fn deleted(&self) -> Decision {
        if self.is_being_written() {
            return Decision::nothing();
        }
        if let Some(user) = self.layer_of() {
            return Decision::wait_for(vec![user]);
        }
        let intent = self.intent();
        let removed = self.vm.runs.values().any(|run| run.state == RunState::Removed);
        if !intent.has_volumes || removed {
            return self.forget();
        }
        let lost = |host: HostId| self.view.hosts.get(&host).is_none_or(|host| host.is_dead());
        if intent.host.is_some_and(|host| !lost(host)) {
            return Decision::nothing();
        }
        // Any other host that sees the datastore can remove them.
        let Some(other) = self.view.hosts.keys().copied().find(|id| !lost(*id)) else {
            return Decision::nothing();
        };
        let mut plan = self.begin("find another host to remove");
        self.set_intent(
            &mut plan,
            &VmIntent {
                host: Some(other),
                ..intent
            },
        );
        plan.into()
    }

    /// All that the VM owned is gone: its records go too.
    pub(super) fn forget(&self) -> Decision {
        let intent = self.intent();
        let meta = &self.object.value.meta;
        let is_clear = self
            .view
            .active_migrations(self.id)
            .all(|(_, migration)| migration.intent.is_none());
        if !is_clear {
            return Decision::nothing();
        }
        let mut plan = self.begin("remove");
        plan.remove(key::object(Kind::Vm, self.id.0), self.object.revision);
        if let Some(at) = &self.vm.intent {
            plan.remove(key::vm_intent(self.id), at.revision);
        }
        for (incarnation, revision) in &self.vm.run_revisions {
            plan.remove(key::vm_run(self.id, *incarnation), *revision);
        }
        plan.writes.insert(
            key::name_index(Kind::Vm, meta.project.as_deref(), &meta.name),
            None,
        );
        for nic in &self.spec().nics {
            if let Some(address) = nic.address {
                plan.writes
                    .insert(key::network_address(nic.network, address), None);
            }
        }
        if let (Some(host), Some(open)) = (intent.host, &intent.open) {
            release(self.view, &mut plan, host, self.id, open.incarnation);
        }
        operation::bury(self.view, &mut plan, self.id, self.now);
        plan.into()
    }
}
