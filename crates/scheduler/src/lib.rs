//! Which host a VM runs on, and why not on the others.
//!
//! **Owns:** what makes a host fit ([`obstacles`]), the order of preference among those that do ([`place`]), and how
//! several VMs are placed together ([`Fleet`]).
//!
//! **Does not know:** the store, VMs' phases, or how a host came to be as it is.
//!
//! **Start here:** [`place`], then `rules`. Reasons are data and are made only for hosts that refuse.

mod refusal;
mod rules;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use model::placement::{PlacementRule, Strategy};
use model::vm::{PlacementRecord, RefusedGroup};
use model::{HostId, Reason, Timestamp, VmId};

pub use refusal::{IS_SOURCE, NOT_ASKED, Refusal};
use rules::Group;

/// A host as placement sees it.
#[derive(Debug, Clone)]
pub struct HostView<'a> {
    /// Which one; the tie-break of every ranking.
    pub id: HostId,
    /// For people.
    pub name: &'a str,
    /// The operator's labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Why no new VM may come to it, if so.
    pub closed: Option<Closed>,
    /// What guests may use altogether.
    pub memory_mib: u64,
    /// What is reserved.
    pub reserved_mib: u64,
    /// The virtual processors that guests may have altogether.
    pub vcpus: u32,
    /// Virtual processors reserved.
    pub reserved_vcpus: u32,
    /// The processor model that its guests see.
    pub cpu_model: &'a str,
    /// Whether it has UEFI for guests.
    pub uefi: bool,
    /// That starts on it failed lately, if they did.
    pub failing: Option<Failing>,
    /// The VMs that hold room on it.
    pub guests: Vec<Guest<'a>>,
}

/// A VM as rules see it.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    /// Which one.
    pub id: VmId,
    /// For people.
    pub name: &'a str,
    /// By which rules of other VMs name it.
    pub labels: &'a BTreeMap<String, String>,
    /// Its own rules.
    pub rule: &'a PlacementRule,
    /// It is being moved away: it keeps others away still, and is no company any more.
    pub is_leaving: bool,
}

/// Why a host takes no new VM, whatever its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// Its operator said so.
    Cordoned,
    /// Its operator wants it empty.
    Draining,
    /// It is not heard from.
    Silent,
    /// It was declared dead.
    Dead,
    /// It has joined and not reported yet.
    NotReported,
    /// Something that is stored of it cannot be read.
    Unreadable,
}

/// Starts on a host that failed one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failing {
    /// How many.
    pub starts: u32,
    /// For how long the host is avoided still, in seconds.
    pub for_s: u64,
}

/// What is to be placed.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The VM, with its rules.
    pub guest: Guest<'a>,
    /// Main memory with QEMU's own part.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Only this host.
    pub only: Option<HostId>,
    /// Not this one: a migration's source.
    pub except: Option<HostId>,
    /// Only hosts whose guests see this processor: a running guest cannot change it.
    pub cpu_model: Option<&'a str>,
    /// Only hosts with UEFI for guests.
    pub uefi: bool,
}

/// Virtual processors per physical one that a host takes, unless its operator says otherwise.
pub const VCPUS_PER_CPU: u32 = 16;

/// What a QEMU needs beside a guest's main memory, in MiB: under TCG 45 to 50 were measured with one processor, whatever the
/// guest does, before and during a migration; the cache of a large disk's tables takes 32 more, and the rest is margin.
/// `docs/performance.md` has the table, and `bench memory` makes it.
pub const QEMU_BASE_MIB: u64 = 92;
/// What it needs for each virtual processor: 2 to 3 were measured.
pub const QEMU_PER_VCPU_MIB: u64 = 4;
/// What it needs for each GiB of the guest's memory: 2 for page tables on the host, as many for nested ones under KVM, and
/// the bitmaps of dirty pages.
pub const QEMU_PER_GIB_MIB: u64 = 5;

/// What a VM takes on its host beside its main memory.
pub fn qemu_part_mib(memory_mib: u64, vcpus: u32) -> u64 {
    let by_memory = memory_mib.saturating_mul(QEMU_PER_GIB_MIB).div_ceil(1024);
    let by_vcpus = u64::from(vcpus) * QEMU_PER_VCPU_MIB;
    QEMU_BASE_MIB.saturating_add(by_vcpus).saturating_add(by_memory)
}

/// What a VM takes on its host altogether.
pub fn with_qemu_mib(memory_mib: u64, vcpus: u32) -> u64 {
    memory_mib.saturating_add(qemu_part_mib(memory_mib, vcpus))
}

/// The names of hosts shown per reason.
const NAMES_SHOWN: usize = 5;
/// How many tries it may take to place VMs together before that is given up.
const TRIES_MAX: u32 = 500;

/// What was found for one VM.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The host.
    pub host: HostId,
    /// How it was chosen.
    pub record: PlacementRecord,
    /// The VM is the first of a group that shall be together: the choice rests on none of the others having a place.
    pub is_first: bool,
    /// The VMs on the host that its affinities need: the choice rests on their staying.
    pub company: Vec<VmId>,
}

/// Chooses a host. The record says which one and why not the others; its `chosen` is the id's name.
pub fn place<'h, 'a: 'h>(
    request: &Request<'_>,
    hosts: impl Iterator<Item = &'h HostView<'a>> + Clone,
    now: Timestamp,
) -> Result<Placed, PlacementRecord> {
    let group = Group::of(request, hosts.clone());
    let mut best: Option<(Rank, &HostView<'a>)> = None;
    let mut refused: BTreeMap<&'static str, Refused<'a>> = BTreeMap::new();
    let mut considered = 0u32;
    for host in hosts {
        considered = considered.saturating_add(1);
        if let Some(refusal) = first_obstacle(request, &group, host) {
            refused.entry(refusal.code()).or_default().add(host.name, refusal);
            continue;
        }
        let rank = Rank::of(request, &group, host);
        if best.as_ref().is_none_or(|(other, _)| rank < *other) {
            best = Some((rank, host));
        }
    }
    let record = PlacementRecord {
        decided_at: now,
        chosen: best.as_ref().map(|(_, host)| host.name.to_owned()),
        considered,
        refused: refused.into_values().map(Refused::into_model).collect(),
    };
    match best {
        Some((_, host)) => Ok(Placed {
            host: host.id,
            record,
            is_first: group.is_first(request),
            company: rules::company(request, host),
        }),
        None => Err(record),
    }
}

/// Everything that keeps a VM from each of these hosts, in the hosts' order; nothing where it fits.
pub fn obstacles(request: &Request<'_>, hosts: &[HostView<'_>]) -> Vec<Vec<Refusal>> {
    let group = Group::of(request, hosts.iter());
    hosts
        .iter()
        .map(|host| all_obstacles(request, &group, host))
        .collect()
}

/// The least that would have to change for a VM to be placed: what keeps it from the host that is nearest.
pub fn smallest_change(request: &Request<'_>, hosts: &[HostView<'_>]) -> Option<String> {
    let found = obstacles(request, hosts);
    let effort = |all: &[Refusal]| (all.len(), all.iter().map(Refusal::distance).max());
    let nearest = hosts
        .iter()
        .zip(&found)
        .filter(|(_, all)| !all.is_empty())
        .min_by_key(|(host, all)| (effort(all), host.id))?;
    let (host, all) = nearest;
    let remedies: Option<Vec<String>> = all.iter().map(|refusal| refusal.remedy(host.name)).collect();
    remedies.map(|remedies| remedies.join("; and "))
}

/// Hosts on which several requests are placed one after the other, each on what the ones before have left.
#[derive(Debug, Clone)]
pub struct Fleet<'a> {
    hosts: Vec<HostView<'a>>,
}

impl<'a> Fleet<'a> {
    /// The hosts as they are.
    pub fn new(hosts: impl Iterator<Item = HostView<'a>>) -> Self {
        Self {
            hosts: hosts.collect(),
        }
    }

    /// Chooses a host, as [`place`] does, and takes the room on it; or why there is none.
    pub fn place(&mut self, request: &Request<'a>, now: Timestamp) -> Result<Placed, PlacementRecord> {
        let placed = place(request, self.hosts.iter(), now)?;
        self.take(placed.host, request);
        Ok(placed)
    }

    /// Chooses a host for each of these, or for none; then for which of them there is none, and why. Where the best hosts
    /// of the first ones leave no room for the last ones, others are tried.
    pub fn place_all(
        &mut self,
        requests: &[Request<'a>],
        now: Timestamp,
    ) -> Result<Vec<Placed>, (usize, PlacementRecord)> {
        if let [request] = requests {
            return match self.place(request, now) {
                Ok(placed) => Ok(vec![placed]),
                Err(record) => Err((0, record)),
            };
        }
        let mut search = Search {
            fleet: self.clone(),
            tries_left: TRIES_MAX,
            farthest: None,
            now,
        };
        let mut placed = Vec::new();
        if search.go(requests, &mut placed) {
            *self = search.fleet;
            return Ok(placed);
        }
        Err(search.farthest.unwrap_or_else(|| (0, empty_record(now))))
    }

    fn take(&mut self, host: HostId, request: &Request<'a>) {
        if let Some(host) = self.hosts.iter_mut().find(|other| other.id == host) {
            host.reserved_mib = host.reserved_mib.saturating_add(request.memory_mib);
            host.reserved_vcpus = host.reserved_vcpus.saturating_add(request.vcpus);
            host.guests.push(request.guest);
        }
    }

    fn give_back(&mut self, host: HostId, request: &Request<'a>) {
        if let Some(host) = self.hosts.iter_mut().find(|other| other.id == host) {
            host.reserved_mib = host.reserved_mib.saturating_sub(request.memory_mib);
            host.reserved_vcpus = host.reserved_vcpus.saturating_sub(request.vcpus);
            host.guests.pop();
        }
    }
}

fn empty_record(now: Timestamp) -> PlacementRecord {
    PlacementRecord {
        decided_at: now,
        chosen: None,
        considered: 0,
        refused: Vec::new(),
    }
}

/// Looks for hosts for several VMs, depth first, the best host first.
struct Search<'a> {
    fleet: Fleet<'a>,
    tries_left: u32,
    /// The first request that never found a host, and why.
    farthest: Option<(usize, PlacementRecord)>,
    now: Timestamp,
}

impl<'a> Search<'a> {
    fn go(&mut self, requests: &[Request<'a>], placed: &mut Vec<Placed>) -> bool {
        let at = placed.len();
        let Some(request) = requests.get(at) else {
            return true;
        };
        let first = match place(request, self.fleet.hosts.iter(), self.now) {
            Ok(first) => first,
            Err(record) => {
                if self.farthest.as_ref().is_none_or(|(farthest, _)| at > *farthest) {
                    self.farthest = Some((at, record));
                }
                return false;
            }
        };
        for (host, name, company) in self.in_order(request) {
            if self.tries_left == 0 {
                return false;
            }
            self.tries_left -= 1;
            let mut record = first.record.clone();
            record.chosen = Some(name);
            self.fleet.take(host, request);
            placed.push(Placed {
                host,
                record,
                is_first: first.is_first,
                company,
            });
            if self.go(requests, placed) {
                return true;
            }
            placed.pop();
            self.fleet.give_back(host, request);
        }
        false
    }

    /// The hosts that fit, the best first, with their names and the VMs there that the request needs.
    fn in_order(&self, request: &Request<'a>) -> Vec<(HostId, String, Vec<VmId>)> {
        let group = Group::of(request, self.fleet.hosts.iter());
        let fit = self.fleet.hosts.iter();
        let fit = fit.filter(|host| first_obstacle(request, &group, host).is_none());
        let mut ranked: Vec<_> = fit.map(|host| (Rank::of(request, &group, host), host)).collect();
        ranked.sort_by(|(a, _), (b, _)| a.cmp(b));
        let shown =
            |(_, host): (Rank, &HostView<'a>)| (host.id, host.name.to_owned(), rules::company(request, host));
        ranked.into_iter().map(shown).collect()
    }
}

/// The order of preference: the fields from first to last, the smaller the better.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// How many soft rules the host breaks.
    broken: usize,
    /// How full the host is afterwards, in thousandths of its memory, when VMs are spread.
    fill_permille: u64,
    /// The same, when they are packed.
    emptiness: Reverse<u64>,
    /// The tie-break.
    host: HostId,
}

impl Rank {
    fn of(request: &Request<'_>, group: &Group, host: &HostView<'_>) -> Self {
        let used = host.reserved_mib.saturating_add(request.memory_mib);
        let fill = used.saturating_mul(1000) / host.memory_mib.max(1);
        let (spread, pack) = match request.guest.rule.strategy {
            Strategy::Spread => (fill, 0),
            Strategy::Pack => (0, fill),
        };
        Self {
            broken: rules::soft_broken(request, group, host),
            fill_permille: spread,
            emptiness: Reverse(pack),
            host: host.id,
        }
    }
}

fn first_obstacle(request: &Request<'_>, group: &Group, host: &HostView<'_>) -> Option<Refusal> {
    // Most hosts that refuse do so for one of these, which cost nothing to find.
    state_refusal(request, host).or_else(|| all_obstacles(request, group, host).into_iter().next())
}

fn all_obstacles(request: &Request<'_>, group: &Group, host: &HostView<'_>) -> Vec<Refusal> {
    let mut found: Vec<Refusal> = state_refusal(request, host).into_iter().collect();
    found.extend(rules::broken(request, group, host));
    found.extend(cpu_refusal(request, host));
    let is_known = !matches!(host.closed, Some(Closed::NotReported | Closed::Unreadable));
    let lacks_uefi = request.uefi && !host.uefi && is_known;
    found.extend(lacks_uefi.then_some(Refusal::NoUefi));
    if is_known {
        found.extend(capacity_refusal(request, host));
    }
    found
}

fn state_refusal(request: &Request<'_>, host: &HostView<'_>) -> Option<Refusal> {
    if request.only.is_some_and(|only| only != host.id) {
        return Some(Refusal::NotAsked);
    }
    if request.except == Some(host.id) {
        return Some(Refusal::IsSource);
    }
    // A move starts nothing anew, and who names a host has chosen.
    let is_free = request.only.is_none() && request.except.is_none();
    let failing = host.failing.filter(|_| is_free);
    let failing = failing.map(|Failing { starts, for_s }| Refusal::Failing { starts, for_s });
    host.closed.map(Refusal::Closed).or(failing)
}

fn cpu_refusal(request: &Request<'_>, host: &HostView<'_>) -> Option<Refusal> {
    let want = request.cpu_model.filter(|model| *model != host.cpu_model)?;
    Some(Refusal::CpuModel {
        want: want.to_owned(),
        have: host.cpu_model.to_owned(),
    })
}

fn capacity_refusal(request: &Request<'_>, host: &HostView<'_>) -> Option<Refusal> {
    let free_mib = host.memory_mib.saturating_sub(host.reserved_mib);
    if request.memory_mib > free_mib {
        return Some(Refusal::Memory {
            short_mib: request.memory_mib.saturating_sub(free_mib),
            free_mib,
            total_mib: host.memory_mib,
        });
    }
    let free = host.vcpus.saturating_sub(host.reserved_vcpus);
    let short = request.vcpus.saturating_sub(free);
    (short > 0).then_some(Refusal::Vcpus { short, free })
}

/// Hosts that refuse for the same reason.
#[derive(Default)]
struct Refused<'a> {
    count: u32,
    names: Vec<&'a str>,
    nearest: Option<(&'a str, Refusal)>,
    /// Their words differ: what is said holds for the nearest alone.
    differs: bool,
}

impl<'a> Refused<'a> {
    fn add(&mut self, name: &'a str, refusal: Refusal) {
        self.count = self.count.saturating_add(1);
        if self.names.len() < NAMES_SHOWN {
            self.names.push(name);
        }
        let Some((_, nearest)) = &self.nearest else {
            self.nearest = Some((name, refusal));
            return;
        };
        self.differs |= *nearest != refusal;
        if refusal.distance() < nearest.distance() {
            self.nearest = Some((name, refusal));
        }
    }

    fn into_model(self) -> RefusedGroup {
        let reason = self.nearest.map_or_else(
            || Reason::new("unknown", "no reason was kept"),
            |(host, refusal)| {
                let message = refusal.message();
                let told = if self.differs {
                    format!("on {host}, {message}")
                } else {
                    message
                };
                Reason::new(refusal.code(), told)
            },
        );
        RefusedGroup {
            count: self.count,
            hosts: self.names.into_iter().map(str::to_owned).collect(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests;
