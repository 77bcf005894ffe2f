//! The recipe of a live migration: capabilities and parameters for each side.
//!
//! *Owns:* the values that were measured to be best. *Does not know:* QMP connections or TLS files (see
//! [`crate::migration_tls`]), and how the downtime limit rises. Everything here is pure.
//! *Start here:* [`capabilities`] and [`parameters`], set in this order.

use serde_json::{Value, json};

use crate::migration_tls::TlsParameters;

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
/// on the source only: it is the agent's last chance to honour a cancel. One connection carries all: with more of them and TLS a
/// source may hang, or end by an assertion, when its target dies (decision 0009).
pub fn capabilities(side: Side) -> Value {
    capability_list(&[
        ("events", true),
        ("return-path", true),
        ("multifd", false),
        ("pause-before-switchover", side == Side::Source),
        (IGNORE_SHARED, false),
    ])
}

/// The capabilities of saving to, or restoring from, a file: one stream, nothing to wait for.
pub fn file_capabilities() -> Value {
    capability_list(&[
        ("events", true),
        ("return-path", false),
        ("multifd", false),
        ("pause-before-switchover", false),
        (IGNORE_SHARED, false),
    ])
}

/// The same where the memory is a file of its own: all but that goes to, or comes from, the state's file.
pub fn warm_capabilities() -> Value {
    capability_list(&[
        ("events", true),
        ("return-path", false),
        ("multifd", false),
        ("pause-before-switchover", false),
        (IGNORE_SHARED, true),
    ])
}

/// QEMU calls it unstable: what was written with it is read by the same build only.
const IGNORE_SHARED: &str = "x-ignore-shared";

fn capability_list(capabilities: &[(&str, bool)]) -> Value {
    let list = capabilities
        .iter()
        .map(|(capability, state)| json!({"capability": capability, "state": state}));
    list.collect()
}

/// The parameters of a live migration, with TLS or (`None`) in plain text.
///
/// The bandwidth is in effect unlimited: how much a migration may use is the plan's business and set afterwards.
pub fn parameters(tls: Option<&TlsParameters>, downtime_limit_ms: u64) -> Value {
    let mut parameters = stream_parameters(tls);
    merge(&mut parameters, downtime_limit_parameter(downtime_limit_ms));
    parameters
}

/// The parameters of saving to, or restoring from, a file: no TLS.
pub fn file_parameters() -> Value {
    stream_parameters(None)
}

/// The thread that sends looks for zero pages itself: QEMU's default leaves that to multifd's threads.
fn stream_parameters(tls: Option<&TlsParameters>) -> Value {
    let mut parameters = json!({
        "zero-page-detection": "legacy",
        "max-bandwidth": 10_000_000_000_u64,
    });
    merge(&mut parameters, tls_parameters(tls));
    parameters
}

/// The parameter for a new downtime limit, which may be set at any time.
pub fn downtime_limit_parameter(limit_ms: u64) -> Value {
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
