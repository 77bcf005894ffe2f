//! Reading objects: one, a page of them, or what changed of them. What may be asked is [`api::query`]'s grammar.
//!
//! All pages of a list show one revision of the store: the first page's. The token of the next page names it, with how
//! many objects came before, so any server can go on, and nothing is repeated or left out whatever changes meanwhile. What
//! is measured and never stored, such as a host's load, is shown as it is when the page is read.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::str::FromStr;

use api::client::ObjectOf;
use api::query::{Fields, Filter, Order, Shape};
use api::{List, Object, Problem};
use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use model::token::Role;
use planner::View;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::StoreError;
use uuid::Uuid;

use crate::answer::{Path, Refused, store_problem};
use crate::auth::{User, sha256_hex};
use crate::kinds::{Served, render};
use crate::places::OfConnection;
use crate::routes::{App, QueryOf, find, query};
use crate::shared::Heard;
use crate::watch;

/// The most objects on a page.
const PAGE_MAX: usize = 1000;

/// What may stand behind the `?` of one object.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OneQuery {
    fields: Option<String>,
}

/// What may stand behind the `?` of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListQuery {
    after: Option<String>,
    limit: Option<usize>,
    label: Option<String>,
    filter: Option<String>,
    fields: Option<String>,
    sort: Option<String>,
    watch: bool,
    from: Option<u64>,
}

/// What may stand behind the `?` of a poll.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PollQuery {
    from: u64,
    timeout_s: Option<u64>,
    label: Option<String>,
    filter: Option<String>,
    fields: Option<String>,
}

/// Which objects are meant, and what of them is shown.
#[derive(Debug)]
pub struct Wanted {
    role: Role,
    labels: BTreeMap<String, String>,
    filter: Filter,
    fields: Option<Fields>,
}

/// An object as it was asked for.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Shown<O> {
    /// As it is.
    Whole(Box<O>),
    /// Some of its fields.
    Part(Value),
}

impl Wanted {
    fn parse<R: Served>(
        user: &User,
        label: Option<&str>,
        filter: Option<&str>,
        fields: Option<&str>,
    ) -> Result<Self, Problem> {
        let filter = filter
            .map(|text| Filter::parse(text, Shape::of::<R>()))
            .transpose()?;
        Ok(Self {
            role: user.role,
            labels: labels(label)?,
            filter: filter.unwrap_or_default(),
            fields: fields
                .map(|text| Fields::parse(text, Shape::of::<R>()))
                .transpose()?,
        })
    }

    /// An object as whoever asks may see it: also what it is chosen and sorted by.
    pub fn render<R: Served>(&self, heard: &Heard, view: &View, id: Uuid) -> Option<ObjectOf<R>> {
        let mut object = render::<R>(heard, view, id)?;
        if self.role < Role::Operator {
            R::hide_secrets(&mut object.spec);
            R::hide_in_status(&mut object.status);
        }
        Some(object)
    }

    /// Whether an object's labels are those that are meant.
    fn takes_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    }

    /// The object as it is shown, if it is meant.
    pub fn show<S: Serialize, T: Serialize>(&self, object: Object<S, T>) -> Option<Shown<Object<S, T>>> {
        let is_labelled = self.takes_labels(&object.labels);
        is_labelled.then(|| self.show_labelled(object)).flatten()
    }

    /// The same of an object that is known to have the labels.
    fn show_labelled<S: Serialize, T: Serialize>(&self, object: Object<S, T>) -> Option<Shown<Object<S, T>>> {
        if self.filter.is_empty() && self.fields.is_none() {
            return Some(Shown::Whole(Box::new(object)));
        }
        let value = value_of(&object);
        if !self.filter.holds(&value) {
            return None;
        }
        Some(match &self.fields {
            Some(fields) => Shown::Part(fields.of(&value)),
            None => Shown::Whole(Box::new(object)),
        })
    }
}

/// Wire types have text for keys and finite numbers, so there is nothing that could not be written.
fn value_of(object: &impl Serialize) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

/// Labels as they stand in a query.
fn labels(text: Option<&str>) -> Result<BTreeMap<String, String>, Problem> {
    let pairs = text.into_iter().flat_map(|text| text.split(',')).map(|pair| {
        let pair = pair.split_once('=').ok_or_else(|| {
            let detail = format!("the label {pair:?} is not understood: give key=value");
            Problem::new(400, "bad-query", detail)
        })?;
        Ok((pair.0.to_owned(), pair.1.to_owned()))
    });
    pairs.collect()
}

/// Answers one object.
pub async fn get_one<R: Served>(
    State(app): State<App>,
    user: User,
    Path(name): Path<String>,
    found: QueryOf<OneQuery>,
) -> Result<Response, Refused> {
    let query = query(found)?;
    let wanted = Wanted::parse::<R>(&user, None, None, query.fields.as_deref())?;
    let view = app.cache.view();
    let id = find::<R>(&view, &name)?;
    let object = wanted.render::<R>(&app.heard, &view, id);
    let object = object.and_then(|object| wanted.show(object));
    let object = object.ok_or_else(|| Problem::not_found(R::KIND, &name))?;
    Ok(axum::Json(object).into_response())
}

/// Answers a page of objects, or streams their changes.
pub async fn list<R: Served>(
    State(app): State<App>,
    user: User,
    connection: Option<Extension<OfConnection>>,
    found: QueryOf<ListQuery>,
) -> Result<Response, Refused> {
    let query = query(found)?;
    let [label, filter, fields] = [&query.label, &query.filter, &query.fields].map(Option::as_deref);
    let wanted = Wanted::parse::<R>(&user, label, filter, fields)?;
    if query.watch {
        if query.sort.is_some() || query.after.is_some() {
            let detail =
                "changes come in the order of their happening: leave `sort` and `after` out of a watch";
            return Err(Problem::new(400, "bad-query", detail).into());
        }
        return Ok(watch::stream::<R>(
            app,
            &user,
            connection.as_deref(),
            query.from,
            wanted,
        )?);
    }
    let sort = query.sort.as_deref();
    let order = sort
        .map(|text| Order::parse(text, Shape::of::<R>()))
        .transpose()?;
    let digest = digest(&[
        R::KIND.name(),
        label.unwrap_or(""),
        filter.unwrap_or(""),
        sort.unwrap_or(""),
    ]);
    let after = query
        .after
        .as_deref()
        .map(|text| Token::parse(text, &digest))
        .transpose()?;
    let asked = Asked {
        wanted,
        order: order.unwrap_or_default(),
        digest,
        skip: after.as_ref().map_or(0, |token| token.skip),
        limit: query.limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX),
    };
    let revision = after.map(|token| token.revision);
    if let Some(page) = page_now::<R>(&app, &asked, revision) {
        return Ok(axum::Json(page).into_response());
    }
    let revision = revision.unwrap_or_default();
    let past = app.cache.at(app.store.as_ref(), revision).await;
    let view = past.map_err(|error| past_problem(&error))?;
    Ok(axum::Json(page::<R>(&app, &view, &asked)).into_response())
}

fn past_problem(error: &StoreError) -> Problem {
    match error {
        StoreError::Compacted { requested, compacted } => {
            let detail = format!(
                "the list as it was at revision {requested} is no longer kept: begin with the first page"
            );
            Problem::new(410, "compacted", detail).at_revision(*compacted)
        }
        StoreError::FutureRevision { .. } => not_a_token(),
        error => store_problem(error),
    }
}

/// Answers what changed since a revision, as soon as something has.
pub async fn poll<R: Served>(
    State(app): State<App>,
    user: User,
    connection: Option<Extension<OfConnection>>,
    found: QueryOf<PollQuery>,
) -> Result<Response, Refused> {
    let query = query(found)?;
    let [label, filter, fields] = [&query.label, &query.filter, &query.fields].map(Option::as_deref);
    let wanted = Wanted::parse::<R>(&user, label, filter, fields)?;
    let changes = watch::poll::<R>(app, connection.as_deref(), query.from, wanted, query.timeout_s).await?;
    Ok(axum::Json(changes).into_response())
}

/// A page that is asked for.
struct Asked {
    wanted: Wanted,
    order: Order,
    digest: String,
    skip: usize,
    limit: usize,
}

type Page<R> = List<Shown<api::client::ObjectOf<R>>>;

/// The page, if the view of now is what it shows.
fn page_now<R: Served>(app: &App, asked: &Asked, revision: Option<u64>) -> Option<Page<R>> {
    let view = app.cache.view();
    let is_meant = revision.is_none_or(|revision| revision == view.revision);
    is_meant.then(|| page::<R>(app, &view, asked))
}

fn page<R: Served>(app: &App, view: &View, asked: &Asked) -> Page<R> {
    let show = |id: Uuid| {
        asked
            .wanted
            .show_labelled(asked.wanted.render::<R>(&app.heard, view, id)?)
    };
    let carries = |id: &Uuid| {
        view.meta(R::KIND, *id)
            .is_some_and(|meta| asked.wanted.takes_labels(&meta.labels))
    };
    let ids = view.ids(R::KIND).into_iter().filter(carries);
    let (order, skip) = (&asked.order, asked.skip);
    // What is passed over is rendered only if that tells whether it is meant, and then not again.
    let mut meant: Box<dyn Iterator<Item = _>> = match (order.is_empty(), asked.wanted.filter.is_empty()) {
        (true, true) => Box::new(ids.skip(skip).filter_map(show)),
        (true, false) => Box::new(ids.filter_map(show).skip(skip)),
        (false, _) => {
            let sorted = sorted::<R>(app, view, asked, ids);
            Box::new(sorted.into_iter().skip(skip).filter_map(show))
        }
    };
    let items: Vec<_> = meant.by_ref().take(asked.limit).collect();
    let next = meant.next().map(|_| {
        let token = Token {
            revision: view.revision,
            skip: asked.skip + items.len(),
        };
        token.text(&asked.digest)
    });
    List {
        items,
        revision: view.revision,
        next,
    }
}

/// Those that are meant, in order; those that come at the same place are in the order of their making. Only their places
/// are kept: all objects as they are shown would be many times as much.
fn sorted<R: Served>(app: &App, view: &View, asked: &Asked, ids: impl Iterator<Item = Uuid>) -> Vec<Uuid> {
    let place = |id: Uuid| {
        let object = value_of(&asked.wanted.render::<R>(&app.heard, view, id)?);
        let is_meant = asked.wanted.filter.holds(&object);
        is_meant.then(|| (asked.order.place(&object), id))
    };
    let mut places: Vec<_> = ids.filter_map(place).collect();
    places.sort_by(|a, b| Ordering::then(asked.order.compare(&a.0, &b.0), a.1.cmp(&b.1)));
    places.into_iter().map(|(_, id)| id).collect()
}

/// Where a page begins: `REVISION-SKIP-DIGEST`, the digest telling whether it is the same list that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    revision: u64,
    skip: usize,
}

impl Token {
    fn text(&self, digest: &str) -> String {
        format!("{}-{}-{digest}", self.revision, self.skip)
    }

    fn parse(text: &str, digest: &str) -> Result<Self, Problem> {
        let mut parts = text.split('-');
        let token = Self {
            revision: part(parts.next())?,
            skip: part(parts.next())?,
        };
        match (parts.next(), parts.next()) {
            (Some(found), None) if found == digest => Ok(token),
            (Some(_), None) => {
                let detail = "`after` is the `next` of another list: ask with the same `label`, `filter` and `sort` \
                              as for the first page";
                Err(Problem::new(400, "bad-query", detail))
            }
            _ => Err(not_a_token()),
        }
    }
}

fn part<T: FromStr>(text: Option<&str>) -> Result<T, Problem> {
    text.and_then(|text| text.parse().ok()).ok_or_else(not_a_token)
}

fn not_a_token() -> Problem {
    Problem::new(
        400,
        "bad-query",
        "`after` is not the `next` of a page: leave it out for the first page",
    )
}

/// A few letters that differ where what is asked for differs.
fn digest(parts: &[&str]) -> String {
    let mut digest = sha256_hex(parts.join("\n").as_bytes());
    digest.truncate(12);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_the_list_that_it_came_from() {
        let token = Token {
            revision: 7,
            skip: 1000,
        };
        let text = token.text(&digest(&["vm", "a=b"]));
        assert_eq!(Token::parse(&text, &digest(&["vm", "a=b"])).unwrap(), token);
        assert!(Token::parse(&text, &digest(&["vm", "a=c"])).is_err());
        for bad in [
            "",
            "7",
            "7-x-y",
            "-7-1-y",
            "7-1",
            "7-1-a-b",
            "99999999999999999999-1-a",
        ] {
            assert_eq!(Token::parse(bad, "y").unwrap_err().code, "bad-query", "{bad}");
        }
    }
}
