//! Which host a VM runs on, and why not on the others.
//!
//! **Owns:** the rules of placement ([`refusal`]) and the order of preference ([`place`]).
//!
//! **Does not know:** the store, VMs' phases, or how a host came to be as it is.
//!
//! **Start here:** [`place`]. Reasons are data and are made only for hosts that refuse.

use std::collections::BTreeMap;

use model::vm::{PlacementRecord, RefusedGroup};
use model::{HostId, Reason, Timestamp};

/// A host as placement sees it.
#[derive(Debug, Clone, Copy)]
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
    /// Physical processors.
    pub cpus: u32,
    /// Virtual processors reserved.
    pub reserved_vcpus: u32,
    /// The processor model that its guests see.
    pub cpu_model: &'a str,
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
}

/// What is to be placed.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Main memory with QEMU's own part.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Only this host.
    pub only: Option<HostId>,
    /// Not this one: a migration's source.
    pub except: Option<HostId>,
    /// Only hosts with all of these labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Only hosts whose guests see this processor: a running guest cannot change it.
    pub cpu_model: Option<&'a str>,
}

/// Virtual processors per physical one that a host takes.
pub const VCPUS_PER_CPU: u32 = 16;

/// What QEMU needs beside a guest's main memory, in MiB: measured at 60 to 110 for the devices that are used here.
pub const QEMU_OVERHEAD_MIB: u64 = 128;

/// The code of a refusal because the VM is there already.
pub const IS_SOURCE: &str = "is-there-already";

/// The code of a refusal because another host is asked for.
pub const NOT_ASKED: &str = "not-the-asked-host";

/// The names of hosts shown per reason.
const NAMES_SHOWN: usize = 5;

/// Chooses a host. The record says which one and why not the others; its `chosen` is the id's name.
pub fn place<'a>(
    request: &Request<'_>,
    hosts: impl Iterator<Item = HostView<'a>>,
    now: Timestamp,
) -> (Option<HostId>, PlacementRecord) {
    let mut best: Option<(Rank, &str)> = None;
    let mut refused: BTreeMap<&'static str, Group<'a>> = BTreeMap::new();
    let mut considered = 0u32;
    for host in hosts {
        considered = considered.saturating_add(1);
        if let Some(refusal) = refusal(request, &host) {
            refused.entry(refusal.code()).or_default().add(host.name, refusal);
            continue;
        }
        let rank = Rank::of(request, &host);
        if best.as_ref().is_none_or(|(other, _)| rank < *other) {
            best = Some((rank, host.name));
        }
    }
    let record = PlacementRecord {
        decided_at: now,
        chosen: best.as_ref().map(|(_, name)| (*name).to_owned()),
        considered,
        refused: refused.into_values().map(Group::into_model).collect(),
    };
    (best.map(|(rank, _)| rank.host), record)
}

/// Hosts on which several requests are tried one after the other, each on what the ones before have left.
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
    pub fn place(&mut self, request: &Request<'_>) -> Result<HostId, Vec<RefusedGroup>> {
        let (chosen, record) = place(request, self.hosts.iter().copied(), Timestamp::UNIX_EPOCH);
        let chosen = chosen.ok_or(record.refused)?;
        if let Some(host) = self.hosts.iter_mut().find(|host| host.id == chosen) {
            host.reserved_mib = host.reserved_mib.saturating_add(request.memory_mib);
            host.reserved_vcpus = host.reserved_vcpus.saturating_add(request.vcpus);
        }
        Ok(chosen)
    }
}

/// The order of preference: the fields from first to last, the smaller the better.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// How full the host is afterwards, in thousandths of its memory.
    fill_permille: u64,
    /// The tie-break.
    host: HostId,
}

impl Rank {
    fn of(request: &Request<'_>, host: &HostView<'_>) -> Self {
        let used = host.reserved_mib.saturating_add(request.memory_mib);
        Self {
            fill_permille: used.saturating_mul(1000) / host.memory_mib.max(1),
            host: host.id,
        }
    }
}

/// Why a host does not fit, with numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// See [`Closed`].
    Closed(Closed),
    /// The request names another host.
    NotAsked,
    /// It is where the VM is already.
    IsSource,
    /// A label is missing or has another value.
    Label {
        /// The label.
        key: String,
        /// What the request wants.
        want: String,
        /// What the host has.
        have: Option<String>,
    },
    /// A running guest would see another processor.
    CpuModel {
        /// What the guest sees now.
        want: String,
        /// What it would see.
        have: String,
    },
    /// Too little memory is free.
    Memory {
        /// How much is missing, in MiB.
        short_mib: u64,
        /// How much is free, in MiB.
        free_mib: u64,
        /// How much the host has for guests, in MiB.
        total_mib: u64,
    },
    /// Too few virtual processors are free.
    Vcpus {
        /// How many are missing.
        short: u32,
        /// How many are free.
        free: u32,
    },
}

/// Whether a host refuses a request, and why. The first reason that holds is given.
pub fn refusal(request: &Request<'_>, host: &HostView<'_>) -> Option<Refusal> {
    if request.only.is_some_and(|only| only != host.id) {
        return Some(Refusal::NotAsked);
    }
    if request.except == Some(host.id) {
        return Some(Refusal::IsSource);
    }
    if let Some(closed) = host.closed {
        return Some(Refusal::Closed(closed));
    }
    let missing = request
        .labels
        .iter()
        .find(|(key, value)| host.labels.get(*key) != Some(*value));
    if let Some((key, want)) = missing {
        return Some(Refusal::Label {
            key: key.clone(),
            want: want.clone(),
            have: host.labels.get(key).cloned(),
        });
    }
    if let Some(want) = request.cpu_model.filter(|model| *model != host.cpu_model) {
        return Some(Refusal::CpuModel {
            want: want.to_owned(),
            have: host.cpu_model.to_owned(),
        });
    }
    capacity_refusal(request, host)
}

fn capacity_refusal(request: &Request<'_>, host: &HostView<'_>) -> Option<Refusal> {
    let free_mib = host.memory_mib.saturating_sub(host.reserved_mib);
    if request.memory_mib > free_mib {
        let short_mib = request.memory_mib.saturating_sub(free_mib);
        return Some(Refusal::Memory {
            short_mib,
            free_mib,
            total_mib: host.memory_mib,
        });
    }
    let free = host
        .cpus
        .saturating_mul(VCPUS_PER_CPU)
        .saturating_sub(host.reserved_vcpus);
    let short = request.vcpus.saturating_sub(free);
    (short > 0).then_some(Refusal::Vcpus { short, free })
}

impl Refusal {
    /// The stable code by which hosts are grouped.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Closed(Closed::Cordoned) => "host-cordoned",
            Self::Closed(Closed::Draining) => "host-draining",
            Self::Closed(Closed::Silent) => "host-silent",
            Self::Closed(Closed::Dead) => "host-dead",
            Self::Closed(Closed::NotReported) => "host-not-reported",
            Self::NotAsked => NOT_ASKED,
            Self::IsSource => IS_SOURCE,
            Self::Label { .. } => "label-differs",
            Self::CpuModel { .. } => "cpu-model-differs",
            Self::Memory { .. } => "memory-short",
            Self::Vcpus { .. } => "vcpus-short",
        }
    }

    /// The sentence for people.
    pub fn message(&self) -> String {
        match self {
            Self::Closed(Closed::Cordoned) => "it is cordoned: `sterna host uncordon` opens it".to_owned(),
            Self::Closed(Closed::Draining) => "it is being drained: `sterna host undrain` opens it".to_owned(),
            Self::Closed(Closed::Silent) => "it is not heard from: see `sterna host get`".to_owned(),
            Self::Closed(Closed::Dead) => "it was declared dead: its agent has to join again".to_owned(),
            Self::Closed(Closed::NotReported) => "it has joined and not reported its capacity yet".to_owned(),
            Self::NotAsked => "the request asks for another host".to_owned(),
            Self::IsSource => "the VM is there already".to_owned(),
            Self::Label {
                key,
                want,
                have: Some(have),
            } => format!("its label {key} is {have}, asked for is {want}"),
            Self::Label {
                key,
                want,
                have: None,
            } => format!("it has no label {key}={want}"),
            Self::CpuModel { want, have } => {
                format!("its guests see the processor {have}, the running guest has {want}")
            }
            Self::Memory {
                short_mib,
                free_mib,
                total_mib,
            } => {
                format!(
                    "short by {}: {} of {} are free",
                    mib(*short_mib),
                    mib(*free_mib),
                    mib(*total_mib)
                )
            }
            Self::Vcpus { short, free } => format!("short by {short} virtual processors: {free} are free"),
        }
    }

    /// How far the host is from fitting; hosts of one group are compared by it.
    fn distance(&self) -> u64 {
        match self {
            Self::Memory { short_mib, .. } => *short_mib,
            Self::Vcpus { short, .. } => u64::from(*short),
            _ => 0,
        }
    }
}

/// A size for people: whole GiB where it is one.
fn mib(size: u64) -> String {
    if size >= 1024 && size.is_multiple_of(1024) {
        return format!("{} GiB", size / 1024);
    }
    if size >= 10 * 1024 {
        let tenths = size.saturating_mul(10) / 1024;
        return format!("{}.{} GiB", tenths / 10, tenths % 10);
    }
    format!("{size} MiB")
}

/// Hosts that refuse for the same reason.
#[derive(Default)]
struct Group<'a> {
    count: u32,
    names: Vec<&'a str>,
    nearest: Option<Refusal>,
}

impl<'a> Group<'a> {
    fn add(&mut self, name: &'a str, refusal: Refusal) {
        self.count = self.count.saturating_add(1);
        if self.names.len() < NAMES_SHOWN {
            self.names.push(name);
        }
        if self
            .nearest
            .as_ref()
            .is_none_or(|nearest| refusal.distance() < nearest.distance())
        {
            self.nearest = Some(refusal);
        }
    }

    fn into_model(self) -> RefusedGroup {
        let reason = self.nearest.map_or_else(
            || Reason::new("unknown", "no reason was kept"),
            |refusal| Reason::new(refusal.code(), refusal.message()),
        );
        RefusedGroup {
            count: self.count,
            hosts: self.names.into_iter().map(str::to_owned).collect(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host<'a>(
        n: u128,
        name: &'a str,
        labels: &'a BTreeMap<String, String>,
        reserved_mib: u64,
    ) -> HostView<'a> {
        HostView {
            id: HostId(
                format!("00000000-0000-0000-0000-0000000000{n:02}")
                    .parse()
                    .unwrap(),
            ),
            name,
            labels,
            closed: None,
            memory_mib: 8192,
            reserved_mib,
            cpus: 2,
            reserved_vcpus: 0,
            cpu_model: "qemu64",
        }
    }

    fn request(labels: &BTreeMap<String, String>, memory_mib: u64) -> Request<'_> {
        Request {
            memory_mib,
            vcpus: 1,
            only: None,
            except: None,
            labels,
            cpu_model: None,
        }
    }

    #[test]
    fn the_emptiest_host_is_taken_and_the_id_breaks_ties() {
        let none = BTreeMap::new();
        let hosts = [
            host(3, "h3", &none, 100),
            host(2, "h2", &none, 100),
            host(1, "h1", &none, 200),
        ];
        let (chosen, record) = place(&request(&none, 256), hosts.into_iter(), Timestamp::UNIX_EPOCH);
        assert_eq!(
            (chosen, record.chosen.as_deref()),
            (Some(hosts[1].id), Some("h2"))
        );
    }

    #[test]
    fn refusals_are_grouped_and_carry_the_nearest_hosts_numbers() {
        let none = BTreeMap::new();
        let mut cordoned = host(3, "h3", &none, 0);
        cordoned.closed = Some(Closed::Cordoned);
        let hosts = [host(1, "h1", &none, 4096), host(2, "h2", &none, 2048), cordoned];
        let (chosen, record) = place(&request(&none, 9216), hosts.into_iter(), Timestamp::UNIX_EPOCH);
        assert_eq!(chosen, None);
        let found: Vec<_> = record
            .refused
            .iter()
            .map(|g| (g.count, g.reason.message.as_str()))
            .collect();
        let closed = "it is cordoned: `sterna host uncordon` opens it";
        assert_eq!(
            found,
            [(1, closed), (2, "short by 3 GiB: 6 GiB of 8 GiB are free")]
        );
    }

    #[test]
    fn labels_the_asked_host_and_the_source_count() {
        let want = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
        let none = BTreeMap::new();
        let plain = host(1, "h1", &none, 0);
        assert_eq!(
            refusal(&request(&want, 1), &plain).unwrap().code(),
            "label-differs"
        );
        let mut only = request(&none, 1);
        only.only = Some(host(2, "h2", &none, 0).id);
        assert_eq!(refusal(&only, &plain), Some(Refusal::NotAsked));
        let mut except = request(&none, 1);
        except.except = Some(plain.id);
        assert_eq!(refusal(&except, &plain), Some(Refusal::IsSource));
    }
}
