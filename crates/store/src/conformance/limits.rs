//! Owns: the named cases of the contract's limits, from both sides of each.
//! Does not know: how a backend enforces them.
//! Start here: any case; each begins with a fresh store.

use bytes::Bytes;

use super::script::refusals;
use super::txns::{get, put};
use super::{Outcome, Subject, equal, refused};
use crate::{
    Compare, KeyRange, MAX_KEY_BYTES, MAX_REQUEST_BYTES, MAX_TXN_OPS, Op, RangeRequest, StoreError, Txn,
    WatchRequest,
};

fn too_large(error: &StoreError) -> bool {
    matches!(error, StoreError::TooLarge { .. })
}

fn puts(count: usize) -> Txn {
    (0..count).fold(Txn::new(), |txn, number| txn.put(format!("k{number}"), "v"))
}

pub(super) async fn operations_are_counted(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let full = store.txn(puts(MAX_TXN_OPS)).await?;
    equal("the results", &full.results.len(), &MAX_TXN_OPS)?;
    let over = store.txn(puts(MAX_TXN_OPS + 1)).await;
    refused("one put too many", over, too_large)?;
    let compares = |count: usize| (0..count).fold(Txn::new(), |txn, _| txn.when(Compare::present("k0")));
    store.txn(compares(MAX_TXN_OPS)).await?;
    let over = store.txn(compares(MAX_TXN_OPS + 1)).await;
    refused("one compare too many", over, too_large)?;
    let mut other = compares(1);
    other.otherwise = puts(MAX_TXN_OPS).then;
    let over = store.txn(other).await;
    refused("compares and the other branch together", over, too_large)
}

pub(super) async fn bytes_are_counted(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let room = MAX_REQUEST_BYTES - Txn::OP_BYTES - "k".len();
    let big = |bytes: usize| Txn::new().put("k", Bytes::from(vec![b'x'; bytes]));
    store.txn(big(room)).await?;
    let over = store.txn(big(room + 1)).await;
    refused("a byte too many", over, too_large)?;
    let stored = get(&*store, "k").await?;
    equal("the stored bytes", &stored.map(|kv| kv.value.len()), &Some(room))
}

pub(super) async fn keys_are_bounded(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let longest = "k".repeat(MAX_KEY_BYTES);
    put(&*store, &longest, "v").await?;
    let stored = get(&*store, &longest).await?;
    equal("the version", &stored.map(|kv| kv.version), &Some(1))?;
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    let range = store.range(RangeRequest::prefix(long.clone())).await;
    refused("a range of a key too long", range, too_large)?;
    let watch = store.watch(WatchRequest::prefix(long)).await.map(|_| ());
    refused("a watch of a key too long", watch, too_large)?;
    let empty = |error: &StoreError| matches!(error, StoreError::EmptyKey { .. });
    let range = store.range(RangeRequest::key("")).await;
    refused("a range of the empty key", range, empty)?;
    let watch = WatchRequest::new(KeyRange::Key(String::new()));
    let watch = store.watch(watch).await.map(|_| ());
    refused("a watch of the empty key", watch, empty)
}

pub(super) async fn a_branch_changes_a_key_once(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    put(&*store, "k", "0").await?;
    let twice = Txn::new().put("k", "1").put("k", "2");
    let wanted = StoreError::DuplicateKey { key: "k".to_owned() };
    let got = store.txn(twice).await;
    refused("two puts of a key", got, |error| *error == wanted)?;
    let allowed = Txn::new()
        .delete("k")
        .delete("k")
        .then(Op::delete_prefix("k"))
        .otherwise(Op::put("k", "1"));
    store.txn(allowed).await?;
    Ok(())
}

pub(super) async fn refused_requests_change_nothing(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    put(&*store, "before", "").await?;
    let before = store.range(RangeRequest::prefix("")).await?;
    for (what, txn) in refusals() {
        let with_more = txn.then(Op::put("other", "v"));
        refused(what, store.txn(with_more).await, |error| !error.is_retryable())?;
    }
    let after = store.range(RangeRequest::prefix("")).await?;
    equal("the store after refusals", &after, &before)
}

pub(super) async fn large_values_come_back(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let value: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let value = Bytes::from(value);
    let at = store.txn(Txn::new().put("k", value.clone())).await?.revision;
    put(&*store, "k", "").await?;
    let old = store.range(RangeRequest::key("k").at(at)).await?;
    let same = old.items.first().is_some_and(|kv| kv.value == value);
    super::ensure(same, || "a large value came back changed".to_owned())
}
