//! A reboot of a guest that runs on: asked of it first, by a reset at the deadline. Its incarnation outlives both.
//!
//! That it rebooted is known from a reset that QEMU tells of. An agent that is restarted in between has not heard it, and
//! begins anew: the guest is rebooted once more rather than not at all.

use model::report::Rebooted;
use model::vm::Reboot;

use super::{Core, Desired, Plan, STEADY_MS};
use crate::types::{Effect, Mark, Now, QemuState, RunStatusWord};

/// How far a reboot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnderWay {
    request: u64,
    /// How often the guest had been reset when it began.
    resets: u64,
    /// We reset it.
    pub(super) is_reset: bool,
}

impl Core {
    /// The next step of a reboot that is due; `None` if there is none.
    pub(super) fn plan_reboot(&mut self, now: Now, state: &QemuState) -> Option<Plan> {
        let reboot = self.due_reboot()?;
        let is_running = state.run == RunStatusWord::Running && !self.is_paused_by_spec();
        if !is_running || !self.memory.ports_are_open {
            return None;
        }
        let begun = UnderWay {
            request: reboot.request,
            resets: state.resets,
            is_reset: false,
        };
        let under_way = *self.memory.reboot.insert(
            self.memory
                .reboot
                .filter(|known| known.request == reboot.request)
                .unwrap_or(begun),
        );
        if under_way.is_reset || state.resets > under_way.resets {
            return Some(Plan::mark(Mark::Rebooted(Rebooted {
                request: reboot.request,
                forced: under_way.is_reset,
            })));
        }
        let left_ms = reboot.force_at.duration_since(now.wall).as_millis();
        if left_ms <= 0 {
            return Some(Plan::act(Effect::Reset));
        }
        let may_ask = self
            .pace
            .blocked_until_us(&Effect::AskReboot, now.monotonic_us)
            .is_none();
        if self.memory.guest.ready && may_ask {
            return Some(Plan::act(Effect::AskReboot));
        }
        let left_ms = u64::try_from(left_ms).unwrap_or(STEADY_MS);
        Some(Plan::wait_ms(left_ms.min(STEADY_MS)))
    }

    fn due_reboot(&self) -> Option<Reboot> {
        let Desired::Ordered(document) = &self.desired else {
            return None;
        };
        let made = self.marks.rebooted.map_or(0, |rebooted| rebooted.request);
        document.reboot.filter(|reboot| reboot.request > made)
    }
}
