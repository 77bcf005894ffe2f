//! An object's history, read from the audit trail: which writes concerned it, and which fields they changed.
//!
//! The trail is in the order of time and has no index by object: it is read from the object's creation on, in pages, and
//! what does not name the object is passed over before it is decoded.

use std::collections::VecDeque;

use api::Problem;
use api::history::{FieldChange, History, HistoryEntry};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use model::audit::{AuditRecord, Change};
use model::key::{self, Part};
use model::{Kind, Timestamp, record};
use planner::View;
use serde::Deserialize;
use serde_json::Value;
use store::{RangeRequest, Store, StoreError};
use uuid::Uuid;

use crate::answer::{Path, Refused, store_problem};
use crate::auth::{PROJECT, User};
use crate::kinds::{Served, missing};
use crate::routes::{App, QueryOf, query};

/// How many records are read at once.
const PAGE: usize = 500;
/// The most writes in an answer.
const LIMIT_MAX: usize = 1000;
/// How many writes are answered if nobody says.
const LIMIT: usize = 200;
/// How far servers' clocks may be apart: so much earlier than an object's creation its history is looked for.
const SKEW_MS: i64 = 300_000;
/// How deep fields are told apart; what is deeper is shown as a whole.
const DEPTH_MAX: usize = 8;

/// What may stand behind the `?`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryQuery {
    limit: Option<usize>,
    reports: bool,
}

/// The history of an object, of one that is gone too.
pub async fn history<R: Served>(
    State(app): State<App>,
    _: User,
    Path(name): Path<String>,
    found: QueryOf<HistoryQuery>,
) -> Result<Response, Refused> {
    let asked = query(found)?;
    let limit = asked.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX);
    let (id, since) = match present(&app, R::KIND, &name) {
        Some(found) => found,
        None => (gone(&app, R::KIND, &name).await?, None),
    };
    let mut last = Last::new(limit);
    let shows = |part: Part| asked.reports || matches!(part, Part::Object | Part::Intent);
    each_record(app.store.as_ref(), since, &id.to_string(), |record| {
        if let Some(entry) = entry(record, R::KIND, id, shows) {
            last.push(entry);
        }
    })
    .await?;
    let mut history = last.history();
    show_names(&app.cache.view(), &mut history);
    Ok(axum::Json(history).into_response())
}

fn project(kind: Kind) -> Option<&'static str> {
    (!kind.is_cloud_wide()).then_some(PROJECT)
}

/// An object that is there, and since when.
fn present(app: &App, kind: Kind, name: &str) -> Option<(Uuid, Option<Timestamp>)> {
    let view = app.cache.view();
    let id = view.find(kind, project(kind), name)?;
    Some((id, view.meta(kind, id).map(|meta| meta.created_at)))
}

/// The object that had this name or id last.
async fn gone(app: &App, kind: Kind, name: &str) -> Result<Uuid, Problem> {
    let index = key::name_index(kind, project(kind), name);
    let by_id = name.parse::<Uuid>().ok().map(|id| key::object(kind, id));
    let mut last = None;
    each_record(app.store.as_ref(), None, name, |record| {
        for change in &record.changes {
            if change.key == index {
                let id = change.after.as_ref().or(change.before.as_ref());
                last = id.and_then(|id| id.get("data")?.as_str()?.parse().ok()).or(last);
            } else if by_id.as_ref() == Some(&change.key) {
                last = name.parse().ok();
            }
        }
    })
    .await?;
    last.ok_or_else(|| missing(&app.cache.view(), kind, project(kind), name))
}

/// Goes through the audit records since a time that contain a word, oldest first.
async fn each_record(
    store: &dyn Store,
    since: Option<Timestamp>,
    word: &str,
    mut see: impl FnMut(AuditRecord),
) -> Result<(), Problem> {
    let mut after = since.map(|since| key::audit(first_id(since)));
    loop {
        let mut request = RangeRequest::prefix(key::AUDIT_PREFIX).limit(PAGE);
        if let Some(after) = after.take() {
            request = request.after(after);
        }
        let page = store
            .range(request)
            .await
            .map_err(|error| store_problem(&error))?;
        for kv in &page.items {
            let names_it = std::str::from_utf8(&kv.value).is_ok_and(|text| text.contains(word));
            let record = names_it.then(|| record::decode(&kv.value));
            // One that cannot be read is passed over: the rest of the history is worth showing.
            if let Some(Ok(record)) = record {
                see(record);
            }
        }
        match page.items.last() {
            Some(last) if page.more => after = Some(last.key.to_string()),
            _ => return Ok(()),
        }
    }
}

/// The id of the newest record, found by halving what may be behind it.
pub async fn last_id(store: &dyn Store) -> Result<Option<Uuid>, StoreError> {
    let (mut last, mut high) = (None, u128::MAX);
    loop {
        let low = last.map_or(0, |id: Uuid| id.as_u128());
        if low >= high {
            return Ok(last);
        }
        let middle = low + (high - low) / 2;
        let request = RangeRequest::prefix(key::AUDIT_PREFIX)
            .after(key::audit(Uuid::from_u128(middle)))
            .limit(1)
            .keys_only();
        let found = store.range(request).await?;
        let id = found.items.first().and_then(|kv| {
            let id = kv.key.strip_prefix(key::AUDIT_PREFIX)?;
            id.parse::<Uuid>().ok()
        });
        match id {
            Some(_) => last = id,
            None => high = middle,
        }
    }
}

/// The smallest UUID v7 of a time.
fn first_id(at: Timestamp) -> Uuid {
    let ms = at.as_millisecond().saturating_sub(SKEW_MS).max(0);
    Uuid::from_u128(u128::from(ms.unsigned_abs()) << 80)
}

/// The last so many entries.
struct Last {
    limit: usize,
    entries: VecDeque<HistoryEntry>,
    has_older: bool,
}

impl Last {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            entries: VecDeque::new(),
            has_older: false,
        }
    }

    fn push(&mut self, entry: HistoryEntry) {
        if self.entries.len() == self.limit {
            self.entries.pop_front();
            self.has_older = true;
        }
        self.entries.push_back(entry);
    }

    fn history(self) -> History {
        History {
            items: self.entries.into(),
            has_older: self.has_older,
        }
    }
}

/// References are stored as ids and shown as names, as everywhere. What is gone keeps its id.
fn show_names(view: &View, history: &mut History) {
    let changes = history.items.iter_mut().flat_map(|entry| &mut entry.changes);
    for change in changes {
        show_name(view, &mut change.before);
        show_name(view, &mut change.after);
    }
}

fn show_name(view: &View, value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(|value| show_name(view, value)),
        Value::String(text) => {
            let id = text.parse::<Uuid>().ok();
            let meta = id.and_then(|id| Kind::ALL.into_iter().find_map(|kind| view.meta(kind, id)));
            if let Some(meta) = meta {
                text.clone_from(&meta.name);
            }
        }
        _ => {}
    }
}

/// What a write did to an object; `None` if nothing that is shown.
fn entry(record: AuditRecord, kind: Kind, id: Uuid, shows: impl Fn(Part) -> bool) -> Option<HistoryEntry> {
    let parts = record.changes.into_iter().filter_map(|change| {
        let (of_kind, of, part) = key::parse(&change.key)?;
        // A version is kept with a change of the template, which says all of it; its end is told.
        let is_end = matches!(part, Part::Version(_)) && change.after.is_none();
        ((of_kind, of) == (kind, id) && (shows(part) || is_end)).then_some((part, change))
    });
    let mut changes: Vec<FieldChange> = parts.flat_map(|(part, change)| fields(part, change)).collect();
    if changes.iter().any(|change| change.field == "object") {
        changes.retain(|change| !change.field.starts_with("version."));
    }
    (!changes.is_empty()).then_some(HistoryEntry {
        at: record.at,
        actor: record.actor.name,
        from: record.actor.from,
        action: record.action,
        changes,
    })
}

/// The fields of a part that differ. A part that came or went as a whole is one change.
fn fields(part: Part, change: Change) -> Vec<FieldChange> {
    let prefix = match part {
        Part::Object => String::new(),
        Part::Version(number) => format!("version.{number}"),
        Part::Intent => "intent".to_owned(),
        Part::Run(incarnation) => format!("run.{}", incarnation.0),
        Part::Status => "status".to_owned(),
        Part::Reservations => "reservations".to_owned(),
        Part::Contact => "contact".to_owned(),
        Part::Address(address) => format!("address.{address}"),
    };
    let data =
        |value: Option<Value>| value.map(|mut value| value.get_mut("data").map_or(Value::Null, Value::take));
    let (before, after) = (data(change.before), data(change.after));
    let (Some(before), Some(after)) = (&before, &after) else {
        let field = if prefix.is_empty() {
            "object".to_owned()
        } else {
            prefix
        };
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
        return vec![FieldChange { field, before, after }];
    };
    let mut found = Vec::new();
    differences(&prefix, before, after, 0, &mut found);
    // When it was written is said once, beside who wrote it.
    found.retain(|change| change.field != "meta.updated_at" && !change.field.starts_with("spec.made"));
    found
}

fn differences(path: &str, before: &Value, after: &Value, depth: usize, found: &mut Vec<FieldChange>) {
    let (old, new) = match (before, after) {
        _ if before == after => return,
        (Value::Object(old), Value::Object(new)) if depth < DEPTH_MAX => (old, new),
        _ => {
            let (field, before, after) = (path.to_owned(), before.clone(), after.clone());
            return found.push(FieldChange { field, before, after });
        }
    };
    let added = new.keys().filter(|key| !old.contains_key(*key));
    for key in old.keys().chain(added) {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        let at = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
        differences(&path, &at(old), &at(new), depth + 1, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_that_differ_are_named_by_their_path() {
        let mut found = Vec::new();
        let before = json!({ "meta": { "labels": { "a": "1" } }, "spec": { "vcpus": 1, "nics": [1] } });
        let after = json!({ "meta": { "labels": { "b": "2" } }, "spec": { "vcpus": 2, "nics": [1] } });
        differences("", &before, &after, 0, &mut found);
        let shown: Vec<String> = found
            .iter()
            .map(|change| format!("{} {} {}", change.field, change.before, change.after))
            .collect();
        assert_eq!(
            shown,
            [
                "meta.labels.a \"1\" null",
                "meta.labels.b null \"2\"",
                "spec.vcpus 1 2"
            ]
        );
    }

    #[tokio::test]
    async fn a_trail_without_records_has_no_last_one() {
        let store = store::MemoryStore::new(store::system_clock());
        assert_eq!(last_id(&store).await.unwrap(), None);
        let put = |id| store::Op::put(key::audit(Uuid::from_u128(id)), "{}");
        let txn = store::Txn::new().then(put(1)).then(put(u128::MAX - 1));
        store.txn(txn).await.unwrap();
        let last = last_id(&store).await.unwrap();
        assert_eq!(last, Some(Uuid::from_u128(u128::MAX - 1)));
    }

    #[tokio::test]
    async fn every_page_is_read_from_the_objects_creation_on() {
        let store = store::MemoryStore::new(store::system_clock());
        let minute = |n: i64| Timestamp::from_second(1_800_000_000 + 60 * n).unwrap();
        let total = i64::try_from(PAGE).unwrap() * 2 + 1;
        for n in 0..total {
            let at = minute(n);
            let record = AuditRecord {
                actor: model::audit::Actor::controller(),
                at,
                action: if n % 2 == 0 { "start web" } else { "start db" }.to_owned(),
                changes: Vec::new(),
            };
            let id = Uuid::from_u128(u128::from(at.as_millisecond().unsigned_abs()) << 80);
            let put = store::Op::put(key::audit(id), record::encode(&record));
            store.txn(store::Txn::new().then(put)).await.unwrap();
        }
        let count = async |since, word| {
            let mut count = 0;
            each_record(&store, since, word, |_| count += 1).await.unwrap();
            count
        };
        assert_eq!(count(None, "start").await, total);
        assert_eq!(count(None, "start web").await, total / 2 + 1);
        // The five minutes before are for servers whose clocks differ; the key at their very beginning is passed over.
        assert_eq!(count(Some(minute(total - 1)), "start").await, 5);
        let newest = u128::from(minute(total - 1).as_millisecond().unsigned_abs()) << 80;
        assert_eq!(last_id(&store).await.unwrap(), Some(Uuid::from_u128(newest)));
    }
}
