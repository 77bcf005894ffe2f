//! The rules of a VM, against one host.
//!
//! Rules between VMs hold both ways: a VM that keeps away from others is not met by them either. Where an affinity names
//! VMs of which none has a place yet, the first VM of the group may go anywhere: it is one of those it names. A VM that is
//! not waits for one.

use std::collections::BTreeMap;

use model::VmId;
use model::placement::{Affinity, DEDICATED, Peers, carries, shown};

use crate::{Guest, HostView, Refusal, Request};

/// What is known of all hosts before a single one is looked at: for each of the request's affinities to VMs, in their
/// order, whether one of those VMs has a place.
#[derive(Debug, Clone, Default)]
pub(crate) struct Group {
    has_place: Vec<bool>,
}

impl Group {
    pub(crate) fn of<'h, 'a: 'h>(
        request: &Request<'_>,
        hosts: impl Iterator<Item = &'h HostView<'a>>,
    ) -> Self {
        let wanted: Vec<_> = vm_affinities(request).collect();
        let mut has_place = vec![false; wanted.len()];
        if wanted.is_empty() {
            return Self { has_place };
        }
        for guest in hosts.flat_map(|host| &host.guests) {
            for (at, (labels, _)) in wanted.iter().enumerate() {
                has_place[at] |= guest.id != request.guest.id && carries(guest.labels, labels);
            }
        }
        Self { has_place }
    }

    /// Whether the request is the first of a group: what is decided then rests on there being no other.
    pub(crate) fn is_first(&self, request: &Request<'_>) -> bool {
        let hard = vm_affinities(request).zip(&self.has_place);
        let mut hard = hard.filter(|((_, soft), _)| !soft);
        hard.any(|(_, has_place)| !has_place)
    }
}

fn vm_affinities<'r>(request: &'r Request<'_>) -> impl Iterator<Item = (&'r BTreeMap<String, String>, bool)> {
    request
        .guest
        .rule
        .affinity
        .iter()
        .filter_map(|rule| match &rule.to {
            Peers::Vms(labels) => Some((labels, rule.soft)),
            _ => None,
        })
}

/// The hard rules that a host breaks.
pub(crate) fn broken(request: &Request<'_>, group: &Group, host: &HostView<'_>) -> Vec<Refusal> {
    let mut found: Vec<Refusal> = dedicated(request, host).into_iter().collect();
    found.extend(host_labels(request, host));
    found.extend(affinities(request, group, host, false));
    found.extend(apart(request, host, false));
    let kept_away = kept_away(request, host);
    // Two that keep apart from each other are said to do so once.
    let is_said = |by: &str| {
        let says = |refusal: &Refusal| matches!(refusal, Refusal::Apart { met, .. } if met == by);
        found.iter().any(says)
    };
    let kept_away: Vec<_> = kept_away.filter(|by| !is_said(by)).collect();
    found.extend(kept_away.into_iter().map(|by| Refusal::KeptAway { by }));
    found
}

/// How many soft rules a host breaks.
pub(crate) fn soft_broken(request: &Request<'_>, group: &Group, host: &HostView<'_>) -> usize {
    affinities(request, group, host, true).count() + apart(request, host, true).count()
}

/// A host that is kept for others.
fn dedicated(request: &Request<'_>, host: &HostView<'_>) -> Option<Refusal> {
    let kept_for = host.labels.get(DEDICATED)?;
    let rule = request.guest.rule;
    let asks_by = |labels: &BTreeMap<String, String>| labels.get(DEDICATED) == Some(kept_for);
    let asks = |affinity: &Affinity| match &affinity.to {
        Peers::HostLabels(labels) => !affinity.soft && asks_by(labels),
        _ => false,
    };
    let is_asked_for = asks_by(&rule.host_labels) || rule.affinity.iter().any(asks);
    (!is_asked_for).then(|| Refusal::Dedicated { to: kept_for.clone() })
}

fn host_labels<'r>(request: &'r Request<'_>, host: &'r HostView<'_>) -> impl Iterator<Item = Refusal> + 'r {
    let wanted = request.guest.rule.host_labels.iter();
    wanted
        .filter(|(key, value)| host.labels.get(*key) != Some(*value))
        .map(|(key, want)| Refusal::Label {
            key: key.clone(),
            want: want.clone(),
            have: host.labels.get(key).cloned(),
        })
}

/// The affinities of one strength that a host breaks.
fn affinities<'r>(
    request: &'r Request<'_>,
    group: &'r Group,
    host: &'r HostView<'_>,
    soft: bool,
) -> impl Iterator<Item = Refusal> + 'r {
    let mut at = 0;
    let numbered = request.guest.rule.affinity.iter().map(move |rule| {
        let number = at;
        at += usize::from(matches!(rule.to, Peers::Vms(_)));
        (number, rule)
    });
    numbered.filter_map(move |(number, rule)| {
        if rule.soft != soft {
            return None;
        }
        match &rule.to {
            Peers::Hosts(hosts) => (!hosts.contains(&host.id)).then_some(Refusal::NotNamed),
            Peers::HostLabels(labels) => {
                (!carries(host.labels, labels)).then(|| Refusal::NotLabelled { want: shown(labels) })
            }
            Peers::Vms(labels) => {
                let has_place = group.has_place.get(number).copied().unwrap_or(false);
                with_vms(request, labels, has_place, host)
            }
        }
    })
}

fn with_vms(
    request: &Request<'_>,
    labels: &BTreeMap<String, String>,
    has_place: bool,
    host: &HostView<'_>,
) -> Option<Refusal> {
    let is_there = others(request, host).any(|guest| is_company(guest, labels));
    let is_first = !has_place && carries(request.guest.labels, labels);
    (!is_there && !is_first).then(|| Refusal::NotWith {
        want: shown(labels),
        is_elsewhere: has_place,
    })
}

fn is_company(guest: &Guest<'_>, labels: &BTreeMap<String, String>) -> bool {
    !guest.is_leaving && carries(guest.labels, labels)
}

/// The VMs on a host by which it keeps the hard affinities, one for each.
pub(crate) fn company(request: &Request<'_>, host: &HostView<'_>) -> Vec<VmId> {
    let wanted = vm_affinities(request).filter(|(_, soft)| !soft);
    wanted
        .filter_map(|(labels, _)| others(request, host).find(|guest| is_company(guest, labels)))
        .map(|guest| guest.id)
        .collect()
}

/// The anti-affinities of one strength that a host breaks.
fn apart<'r>(
    request: &'r Request<'_>,
    host: &'r HostView<'_>,
    soft: bool,
) -> impl Iterator<Item = Refusal> + 'r {
    let rules = request.guest.rule.anti_affinity.iter();
    rules
        .filter(move |rule| rule.soft == soft)
        .filter_map(move |rule| match &rule.to {
            Peers::Hosts(hosts) => hosts.contains(&host.id).then_some(Refusal::Excluded),
            Peers::HostLabels(labels) => {
                carries(host.labels, labels).then(|| Refusal::Labelled { avoid: shown(labels) })
            }
            Peers::Vms(labels) => {
                let met = others(request, host).find(|guest| carries(guest.labels, labels))?;
                Some(Refusal::Apart {
                    from: shown(labels),
                    met: met.name.to_owned(),
                })
            }
        })
}

/// A VM on a host that keeps away from the one that is placed, by its name.
fn kept_away<'r>(request: &'r Request<'_>, host: &'r HostView<'_>) -> impl Iterator<Item = String> + 'r {
    let keeps_away = |guest: &&Guest<'_>| {
        let mut rules = guest.rule.anti_affinity.iter().filter(|rule| !rule.soft);
        rules.any(|rule| matches!(&rule.to, Peers::Vms(labels) if carries(request.guest.labels, labels)))
    };
    let met = others(request, host).find(keeps_away);
    met.into_iter().map(|guest| guest.name.to_owned())
}

fn others<'r, 'a>(request: &'r Request<'_>, host: &'r HostView<'a>) -> impl Iterator<Item = &'r Guest<'a>> {
    let id: VmId = request.guest.id;
    host.guests.iter().filter(move |guest| guest.id != id)
}
