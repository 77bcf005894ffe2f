//! Owns: the named cases of txns, ranges and compaction.
//! Does not know: watches, leases and limits, which have modules of their own.
//! Start here: any case; each begins with a fresh store.

use std::sync::Arc;

use super::{Failure, Outcome, Subject, ensure, equal, in_time, refused};
use crate::{
    Compare, FailedCompare, KeyValue, Op, OpResult, RangeRequest, Relation, Revision, Store, StoreError, Txn,
    TxnResponse,
};

pub(super) async fn put(store: &dyn Store, key: &str, value: &str) -> Result<Revision, Failure> {
    let txn = Txn::new().put(key, value.to_owned());
    Ok(store.txn(txn).await?.revision)
}

pub(super) async fn get(store: &dyn Store, key: &str) -> Result<Option<KeyValue>, Failure> {
    let mut response = store.range(RangeRequest::key(key)).await?;
    Ok(response.items.pop())
}

async fn revision(store: &dyn Store) -> Result<Revision, Failure> {
    Ok(store.revision().await?)
}

async fn keys(store: &dyn Store, request: RangeRequest) -> Result<Vec<String>, Failure> {
    let items = store.range(request).await?.items;
    Ok(items.iter().map(|kv| kv.key.to_string()).collect())
}

fn value(kv: Option<&KeyValue>) -> Option<&[u8]> {
    kv.map(|kv| kv.value.as_ref())
}

pub(super) async fn a_fresh_store_is_empty(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let all = store.range(RangeRequest::prefix("")).await?;
    let status = store.status().await?;
    equal("the number of keys", &status.keys, &0)?;
    equal("the list", &all.items, &vec![])?;
    equal("the list's revision", &all.revision, &status.revision)?;
    ensure(!all.more, || "an empty list says more".to_owned())
}

pub(super) async fn revisions_count_changes(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let base = revision(&*store).await?;
    let first = put(&*store, "a", "1").await?;
    ensure(first > base && first > 0, || {
        format!("a put made revision {first} after {base}")
    })?;
    equal(
        "the second revision",
        &put(&*store, "a", "1").await?,
        &(first + 1),
    )?;
    let two = Txn::new().put("b", "1").put("c", "1").delete("a");
    equal(
        "the revision of three changes",
        &store.txn(two).await?.revision,
        &(first + 2),
    )?;
    let read = store.txn(Txn::new().then(Op::get("b"))).await?;
    equal("the revision of a read", &read.revision, &(first + 2))?;
    equal("the store's revision", &revision(&*store).await?, &(first + 2))
}

pub(super) async fn versions_follow_a_key(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let first = put(&*store, "a", "1").await?;
    put(&*store, "a", "2").await?;
    let kv = get(&*store, "a").await?;
    let wanted = KeyValue {
        key: "a".into(),
        value: "2".into(),
        create_revision: first,
        mod_revision: first + 1,
        version: 2,
        lease: None,
    };
    equal("the key", &kv, &Some(wanted.clone()))?;
    store.txn(Txn::new().delete("a")).await?;
    equal("the deleted key", &get(&*store, "a").await?, &None)?;
    put(&*store, "a", "2").await?;
    let again = KeyValue {
        create_revision: first + 3,
        mod_revision: first + 3,
        version: 1,
        ..wanted
    };
    equal(
        "the key that was made again",
        &get(&*store, "a").await?,
        &Some(again),
    )
}

fn compares(kv: &KeyValue) -> Vec<(Compare, bool)> {
    let (create, modified) = (kv.create_revision, kv.mod_revision);
    vec![
        (Compare::mod_revision("a").equals(modified), true),
        (Compare::mod_revision("a").equals(modified + 1), false),
        (Compare::mod_revision("a").differs_from(modified), false),
        (Compare::mod_revision("a").less_than(modified), false),
        (Compare::mod_revision("a").at_most(modified), true),
        (Compare::mod_revision("a").greater_than(modified - 1), true),
        (Compare::mod_revision("a").greater_than(modified), false),
        (Compare::create_revision("a").equals(create), true),
        (Compare::create_revision("a").less_than(create), false),
        (Compare::version("a").equals(2), true),
        (Compare::version("a").differs_from(2), false),
        (Compare::version("a").at_most(1), false),
        (Compare::value("a", Relation::Equal, "m"), true),
        (Compare::value("a", Relation::NotEqual, "m"), false),
        (Compare::value("a", Relation::Less, "n"), true),
        (Compare::value("a", Relation::Less, "m"), false),
        (Compare::value("a", Relation::Greater, "ll"), true),
        (Compare::value("a", Relation::Greater, "ma"), false),
        (Compare::present("a"), true),
        (Compare::absent("a"), false),
        (Compare::unchanged(kv), true),
        (Compare::present("no"), false),
        (Compare::absent("no"), true),
        (Compare::mod_revision("no").equals(0), true),
        (Compare::create_revision("no").equals(0), true),
        (Compare::mod_revision("no").greater_than(0), false),
        (Compare::value("no", Relation::Equal, ""), false),
        (Compare::value("no", Relation::NotEqual, "x"), false),
        (Compare::value("no", Relation::Less, "x"), false),
    ]
}

pub(super) async fn every_compare_decides(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    put(&*store, "pad", "").await?;
    put(&*store, "a", "l").await?;
    put(&*store, "a", "m").await?;
    let kv = get(&*store, "a").await?;
    let kv = kv.ok_or_else(|| Failure::new("the key that was put is missing"))?;
    for (compare, holds) in compares(&kv) {
        let what = format!("{compare:?}");
        let first = store.txn(Txn::new().when(compare.clone())).await?;
        equal(&what, &first.succeeded, &holds)?;
        let last = Txn::new().when(Compare::present("pad")).when(compare);
        equal(&what, &store.txn(last).await?.succeeded, &holds)?;
    }
    Ok(())
}

pub(super) async fn the_else_branch_happens(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let txn = Txn::new()
        .when(Compare::absent("a"))
        .put("a", "then")
        .put("only", "then")
        .otherwise(Op::put("a", "else"));
    let first = store.txn(txn.clone()).await?;
    ensure(first.succeeded, || format!("the first came to {first:?}"))?;
    let second = store.txn(txn).await?;
    ensure(!second.succeeded, || format!("the second came to {second:?}"))?;
    equal("its revision", &second.revision, &(first.revision + 1))?;
    equal("its results", &second.results, &vec![OpResult::Put])?;
    let (a, only) = (get(&*store, "a").await?, get(&*store, "only").await?);
    equal("a", &value(a.as_ref()), &Some(b"else".as_slice()))?;
    equal("only", &only.map(|kv| kv.version), &Some(1))
}

pub(super) async fn failed_compares_say_what_is(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let at = put(&*store, "a", "1").await?;
    let txn = Txn::new()
        .when(Compare::absent("a"))
        .when(Compare::absent("b"))
        .when(Compare::present("b"))
        .put("a", "2")
        .otherwise(Op::put("a", "3"))
        .otherwise(Op::get("a"));
    let got = store.txn(txn).await?;
    let failed = got.failed.iter().map(|FailedCompare { index, actual }| {
        (*index, actual.as_ref().map(|kv| (kv.mod_revision, kv.version)))
    });
    let failed: Vec<_> = failed.collect();
    equal(
        "the failed compares",
        &failed,
        &vec![(0, Some((at, 1))), (2, None)],
    )?;
    let read = match got.results.get(1) {
        Some(OpResult::Got(Some(kv))) => Some(kv.version),
        _ => None,
    };
    equal("what the other branch read", &read, &Some(2))
}

pub(super) async fn steps_see_earlier_steps(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    put(&*store, "a/1", "").await?;
    let txn = Txn::new()
        .then(Op::get("b"))
        .put("b", "1")
        .then(Op::get("b"))
        .then(Op::delete_prefix("a/"))
        .then(Op::get("a/1"))
        .delete("a/1");
    let got = store.txn(txn).await?;
    let b = get(&*store, "b").await?;
    let wanted = vec![
        OpResult::Got(None),
        OpResult::Put,
        OpResult::Got(b),
        OpResult::Deleted { count: 1 },
        OpResult::Got(None),
        OpResult::Deleted { count: 0 },
    ];
    equal("the results", &got.results, &wanted)
}

pub(super) async fn deleting_nothing_makes_no_revision(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let at = put(&*store, "a", "").await?;
    let nothing = Txn::new().delete("b").then(Op::delete_prefix("c"));
    let got = store.txn(nothing).await?;
    let none = OpResult::Deleted { count: 0 };
    let wanted = TxnResponse {
        succeeded: true,
        revision: at,
        results: vec![none.clone(), none],
        failed: vec![],
    };
    equal("the answer", &got, &wanted)?;
    let empty = store.txn(Txn::new()).await?;
    equal("the empty txn's revision", &empty.revision, &at)?;
    equal("the next revision", &put(&*store, "a", "").await?, &(at + 1))
}

pub(super) async fn a_prefix_is_deleted(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    for key in ["a", "a/", "a/1", "a/\u{10ffff}", "a0", "b"] {
        put(&*store, key, "").await?;
    }
    let got = store.txn(Txn::new().then(Op::delete_prefix("a/"))).await?;
    equal("the results", &got.results, &vec![OpResult::Deleted { count: 3 }])?;
    let left = keys(&*store, RangeRequest::prefix("")).await?;
    equal("the keys left", &left.join(" "), &"a a0 b".to_owned())?;
    store.txn(Txn::new().then(Op::delete_prefix(""))).await?;
    let left = keys(&*store, RangeRequest::prefix("")).await?;
    equal("the keys left", &left, &vec![])
}

pub(super) async fn old_revisions_stay(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let base = revision(&*store).await?;
    let first = put(&*store, "a", "1").await?;
    let second = put(&*store, "a", "2").await?;
    let gone = store.txn(Txn::new().delete("a")).await?.revision;
    for (at, wanted) in [
        (base, None),
        (first, Some("1")),
        (second, Some("2")),
        (gone, None),
    ] {
        let got = store.range(RangeRequest::key("a").at(at)).await?;
        equal("the current revision", &got.revision, &gone)?;
        let what = format!("the key at revision {at}");
        let wanted = wanted.map(str::as_bytes);
        equal(&what, &value(got.items.first()), &wanted)?;
    }
    let future = store.range(RangeRequest::key("a").at(gone + 1)).await;
    let right = StoreError::FutureRevision {
        requested: gone + 1,
        current: gone,
    };
    refused("a read in the future", future, |error| *error == right)
}

pub(super) async fn pages_are_consistent(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    for number in 0..25 {
        put(&*store, &format!("k/{number:02}"), "").await?;
    }
    let first = store.range(RangeRequest::prefix("k/").limit(10)).await?;
    let (mut seen, at, mut more) = (first.items, first.revision, first.more);
    while more {
        // What changes while the list is paged is not in it.
        put(&*store, "k/11", "new").await?;
        store.txn(Txn::new().delete("k/24").put("k/03x", "")).await?;
        let last = seen.last().map(|kv| kv.key.to_string()).unwrap_or_default();
        let next = RangeRequest::prefix("k/").at(at).after(last).limit(10);
        let page = store.range(next).await?;
        ensure(page.items.len() == 10 || !page.more, || {
            "a page is neither full nor the last".to_owned()
        })?;
        seen.extend(page.items);
        more = page.more;
    }
    let wanted: Vec<String> = (0..25).map(|number| format!("k/{number:02}")).collect();
    let got: Vec<String> = seen.iter().map(|kv| kv.key.to_string()).collect();
    equal("the keys", &got, &wanted)?;
    ensure(seen.iter().all(|kv| kv.version == 1), || {
        "a page shows a later version".to_owned()
    })?;
    let exact = store.range(RangeRequest::prefix("k/").at(at).limit(25)).await?;
    ensure(!exact.more, || "a full last page says more".to_owned())
}

pub(super) async fn intervals_and_key_order(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    for key in ["b", "a\0", "é", "a", "z", "ab", "\u{10ffff}"] {
        put(&*store, key, "").await?;
    }
    let all = keys(&*store, RangeRequest::prefix("")).await?;
    let wanted = ["a", "a\0", "ab", "b", "z", "é", "\u{10ffff}"];
    equal("the order", &all, &wanted.map(str::to_owned).to_vec())?;
    let some = keys(&*store, RangeRequest::interval("a\0", "z")).await?;
    equal("the interval", &some.join(" "), &"a\0 ab b".to_owned())?;
    let none = keys(&*store, RangeRequest::interval("z", "a")).await?;
    equal("the interval from z to a", &none, &vec![])?;
    let after = keys(&*store, RangeRequest::prefix("a").after("0")).await?;
    equal("the prefix after 0", &after.len(), &3)
}

pub(super) async fn keys_only_leaves_values_out(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let at = put(&*store, "a", "value").await?;
    put(&*store, "b", "").await?;
    for request in [RangeRequest::key("a"), RangeRequest::key("a").at(at)] {
        let got = store.range(request.keys_only()).await?.items;
        let got: Vec<_> = got.iter().map(|kv| (kv.value.len(), kv.mod_revision)).collect();
        equal("the key without its value", &got, &vec![(0, at)])?;
    }
    Ok(())
}

pub(super) async fn compaction_is_explicit(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let first = put(&*store, "a", "1").await?;
    put(&*store, "b", "1").await?;
    let third = put(&*store, "a", "2").await?;
    let last = put(&*store, "a", "3").await?;
    store.compact(third).await?;
    let compacted = StoreError::Compacted {
        requested: first,
        compacted: third,
    };
    let old = store.range(RangeRequest::key("a").at(first)).await;
    refused("a compacted revision", old, |error| *error == compacted)?;
    let at = store.range(RangeRequest::prefix("").at(third)).await?;
    let got: Vec<_> = at.items.iter().map(|kv| kv.value.as_ref()).collect();
    equal("the compacted-to revision", &got, &vec![b"2".as_slice(), b"1"])?;
    equal("the status", &store.status().await?.compacted, &third)?;
    let again = store.compact(third).await;
    refused("the same compaction again", again, |error| {
        matches!(error, StoreError::Compacted { .. })
    })?;
    let future = store.compact(last + 1).await;
    refused("a compaction in the future", future, |error| {
        matches!(error, StoreError::FutureRevision { .. })
    })?;
    store.compact(last).await?;
    let now = get(&*store, "a").await?;
    equal("a", &value(now.as_ref()), &Some(b"3".as_slice()))
}

pub(super) async fn deleted_keys_survive_their_compaction_as_deleted(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    put(&*store, "a", "1").await?;
    put(&*store, "b", "1").await?;
    let gone = store.txn(Txn::new().delete("a")).await?.revision;
    let again = put(&*store, "a", "2").await?;
    for at in [gone, again] {
        store.compact(at).await?;
        let then = keys(&*store, RangeRequest::prefix("").at(at)).await?;
        let wanted = if at == gone { "b" } else { "a b" };
        equal("the keys", &then.join(" "), &wanted.to_owned())?;
    }
    let versions = get(&*store, "a").await?.map(|kv| kv.version);
    equal("the version", &versions, &Some(1))
}

/// Each writer adds one to a counter by reading it and writing under the condition that it has not changed.
pub(super) async fn writers_exclude_each_other(subject: &dyn Subject) -> Outcome {
    const WRITERS: u64 = 8;
    const ROUNDS: u64 = 15;
    let store = subject.fresh().await?;
    let base = put(&*store, "counter", "0").await?;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            for _ in 0..ROUNDS {
                add_one(&store).await?;
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(writer) = in_time("a writer's end", writers.join_next()).await? {
        writer.map_err(|error| Failure::new(format!("a writer failed: {error}")))??;
    }
    let counter = get(&*store, "counter").await?;
    let total = (WRITERS * ROUNDS).to_string();
    equal("the counter", &value(counter.as_ref()), &Some(total.as_bytes()))?;
    equal(
        "the revision",
        &revision(&*store).await?,
        &(base + WRITERS * ROUNDS),
    )
}

async fn add_one(store: &Arc<dyn Store>) -> Outcome {
    loop {
        let read = get(&**store, "counter").await?;
        let read = read.ok_or_else(|| Failure::new("the counter is missing"))?;
        let number: u64 = std::str::from_utf8(&read.value)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Failure::new("the counter is no number"))?;
        let txn = Txn::new()
            .when(Compare::unchanged(&read))
            .put("counter", (number + 1).to_string());
        if store.txn(txn).await?.succeeded {
            return Ok(());
        }
    }
}

pub(super) async fn what_was_answered_is_there_after_reopening(subject: &dyn Subject) -> Outcome {
    let store = subject.fresh().await?;
    let first = put(&*store, "a", "1").await?;
    put(&*store, "b", "\0binary\u{ff}").await?;
    put(&*store, "a", "2").await?;
    store.txn(Txn::new().delete("b")).await?;
    store.compact(first + 1).await?;
    let wanted = (
        store.range(RangeRequest::prefix("")).await?,
        store.range(RangeRequest::prefix("").at(first + 1)).await?,
        store.status().await?.compacted,
    );
    let Some(store) = subject.reopen(store).await? else {
        return Ok(());
    };
    let got = (
        store.range(RangeRequest::prefix("")).await?,
        store.range(RangeRequest::prefix("").at(first + 1)).await?,
        store.status().await?.compacted,
    );
    equal("what was reopened", &got, &wanted)?;
    equal("the next revision", &put(&*store, "c", "").await?, &(first + 4))
}
