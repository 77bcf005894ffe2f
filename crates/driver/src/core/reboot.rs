//! A reboot of a guest that runs on: asked of it first, by a reset at the deadline. Its incarnation outlives both.
//!
//! That it rebooted is known from a reset that QEMU tells of. An agent that is restarted in between has not heard it. It
//! finds in the marks that a reboot was begun, and for how long the guest had been up then: a guest that has been up for
//! less is rebooted. Of a guest that does not say so nothing is known, and it is rebooted once more rather than not at all.

use model::report::Rebooted;
use model::vm::Reboot;

use super::{Core, Desired, Plan, STEADY_MS};
use crate::types::{Effect, Mark, Now, QemuState, Rebooting, RunStatusWord};

/// How long a guest may take to answer an agent that finds its reboot begun by an earlier one.
const ANSWER_US: u64 = 60_000_000;

/// How far a reboot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnderWay {
    request: u64,
    /// How often the guest had been reset when it began.
    resets: u64,
    /// We reset it.
    pub(super) is_reset: bool,
    earlier: Option<Earlier>,
}

/// An agent before this one has begun it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Earlier {
    /// For how long the guest was up before.
    up_ms: u64,
    /// Until when its answer is waited for.
    until_us: u64,
}

impl Earlier {
    /// Whether the guest has rebooted since; `None` if it has not said so yet and may.
    fn is_made(self, now: Now, state: &QemuState) -> Option<bool> {
        match state.guest.up_ms {
            Some(up_ms) => Some(up_ms < self.up_ms),
            None => (now.monotonic_us >= self.until_us).then_some(false),
        }
    }
}

impl Core {
    /// The next step of a reboot that is due; `None` if there is none.
    pub(super) fn plan_reboot(&mut self, now: Now, state: &QemuState) -> Option<Plan> {
        let reboot = self.due_reboot()?;
        let is_running = state.run == RunStatusWord::Running && !self.is_paused_by_spec();
        if !is_running || !self.memory.ports_are_open {
            return None;
        }
        let Some(begun) = self
            .marks
            .rebooting
            .filter(|begun| begun.request == reboot.request)
        else {
            self.memory.reboot = Some(UnderWay::begin(reboot.request, state));
            return Some(Plan::mark(Mark::Rebooting(Rebooting {
                request: reboot.request,
                up_ms: state.guest.up_ms,
            })));
        };
        let found = UnderWay {
            earlier: begun.up_ms.map(|up_ms| Earlier {
                up_ms,
                until_us: now.monotonic_us + ANSWER_US,
            }),
            ..UnderWay::begin(reboot.request, state)
        };
        let known = self.memory.reboot;
        let under_way = *self.memory.reboot.insert(
            known
                .filter(|known| known.request == reboot.request)
                .unwrap_or(found),
        );
        let is_heard = under_way.is_reset || state.resets > under_way.resets;
        let is_made = match under_way.earlier.filter(|_| !is_heard) {
            Some(earlier) => earlier.is_made(now, state),
            None => Some(is_heard),
        };
        Some(match is_made {
            Some(true) => Plan::mark(Mark::Rebooted(Rebooted {
                request: reboot.request,
                forced: under_way.is_reset,
            })),
            Some(false) => self.plan_asking(now, reboot),
            None => Plan::wait_ms(STEADY_MS),
        })
    }

    /// Ask the guest, and reset it when its time is over.
    fn plan_asking(&self, now: Now, reboot: Reboot) -> Plan {
        let left_ms = reboot.force_at.duration_since(now.wall).as_millis();
        if left_ms <= 0 {
            return Plan::act(Effect::Reset);
        }
        let may_ask = self
            .pace
            .blocked_until_us(&Effect::AskReboot, now.monotonic_us)
            .is_none();
        if self.memory.guest.ready && may_ask {
            return Plan::act(Effect::AskReboot);
        }
        let left_ms = u64::try_from(left_ms).unwrap_or(STEADY_MS);
        Plan::wait_ms(left_ms.min(STEADY_MS))
    }

    fn due_reboot(&self) -> Option<Reboot> {
        let Desired::Ordered(document) = &self.desired else {
            return None;
        };
        let made = self.marks.rebooted.map_or(0, |rebooted| rebooted.request);
        document.reboot.filter(|reboot| reboot.request > made)
    }
}

impl UnderWay {
    const fn begin(request: u64, state: &QemuState) -> Self {
        Self {
            request,
            resets: state.resets,
            is_reset: false,
            earlier: None,
        }
    }
}
