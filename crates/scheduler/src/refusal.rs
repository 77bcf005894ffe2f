//! Why a host does not fit, with numbers, and what would change that.

use crate::Closed;

/// The code of a refusal because the VM is there already.
pub const IS_SOURCE: &str = "is-there-already";
/// The code of a refusal because another host is asked for.
pub const NOT_ASKED: &str = "not-the-asked-host";

/// Why a host does not fit, with numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The request names another host.
    NotAsked,
    /// It is where the VM is already.
    IsSource,
    /// See [`Closed`].
    Closed(Closed),
    /// Starts on it failed lately.
    Failing {
        /// How many in a row.
        starts: u32,
        /// For how long it is avoided still, in seconds.
        for_s: u64,
    },
    /// It takes only VMs that ask for it.
    Dedicated {
        /// What they ask for.
        to: String,
    },
    /// A label is missing or has another value.
    Label {
        /// The label.
        key: String,
        /// What the request wants.
        want: String,
        /// What the host has.
        have: Option<String>,
    },
    /// It is not one of the hosts of an affinity.
    NotNamed,
    /// It has not the labels of an affinity.
    NotLabelled {
        /// Those labels.
        want: String,
    },
    /// It holds none of the VMs of an affinity.
    NotWith {
        /// The labels of those VMs.
        want: String,
        /// Whether another host holds one.
        is_elsewhere: bool,
    },
    /// It is one of the hosts of an anti-affinity.
    Excluded,
    /// It has the labels of an anti-affinity.
    Labelled {
        /// Those labels.
        avoid: String,
    },
    /// It holds a VM of an anti-affinity.
    Apart {
        /// The labels of such VMs.
        from: String,
        /// That VM.
        met: String,
    },
    /// It holds a VM that keeps away from this one.
    KeptAway {
        /// That VM.
        by: String,
    },
    /// A running guest would see another processor.
    CpuModel {
        /// What the guest sees now.
        want: String,
        /// What it would see.
        have: String,
    },
    /// It has no UEFI for guests.
    NoUefi,
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

impl Refusal {
    /// The stable code by which hosts are grouped.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Closed(Closed::Cordoned) => "host-cordoned",
            Self::Closed(Closed::Draining) => "host-draining",
            Self::Closed(Closed::Silent) => "host-silent",
            Self::Closed(Closed::Dead) => "host-dead",
            Self::Closed(Closed::NotReported) => "host-not-reported",
            Self::Closed(Closed::Unreadable) => "host-unreadable",
            Self::NotAsked => NOT_ASKED,
            Self::IsSource => IS_SOURCE,
            Self::Failing { .. } => "host-fails-starts",
            Self::Dedicated { .. } => "host-dedicated",
            Self::Label { .. } | Self::NotLabelled { .. } => "label-differs",
            Self::NotNamed => "affinity-other-hosts",
            Self::NotWith { .. } => "affinity-not-met",
            Self::Excluded | Self::Labelled { .. } => "anti-affinity-host",
            Self::Apart { .. } => "anti-affinity-vm",
            Self::KeptAway { .. } => "kept-away",
            Self::CpuModel { .. } => "cpu-model-differs",
            Self::NoUefi => "no-uefi",
            Self::Memory { .. } => "memory-short",
            Self::Vcpus { .. } => "vcpus-short",
        }
    }

    /// The sentence for people.
    pub fn message(&self) -> String {
        match self {
            Self::Closed(closed) => closed.message().to_owned(),
            Self::NotAsked => "the request asks for another host".to_owned(),
            Self::IsSource => "the VM is there already".to_owned(),
            Self::Failing { starts, for_s } => {
                format!("the last {starts} starts on it failed: it is avoided for {for_s} s still")
            }
            Self::Dedicated { to } => format!("it takes only VMs that ask for dedicated={to}"),
            Self::Label {
                key,
                want,
                have: Some(have),
            } => format!("its label {key} is {have}, asked for is {want}"),
            Self::Label { key, want, .. } => format!("it has no label {key}={want}"),
            Self::NotNamed => "an affinity of the VM names other hosts".to_owned(),
            Self::NotLabelled { want } => format!("an affinity of the VM asks for hosts with {want}"),
            Self::NotWith {
                want,
                is_elsewhere: true,
            } => format!("no VM with {want} is there"),
            Self::NotWith { want, .. } => format!("no VM with {want} has a place anywhere yet"),
            Self::Excluded => "an anti-affinity of the VM names it".to_owned(),
            Self::Labelled { avoid } => {
                format!("an anti-affinity of the VM keeps it from hosts with {avoid}")
            }
            Self::Apart { from, met } => {
                format!("{met} is there, and the VM keeps apart from VMs with {from}")
            }
            Self::KeptAway { by } => format!("{by} is there, and keeps apart from such VMs"),
            Self::CpuModel { want, have } => {
                format!("its guests see the processor {have}, the running guest has {want}")
            }
            Self::NoUefi => "it has no UEFI for guests: install its package `ovmf`".to_owned(),
            Self::Memory {
                short_mib,
                free_mib,
                total_mib,
            } => format!(
                "short by {}: {} of {} are free",
                mib(*short_mib),
                mib(*free_mib),
                mib(*total_mib)
            ),
            Self::Vcpus { short, free } => format!("short by {short} virtual processors: {free} are free"),
        }
    }

    /// What would do away with it, as an order to a person; `None` if nobody can.
    pub fn remedy(&self, host: &str) -> Option<String> {
        Some(match self {
            Self::IsSource => return None,
            Self::NotAsked => format!("let it start on {host} too: `sterna vm edit`, placement.host"),
            Self::Closed(Closed::Cordoned) => format!("open {host}: `sterna host uncordon {host}`"),
            Self::Closed(Closed::Draining) => {
                format!("end the drain of {host}: `sterna host undrain {host}`")
            }
            Self::Closed(Closed::Silent | Closed::NotReported) => format!("bring the agent of {host} back"),
            Self::Closed(Closed::Unreadable) => {
                format!("mend what is stored of {host}: `sterna store check` names it")
            }
            Self::Closed(Closed::Dead) => format!("have {host} join again: `sterna host token`"),
            Self::Failing { for_s, .. } => format!("wait {for_s} s, or find out why starts on {host} fail"),
            Self::Dedicated { to } => format!("ask for it: `sterna vm edit`, host_labels dedicated={to}"),
            Self::Label { key, want, .. } => {
                format!("label {host}: `sterna host label {host} {key}={want}`")
            }
            Self::NotNamed => format!("name {host} in the VM's affinity to hosts: `sterna vm edit`"),
            Self::NotLabelled { want } => {
                format!("drop the affinity to hosts with {want}: `sterna vm edit`")
            }
            Self::NotWith { want, is_elsewhere } => {
                let done = if *is_elsewhere { "move" } else { "start" };
                format!("{done} a VM with {want} on {host}, or drop the affinity to it")
            }
            Self::Excluded => format!("drop the anti-affinity to {host}: `sterna vm edit`"),
            Self::Labelled { avoid } => {
                format!("drop the anti-affinity to hosts with {avoid}: `sterna vm edit`")
            }
            Self::Apart { from, met } => {
                format!("move {met} off {host}, or drop the anti-affinity to {from}")
            }
            Self::KeptAway { by } => format!("move {by} off {host}, or drop its anti-affinity"),
            Self::CpuModel { want, .. } => format!("give the guests of {host} the processor {want}"),
            Self::NoUefi => format!("install `ovmf` on {host} and restart its agent"),
            Self::Memory { short_mib, .. } => format!("free {} on {host}", mib(*short_mib)),
            Self::Vcpus { short, .. } => format!("free {short} virtual processors on {host}"),
        })
    }

    /// How much it takes to do away with it, in the order of its variants; for one variant, by its amount. Hosts of one
    /// group are compared by it.
    pub(crate) fn distance(&self) -> (u8, u64) {
        match self {
            Self::Closed(Closed::Cordoned) => (0, 0),
            Self::Closed(Closed::Draining) => (1, 0),
            Self::Memory { short_mib, .. } => (2, *short_mib),
            Self::Vcpus { short, .. } => (3, u64::from(*short)),
            Self::Failing { for_s, .. } => (4, *for_s),
            Self::Label { .. } | Self::NotLabelled { .. } => (5, 0),
            Self::Apart { .. } | Self::KeptAway { .. } | Self::NotWith { .. } => (6, 0),
            Self::NotNamed | Self::Excluded | Self::Labelled { .. } | Self::NotAsked => (7, 0),
            Self::Dedicated { .. } | Self::NoUefi => (8, 0),
            Self::CpuModel { .. } | Self::Closed(_) => (9, 0),
            Self::IsSource => (10, 0),
        }
    }
}

impl Closed {
    fn message(self) -> &'static str {
        match self {
            Self::Cordoned => "it is cordoned: `sterna host uncordon` opens it",
            Self::Draining => "it is being drained: `sterna host undrain` opens it",
            Self::Silent => "it is not heard from: see `sterna host get`",
            Self::Dead => "it was declared dead: its agent has to join again",
            Self::NotReported => "it has joined and not reported its capacity yet",
            Self::Unreadable => "what is stored of it cannot be read: `sterna store check` names it",
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
