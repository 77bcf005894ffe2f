//! How often a step is tried: the pause after a success, the growing one after a failure.
//!
//! There is no randomness here. What keeps many VMs from trying in step is a number made from the VM's id.

use std::collections::BTreeMap;

use model::Reason;

use crate::types::{Effect, Failure, Identity};

/// Tries of steps, by the step's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pace {
    seed: u64,
    tries: BTreeMap<&'static str, Tries>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tries {
    failures: u32,
    first_failed_us: u64,
    not_before_us: u64,
    reason: Option<Reason>,
}

impl Pace {
    pub(super) fn new(id: Identity) -> Self {
        let vm = id.vm.0.as_u128();
        let folded = (vm >> 64) as u64 ^ vm as u64 ^ id.incarnation.0;
        Self {
            seed: mix(folded),
            tries: BTreeMap::new(),
        }
    }

    /// When the effect may be tried, if that is not now.
    pub(super) fn blocked_until_us(&self, effect: &Effect, now_us: u64) -> Option<u64> {
        let not_before_us = self.tries.get(name(effect))?.not_before_us;
        (not_before_us > now_us).then_some(not_before_us)
    }

    /// Why the effect failed the last time, unless it succeeded since.
    pub(super) fn trouble(&self, effect: &Effect) -> Option<&Reason> {
        self.tries.get(name(effect))?.reason.as_ref()
    }

    pub(super) fn succeeded(&mut self, effect: &Effect, now_us: u64) {
        let not_before_us = now_us + interval_us(effect);
        self.tries.insert(
            name(effect),
            Tries {
                not_before_us,
                ..Tries::default()
            },
        );
    }

    pub(super) fn failed(&mut self, effect: &Effect, failure: &Failure, now_us: u64) {
        let (first_us, cap_us) = backoff_us(effect);
        let seed = self.seed;
        let tries = self.tries.entry(name(effect)).or_default();
        if tries.failures == 0 {
            tries.first_failed_us = now_us;
        }
        let wait_us = first_us.saturating_mul(1 << tries.failures.min(16)).min(cap_us);
        let jitter_us = mix(seed ^ u64::from(tries.failures)) % (wait_us / 4 + 1);
        tries.failures += 1;
        tries.not_before_us = now_us + wait_us + jitter_us;
        tries.reason = Some(failure.reason.clone());
    }

    /// How often the effect failed in a row, and for how long.
    pub(super) fn failures(&self, effect: &Effect, now_us: u64) -> (u32, u64) {
        let tries = self.tries.get(name(effect));
        tries.map_or((0, 0), |tries| {
            (tries.failures, now_us.saturating_sub(tries.first_failed_us))
        })
    }
}

/// A step's name, also as people read it in reasons.
pub(super) fn name(effect: &Effect) -> &'static str {
    match effect {
        Effect::Journal(_) => "journal",
        Effect::Prepare { .. } => "prepare",
        Effect::Spawn { .. } => "spawn",
        Effect::Listen => "listen",
        Effect::LoadSaved { .. } => "load-saved",
        Effect::LoadWarm { .. } => "load-warm",
        Effect::Identify => "identify",
        Effect::Settle => "settle",
        Effect::Build => "build",
        Effect::Warm => "warm",
        Effect::OpenPorts => "open-ports",
        Effect::Continue => "continue",
        Effect::Announce => "announce",
        Effect::Pause => "pause",
        Effect::Save { .. } => "save",
        Effect::AskShutdown => "ask-shutdown",
        Effect::AskReboot => "ask-reboot",
        Effect::Reset => "reset",
        Effect::ChangeMedium => "change-medium",
        Effect::SetBoot => "set-boot",
        Effect::Copy { .. } => "copy",
        Effect::CopyAtRest { .. } => "copy-at-rest",
        Effect::DropCopy { .. } => "drop-copy",
        Effect::Kill => "kill",
        Effect::Release => "release",
        Effect::RemoveVolumes => "remove-volumes",
        Effect::RemoveSaved { .. } => "remove-saved",
        Effect::Migrate { .. } => "migrate",
        Effect::MigrateContinue { .. } => "migrate-continue",
        Effect::MigrateCancel => "migrate-cancel",
        Effect::SetDowntimeLimit { .. } => "set-downtime-limit",
        Effect::SendGo { .. } => "send-go",
        Effect::Look => "look",
        Effect::Timer { .. } => "timer",
        Effect::Report { .. } => "report",
        Effect::Forget => "forget",
    }
}

/// How long a step that succeeded is left to take effect before it is asked for again.
fn interval_us(effect: &Effect) -> u64 {
    match effect {
        // What succeeds here is not asked for again, or asks for itself.
        Effect::Journal(_) | Effect::Look => 0,
        Effect::AskShutdown => 1_000_000,
        // What it has begun goes on in the guest, whose time each question takes.
        Effect::Build => 2_000_000,
        // A guest that goes down slowly is not asked again too soon: it would take that for a second reboot.
        Effect::AskReboot => 15_000_000,
        Effect::Kill => 200_000,
        Effect::Save { .. } => 1_000_000,
        _ => 50_000,
    }
}

/// The first wait after a failure, and the longest.
fn backoff_us(effect: &Effect) -> (u64, u64) {
    match effect {
        // Guests stand still until these succeed.
        Effect::Continue | Effect::MigrateContinue { .. } | Effect::MigrateCancel | Effect::SendGo { .. } => {
            (20_000, 1_000_000)
        }
        Effect::Journal(_) | Effect::Look => (50_000, 2_000_000),
        Effect::AskShutdown => (1_000_000, 1_000_000),
        Effect::Prepare { .. } => (1_000_000, 20_000_000),
        // A guest that holds its medium is asked for it each time.
        Effect::ChangeMedium => (1_000_000, 5_000_000),
        _ => (200_000, 30_000_000),
    }
}

/// The finaliser of SplitMix64: every bit of the answer depends on every bit of the number.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
