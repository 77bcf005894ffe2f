//! The recipe of a live migration: capabilities and parameters for each side, and how the downtime limit rises.
//!
//! *Owns:* the values that were measured to be best, and the rule for the limit. *Does not know:* QMP connections or TLS
//! files (see [`crate::migration_tls`]). Everything here is pure.
//! *Start here:* [`capabilities`] and [`parameters`], set in this order, then [`next_downtime_limit_ms`] at each pass.

use serde_json::{Value, json};

use crate::migration_tls::TlsParameters;

/// The steps of the downtime limit. The first is above the floor of about 10 ms, the last is QEMU's default.
pub const DOWNTIME_LIMITS_MS: [u32; 4] = [20, 50, 100, 300];

/// The side of a migration that settings are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Sends.
    Source,
    /// Receives.
    Target,
}

/// The capabilities of a live migration. All that we ever set are named, so that a cancelled attempt leaves no trace.
///
/// `return-path` on both sides, or a source reports *completed* for a target that failed to load. `pause-before-switchover`
/// on the source only: it is the agent's last chance to honour a cancel.
pub fn capabilities(side: Side) -> Value {
    capability_list(&[
        ("events", true),
        ("return-path", true),
        ("multifd", true),
        ("pause-before-switchover", side == Side::Source),
    ])
}

/// The capabilities of saving to, or restoring from, a file: one stream, nothing to wait for.
pub fn file_capabilities() -> Value {
    capability_list(&[
        ("events", true),
        ("return-path", false),
        ("multifd", false),
        ("pause-before-switchover", false),
    ])
}

fn capability_list(capabilities: &[(&str, bool)]) -> Value {
    let list = capabilities
        .iter()
        .map(|(capability, state)| json!({"capability": capability, "state": state}));
    list.collect()
}

/// The parameters of a live migration, with TLS or (`None`) in plain text.
///
/// The bandwidth is in effect unlimited: how much a migration may use is the plan's business and set afterwards.
/// Two channels, since four are no better on two cores.
pub fn parameters(tls: Option<&TlsParameters>) -> Value {
    let mut parameters = json!({
        "multifd-channels": 2,
        "zero-page-detection": "multifd",
        "max-bandwidth": 10_000_000_000_u64,
        "downtime-limit": DOWNTIME_LIMITS_MS[0],
    });
    merge(&mut parameters, tls_parameters(tls));
    parameters
}

/// The parameters of saving to, or restoring from, a file: no TLS, no detour of zero pages over multifd's threads.
pub fn file_parameters() -> Value {
    let mut parameters = json!({
        "zero-page-detection": "legacy",
        "max-bandwidth": 10_000_000_000_u64,
    });
    merge(&mut parameters, tls_parameters(None));
    parameters
}

/// The parameter for a new downtime limit, which may be set at any time.
pub fn downtime_limit_parameter(limit_ms: u32) -> Value {
    json!({"downtime-limit": limit_ms})
}

fn tls_parameters(tls: Option<&TlsParameters>) -> Value {
    let text = |choose: fn(&TlsParameters) -> &str| tls.map_or("", choose);
    json!({
        "tls-creds": text(|tls| &tls.credentials_id),
        "tls-hostname": text(|tls| &tls.hostname),
        "tls-authz": text(|tls| &tls.authorization_id),
    })
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// What was seen at the start of one pass over the dirty memory (the event `MIGRATION_PASS`, then `query-migrate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// What was found dirty, which is what this pass has to send.
    pub remaining_bytes: u64,
    /// The downtime limit that was set when the pass began.
    pub downtime_limit_ms: u32,
}

/// A pass shrinks when it has less than this part of the one before it to send.
const SHRINKING_PERCENT: u64 = 90;

/// The next downtime limit to set, once passes have stopped shrinking; `None` while they shrink, and at the last step.
///
/// `history` holds every pass from the first on. The first sends all of memory and says nothing about the guest. A limit
/// is given the chance of two passes that began under it: one that did not shrink may be a burst.
pub fn next_downtime_limit_ms(history: &[Pass]) -> Option<u32> {
    let (_, repeated) = history.split_first()?;
    let [.., before, earlier, last] = repeated else {
        return None;
    };
    let same_limit = before.downtime_limit_ms == last.downtime_limit_ms;
    if !same_limit || shrinks(before, earlier) || shrinks(earlier, last) {
        return None;
    }
    let mut steps = DOWNTIME_LIMITS_MS.into_iter();
    steps.find(|&step_ms| step_ms > last.downtime_limit_ms)
}

fn shrinks(before: &Pass, after: &Pass) -> bool {
    let enough = u128::from(before.remaining_bytes) * u128::from(SHRINKING_PERCENT);
    u128::from(after.remaining_bytes) * 100 < enough
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(passes: &[(u64, u32)]) -> Vec<Pass> {
        let pass = |&(remaining_bytes, downtime_limit_ms)| Pass {
            remaining_bytes,
            downtime_limit_ms,
        };
        passes.iter().map(pass).collect()
    }

    #[test]
    fn the_limit_rises_only_when_passes_stop_shrinking() {
        let next = |passes: &[(u64, u32)]| next_downtime_limit_ms(&history(passes));
        assert_eq!(next(&[]), None);
        assert_eq!(next(&[(1000, 20)]), None);
        assert_eq!(next(&[(1000, 20), (100, 20), (100, 20)]), None);
        assert_eq!(next(&[(1000, 20), (100, 20), (80, 20), (64, 20)]), None);
        assert_eq!(next(&[(1000, 20), (100, 20), (99, 20), (50, 20)]), None);
        assert_eq!(next(&[(1000, 20), (100, 20), (99, 20), (98, 20)]), Some(50));
    }

    #[test]
    fn each_step_gets_its_two_passes_and_the_last_is_kept() {
        let mut passes = history(&[(1000, 20)]);
        let mut limit_ms = 20;
        let mut seen = Vec::new();
        for _ in 0..20 {
            passes.push(Pass {
                remaining_bytes: 100,
                downtime_limit_ms: limit_ms,
            });
            limit_ms = next_downtime_limit_ms(&passes).unwrap_or(limit_ms);
            seen.push(limit_ms);
        }
        assert_eq!(seen[..10], [20, 20, 50, 50, 50, 100, 100, 100, 300, 300]);
        assert_eq!(seen[19], 300);
    }

    #[test]
    fn a_limit_that_is_no_step_rises_to_the_next_one() {
        let odd = history(&[(1000, 30), (100, 30), (100, 30), (100, 30)]);
        assert_eq!(next_downtime_limit_ms(&odd), Some(50));
    }
}
