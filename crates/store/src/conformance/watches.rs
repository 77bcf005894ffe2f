//! Owns: the named cases of watches.
//! Does not know: how a backend buffers.
//! Start here: any case; each begins with a fresh store.

use std::sync::Arc;

use bytes::Bytes;

use super::txns::put;
use super::{Failure, Outcome, Subject, batch, ensure, equal, in_time, item, refused, silent};
use crate::backend::PROGRESS_EVERY;
use crate::{
    Event, EventKind, Op, RangeRequest, Revision, Store, StoreError, Txn, WatchItem, WatchRequest,
    WatchStream,
};

fn names(events: &[Event]) -> String {
    let name = |event: &Event| match event.kind {
        EventKind::Put => format!("+{}", event.kv.key),
        EventKind::Delete => format!("-{}", event.kv.key),
    };
    events.iter().map(name).collect::<Vec<_>>().join(" ")
}

async fn expect(stream: &mut WatchStream, revision: Revision, wanted: &str) -> Outcome {
    let (got, events) = batch(stream).await?;
    equal("the batch's revision", &got, &revision)?;
    equal("the batch's events", &names(&events), &wanted.to_owned())
}

pub(super) async fn changes_come_in_order(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    put(&*store, "before", "").await?;
    let mut watch = store.watch(WatchRequest::prefix("")).await?;
    silent(&mut watch).await?;
    let first = put(&*store, "a", "").await?;
    store.txn(Txn::new().delete("nothing")).await?;
    put(&*store, "b", "").await?;
    store.txn(Txn::new().delete("a")).await?;
    expect(&mut watch, first, "+a").await?;
    expect(&mut watch, first + 1, "+b").await?;
    expect(&mut watch, first + 2, "-a").await?;
    silent(&mut watch).await
}

pub(super) async fn a_revision_is_one_batch(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    put(&*store, "x/9", "").await?;
    let mut watch = store.watch(WatchRequest::prefix("")).await?;
    let txn = Txn::new()
        .put("c", "")
        .put("a", "")
        .then(Op::delete_prefix("x/"))
        .put("b", "");
    let at = store.txn(txn).await?.revision;
    expect(&mut watch, at, "+a +b +c -x/9").await?;
    let again = WatchRequest::prefix("").from(at);
    let mut again = store.watch(again).await?;
    expect(&mut again, at, "+a +b +c -x/9").await
}

pub(super) async fn a_watch_starts_in_the_past(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let first = put(&*store, "a", "").await?;
    put(&*store, "b", "").await?;
    put(&*store, "a", "").await?;
    for from in [first, first + 1] {
        let mut watch = store.watch(WatchRequest::prefix("").from(from)).await?;
        for at in from..=first + 2 {
            let wanted = if at == first + 1 { "+b" } else { "+a" };
            expect(&mut watch, at, wanted).await?;
        }
        silent(&mut watch).await?;
    }
    let mut watch = store.watch(WatchRequest::prefix("").from(first)).await?;
    let last = put(&*store, "late", "").await?;
    for at in first..=last {
        equal("the revision", &batch(&mut watch).await?.0, &at)?;
    }
    silent(&mut watch).await
}

pub(super) async fn a_watch_starts_in_the_future(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let at = put(&*store, "a", "").await?;
    let mut watch = store.watch(WatchRequest::prefix("").from(at + 3)).await?;
    for _ in 0..4 {
        put(&*store, "a", "").await?;
    }
    expect(&mut watch, at + 3, "+a").await?;
    expect(&mut watch, at + 4, "+a").await?;
    silent(&mut watch).await
}

/// A writer goes on while lists are taken and watched from; list plus changes must give the state at the end.
pub(super) async fn a_list_and_a_watch_leave_no_gap(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let writer = tokio::spawn(churn(store.clone(), 150));
    let mut watches = Vec::new();
    for _ in 0..10 {
        let list = store.range(RangeRequest::prefix("")).await?;
        let request = WatchRequest::prefix("").from(list.revision + 1);
        watches.push((list, store.watch(request).await?));
        tokio::task::yield_now().await;
    }
    let end = in_time("the writer's end", writer).await?;
    end.map_err(|error| Failure::new(format!("the writer failed: {error}")))??;
    let last = store.range(RangeRequest::prefix("")).await?;
    for (list, mut watch) in watches {
        let mut keys: std::collections::BTreeMap<_, _> =
            list.items.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        let mut at = list.revision;
        while at < last.revision {
            let (revision, events) = batch(&mut watch).await?;
            equal("the next revision", &revision, &(at + 1))?;
            at = revision;
            for event in events {
                match event.kind {
                    EventKind::Put => keys.insert(event.kv.key.clone(), event.kv),
                    EventKind::Delete => keys.remove(&event.kv.key),
                };
            }
        }
        let got: Vec<_> = keys.into_values().collect();
        equal("list and watch together", &got, &last.items)?;
    }
    Ok(())
}

/// Each round makes one revision.
async fn churn(store: Arc<dyn Store>, rounds: usize) -> Outcome {
    for round in 0..rounds {
        let key = format!("k/{}", round % 7);
        let marker = Txn::new().put("round", round.to_string());
        let txn = if round % 3 == 0 {
            marker.delete(key)
        } else {
            marker.put(key, "")
        };
        store.txn(txn).await?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

pub(super) async fn events_carry_the_past(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let first = put(&*store, "a", "1").await?;
    put(&*store, "a", "2").await?;
    store.txn(Txn::new().delete("a")).await?;
    put(&*store, "a", "3").await?;
    let mut watch = store.watch(WatchRequest::key("a").from(first)).await?;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let (_, events) = batch(&mut watch).await?;
        for event in events {
            let prev = event.prev.map(|kv| (kv.value, kv.mod_revision, kv.version));
            seen.push((event.kv.value, event.kv.mod_revision, event.kv.version, prev));
        }
    }
    let value = Bytes::from_static;
    let wanted = vec![
        (value(b"1"), first, 1, None),
        (value(b"2"), first + 1, 2, Some((value(b"1"), first, 1))),
        (value(b""), first + 2, 0, Some((value(b"2"), first + 1, 2))),
        (value(b"3"), first + 3, 1, None),
    ];
    equal("the events", &seen, &wanted)
}

pub(super) async fn other_keys_are_not_seen(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let before = put(&*store, "a/0", "").await?;
    let mut past = store.watch(WatchRequest::prefix("a/").from(before)).await?;
    let mut one = store.watch(WatchRequest::key("a/1")).await?;
    let mut live = store.watch(WatchRequest::prefix("a/")).await?;
    let txn = Txn::new().put("a", "").put("a/1", "").put("a0", "");
    let at = store.txn(txn).await?.revision;
    put(&*store, "b", "").await?;
    put(&*store, "a/10", "").await?;
    expect(&mut past, before, "+a/0").await?;
    for watch in [&mut past, &mut live] {
        expect(watch, at, "+a/1").await?;
        expect(watch, at + 2, "+a/10").await?;
    }
    expect(&mut one, at, "+a/1").await?;
    silent(&mut one).await
}

pub(super) async fn progress_comes(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let at = put(&*store, "a", "").await?;
    let request = WatchRequest::prefix("a").from(at).with_progress();
    let mut watch = store.watch(request).await?;
    let first = item(&mut watch).await?;
    ensure(matches!(first, WatchItem::Batch { .. }), || {
        format!("a batch was due, {first:?} came")
    })?;
    progress(&mut watch, at).await?;
    let mut last = at;
    for _ in 0..2 * PROGRESS_EVERY {
        last = put(&*store, "other", "").await?;
    }
    let mut told = at;
    while told + PROGRESS_EVERY < last {
        told = progress(&mut watch, told).await?;
        ensure(told <= last, || format!("progress to {told} of {last}"))?;
    }
    let next = put(&*store, "a", "").await?;
    expect(&mut watch, next, "+a").await
}

async fn progress(watch: &mut WatchStream, least: Revision) -> Result<Revision, Failure> {
    match item(watch).await? {
        WatchItem::Progress { revision } if revision >= least => Ok(revision),
        other => Err(Failure::new(format!(
            "progress to {least} was due, {other:?} came"
        ))),
    }
}

pub(super) async fn compacted_history_is_said(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let first = put(&*store, "a", "").await?;
    put(&*store, "b", "").await?;
    let last = put(&*store, "a", "").await?;
    store.compact(last).await?;
    for (prefix, from) in [("", first), ("", last - 1), ("nothing", first)] {
        let request = WatchRequest::prefix(prefix).from(from);
        let mut watch = store.watch(request).await?;
        let got = item(&mut watch).await?;
        equal("the answer", &got, &WatchItem::Compacted { compacted: last })?;
        let end = in_time("the end", futures_util::StreamExt::next(&mut watch)).await?;
        ensure(end.is_none(), || format!("{end:?} came after compacted"))?;
    }
    Ok(())
}

pub(super) async fn the_compacted_revision_itself_is_watched(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    put(&*store, "a", "").await?;
    put(&*store, "b", "").await?;
    let gone = store.txn(Txn::new().delete("a")).await?.revision;
    put(&*store, "c", "").await?;
    store.compact(gone).await?;
    let mut watch = store.watch(WatchRequest::prefix("").from(gone)).await?;
    expect(&mut watch, gone, "-a").await?;
    expect(&mut watch, gone + 1, "+c").await
}

pub(super) async fn a_slow_watch_loses_nothing(subject: &dyn Subject) -> Outcome {
    const CHANGES: u64 = 1_500;
    let store = subject.fresh().await?;
    let mut watch = store.watch(WatchRequest::prefix("k")).await?;
    let mut first = None;
    for number in 0..CHANGES {
        let at = in_time("a put", put(&*store, "k", &number.to_string())).await??;
        first.get_or_insert(at);
    }
    let first = first.unwrap_or_default();
    for number in 0..CHANGES {
        expect(&mut watch, first + number, "+k").await?;
    }
    let last = put(&*store, "k", "").await?;
    expect(&mut watch, last, "+k").await?;
    silent(&mut watch).await
}

pub(super) async fn a_slow_watch_of_large_values_loses_nothing(subject: &dyn Subject) -> Outcome {
    const CHANGES: u8 = 24;
    let store = subject.fresh().await?;
    let mut watch = store.watch(WatchRequest::prefix("k")).await?;
    for number in 0..CHANGES {
        let value = Bytes::from(vec![number; 1_000_000]);
        store.txn(Txn::new().put("k", value)).await?;
    }
    for number in 0..CHANGES {
        let (_, events) = batch(&mut watch).await?;
        let got = events.first().and_then(|event| event.kv.value.last());
        equal("the value's last byte", &got, &Some(&number))?;
    }
    silent(&mut watch).await
}

/// A watch that is far behind may still deliver what it holds, but then says that the rest is gone; it never skips.
pub(super) async fn a_slow_watch_hears_of_compaction(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let mut watch = store.watch(WatchRequest::prefix("")).await?;
    let first = put(&*store, "k", "").await?;
    for _ in 0..1_000 {
        put(&*store, "k", "").await?;
    }
    store.compact(first + 1_000).await?;
    let mut next = first;
    while next <= first + 1_000 {
        match item(&mut watch).await? {
            WatchItem::Batch { revision, .. } => equal("the revision", &revision, &next)?,
            WatchItem::Compacted { compacted } => {
                return equal("the compacted revision", &compacted, &(first + 1_000));
            }
            WatchItem::Progress { .. } => continue,
        }
        next += 1;
    }
    Ok(())
}

pub(super) async fn watches_join_under_load(subject: &dyn Subject) -> Outcome {
    const WRITERS: u64 = 4;
    const ROUNDS: usize = 100;
    let store = subject.fresh().await?;
    let first = put(&*store, "first", "").await?;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        tasks.spawn(churn(store.clone(), ROUNDS));
    }
    let last = first + WRITERS * ROUNDS as u64;
    for reader in 0..6 {
        let request = WatchRequest::prefix("").from(first + reader * 10);
        let request = WatchRequest {
            progress: reader % 2 == 0,
            ..request
        };
        let stream = store.watch(request).await?;
        tasks.spawn(read_all(stream, first + reader * 10, last));
        tokio::task::yield_now().await;
    }
    while let Some(task) = in_time("a task's end", tasks.join_next()).await? {
        task.map_err(|error| Failure::new(format!("a task failed: {error}")))??;
    }
    Ok(())
}

async fn read_all(mut stream: WatchStream, from: Revision, to: Revision) -> Outcome {
    let mut next = from;
    while next <= to {
        match item(&mut stream).await? {
            WatchItem::Batch { revision, .. } => {
                equal("the next revision", &revision, &next)?;
                next += 1;
            }
            WatchItem::Progress { revision } => ensure(revision < next, || {
                format!("progress to {revision} came before the batch of {next}")
            })?,
            other => return Err(Failure::new(format!("{other:?} came"))),
        }
    }
    Ok(())
}

pub(super) async fn reopened_history_is_watched(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let first = put(&*store, "a", "1").await?;
    let txn = Txn::new().put("a", "2").put("b", "");
    store.txn(txn).await?;
    store.txn(Txn::new().delete("b")).await?;
    let mut open = store.watch(WatchRequest::prefix("")).await?;
    let Some(store) = subject.reopen(store).await? else {
        return Ok(());
    };
    let end = in_time("the end", futures_util::StreamExt::next(&mut open)).await?;
    let end = end.ok_or_else(|| Failure::new("a watch ended without a reason"))?;
    refused("a watch of the closed store", end, |error| {
        matches!(error, StoreError::Closed { .. })
    })?;
    let mut watch = store.watch(WatchRequest::prefix("").from(first)).await?;
    let last = put(&*store, "c", "").await?;
    expect(&mut watch, first, "+a").await?;
    expect(&mut watch, first + 1, "+a +b").await?;
    expect(&mut watch, first + 2, "-b").await?;
    expect(&mut watch, last, "+c").await
}
