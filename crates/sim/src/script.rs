//! What happens to a world from outside: what users ask for, and what breaks, each at a time.
//!
//! **Owns:** the steps, and how a seed chooses them.
//!
//! **Does not know:** what becomes of them.
//!
//! **Start here:** [`Script::of`].
//!
//! Steps name their objects by numbers that mean something in any script, so that a script stays one when steps are taken
//! out of it: a host that is not there, or a VM that was never made, makes its step one that does nothing.

use std::collections::BTreeMap;
use std::fmt;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::users::vm_name;

/// How large a world is, and for how long things happen to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Servers, each with a controller.
    pub servers: usize,
    /// Hosts.
    pub hosts: usize,
    /// VMs that users make, at most.
    pub vms: usize,
    /// How long users ask and things break; after that everything is mended.
    pub seconds: u64,
    /// How many things break.
    pub faults: usize,
}

impl Size {
    /// What a seed is run with if nothing else is said.
    pub fn of(seed: u64) -> Self {
        let small = usize::try_from(seed % 3).unwrap_or_default();
        Self {
            servers: 1 + small % 2,
            hosts: 2 + small,
            vms: 3 + small * 2,
            seconds: 60,
            faults: 6 + small * 3,
        }
    }

    /// Larger ones too: all from one server and two hosts to three servers and eight hosts.
    pub fn any_of(seed: u64) -> Self {
        let part = |of: u64, choices: u64| usize::try_from(seed / of % choices).unwrap_or_default();
        let hosts = 2 + part(3, 7);
        Self {
            servers: 1 + part(1, 3),
            hosts,
            vms: hosts * 2,
            seconds: 60,
            faults: hosts * (2 + part(21, 3)),
        }
    }
}

/// As arguments of `sterna sim check`.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            servers,
            hosts,
            vms,
            seconds,
            faults,
        } = self;
        write!(
            f,
            "--servers {servers} --hosts {hosts} --vms {vms} --faults {faults} --seconds {seconds}"
        )
    }
}

/// Somebody who sends and receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// A server.
    Server(usize),
    /// A host.
    Host(usize),
}

/// What a VM belongs with, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// With nothing.
    None,
    /// It is on a host with another one of this rule.
    Together,
    /// It is on no host with another one of this rule.
    Apart,
}

/// One thing that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A user makes a VM.
    Create {
        /// Its number.
        vm: usize,
        /// Its size.
        memory_mib: u64,
        /// What it belongs with, or keeps away from.
        rule: Rule,
        /// Whether it has an interface, with an address of its own.
        has_nic: bool,
    },
    /// A user makes a VM that is a copy of another.
    Clone {
        /// Its number.
        vm: usize,
        /// The other's.
        of: usize,
    },
    /// A user does something with a VM.
    Act {
        /// Which.
        vm: usize,
        /// The word that the API has for it.
        action: &'static str,
        /// Whether by force.
        force: bool,
    },
    /// A user deletes a VM.
    Delete {
        /// Which.
        vm: usize,
    },
    /// A user moves a VM.
    Migrate {
        /// Which.
        vm: usize,
    },
    /// A user cancels the VM's last migration.
    Cancel {
        /// Whose.
        vm: usize,
    },
    /// An operator does something with a host.
    Operate {
        /// Which.
        host: usize,
        /// The word that the API has for it.
        action: &'static str,
    },
    /// A user asks for something that is about templates or images.
    Of(Catalog),
    /// A host that was not there joins. It is one of those that are named from the beginning, and is not yet on.
    Join {
        /// Which.
        host: usize,
    },
    /// A machine loses its power for as long as things break, and a person says that it is off, which is so. It joins again.
    LoseHost {
        /// Which.
        host: usize,
        /// After how long the person says it, for the first time.
        told_ms: u64,
    },
    /// A server ends, and starts again.
    CrashServer {
        /// Which.
        server: usize,
        /// After how long.
        for_ms: u64,
    },
    /// An agent ends, and starts again.
    CrashAgent {
        /// Whose.
        host: usize,
        /// After how long.
        for_ms: u64,
    },
    /// An agent ends where one of its effects begins or has ended, and starts again.
    CrashAtEffect {
        /// Whose.
        host: usize,
        /// At which effect from now.
        nth: u64,
        /// Whether the effect was carried out.
        is_after: bool,
    },
    /// A machine loses its power, and gets it again.
    StopHost {
        /// Which.
        host: usize,
        /// After how long.
        for_ms: u64,
    },
    /// All hosts get another build of QEMU.
    Upgrade,
    /// A QEMU ends.
    KillQemu {
        /// Where.
        host: usize,
        /// Which of those that are there.
        nth: usize,
    },
    /// A QEMU does not answer.
    HangQemu {
        /// Where.
        host: usize,
        /// Which of those that are there.
        nth: usize,
        /// For how long.
        for_ms: u64,
    },
    /// The next states that are loaded on a host are not good.
    SpoilLoads {
        /// Where.
        host: usize,
        /// For how long.
        for_ms: u64,
    },
    /// Nothing gets from one to the other.
    Cut {
        /// From.
        from: Node,
        /// To.
        to: Node,
        /// For how long.
        for_ms: u64,
    },
    /// The store's disk is full.
    FillStore {
        /// For how long.
        for_ms: u64,
    },
    /// The store's disk fails now and then.
    ShakeStore {
        /// For how long.
        for_ms: u64,
    },
    /// The store's disk is slow, and changes are seen late.
    SlowStore {
        /// For how long.
        for_ms: u64,
    },
    /// A host's disk is full.
    FillHost {
        /// Which.
        host: usize,
        /// For how long.
        for_ms: u64,
    },
    /// All that a host does takes longer.
    SlowHost {
        /// Which.
        host: usize,
        /// For how long.
        for_ms: u64,
    },
    /// A calendar jumps.
    Jump {
        /// Whose.
        node: Node,
        /// How far.
        by_s: i64,
    },
}

/// Something that is about templates and images. Those that were not made by number are named by their place among all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Catalog {
    /// A template shall be warm, or no longer.
    KeepWarm {
        /// Which.
        nth: usize,
        /// Whether it shall.
        on: bool,
    },
    /// A template gives another size.
    Change {
        /// Which.
        nth: usize,
        /// Of VMs that are made of it from then on.
        memory_mib: u64,
    },
    /// A VM is made of a template, and shall start from its memory.
    Start {
        /// The VM's number.
        vm: usize,
        /// The template.
        nth: usize,
    },
    /// The next version of a template is built.
    Refresh {
        /// Which.
        nth: usize,
    },
    /// A template is built of a VM.
    Build {
        /// The VM's number.
        of: usize,
    },
    /// An image is made of a VM's disk.
    Capture {
        /// The VM's number.
        of: usize,
    },
    /// A template is deleted.
    Delete {
        /// Which.
        nth: usize,
    },
    /// An image is deleted.
    DeleteImage {
        /// Which.
        nth: usize,
    },
    /// A VM of which a template is made is deleted.
    GiveUp {
        /// Which.
        nth: usize,
    },
}

/// What happens, and when: in microseconds from the beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// What chance is drawn from.
    pub seed: u64,
    /// The world.
    pub size: Size,
    /// In the order of time.
    pub steps: Vec<(u64, Step)>,
}

impl Step {
    /// What breaks, if anything does.
    pub fn fault(&self) -> Option<&'static str> {
        Some(match self {
            Self::Create { .. }
            | Self::Clone { .. }
            | Self::Act { .. }
            | Self::Delete { .. }
            | Self::Migrate { .. }
            | Self::Cancel { .. }
            | Self::Operate { .. }
            | Self::Of(_)
            | Self::Join { .. } => return None,
            Self::Upgrade => "QEMU upgraded",
            Self::LoseHost { .. } => "host lost",
            Self::CrashServer { .. } => "server crash",
            Self::CrashAgent { .. } => "agent crash",
            Self::CrashAtEffect { .. } => "agent crash at an effect",
            Self::StopHost { .. } => "host off",
            Self::KillQemu { .. } => "QEMU killed",
            Self::HangQemu { .. } => "QEMU hangs",
            Self::SpoilLoads { .. } => "bad saved state",
            Self::Cut { .. } => "cut",
            Self::FillStore { .. } => "store full",
            Self::ShakeStore { .. } => "store fails",
            Self::SlowStore { .. } => "store slow",
            Self::FillHost { .. } => "host full",
            Self::SlowHost { .. } => "host slow",
            Self::Jump { .. } => "clock jump",
        })
    }
}

const ACTIONS: [&str; 12] = [
    "shutdown", "start", "start", "pause", "resume", "suspend", "resume", "stop", "start", "reboot", "retry",
    "retry",
];

impl Script {
    /// The script of a seed.
    pub fn of(seed: u64, size: Size) -> Self {
        let mut chance = ChaCha8Rng::seed_from_u64(seed);
        let mut steps = Vec::new();
        let end_us = size.seconds * 1_000_000;
        for vm in 0..size.vms {
            let at_us = chance.random_range(0..end_us / 3);
            let memory_mib = [256, 512, 1024][chance.random_range(0..3_usize)];
            let rule = match chance.random_range(0..6) {
                0 => Rule::Together,
                1 | 2 => Rule::Apart,
                _ => Rule::None,
            };
            let has_nic = chance.random_range(0..2) == 0;
            let create = Step::Create {
                vm,
                memory_mib,
                rule,
                has_nic,
            };
            steps.push((at_us, create));
        }
        if size.hosts > 2 && chance.random_range(0..2) == 0 {
            let host = size.hosts - 1;
            steps.push((chance.random_range(0..end_us), Step::Join { host }));
        }
        for _ in 0..size.vms * 3 {
            let at_us = chance.random_range(end_us / 10..end_us);
            steps.push((at_us, wish(&mut chance, size)));
        }
        for _ in 0..size.faults {
            let at_us = chance.random_range(1_000_000..end_us);
            steps.push((at_us, fault(&mut chance, size)));
        }
        for clone in 0..size.vms / 2 {
            let of = chance.random_range(0..size.vms);
            let vm = size.vms + clone;
            let at_us = chance.random_range(end_us / 6..end_us);
            steps.push((at_us, Step::Clone { vm, of }));
            if chance.random_range(0..3) == 0 {
                let at_us = chance.random_range(at_us..end_us);
                steps.push((at_us, Step::Delete { vm }));
            }
        }
        for vm in 0..size.vms + size.vms / 2 {
            let at_us = chance.random_range(end_us / 4..end_us);
            let step = Step::Act {
                vm,
                action: "flatten",
                force: false,
            };
            steps.extend((chance.random_range(0..3) == 0).then_some((at_us, step)));
        }
        catalog(&mut chance, size, &mut steps);
        steps.sort_by_key(|(at_us, _)| *at_us);
        Self { seed, size, steps }
    }

    /// The rule that each VM is asked for with, by its name.
    pub(crate) fn rules(&self) -> BTreeMap<String, Rule> {
        let rule = |(_, step): &(u64, Step)| match step {
            Step::Create { vm, rule, .. } => Some((vm_name(*vm), *rule)),
            _ => None,
        };
        self.steps.iter().filter_map(rule).collect()
    }

    /// The same without some of its steps.
    pub fn with(&self, steps: Vec<(u64, Step)>) -> Self {
        Self {
            seed: self.seed,
            size: self.size,
            steps,
        }
    }
}

/// Something that a user or an operator asks for.
fn wish(chance: &mut ChaCha8Rng, size: Size) -> Step {
    let vm = chance.random_range(0..size.vms);
    let host = chance.random_range(0..size.hosts);
    match chance.random_range(0..20) {
        0..8 => Step::Migrate { vm },
        8..14 => Step::Act {
            vm,
            action: ACTIONS[chance.random_range(0..ACTIONS.len())],
            force: chance.random_range(0..4) == 0,
        },
        14 => Step::Delete { vm },
        15 | 16 => Step::Cancel { vm },
        17 => Step::Operate {
            host,
            action: "drain",
        },
        18 => Step::Operate {
            host,
            action: "undrain",
        },
        _ => Step::Operate {
            host,
            action: "uncordon",
        },
    }
}

/// What is asked for of templates and images: nothing where users ask for nothing else.
fn catalog(chance: &mut ChaCha8Rng, size: Size, steps: &mut Vec<(u64, Step)>) {
    let end_us = size.seconds * 1_000_000;
    let first_start = size.vms + size.vms / 2;
    for start in 0..size.vms {
        let (nth, of) = (chance.random_range(0..6_usize), chance.random_range(0..size.vms));
        let on = chance.random_range(0..3) > 0;
        let wish = match chance.random_range(0..16) {
            0..3 => Catalog::KeepWarm { nth, on },
            3 => Catalog::Change {
                nth,
                memory_mib: [256, 320][of % 2],
            },
            4 | 5 => Catalog::Refresh { nth },
            6 | 7 => Catalog::Build { of },
            8..10 => Catalog::Capture { of },
            10 => Catalog::Delete { nth },
            11 | 12 => Catalog::DeleteImage { nth },
            13 => Catalog::GiveUp { nth },
            _ => Catalog::Start {
                vm: first_start + start,
                nth,
            },
        };
        steps.push((chance.random_range(end_us / 10..end_us), Step::Of(wish)));
    }
    if size.vms > 0 && chance.random_range(0..2) == 0 {
        let warm = Catalog::KeepWarm { nth: 0, on: true };
        steps.push((chance.random_range(0..end_us / 3), Step::Of(warm)));
        let vm = first_start + size.vms;
        let at_us = chance.random_range(end_us / 2..end_us);
        steps.push((at_us, Step::Of(Catalog::Start { vm, nth: 0 })));
        let upgrades = size.faults > 0 && chance.random_range(0..3) == 0;
        let at_us = chance.random_range(end_us / 3..end_us);
        steps.extend(upgrades.then_some((at_us, Step::Upgrade)));
    }
}

/// Something that breaks.
fn fault(chance: &mut ChaCha8Rng, size: Size) -> Step {
    let host = chance.random_range(0..size.hosts);
    let server = chance.random_range(0..size.servers);
    let for_ms = chance.random_range(50..20_000);
    match chance.random_range(0..32) {
        0..3 => Step::CrashServer { server, for_ms },
        3..6 => Step::CrashAgent { host, for_ms },
        6..12 => Step::CrashAtEffect {
            host,
            nth: chance.random_range(1..40),
            is_after: chance.random_range(0..2) == 0,
        },
        12 => Step::StopHost { host, for_ms },
        13 | 14 => Step::KillQemu {
            host,
            nth: chance.random_range(0..4),
        },
        15 => Step::HangQemu {
            host,
            nth: chance.random_range(0..4),
            for_ms,
        },
        16 => Step::SpoilLoads { host, for_ms },
        17..21 => cut(chance, size, for_ms),
        21 => Step::FillStore { for_ms },
        22 => Step::ShakeStore { for_ms },
        23 => Step::SlowStore { for_ms },
        24 => Step::FillHost { host, for_ms },
        25 | 26 => Step::SlowHost { host, for_ms },
        27 | 28 => Step::LoseHost {
            host,
            told_ms: for_ms,
        },
        _ => Step::Jump {
            node: [Node::Host(host), Node::Server(server)][chance.random_range(0..2_usize)],
            by_s: chance.random_range(-100_000..100_000),
        },
    }
}

fn cut(chance: &mut ChaCha8Rng, size: Size, for_ms: u64) -> Step {
    let host = Node::Host(chance.random_range(0..size.hosts));
    let other = if chance.random_range(0..2) == 0 {
        Node::Server(chance.random_range(0..size.servers))
    } else {
        Node::Host(chance.random_range(0..size.hosts))
    };
    let (from, to) = [(host, other), (other, host)][chance.random_range(0..2_usize)];
    Step::Cut { from, to, for_ms }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {:?}", self.seed, self.size)?;
        for (at_us, step) in &self.steps {
            writeln!(f, "  {:>12.6} s  {step:?}", *at_us as f64 / 1e6)?;
        }
        Ok(())
    }
}
