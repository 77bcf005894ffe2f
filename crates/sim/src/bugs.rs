//! Bugs that are put in on purpose: a check that finds none of them is no check.
//!
//! **Owns:** their list. Each is a switch where the simulation meets the product, so that the product has none.
//!
//! **Does not know:** how they are found: see [`crate::check`].
//!
//! **Start here:** [`Bug`].

use model::key::{self, AUDIT_PREFIX, Part};
use model::vm::{PlacementRule, VmSpec};
use model::{Kind, Object, record};
use store::{Op, Txn};

/// Something that is wrong with the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// Writes are made whatever has changed since they were decided.
    ComparesLeftOut,
    /// A server does not see every change.
    WakeUpLost,
    /// A host counts as dead because somebody says so, though it runs on.
    FenceIgnored,
    /// A promise is said to be on disk, and is not.
    PromiseNotKept,
    /// A target lets its guest run when it has loaded, before its source is known to have ended.
    GoBeforeTheEnd,
    /// The audit record of a write is left out.
    AuditLeftOut,
    /// A process that shall be ended goes on.
    KillIgnored,
    /// Servers on one store do not see each other.
    ServersUnseen,
    /// An address is taken without a look whether it is free.
    AddressUncompared,
    /// An address is not given back.
    AddressKept,
    /// A VM's rules are forgotten.
    RulesLost,
    /// Hosts that connect are told what a server knows that hears of changes late.
    ServerBehind,
    /// With a disk goes the warm VM's that it is over.
    LayerTakenAlong,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::ComparesLeftOut,
        Self::WakeUpLost,
        Self::FenceIgnored,
        Self::PromiseNotKept,
        Self::GoBeforeTheEnd,
        Self::AuditLeftOut,
        Self::KillIgnored,
        Self::ServersUnseen,
        Self::AddressUncompared,
        Self::AddressKept,
        Self::RulesLost,
        Self::ServerBehind,
        Self::LayerTakenAlong,
    ];
    /// Does to a write what the bug does. Answers how long there is then for others to come first.
    pub(crate) fn spoil(self, txn: &mut Txn) -> u64 {
        let is_address = |key: &str| key.starts_with("/network/") && key.contains("/address/");
        match self {
            Self::AuditLeftOut => {
                let is_audit = |op: &Op| matches!(op, Op::Put { key, .. } if key.starts_with(AUDIT_PREFIX));
                txn.then.retain(|op| !is_audit(op));
            }
            Self::ComparesLeftOut => {
                txn.compares.clear();
                return 20_000;
            }
            Self::AddressUncompared => {
                let count = txn.compares.len();
                txn.compares.retain(|compare| !is_address(&compare.key));
                return if txn.compares.len() < count { 3_000_000 } else { 0 };
            }
            Self::AddressKept => {
                txn.then
                    .retain(|op| !matches!(op, Op::Delete { key, .. } if is_address(key)));
            }
            Self::RulesLost => txn.then.iter_mut().for_each(forget_rules),
            _ => {}
        }
        0
    }
}

fn forget_rules(op: &mut Op) {
    let Op::Put { key, value, .. } = op else { return };
    if let Some((Kind::Vm, _, Part::Object)) = key::parse(key)
        && let Ok(mut object) = record::decode::<Object<VmSpec>>(value)
    {
        object.spec.placement = PlacementRule::default();
        *value = record::encode(&object).into();
    }
}
