//! Why a VM is where it is and not elsewhere, as things are now.

use model::{HostId, Reason, Timestamp, VmId};
use scheduler::{HostView, Refusal, qemu_part_mib};

use crate::placement::{Sees, host_views, move_request, start_request};
use crate::view::View;

/// What is to be said of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfHost {
    /// Which one.
    pub host: HostId,
    /// The VM is there.
    pub is_here: bool,
    /// Everything that keeps the VM from it; nothing if it fits.
    pub obstacles: Vec<Reason>,
    /// What guests may use of its memory that is not reserved.
    pub free_mib: u64,
    /// What guests may use of its memory.
    pub total_mib: u64,
}

/// Why a VM is where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What it takes on a host, QEMU's own part included.
    pub needs_mib: u64,
    /// Of this, QEMU's own part.
    pub overhead_mib: u64,
    /// Virtual processors that it takes.
    pub needs_vcpus: u32,
    /// Every host, in their order.
    pub hosts: Vec<OfHost>,
    /// The least that would have to change for another host to take it; `None` if one does.
    pub smallest_change: Option<String>,
}

/// Why a VM is where it is, or why it has no place.
pub fn explain(view: &View, id: VmId, now: Timestamp) -> Option<Explanation> {
    let vm = view.vms.get(&id)?;
    let object = &vm.object.as_ref()?.value;
    let intent = vm.intent.as_ref().map(|at| &at.value);
    let open = intent.and_then(|intent| intent.host.zip(intent.open.as_ref()));
    let memory_mib = match (open, intent.and_then(|intent| intent.saved.as_ref())) {
        (Some((_, open)), _) => open.memory_mib,
        (None, Some(saved)) => saved.memory_mib,
        (None, None) => object.spec.memory_mib,
    };
    let request = match open {
        Some((host, open)) => move_request(view, object, open, host),
        None => start_request(object, intent.and_then(|intent| intent.saved.as_ref())),
    };
    let hosts: Vec<HostView<'_>> = host_views(view, Sees::All, now).collect();
    let obstacles = scheduler::obstacles(&request, &hosts);
    let has_place = obstacles.iter().any(Vec::is_empty);
    let smallest_change = (!has_place)
        .then(|| scheduler::smallest_change(&request, &hosts))
        .flatten();
    let of_host = |(host, all): (&HostView<'_>, Vec<Refusal>)| {
        let is_here = open.is_some_and(|(here, _)| here == host.id);
        let shown = |refusal: Refusal| Reason::new(refusal.code(), refusal.message());
        OfHost {
            host: host.id,
            is_here,
            obstacles: if is_here {
                Vec::new()
            } else {
                all.into_iter().map(shown).collect()
            },
            free_mib: host.memory_mib.saturating_sub(host.reserved_mib),
            total_mib: host.memory_mib,
        }
    };
    Some(Explanation {
        needs_mib: request.memory_mib,
        overhead_mib: qemu_part_mib(memory_mib, request.vcpus),
        needs_vcpus: request.vcpus,
        hosts: hosts.iter().zip(obstacles).map(of_host).collect(),
        smallest_change,
    })
}
