//! Placement over random hosts, VMs and rules: what is returned keeps every hard rule, and a refusal is right.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use model::placement::{Affinity, Peers, PlacementRule, Strategy as Order, carries};
use model::{HostId, Timestamp, VmId};
use proptest::prelude::*;
use scheduler::{Closed, Fleet, Guest, HostView, Request, obstacles, place};
use uuid::Uuid;

type Labels = BTreeMap<String, String>;

#[derive(Debug, Clone)]
struct Host {
    id: HostId,
    name: String,
    labels: Labels,
    closed: Option<Closed>,
    memory_mib: u64,
    reserved_mib: u64,
    vcpus: u32,
    reserved_vcpus: u32,
    model: &'static str,
    guests: Vec<Vm>,
}

#[derive(Debug, Clone)]
struct Vm {
    id: VmId,
    name: String,
    labels: Labels,
    rule: PlacementRule,
    memory_mib: u64,
}

impl Vm {
    fn guest(&self) -> Guest<'_> {
        Guest {
            id: self.id,
            name: &self.name,
            labels: &self.labels,
            rule: &self.rule,
            is_leaving: false,
        }
    }

    fn request(&self) -> Request<'_> {
        Request {
            guest: self.guest(),
            memory_mib: self.memory_mib,
            vcpus: 1,
            only: None,
            except: None,
            cpu_model: None,
            uefi: false,
        }
    }
}

impl Host {
    fn view(&self) -> HostView<'_> {
        HostView {
            id: self.id,
            name: &self.name,
            labels: &self.labels,
            closed: self.closed,
            memory_mib: self.memory_mib,
            reserved_mib: self.reserved_mib,
            vcpus: self.vcpus,
            reserved_vcpus: self.reserved_vcpus,
            cpu_model: self.model,
            uefi: false,
            failing: None,
            guests: self.guests.iter().map(Vm::guest).collect(),
        }
    }

    /// With one VM more.
    fn with(&self, vm: &Vm) -> Self {
        let mut host = self.clone();
        host.reserved_mib += vm.memory_mib;
        host.reserved_vcpus += 1;
        host.guests.push(vm.clone());
        host
    }
}

fn closed() -> impl Strategy<Value = Option<Closed>> {
    let all = [
        Closed::Cordoned,
        Closed::Draining,
        Closed::Silent,
        Closed::Dead,
        Closed::NotReported,
        Closed::Unreadable,
    ];
    prop_oneof![3 => Just(None), 1 => prop::sample::select(all.to_vec()).prop_map(Some)]
}

fn labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map("[ab]", "[xy]", 0..2)
}

fn some_labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map("[ab]", "[xy]", 1..2)
}

fn affinity() -> impl Strategy<Value = Affinity> {
    let hosts = prop::collection::btree_set(0..4u128, 1..3);
    let hosts =
        hosts.prop_map(|ids| Peers::Hosts(ids.into_iter().map(|n| HostId(Uuid::from_u128(n))).collect()));
    let to = prop_oneof![
        3 => some_labels().prop_map(Peers::Vms),
        1 => hosts,
        1 => some_labels().prop_map(Peers::HostLabels),
    ];
    (to, prop::bool::weighted(0.3)).prop_map(|(to, soft)| Affinity { to, soft })
}

fn vm(n: u128) -> impl Strategy<Value = Vm> {
    let rules = || prop::collection::vec(affinity(), 0..2);
    (labels(), rules(), rules(), any::<bool>(), 1..4u64).prop_map(
        move |(labels, with, apart, packs, size)| Vm {
            id: VmId(Uuid::from_u128(n)),
            name: format!("vm{n}"),
            labels,
            rule: PlacementRule {
                affinity: with,
                anti_affinity: apart,
                strategy: if packs { Order::Pack } else { Order::Spread },
                ..PlacementRule::default()
            },
            memory_mib: size * 100,
        },
    )
}

/// So many hosts, some with a VM that has come there whatever its rules say.
fn small_fleet() -> impl Strategy<Value = Vec<Host>> {
    let one = (labels(), 2..8u64, prop::option::weighted(0.4, 100..200u128));
    let hosts = prop::collection::vec(one, 1..4);
    (hosts, prop::collection::vec(vm(0), 4)).prop_map(|(hosts, guests)| {
        let host = |(n, (labels, size, guest)): (usize, (Labels, u64, Option<u128>))| Host {
            id: HostId(Uuid::from_u128(n as u128)),
            name: format!("h{n}"),
            labels,
            closed: None,
            memory_mib: size * 100,
            reserved_mib: 0,
            vcpus: 100,
            reserved_vcpus: 0,
            model: "p",
            guests: guest
                .map(|_| Vm {
                    id: VmId(Uuid::from_u128(100 + n as u128)),
                    ..guests[n].clone()
                })
                .into_iter()
                .collect(),
        };
        hosts.into_iter().enumerate().map(host).collect()
    })
}

/// The hard rules in other words than the scheduler's: whether a VM may be on a host as all hosts are.
fn may_be(vm: &Vm, host: &Host, all: &[Host]) -> bool {
    let others = |host: &Host| {
        host.guests
            .iter()
            .filter(|other| other.id != vm.id)
            .cloned()
            .collect::<Vec<_>>()
    };
    let is = |vm: &Vm, labels: &Labels| carries(&vm.labels, labels);
    let keeps = |rule: &Affinity, wanted: bool| match &rule.to {
        Peers::Hosts(ids) => ids.contains(&host.id) == wanted,
        Peers::HostLabels(labels) => carries(&host.labels, labels) == wanted,
        Peers::Vms(labels) if wanted => {
            let anywhere = all
                .iter()
                .any(|host| others(host).iter().any(|other| is(other, labels)));
            others(host).iter().any(|other| is(other, labels)) || !anywhere && is(vm, labels)
        }
        Peers::Vms(labels) => !others(host).iter().any(|other| is(other, labels)),
    };
    let hard = |rule: &&Affinity| !rule.soft;
    let is_met = others(host).iter().any(|other| {
        let mut rules = other.rule.anti_affinity.iter().filter(hard);
        rules.any(|rule| matches!(&rule.to, Peers::Vms(labels) if is(vm, labels)))
    });
    host.reserved_mib + vm.memory_mib <= host.memory_mib
        && vm.rule.affinity.iter().filter(hard).all(|rule| keeps(rule, true))
        && vm
            .rule
            .anti_affinity
            .iter()
            .filter(hard)
            .all(|rule| keeps(rule, false))
        && !is_met
}

/// Whether there is any way to place them, one after the other.
fn can_be_placed(vms: &[Vm], hosts: &[Host]) -> bool {
    let Some((first, rest)) = vms.split_first() else {
        return true;
    };
    (0..hosts.len()).any(|at| {
        let mut next = hosts.to_vec();
        next[at] = hosts[at].with(first);
        may_be(first, &hosts[at], hosts) && can_be_placed(rest, &next)
    })
}

fn hosts() -> impl Strategy<Value = Vec<Host>> {
    let sizes = (
        prop_oneof![0..10_000u64, Just(u64::MAX)],
        prop_oneof![0..10_000u64, Just(u64::MAX)],
    );
    let vcpus = (
        prop_oneof![0..128u32, Just(u32::MAX)],
        prop_oneof![0..100u32, Just(u32::MAX)],
    );
    let one = (
        labels(),
        closed(),
        sizes,
        vcpus,
        prop::sample::select(vec!["p", "q"]),
    );
    prop::collection::vec(one, 0..12).prop_map(|all| {
        let host = |(n, (labels, closed, (memory_mib, reserved_mib), (vcpus, reserved_vcpus), model))| Host {
            id: HostId(Uuid::from_u128(n as u128)),
            name: format!("h{n}"),
            labels,
            closed,
            memory_mib,
            reserved_mib,
            vcpus,
            reserved_vcpus,
            model,
            guests: Vec::new(),
        };
        all.into_iter().enumerate().map(host).collect()
    })
}

proptest! {
    #[test]
    fn a_host_that_refuses_is_never_chosen_and_the_order_does_not_matter(
        hosts in hosts(),
        memory_mib in prop_oneof![0..10_000u64, Just(u64::MAX)],
        vcpus in prop_oneof![0..64u32, Just(u32::MAX)],
        wanted in labels(),
        only in prop::option::weighted(0.2, 0..12u128),
        except in prop::option::weighted(0.2, 0..12u128),
        model in prop::option::weighted(0.3, prop::sample::select(vec!["p", "q"])),
        seed in any::<u64>(),
    ) {
        let id = |n| HostId(Uuid::from_u128(n));
        let (none, rule) = (Labels::new(), PlacementRule { host_labels: wanted, ..PlacementRule::default() });
        let guest = Guest { id: VmId(Uuid::nil()), name: "vm", labels: &none, rule: &rule, is_leaving: false };
        let request = Request {
            guest, memory_mib, vcpus, only: only.map(id), except: except.map(id), cpu_model: model,
            uefi: false,
        };
        let views: Vec<_> = hosts.iter().map(Host::view).collect();
        let placed = place(&request, views.iter(), Timestamp::UNIX_EPOCH);
        let kept_from = obstacles(&request, &views);
        let fits: Vec<_> = hosts.iter().zip(&kept_from).filter(|(_, all)| all.is_empty()).map(|(host, _)| host).collect();
        prop_assert_eq!(placed.is_ok(), !fits.is_empty(), "placed if and only if a host fits");
        let chosen = placed.as_ref().ok().map(|placed| placed.host);
        let record = placed.map_or_else(|record| record, |placed| placed.record);
        prop_assert!(chosen.is_none_or(|chosen| fits.iter().any(|host| host.id == chosen)));
        if let Some(host) = chosen.and_then(|chosen| hosts.iter().find(|host| host.id == chosen)) {
            prop_assert!(host.reserved_mib.saturating_add(memory_mib) <= host.memory_mib || memory_mib == 0);
            prop_assert_eq!(record.chosen.as_deref(), Some(host.name.as_str()));
        }
        let refused: u32 = record.refused.iter().map(|group| group.count).sum();
        prop_assert_eq!(refused as usize + fits.len(), hosts.len(), "each host fits or has its reason");
        prop_assert_eq!(record.considered as usize, hosts.len());
        let mut shuffled = views.clone();
        shuffled.sort_by_key(|host| host.id.0.as_u128().wrapping_mul(u128::from(seed | 1)).rotate_left(77));
        let again = place(&request, shuffled.iter(), Timestamp::UNIX_EPOCH);
        prop_assert_eq!(chosen, again.as_ref().ok().map(|placed| placed.host));
        let other = again.map_or_else(|record| record, |placed| placed.record);
        let codes = |record: &model::vm::PlacementRecord| {
            record.refused.iter().map(|group| (group.count, group.reason.code.clone())).collect::<Vec<_>>()
        };
        prop_assert_eq!(codes(&record), codes(&other));
    }

    #[test]
    fn rules_are_kept_and_a_refusal_is_right(hosts in small_fleet(), vm in vm(1)) {
        let views: Vec<_> = hosts.iter().map(Host::view).collect();
        let all = obstacles(&vm.request(), &views);
        for (host, kept_from) in hosts.iter().zip(&all) {
            prop_assert_eq!(kept_from.is_empty(), may_be(&vm, host, &hosts), "{}: {:?}", host.name, kept_from);
        }
        let placed = place(&vm.request(), views.iter(), Timestamp::UNIX_EPOCH);
        prop_assert_eq!(placed.is_ok(), all.iter().any(Vec::is_empty));
        if placed.is_err() {
            let change = scheduler::smallest_change(&vm.request(), &views);
            prop_assert!(change.is_some_and(|change| !change.is_empty()), "it says what would help");
        }
    }

    #[test]
    fn a_batch_is_placed_if_there_is_any_way_and_then_by_the_rules(
        hosts in small_fleet(),
        vms in (vm(1), vm(2), vm(3)),
    ) {
        let vms = [vms.0, vms.1, vms.2];
        let requests: Vec<_> = vms.iter().map(Vm::request).collect();
        let mut fleet = Fleet::new(hosts.iter().map(Host::view));
        let placed = fleet.place_all(&requests, Timestamp::UNIX_EPOCH);
        prop_assert_eq!(placed.is_ok(), can_be_placed(&vms, &hosts));
        let mut now = hosts;
        for (vm, placed) in vms.iter().zip(placed.unwrap_or_default()) {
            let at = now.iter().position(|host| host.id == placed.host).unwrap();
            prop_assert!(may_be(vm, &now[at], &now), "{} on {}", vm.name, now[at].name);
            now[at] = now[at].with(vm);
        }
    }
}
