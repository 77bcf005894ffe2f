//! Where a VM may run: its rules about hosts and about other VMs, and whether they can hold together.
//!
//! A rule to other VMs names them by labels, so that it holds for VMs that come later. A hard rule is kept whenever a
//! host is chosen, for a start and for a move; a soft one is kept when that costs nothing else. Rules do not move what
//! runs already.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::HostId;

/// The label of a host that takes only VMs which ask for it, with the same value, by their host labels.
pub const DEDICATED: &str = "dedicated";
/// The most VMs of a batch: what one transaction of every store can take.
pub const BATCH_MAX: u32 = 24;
/// The most rules of a VM.
pub const RULES_MAX: usize = 16;

/// Where a VM may run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementRule {
    /// It starts on this host only. It can be moved away while it runs; a rule that forbids that is an affinity.
    pub host: Option<HostId>,
    /// Only on hosts that carry all of these labels.
    #[serde(default)]
    pub host_labels: BTreeMap<String, String>,
    /// What it belongs with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<Affinity>,
    /// What it keeps away from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anti_affinity: Vec<Affinity>,
    /// Which of the hosts that fit is taken.
    #[serde(default, skip_serializing_if = "Strategy::is_default")]
    pub strategy: Strategy,
    /// The VMs that it is placed together with, all or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affinity {
    /// What it is about.
    pub to: Peers,
    /// Kept only where that is possible.
    #[serde(default)]
    pub soft: bool,
}

/// What a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peers {
    /// The other VMs that carry all of these labels: one of them at least for an affinity, each of them otherwise.
    Vms(BTreeMap<String, String>),
    /// These hosts.
    Hosts(BTreeSet<HostId>),
    /// The hosts that carry all of these labels.
    HostLabels(BTreeMap<String, String>),
}

/// Which of the hosts that fit is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The emptiest.
    #[default]
    Spread,
    /// The fullest.
    Pack,
}

/// VMs that are placed for the first time all together, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Batch {
    /// Chosen by whoever creates them.
    pub id: Uuid,
    /// How many they are.
    pub size: u32,
}

impl Strategy {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Labels as people write them.
pub fn shown(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join(",")
}

/// Whether labels hold all that are wanted.
pub fn carries(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A hard rule in a contradiction, in the words of the interface.
#[derive(Debug, Clone, Copy)]
enum Hard<'a> {
    Host(HostId),
    Labels(&'a BTreeMap<String, String>),
    With(&'a Peers),
    Apart(&'a Peers),
}

impl PlacementRule {
    /// Whether it says anything about other VMs.
    pub fn names_vms(&self) -> bool {
        let about_vms = |rule: &Affinity| matches!(rule.to, Peers::Vms(_));
        self.affinity.iter().any(about_vms) || self.anti_affinity.iter().any(about_vms)
    }

    /// Whether it keeps other VMs away.
    pub fn keeps_apart_from_vms(&self) -> bool {
        self.anti_affinity
            .iter()
            .any(|rule| matches!(rule.to, Peers::Vms(_)))
    }

    /// Two hard rules that no host can keep together, each in words.
    pub fn contradiction(&self) -> Option<(String, String)> {
        let all = self.hard();
        let pairs = all
            .iter()
            .enumerate()
            .flat_map(|(at, first)| all[at + 1..].iter().map(move |second| (first, second)));
        let mut pairs = pairs.filter(|(first, second)| first.excludes(second) || second.excludes(first));
        pairs
            .next()
            .map(|(first, second)| (first.to_string(), second.to_string()))
    }

    fn hard(&self) -> Vec<Hard<'_>> {
        fn hard(rule: &&Affinity) -> bool {
            !rule.soft
        }
        let host = self.host.into_iter().map(Hard::Host);
        let labels = (!self.host_labels.is_empty()).then_some(Hard::Labels(&self.host_labels));
        let with = self.affinity.iter().filter(hard).map(|rule| Hard::With(&rule.to));
        let apart = self
            .anti_affinity
            .iter()
            .filter(hard)
            .map(|rule| Hard::Apart(&rule.to));
        host.chain(labels).chain(with).chain(apart).collect()
    }
}

impl Hard<'_> {
    /// Whether a host that keeps this rule cannot keep the other.
    fn excludes(&self, other: &Self) -> bool {
        use Peers::{HostLabels, Hosts, Vms};
        match (*self, *other) {
            (Self::Host(host), Self::With(Hosts(hosts))) => !hosts.contains(&host),
            (Self::Host(host), Self::Apart(Hosts(hosts))) => hosts.contains(&host),
            (Self::With(Hosts(a)), Self::With(Hosts(b))) => a.is_disjoint(b),
            (Self::With(Hosts(a)), Self::Apart(Hosts(b))) => a.is_subset(b),
            (Self::Labels(a), Self::With(HostLabels(b)))
            | (Self::With(HostLabels(a)), Self::With(HostLabels(b))) => differ(a, b),
            (Self::Labels(a), Self::Apart(HostLabels(b)))
            | (Self::With(HostLabels(a)), Self::Apart(HostLabels(b))) => carries(a, b),
            // Whatever has the labels of the first has those of the second.
            (Self::With(Vms(a)), Self::Apart(Vms(b))) => carries(a, b),
            _ => false,
        }
    }
}

/// Whether a label has two values.
fn differ(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> bool {
    a.iter()
        .any(|(key, value)| b.get(key).is_some_and(|other| other != value))
}

impl fmt::Display for Hard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => write!(f, "host {host}"),
            Self::Labels(labels) => write!(f, "host_labels {}", shown(labels)),
            Self::With(peers) => write!(f, "affinity to {peers}"),
            Self::Apart(peers) => write!(f, "anti_affinity to {peers}"),
        }
    }
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vms(labels) => write!(f, "VMs with {}", shown(labels)),
            Self::Hosts(hosts) => {
                let ids: Vec<String> = hosts.iter().map(ToString::to_string).collect();
                write!(f, "hosts {}", ids.join(", "))
            }
            Self::HostLabels(labels) => write!(f, "hosts with {}", shown(labels)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    fn hard(to: Peers) -> Affinity {
        Affinity { to, soft: false }
    }

    fn hosts(ids: &[u128]) -> Peers {
        Peers::Hosts(ids.iter().map(|id| HostId(Uuid::from_u128(*id))).collect())
    }

    fn vms(text: &str) -> Peers {
        Peers::Vms(labels(text))
    }

    #[test]
    fn rules_that_no_host_can_keep_together_are_named() {
        let on = |text: &str| Peers::HostLabels(labels(text));
        for (with, apart, is_contradiction) in [
            (vec![vms("app=web,tier=a")], vec![vms("app=web")], true),
            (vec![vms("app=web")], vec![vms("app=web,tier=a")], false),
            (vec![hosts(&[1, 2])], vec![hosts(&[1])], false),
            (vec![hosts(&[1])], vec![hosts(&[1, 2])], true),
            (vec![hosts(&[1]), hosts(&[2])], vec![], true),
            (vec![on("disk=ssd"), on("disk=hdd")], vec![], true),
            (vec![on("disk=ssd,rack=a")], vec![on("rack=a")], true),
            (vec![], vec![vms("app=web"), hosts(&[1])], false),
        ] {
            let mut rule = PlacementRule {
                affinity: with.into_iter().map(hard).collect(),
                anti_affinity: apart.into_iter().map(hard).collect(),
                ..PlacementRule::default()
            };
            let found = rule.contradiction();
            assert_eq!(found.is_some(), is_contradiction, "{rule:?}: {found:?}");
            for soft in rule.anti_affinity.iter_mut().chain(&mut rule.affinity) {
                soft.soft = true;
            }
            assert_eq!(rule.contradiction(), None, "soft rules give way");
        }
    }

    #[test]
    fn the_asked_host_and_labels_are_rules_too() {
        let mut rule = PlacementRule {
            host: Some(HostId(Uuid::from_u128(1))),
            ..PlacementRule::default()
        };
        rule.anti_affinity = vec![hard(hosts(&[1]))];
        assert!(rule.contradiction().is_some());
        rule.host = None;
        rule.host_labels = labels("disk=ssd");
        rule.affinity = vec![hard(Peers::HostLabels(labels("disk=hdd")))];
        let (first, second) = rule.contradiction().unwrap();
        assert_eq!(
            (first.as_str(), second.as_str()),
            ("host_labels disk=ssd", "affinity to hosts with disk=hdd")
        );
    }
}
