//! Where a VM may run, and why it runs where it does.

use std::collections::BTreeMap;

use model::Reason;
use model::lifecycle::Phase;
use model::placement::{Batch, Strategy};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::resource::Labels;

/// Where a VM may run. Rules hold whenever a host is chosen, for a start and for a move; they do not move what runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementSpec {
    /// It starts on this host only. It can be moved away while it runs: an affinity to hosts forbids that too.
    pub host: Option<String>,
    /// Only on hosts with all of these labels. A host with the label `dedicated` takes only VMs that ask for it here.
    #[schemars(with = "Labels")]
    pub host_labels: BTreeMap<String, String>,
    /// What it belongs with.
    pub affinity: Vec<AffinitySpec>,
    /// What it keeps away from.
    pub anti_affinity: Vec<AffinitySpec>,
    /// Which of the hosts that fit is taken: the emptiest, or with `pack` the fullest.
    pub strategy: Strategy,
    /// The VMs that it is placed together with for the first time, all or none.
    pub batch: Option<Batch>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AffinitySpec {
    /// What it is about.
    pub to: PeersSpec,
    /// Kept only where that is possible.
    #[serde(default)]
    pub soft: bool,
}

/// What a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PeersSpec {
    /// The other VMs that carry all of these labels: one of them at least for an affinity, each of them otherwise.
    Vms(#[schemars(with = "Labels")] BTreeMap<String, String>),
    /// These hosts.
    Hosts(Vec<String>),
    /// The hosts that carry all of these labels.
    HostLabels(#[schemars(with = "Labels")] BTreeMap<String, String>),
}

/// Why a VM is where it is and not elsewhere, as things are now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The VM.
    pub vm: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// The host that holds it.
    pub host: Option<String>,
    /// What it takes on a host, in MiB, with QEMU's own part.
    pub needs_mib: u64,
    /// Of this, QEMU's own part.
    pub overhead_mib: u64,
    /// Virtual processors that it takes.
    pub needs_vcpus: u32,
    /// What its host's drain says of it, if its host is drained.
    pub drain: Option<crate::drain::DrainVm>,
    /// Every host, with what keeps the VM from it.
    pub hosts: Vec<HostExplanation>,
    /// The least that would have to change for another host to take it; `null` if one does.
    pub smallest_change: Option<String>,
}

/// What is to be said of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostExplanation {
    /// The host.
    pub host: String,
    /// Whether the VM is there.
    pub is_here: bool,
    /// Whether it would take the VM.
    pub fits: bool,
    /// Everything that keeps the VM from it.
    pub obstacles: Vec<Reason>,
    /// What is free of it for guests, in MiB.
    pub free_mib: u64,
    /// What guests may use of it, in MiB.
    pub total_mib: u64,
}
