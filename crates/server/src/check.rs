//! What writing a set of documents would lead to: each is decided on a copy of the view in which those before it are
//! written already. Nothing is committed.

use api::document::{CheckAnswer, CheckBody, Checked, Document, Outcome, Wanted};
use api::kinds::{Datastore, Host, Image, Network, Profile, Template, Vm};
use api::{Create, Problem};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use model::Kind;
use planner::view::Change;
use planner::{Plan, View};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::answer::{Body, Refused};
use crate::auth::{PROJECT, User};
use crate::kinds::Served;
use crate::routes::{App, decide_change, decide_create, parse};
use crate::service::Context;

/// The largest body: all that a cloud of ten thousand VMs exports.
pub const BODY_MAX_BYTES: usize = 32 << 20;

/// Says of each document what writing it would lead to.
pub async fn check(State(app): State<App>, user: User, Body(body): Body) -> Result<Response, Refused> {
    let request: CheckBody = parse(&body)?;
    let mut view = copy(&app.cache.view(), &request.documents);
    let results = request.documents.iter().map(|document| {
        let asked = Asked {
            now: app.env.now(),
            new_id: app.env.next_id(),
            user: &user,
            document,
        };
        dispatch(&asked, &mut view)
    });
    let results = results.collect();
    Ok(axum::Json(CheckAnswer { results }).into_response())
}

/// One document, and who asks.
struct Asked<'a> {
    now: model::Timestamp,
    new_id: Uuid,
    user: &'a User,
    document: &'a Document,
}

/// As much of the view as documents are decided on.
fn copy(view: &View, documents: &[Document]) -> View {
    let concerned = documents
        .iter()
        .filter_map(|document| Some((document.kind, found(view, document)?)));
    let mut copy = view.excerpt(concerned);
    copy.names = view.names.clone();
    copy.addresses = view.addresses.clone();
    copy
}

fn project(kind: Kind) -> Option<&'static str> {
    (!kind.is_cloud_wide()).then_some(PROJECT)
}

fn found(view: &View, document: &Document) -> Option<Uuid> {
    view.find(document.kind, project(document.kind), &document.name)
}

fn dispatch(asked: &Asked<'_>, view: &mut View) -> Checked {
    match asked.document.kind {
        Kind::Vm => checked::<Vm>(asked, view),
        Kind::Host => checked::<Host>(asked, view),
        Kind::Image => match image(asked.document, view) {
            Ok(spec) => {
                let document = Document {
                    spec,
                    ..asked.document.clone()
                };
                let document = &document;
                checked::<Image>(&Asked { document, ..*asked }, view)
            }
            Err(problem) => refused(problem),
        },
        Kind::Template => checked::<Template>(asked, view),
        Kind::Profile => checked::<Profile>(asked, view),
        Kind::Network => checked::<Network>(asked, view),
        Kind::Datastore => checked::<Datastore>(asked, view),
        kind @ (Kind::Migration | Kind::Operation | Kind::Event) => {
            let detail = format!("a {kind} is a record of what happens, and is not written by a file");
            refused(Problem::invalid("not-a-document", detail))
        }
    }
}

fn refused(problem: Problem) -> Checked {
    Checked {
        outcome: Outcome::Refused,
        revision: None,
        before: None,
        after: None,
        problem: Some(problem),
    }
}

/// Decides about one document, and writes it into the view.
fn checked<R: Served>(asked: &Asked<'_>, view: &mut View) -> Checked {
    let present = found(view, asked.document);
    let before = present.and_then(|id| wanted::<R>(view, id));
    let revision = present.and_then(|id| R::stored(view, id)).map(|at| at.revision);
    let (plan, id) = match decide::<R>(asked, view, present) {
        Ok(decided) => decided,
        Err(problem) => return refused(problem),
    };
    for (key, value) in &plan.writes {
        let (value, revision) = (value.as_deref(), view.revision);
        view.apply(Change { key, value, revision });
    }
    let after = wanted::<R>(view, id);
    let outcome = match &before {
        None => Outcome::Created,
        Some(_) if before == after => Outcome::Unchanged,
        Some(_) => Outcome::Changed,
    };
    Checked {
        outcome,
        revision,
        before,
        after,
        problem: None,
    }
}

fn decide<R: Served>(asked: &Asked<'_>, view: &View, present: Option<Uuid>) -> Result<(Plan, Uuid), Problem> {
    let document = asked.document;
    let context = Context {
        view,
        now: asked.now,
        new_id: asked.new_id,
        user: asked.user,
        attempt: 0,
    };
    let mut plan = Plan::new("");
    let Some(id) = present else {
        let request = Create {
            name: Some(document.name.clone()),
            labels: document.labels.clone().unwrap_or_default(),
            spec: document.spec.clone(),
        };
        let id = decide_create::<R>(&context, &mut plan, request)?;
        return Ok((plan, id));
    };
    if view
        .meta(R::KIND, id)
        .is_some_and(|meta| meta.deleted_at.is_some())
    {
        let detail = format!(
            "{} {} is being deleted: wait until it is gone",
            R::KIND,
            document.name
        );
        return Err(Problem::conflict("being-deleted", detail));
    }
    let over = |present: Value| parse(over(present, document).to_string().as_bytes());
    let id = decide_change::<R>(&context, &mut plan, &document.name, None, over)?;
    Ok((plan, id))
}

/// The user's part of an object, as it is shown.
fn wanted<R: Served>(view: &View, id: Uuid) -> Option<Wanted> {
    let object = &R::stored(view, id)?.value;
    Some(Wanted {
        labels: object.meta.labels.clone(),
        spec: serde_json::to_value(R::spec(view, &object.spec)).ok()?,
    })
}

/// What a document says, over what is there.
fn over(mut present: Value, document: &Document) -> Value {
    if let Some(labels) = &document.labels {
        present["labels"] = labels
            .iter()
            .map(|(k, v)| (k.clone(), v.as_str().into()))
            .collect::<Map<_, _>>()
            .into();
    }
    lay_over(&mut present["spec"], &document.spec);
    present
}

/// What is left out stays as it is. The keys in a map of labels are the user's own: it is replaced as a whole.
fn lay_over(present: &mut Value, said: &Value) {
    let (Value::Object(present), Value::Object(said)) = (&mut *present, said) else {
        *present = said.clone();
        return;
    };
    for (key, value) in said {
        if key.ends_with("labels") {
            present.insert(key.clone(), value.clone());
        } else {
            lay_over(present.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// The spec of an image that must be there with the content that the document names: no file carries it.
fn image(document: &Document, view: &View) -> Result<Value, Problem> {
    let name = &document.name;
    let Some(id) = found(view, document) else {
        let detail = format!(
            "there is no image {name:?}, and a document does not carry its content: `sterna image import {name} --file PATH` first"
        );
        return Err(Problem::conflict("image-not-there", detail));
    };
    let image = view.images.get(&id);
    let content = image.and_then(|image| image.status.as_ref()?.value.content.as_ref());
    let there = content.map(|content| content.sha256.as_str());
    let said = document.spec.get("expected_sha256").and_then(Value::as_str);
    match (said, there) {
        (Some(said), Some(there)) if !said.eq_ignore_ascii_case(there) => {
            let detail = format!(
                "image {name} has another content (SHA-256 {there}) than the document says ({said}): import that one under another name"
            );
            Err(Problem::conflict("image-differs", detail))
        }
        (Some(_), Some(_)) => {
            let mut spec = document.spec.clone();
            if let Some(spec) = spec.as_object_mut() {
                spec.remove("expected_sha256");
            }
            Ok(spec)
        }
        _ => Ok(document.spec.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_document_leaves_out_stays_and_labels_are_replaced() {
        let present = json!({ "name": "web", "labels": { "a": "1" }, "spec": {
            "vcpus": 2, "guest": { "hostname": "web", "ssh_keys": ["k"] }, "placement": { "host_labels": { "x": "1" } },
        } });
        let document: Document = serde_json::from_value(json!({ "kind": "vm", "name": "web", "labels": { "b": "2" },
            "spec": { "guest": { "hostname": "www" }, "placement": { "host_labels": { "y": "2" } }, "vcpus": null } }))
        .unwrap();
        let wanted = json!({ "name": "web", "labels": { "b": "2" }, "spec": {
            "vcpus": null, "guest": { "hostname": "www", "ssh_keys": ["k"] }, "placement": { "host_labels": { "y": "2" } },
        } });
        assert_eq!(over(present, &document), wanted);
    }
}
