//! Owns: random histories: what happens, in words that stay meaningful when other steps are left out.
//! Does not know: stores.
//! Start here: [`script`]. The same seed gives the same script.

use bytes::Bytes;

use crate::{Compare, Field, KeyRange, MAX_KEY_BYTES, Op, RangeRequest, Relation, Revision, Txn};

/// A revision that is known only when the step runs: a share of the way from the oldest to the newest, and a bit off.
#[derive(Debug, Clone, Copy)]
pub(super) struct When {
    permille: u64,
    off: i64,
}

impl When {
    pub(super) fn resolve(self, oldest: Revision, newest: Revision) -> Revision {
        let span = newest.saturating_sub(oldest);
        let at = oldest + span * self.permille / 1_000;
        at.saturating_add_signed(self.off)
    }
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A txn whose compares with revisions are made from what is stored, so that about half of them hold.
    Txn(TxnPlan),
    Range(RangeRequest, Option<When>),
    Compact(When),
    Watch(KeyRange, Option<When>),
    /// Reads everything that is due from the watch of this number, modulo the open ones.
    Drain(usize),
    DropWatch(usize),
    Grant,
    Revoke(usize),
    Reopen,
}

#[derive(Debug, Clone)]
pub(super) struct TxnPlan {
    pub(super) compares: Vec<ComparePlan>,
    pub(super) then: Vec<OpPlan>,
    pub(super) otherwise: Vec<OpPlan>,
}

#[derive(Debug, Clone)]
pub(super) struct ComparePlan {
    pub(super) key: String,
    pub(super) kind: CompareKind,
    pub(super) relation: Relation,
    /// Compare with what is stored plus this.
    pub(super) off: i64,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum CompareKind {
    Number(Field),
    Value(u64),
}

#[derive(Debug, Clone)]
pub(super) enum OpPlan {
    Plain(Op),
    /// A put under one of the leases that are alive, if there is one.
    Leased(String, Bytes, usize),
}

impl OpPlan {
    fn key(&self) -> Option<&str> {
        match self {
            Self::Plain(Op::Put { key, .. } | Op::Delete { key }) | Self::Leased(key, ..) => Some(key),
            Self::Plain(_) => None,
        }
    }
}

const KEYS: &[&str] = &[
    "a",
    "a/1",
    "a/10",
    "a/2",
    "a/é",
    "a0",
    "b",
    "b/1",
    "b/\u{10ffff}",
    "b\0",
    "c",
    "zz",
];
const PREFIXES: &[&str] = &["", "a", "a/", "a/1", "b", "b/", "c", "nothing"];
const RELATIONS: &[Relation] = &[
    Relation::Equal,
    Relation::Equal,
    Relation::NotEqual,
    Relation::Less,
    Relation::Greater,
];
const FIELDS: &[Field] = &[Field::ModRevision, Field::CreateRevision, Field::Version];

/// splitmix64: small, seeded, and the same everywhere.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn size(&mut self, end: usize) -> usize {
        self.below(end as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T], default: T) -> T {
        let index = self.size(from.len());
        from.get(index).copied().unwrap_or(default)
    }

    fn key(&mut self) -> String {
        self.pick(KEYS, "a").to_owned()
    }

    fn value(&mut self) -> Bytes {
        let length = match self.below(50) {
            0 => 20_000,
            1..10 => 0,
            _ => 1 + self.size(8),
        };
        let byte = self.next() as u8;
        Bytes::from(vec![byte; length])
    }

    fn range(&mut self) -> KeyRange {
        match self.below(6) {
            0 => KeyRange::Key(self.key()),
            1 => KeyRange::Interval {
                start: self.key(),
                end: self.key(),
            },
            _ => KeyRange::Prefix(self.pick(PREFIXES, "").to_owned()),
        }
    }

    fn when(&mut self) -> When {
        When {
            permille: self.below(1_001),
            off: match self.below(12) {
                0 => -1,
                1 => 1,
                _ => 0,
            },
        }
    }

    fn maybe_when(&mut self) -> Option<When> {
        (self.below(3) > 0).then(|| self.when())
    }
}

pub(super) fn script(seed: u64, steps: usize) -> Vec<Step> {
    let mut dice = Dice::new(seed);
    (0..steps).map(|_| step(&mut dice)).collect()
}

fn step(dice: &mut Dice) -> Step {
    match dice.below(100) {
        0..50 => Step::Txn(txn(dice)),
        50..68 => range(dice),
        68..72 => Step::Compact(dice.when()),
        72..80 => Step::Watch(dice.range(), dice.maybe_when()),
        80..90 => Step::Drain(dice.size(8)),
        90..92 => Step::DropWatch(dice.size(8)),
        92..95 => Step::Grant,
        95..97 => Step::Revoke(dice.size(4)),
        _ => Step::Reopen,
    }
}

fn range(dice: &mut Dice) -> Step {
    let mut request = RangeRequest::new(dice.range());
    if dice.below(3) == 0 {
        request = request.limit(1 + dice.size(5));
    }
    if dice.below(4) == 0 {
        request = request.after(dice.key());
    }
    if dice.below(5) == 0 {
        request = request.keys_only();
    }
    let when = dice.maybe_when();
    Step::Range(request, when)
}

fn txn(dice: &mut Dice) -> TxnPlan {
    let compares = (0..dice.size(4)).map(|_| compare(dice)).collect();
    let (then, otherwise) = (1 + dice.size(5), dice.size(4));
    TxnPlan {
        compares,
        then: branch(dice, then),
        otherwise: branch(dice, otherwise),
    }
}

fn compare(dice: &mut Dice) -> ComparePlan {
    let kind = match dice.below(4) {
        0 => CompareKind::Value(dice.below(3)),
        _ => CompareKind::Number(dice.pick(FIELDS, Field::Version)),
    };
    ComparePlan {
        key: dice.key(),
        kind,
        relation: dice.pick(RELATIONS, Relation::Equal),
        off: match dice.below(6) {
            0 => -1,
            1 => 1,
            _ => 0,
        },
    }
}

fn branch(dice: &mut Dice, length: usize) -> Vec<OpPlan> {
    let mut ops: Vec<OpPlan> = Vec::new();
    for _ in 0..length {
        let op = op(dice);
        if fits(&ops, &op) {
            ops.push(op);
        }
    }
    ops
}

fn op(dice: &mut Dice) -> OpPlan {
    let key = dice.key();
    match dice.below(20) {
        0..11 => OpPlan::Plain(Op::put(key, dice.value())),
        11..13 => OpPlan::Leased(key, dice.value(), dice.size(4)),
        13..16 => OpPlan::Plain(Op::delete(key)),
        16 => OpPlan::Plain(Op::delete_prefix(dice.pick(PREFIXES, "nothing"))),
        _ => OpPlan::Plain(Op::get(key)),
    }
}

/// Whether the branch stays within the rule that it changes a key once.
fn fits(ops: &[OpPlan], new: &OpPlan) -> bool {
    let clash = |one: &OpPlan, two: &OpPlan| match (one, two) {
        (OpPlan::Plain(Op::DeletePrefix { prefix }), put)
        | (put, OpPlan::Plain(Op::DeletePrefix { prefix })) => {
            put.key().is_some_and(|key| key.starts_with(prefix.as_str()))
        }
        (one, two) => one.key().is_some() && one.key() == two.key(),
    };
    !ops.iter().any(|op| clash(op, new))
}

/// Txns that the contract refuses, each for one reason.
pub(super) fn refusals() -> Vec<(&'static str, Txn)> {
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    vec![
        ("a put of the empty key", Txn::new().put("", "v")),
        ("a deletion of the empty key", Txn::new().delete("")),
        ("reading the empty key", Txn::new().then(Op::get(""))),
        (
            "a compare of the empty key",
            Txn::new().when(Compare::absent("")).put("k", "v"),
        ),
        ("a key that is too long", Txn::new().put(long.clone(), "v")),
        (
            "a prefix that is too long",
            Txn::new().then(Op::delete_prefix(long)),
        ),
        ("two puts of a key", Txn::new().put("k", "1").put("k", "2")),
        (
            "a put and a deletion of a key",
            Txn::new().put("k", "1").delete("k"),
        ),
        (
            "a deletion and a put of a key",
            Txn::new().delete("k").put("k", "1"),
        ),
        (
            "a put under a deleted prefix",
            Txn::new().then(Op::delete_prefix("k/")).put("k/1", "1"),
        ),
        (
            "two puts of a key in the other branch",
            Txn::new()
                .put("k", "1")
                .otherwise(Op::put("k", "2"))
                .otherwise(Op::put("k", "3")),
        ),
    ]
}
