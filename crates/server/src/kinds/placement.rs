//! Where a VM may run, between the wire and the store, and why it runs where it does.

use std::collections::BTreeSet;

use api::Problem;
use api::placement::{AffinitySpec, Explanation, HostExplanation, PeersSpec, PlacementSpec};
use model::limits::{check_labels, check_range};
use model::placement::{Affinity, BATCH_MAX, Peers, PlacementRule, RULES_MAX};
use model::{HostId, Kind, Timestamp, VmId};
use planner::View;
use uuid::Uuid;

use super::{drain, find, host_name, name_of};
use crate::service::Context;

/// Reads a request's rules, and refuses those that no host can keep.
pub(super) fn rule(context: &Context<'_>, spec: PlacementSpec) -> Result<PlacementRule, Problem> {
    let host = spec
        .host
        .as_deref()
        .map(|name| find(context, Kind::Host, name).map(HostId))
        .transpose()?;
    check_labels(&spec.host_labels)?;
    let rules = spec.affinity.len().saturating_add(spec.anti_affinity.len());
    check_range("the number of rules", rules as u64, 0, RULES_MAX as u64)?;
    if let Some(batch) = spec.batch {
        check_range(
            "the size of the batch",
            u64::from(batch.size),
            1,
            u64::from(BATCH_MAX),
        )?;
    }
    let all = |rules: Vec<AffinitySpec>| {
        rules
            .into_iter()
            .map(|rule| affinity(context, rule))
            .collect::<Result<Vec<_>, _>>()
    };
    let rule = PlacementRule {
        host,
        host_labels: spec.host_labels,
        affinity: all(spec.affinity)?,
        anti_affinity: all(spec.anti_affinity)?,
        strategy: spec.strategy,
        batch: spec.batch,
    };
    match rule.contradiction() {
        None => Ok(rule),
        Some((first, second)) => {
            let named = |text: &str| with_names(context.view, text);
            let detail = format!(
                "no host can keep both {} and {}: drop one of them, or make it soft",
                named(&first),
                named(&second)
            );
            Err(Problem::invalid("rules-contradict", detail))
        }
    }
}

fn affinity(context: &Context<'_>, rule: AffinitySpec) -> Result<Affinity, Problem> {
    let empty = || {
        let detail = "a rule names at least one label or host: leave the rule out, or say what it is about";
        Problem::invalid("empty-rule", detail)
    };
    let to = match rule.to {
        PeersSpec::Vms(labels) | PeersSpec::HostLabels(labels) if labels.is_empty() => return Err(empty()),
        PeersSpec::Hosts(names) if names.is_empty() => return Err(empty()),
        PeersSpec::Vms(labels) => {
            check_labels(&labels)?;
            Peers::Vms(labels)
        }
        PeersSpec::HostLabels(labels) => {
            check_labels(&labels)?;
            Peers::HostLabels(labels)
        }
        PeersSpec::Hosts(names) => {
            let ids: Result<BTreeSet<HostId>, Problem> =
                names.iter().map(|name| host_id(context, name)).collect();
            Peers::Hosts(ids?)
        }
    };
    Ok(Affinity { to, soft: rule.soft })
}

/// A host by its name or id; the id of one that was removed may stay in a rule.
fn host_id(context: &Context<'_>, name: &str) -> Result<HostId, Problem> {
    let gone = || name.parse::<Uuid>().ok().map(HostId);
    find(context, Kind::Host, name)
        .map(HostId)
        .or_else(|problem| gone().ok_or(problem))
}

/// Names in place of the hosts' ids.
fn with_names(view: &View, text: &str) -> String {
    view.hosts.iter().fold(text.to_owned(), |text, (id, host)| {
        text.replace(&id.to_string(), host.name())
    })
}

/// The rules as they are shown.
pub(super) fn shown(view: &View, rule: &PlacementRule) -> PlacementSpec {
    let all = |rules: &[Affinity]| {
        let shown = |rule: &Affinity| AffinitySpec {
            to: match &rule.to {
                Peers::Vms(labels) => PeersSpec::Vms(labels.clone()),
                Peers::HostLabels(labels) => PeersSpec::HostLabels(labels.clone()),
                Peers::Hosts(hosts) => {
                    PeersSpec::Hosts(hosts.iter().map(|host| host_name(view, *host)).collect())
                }
            },
            soft: rule.soft,
        };
        rules.iter().map(shown).collect()
    };
    PlacementSpec {
        host: rule.host.map(|id| host_name(view, id)),
        host_labels: rule.host_labels.clone(),
        affinity: all(&rule.affinity),
        anti_affinity: all(&rule.anti_affinity),
        strategy: rule.strategy,
        batch: rule.batch,
    }
}

/// Why a VM is where it is and not elsewhere.
pub fn explanation(view: &View, id: VmId, now: Timestamp) -> Option<Explanation> {
    let found = planner::explain::explain(view, id, now)?;
    let (phase, _) = view.phase(id)?;
    let name = name_of(view, Kind::Vm, id.0);
    let host = view
        .vms
        .get(&id)
        .and_then(|vm| vm.intent.as_ref()?.value.host)
        .filter(|id| view.hosts.contains_key(id));
    let drain = host.and_then(|host| drain::status(view, host));
    let drain = drain.and_then(|drain| drain.vms.into_iter().find(|vm| vm.vm == name));
    let hosts = found.hosts.into_iter().map(|of| HostExplanation {
        host: host_name(view, of.host),
        is_here: of.is_here,
        fits: of.is_here || of.obstacles.is_empty(),
        obstacles: of.obstacles,
        free_mib: of.free_mib,
        total_mib: of.total_mib,
    });
    Some(Explanation {
        vm: name,
        phase,
        host: host.map(|host| host_name(view, host)),
        needs_mib: found.needs_mib,
        overhead_mib: found.overhead_mib,
        needs_vcpus: found.needs_vcpus,
        drain,
        hosts: hosts.collect(),
        smallest_change: found.smallest_change,
    })
}
