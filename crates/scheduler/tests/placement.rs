//! Placement over random hosts and requests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use model::{HostId, Timestamp};
use proptest::prelude::*;
use scheduler::{Closed, HostView, Request, place, refusal};
use uuid::Uuid;

#[derive(Debug, Clone)]
struct Host {
    id: HostId,
    name: String,
    labels: BTreeMap<String, String>,
    closed: Option<Closed>,
    memory_mib: u64,
    reserved_mib: u64,
    cpus: u32,
    reserved_vcpus: u32,
    model: &'static str,
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
            cpus: self.cpus,
            reserved_vcpus: self.reserved_vcpus,
            cpu_model: self.model,
        }
    }
}

fn closed() -> impl Strategy<Value = Option<Closed>> {
    let all = [
        Closed::Cordoned,
        Closed::Draining,
        Closed::Silent,
        Closed::Dead,
        Closed::NotReported,
    ];
    prop_oneof![3 => Just(None), 1 => prop::sample::select(all.to_vec()).prop_map(Some)]
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[ab]", "[xy]", 0..2)
}

fn hosts() -> impl Strategy<Value = Vec<Host>> {
    let sizes = (
        prop_oneof![0..10_000u64, Just(u64::MAX)],
        prop_oneof![0..10_000u64, Just(u64::MAX)],
    );
    let cpus = (
        prop_oneof![0..8u32, Just(u32::MAX)],
        prop_oneof![0..100u32, Just(u32::MAX)],
    );
    let one = (
        labels(),
        closed(),
        sizes,
        cpus,
        prop::sample::select(vec!["p", "q"]),
    );
    prop::collection::vec(one, 0..12).prop_map(|all| {
        let host = |(n, (labels, closed, (memory_mib, reserved_mib), (cpus, reserved_vcpus), model))| Host {
            id: HostId(Uuid::from_u128(n as u128)),
            name: format!("h{n}"),
            labels,
            closed,
            memory_mib,
            reserved_mib,
            cpus,
            reserved_vcpus,
            model,
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
        let request = Request {
            memory_mib, vcpus, only: only.map(id), except: except.map(id), labels: &wanted, cpu_model: model,
        };
        let (chosen, record) = place(&request, hosts.iter().map(Host::view), Timestamp::UNIX_EPOCH);
        let fits: Vec<_> = hosts.iter().filter(|host| refusal(&request, &host.view()).is_none()).collect();
        prop_assert_eq!(chosen.is_some(), !fits.is_empty(), "placed if and only if a host fits");
        prop_assert!(chosen.is_none_or(|chosen| fits.iter().any(|host| host.id == chosen)));
        if let Some(host) = chosen.and_then(|chosen| hosts.iter().find(|host| host.id == chosen)) {
            prop_assert!(host.reserved_mib.saturating_add(memory_mib) <= host.memory_mib || memory_mib == 0);
            prop_assert_eq!(record.chosen.as_deref(), Some(host.name.as_str()));
        }
        let refused: u32 = record.refused.iter().map(|group| group.count).sum();
        prop_assert_eq!(refused as usize + fits.len(), hosts.len(), "each host fits or has its reason");
        prop_assert_eq!(record.considered as usize, hosts.len());
        let mut shuffled = hosts.clone();
        shuffled.sort_by_key(|host| host.id.0.as_u128().wrapping_mul(u128::from(seed | 1)).rotate_left(77));
        let (again, other) = place(&request, shuffled.iter().map(Host::view), Timestamp::UNIX_EPOCH);
        prop_assert_eq!(chosen, again);
        let codes = |record: &model::vm::PlacementRecord| {
            record.refused.iter().map(|group| (group.count, group.reason.code.clone())).collect::<Vec<_>>()
        };
        prop_assert_eq!(codes(&record), codes(&other));
    }
}
