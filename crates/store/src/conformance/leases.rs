//! Owns: the named cases of leases.
//! Does not know: whose time passes; it asks the [`Subject`] to let it.
//! Start here: any case; each begins with a fresh store.

use std::time::Duration;

use super::txns::{get, put};
use super::{Failure, Outcome, Subject, batch, ensure, equal, refused};
use crate::{LeaseId, Op, Store, StoreError, Txn, WatchRequest};

const TTL: Duration = Duration::from_secs(10);
const LESS: Duration = Duration::from_secs(6);
/// Time enough for a backend to notice.
const LONGER: Duration = Duration::from_secs(30);

fn not_found(error: &StoreError) -> bool {
    matches!(error, StoreError::LeaseNotFound { .. })
}

async fn put_leased(store: &dyn Store, key: &str, lease: LeaseId) -> Outcome {
    let txn = Txn::new().then(Op::put_leased(key, "", lease));
    store.txn(txn).await?;
    Ok(())
}

async fn lease_of(store: &dyn Store, key: &str) -> Result<Option<LeaseId>, Failure> {
    Ok(get(store, key).await?.and_then(|kv| kv.lease))
}

pub(super) async fn keys_end_with_their_lease(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let lease = store.grant_lease(TTL).await?;
    ensure(lease.ttl >= TTL, || format!("{lease:?} was granted"))?;
    put(&*store, "free", "").await?;
    put_leased(&*store, "b", lease.id).await?;
    put_leased(&*store, "a", lease.id).await?;
    equal("a's lease", &lease_of(&*store, "a").await?, &Some(lease.id))?;
    let mut watch = store.watch(WatchRequest::prefix("")).await?;
    let before = store.status().await?.revision;
    let after = store.revoke_lease(lease.id).await?;
    equal("the revision", &after, &(before + 1))?;
    let (_, events) = batch(&mut watch).await?;
    let gone: Vec<_> = events.iter().map(|event| &*event.kv.key).collect();
    equal("the deleted keys", &gone, &vec!["a", "b"])?;
    let again = store.revoke_lease(lease.id).await;
    refused("a second revocation", again, not_found)
}

pub(super) async fn an_ended_lease_stays_ended_after_reopening(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let revoked = store.grant_lease(TTL).await?.id;
    let late = store.grant_lease(TTL).await?.id;
    store.revoke_lease(revoked).await?;
    subject.advance(LONGER).await;
    let Some(store) = subject.reopen(store).await? else {
        return Ok(());
    };
    for lease in [revoked, late] {
        refused("a keep-alive", store.keep_alive(lease).await, not_found)?;
    }
    Ok(())
}

pub(super) async fn a_lease_runs_out(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let lease = store.grant_lease(TTL).await?;
    put_leased(&*store, "a", lease.id).await?;
    let mut watch = store.watch(WatchRequest::prefix("")).await?;
    subject.advance(LESS).await;
    equal("the keys", &store.status().await?.keys, &1)?;
    subject.advance(LONGER).await;
    let late = store.keep_alive(lease.id).await;
    refused("keeping a dead lease alive", late, not_found)?;
    let (_, events) = batch(&mut watch).await?;
    equal("the number of deletions", &events.len(), &1)?;
    equal("the keys", &store.status().await?.keys, &0)
}

pub(super) async fn keeping_alive_keeps(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let lease = store.grant_lease(TTL).await?;
    put_leased(&*store, "a", lease.id).await?;
    for _ in 0..3 {
        subject.advance(LESS).await;
        equal("the lease", &store.keep_alive(lease.id).await?, &lease)?;
    }
    equal("a's lease", &lease_of(&*store, "a").await?, &Some(lease.id))
}

pub(super) async fn a_put_moves_a_key_between_leases(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let one = store.grant_lease(TTL).await?.id;
    let two = store.grant_lease(TTL).await?.id;
    for key in ["moved", "freed", "kept"] {
        put_leased(&*store, key, one).await?;
    }
    put_leased(&*store, "moved", two).await?;
    put(&*store, "freed", "").await?;
    store.revoke_lease(one).await?;
    equal("moved", &lease_of(&*store, "moved").await?, &Some(two))?;
    ensure(get(&*store, "freed").await?.is_some(), || {
        "a key without a lease ended".to_owned()
    })?;
    ensure(get(&*store, "kept").await?.is_none(), || {
        "a key outlived its lease".to_owned()
    })
}

pub(super) async fn unknown_leases_are_refused(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let nobody = LeaseId(u64::from(u32::MAX));
    let before = store.status().await?.revision;
    let txn = Txn::new().put("a", "").then(Op::put_leased("b", "", nobody));
    refused("a put under no lease", store.txn(txn).await, not_found)?;
    equal("the revision", &store.status().await?.revision, &before)?;
    refused("a keep-alive", store.keep_alive(nobody).await, not_found)?;
    refused("a revocation", store.revoke_lease(nobody).await, not_found)
}

pub(super) async fn a_reopened_store_grants_the_full_time(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let lease = store.grant_lease(TTL).await?;
    put_leased(&*store, "a", lease.id).await?;
    subject.advance(LESS).await;
    let Some(store) = subject.reopen(store).await? else {
        return Ok(());
    };
    subject.advance(LESS).await;
    equal("a's lease", &lease_of(&*store, "a").await?, &Some(lease.id))?;
    let other = store.grant_lease(TTL).await?;
    ensure(other.id != lease.id, || "a lease's name came twice".to_owned())?;
    subject.advance(LONGER).await;
    refused("a keep-alive", store.keep_alive(lease.id).await, not_found)?;
    equal("the keys", &store.status().await?.keys, &0)
}
