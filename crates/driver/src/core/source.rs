//! Rows of *migrate to M*: the source's side.

use super::memory::Transfer;
use super::{Core, Plan, STEADY_MS};
use crate::passes::LIMITS_MS;
use crate::table::Row;
use crate::types::{Effect, Mark, Now, QemuState, RunStatusWord};

/// How long a transfer goes without a look at its progress.
const PROGRESS_MS: u64 = 200;

/// How long the last part, which takes milliseconds, may take until the target has acknowledged it. The guest stands still
/// meanwhile, and on a link that was cut QEMU would wait for ever: it has nothing to send that TCP could fail to deliver.
const DEVICE_MS: u64 = 5_000;
/// How long it goes without a look at first; it waits longer the longer it lasts. Its end is an event, and a look costs
/// QEMU time just then.
const DEVICE_LOOK_MS: u64 = 50;

impl Core {
    /// Everything is there for the transfer: mark it sent, start it.
    pub(super) fn plan_start(&self, state: &QemuState) -> Plan {
        let Some(order) = self.migration().filter(|order| order.stream.is_some()) else {
            return Plan::wait_ms(STEADY_MS);
        };
        // A save that was taken back stopped it, and QEMU sends nothing before the guest went on: also one that shall
        // stand still, for an instant.
        if state.run == RunStatusWord::PostMigrate {
            return self.continue_guest();
        }
        if order.paused && state.run == RunStatusWord::Running {
            return Plan::act(Effect::Pause);
        }
        self.plan_beside_guest(state)
            .unwrap_or_else(|| Plan::bind(Mark::Sent { to: order.to }, Effect::Migrate { to: order.to }))
    }

    pub(super) fn plan_pre_copy(&mut self, now: Now, state: &QemuState) -> Plan {
        let Some(timeout_ms) = self.migration().map(|order| order.timeout_ms) else {
            return Plan::rest();
        };
        let Some(transfer) = self.transfer(now) else {
            return Plan::rest();
        };
        let spent_us = now.monotonic_us.saturating_sub(transfer.counted_from_us);
        let left_ms = timeout_ms.saturating_sub(spent_us / 1000);
        if left_ms == 0 {
            return self.plan_no_switch(now, Row::PreCopy);
        }
        let limit_ms = state.downtime_limit_ms.unwrap_or(LIMITS_MS[0]);
        let raised = state
            .progress
            .as_ref()
            .and_then(|progress| transfer.passes.observe(progress, limit_ms));
        match raised {
            Some(ms) => Plan::act(Effect::SetDowntimeLimit { ms }),
            None => Plan::wait_ms(PROGRESS_MS.min(left_ms)),
        }
    }

    pub(super) fn plan_switch(&self) -> Plan {
        let order = self.migration();
        order.map_or(Plan::rest(), |order| {
            Plan::act(Effect::MigrateContinue { to: order.to })
        })
    }

    /// Wait; then give the transfer up. QEMU may complete all the same: what it says after the cancel decides.
    pub(super) fn plan_device(&mut self, now: Now, row: Row) -> Plan {
        let since_us = *self.memory.device_since_us.get_or_insert(now.monotonic_us);
        let spent_ms = now.monotonic_us.saturating_sub(since_us) / 1000;
        let left_ms = DEVICE_MS.saturating_sub(spent_ms);
        if left_ms > 0 {
            Plan::wait_ms(DEVICE_LOOK_MS.max(spent_ms / 2).min(left_ms))
        } else if row == Row::Device && !self.has_promised() {
            self.plan_no_switch(now, row)
        } else {
            Plan::act(Effect::MigrateCancel)
        }
    }

    /// Write no-switch(M), for a cause that is reported with the promise.
    pub(super) fn plan_no_switch(&mut self, now: Now, row: Row) -> Plan {
        let Some((to, timeout_ms)) = self.migration().map(|order| (order.to, order.timeout_ms)) else {
            return Plan::rest();
        };
        if let Some(transfer) = self.transfer(now) {
            transfer.error.get_or_insert(match row {
                Row::PreCopy => format!("the transfer did not end within {timeout_ms} ms"),
                Row::Device => format!(
                    "the target did not acknowledge the last part within {DEVICE_MS} ms: the link between the hosts may be cut"
                ),
                Row::SwitchOffline => {
                    "the source's host had no connection to a server when it had to switch".to_owned()
                }
                _ => "it was cancelled".to_owned(),
            });
        }
        Plan::mark(Mark::NoSwitch { to })
    }

    /// Send `go` until it is answered. It stands before the report: it is inside the downtime.
    pub(super) fn plan_completed(&mut self, now: Now) -> Plan {
        let Some(order) = self.migration().cloned() else {
            return Plan::rest();
        };
        let is_answered = self.transfer(now).is_some_and(|transfer| {
            transfer.complete(now);
            transfer.is_answered
        });
        match order.peer {
            Some(peer) if !is_answered => Plan::act(Effect::SendGo {
                to: order.to,
                host: order.host,
                host_name: order.host_name,
                peer,
            }),
            // The record, phase Decided, says it to the target.
            _ => Plan::wait_ms(STEADY_MS),
        }
    }

    /// Nothing of M is under way: write no-switch(M), let N go on; the status gives the promise.
    pub(super) fn plan_promise(&mut self, now: Now, row: Row, state: &QemuState) -> Plan {
        if row != Row::PromiseUnsent
            && let Some(transfer) = self.transfer(now)
            && let Some(error) = &state.migration_error
        {
            transfer.error.get_or_insert_with(|| error.clone());
        }
        if !self.has_promised() {
            return self.plan_no_switch(now, row);
        }
        if row == Row::Failed {
            self.continue_as_specified()
        } else {
            self.keep(state)
        }
    }

    /// Whether no-switch(M) is written.
    pub(super) fn has_promised(&self) -> bool {
        self.migration()
            .is_some_and(|order| self.marks.no_switch.contains(&order.to))
    }

    /// What is remembered of the transfer to M. An agent that was restarted counts from its restart.
    fn transfer(&mut self, now: Now) -> Option<&mut Transfer> {
        let to = self.migration()?.to;
        Some(
            self.memory
                .transfer
                .get_or_insert_with(|| Transfer::found(to, now)),
        )
    }
}
