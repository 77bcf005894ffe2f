//! Rows of *target M*: the target's side.
//!
//! From `go` to the guest's first instruction there are the mark ran(M) and `cont`, and nothing else: that is downtime.
//! The port is opened after `cont`. What the guest sends in between is lost, as it would be on the wire; nobody sends to
//! it yet, and the addresses are announced, again and again, once the port is open.

use model::Reason;
use model::vm::SavedIn;

use super::memory::Announcement;
use super::{Core, Plan, STEADY_MS};
use crate::column::has_failed;
use crate::types::{Effect, Mark, MigrationWord, Now, QemuState};

/// How long a target that waits for its source goes without a look.
pub(super) const AWAIT_MS: u64 = 1_000;

/// The same once `go` has come, so that QEMU must be about to say that it has loaded.
const CALLED_MS: u64 = 2;

impl Core {
    pub(super) fn plan_incoming(&mut self, now: Now, state: &QemuState) -> Plan {
        let Some(timeout_ms) = self.target().map(|order| order.timeout_ms) else {
            return Plan::rest();
        };
        let since_us = *self.memory.incoming_since_us.get_or_insert(now.monotonic_us);
        let left_ms = timeout_ms.saturating_sub(now.monotonic_us.saturating_sub(since_us) / 1000);
        let failure = self
            .memory
            .fault
            .clone()
            .or_else(|| incoming_failure(state, left_ms, timeout_ms));
        if failure.is_some() {
            // Close first, then kill: nothing of the guest ever executed here.
            return Plan::mark(Mark::Closed {
                reason: failure,
                saved_bytes: None,
                saved_in: SavedIn::Host,
            });
        }
        let is_idle = matches!(state.migration, MigrationWord::None | MigrationWord::Setup);
        if self.memory.stream.is_none() && is_idle {
            return Plan::act(Effect::Listen);
        }
        let wait_ms = if self.go { CALLED_MS } else { AWAIT_MS };
        Plan::wait_ms(wait_ms.min(left_ms))
    }

    /// ran(M) is written: let the guest run, unless the spec says that it stands still; it is here either way.
    pub(super) fn plan_ran(&mut self) -> Plan {
        self.memory.arrive();
        if !self.is_paused_by_spec() {
            return Plan::act(Effect::Continue);
        }
        if !self.memory.ports_are_open {
            Plan::act(Effect::OpenPorts)
        } else if self.memory.announcement == Announcement::Due {
            Plan::act(Effect::Announce)
        } else {
            Plan::wait_ms(STEADY_MS)
        }
    }

    pub(super) fn plan_arrived(&mut self, state: &QemuState) -> Plan {
        self.memory.arrive();
        self.keep(state)
    }
}

fn incoming_failure(state: &QemuState, left_ms: u64, timeout_ms: u64) -> Option<Reason> {
    if has_failed(state) {
        let cause = state.migration_error.as_deref().unwrap_or("QEMU gave no reason");
        let message = format!("the VM's memory could not be taken over: {cause}; migrate it again");
        return Some(Reason::new("incoming-failed", message));
    }
    let message = format!("the VM's memory did not arrive within {timeout_ms} ms: migrate it again");
    (left_ms == 0).then(|| Reason::new("incoming-timeout", message))
}
