//! How a request becomes a transaction: a function of the request, what was read and the time makes a plan or a refusal,
//! and is tried again when a compare fails. Every front end writes through here.

use std::time::Duration;

use api::Problem;
use controller::commit::{CommitError, commit};
use model::record::Spec;
use model::token::RequestRecord;
use model::user_data::{self, NOT_SHOWN};
use model::{Meta, Object, Timestamp, key, record};
use planner::view::At;
use planner::{Plan, View};
use serde_json::Value;
use store::RangeRequest;
use uuid::Uuid;

use crate::answer::{commit_problem, store_problem};
use crate::auth::{PROJECT, User};
use crate::kinds::{Served, render};
use crate::removal::rely_on_needed;
use crate::shared::Cloud;

/// How often a request is tried again when others overtake it.
const ATTEMPTS: u32 = 20;
/// How long a writer waits to read its own write.
const CATCH_UP: Duration = Duration::from_secs(5);

/// What a request is decided on.
pub struct Context<'a> {
    /// The store.
    pub view: &'a View,
    /// The time.
    pub now: Timestamp,
    /// The id of the object that is created, if one is.
    pub new_id: Uuid,
    /// Who asks.
    pub user: &'a User,
    /// How often the request was overtaken, from 0: what it chooses from a pool is spread the wider.
    pub attempt: u32,
}

impl Context<'_> {
    /// The project that the user works in.
    pub fn project(&self) -> &'static str {
        PROJECT
    }

    /// The names and times of a new object.
    pub fn meta(
        &self,
        kind: model::Kind,
        name: &str,
        labels: std::collections::BTreeMap<String, String>,
    ) -> Meta {
        Meta {
            id: self.new_id,
            name: name.to_owned(),
            project: (!kind.is_cloud_wide()).then(|| self.project().to_owned()),
            owner: self.user.name.clone(),
            labels,
            created_at: self.now,
            updated_at: self.now,
            deleted_at: None,
        }
    }
}

/// What a repeat of a request is recognised by.
#[derive(Debug, Clone)]
pub struct RequestId {
    /// The client's word for it.
    pub id: String,
    /// The digest of what was asked.
    pub fingerprint: String,
}

/// An answer: the object as it is after the write.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The object.
    pub body: Value,
}

impl Answer {
    /// The same answer with the revision of the write that it tells of.
    fn at(mut self, revision: u64) -> Self {
        self.body["revision"] = revision.into();
        self
    }
}

/// Plans, commits and renders; a request id that was seen before gets the same answer again.
pub async fn write<R: Served>(
    cloud: &Cloud,
    user: &User,
    status: u16,
    request: Option<RequestId>,
    decide: impl Fn(&Context<'_>, &mut Plan) -> Result<Uuid, Problem> + Send + Sync,
) -> Result<Answer, Problem> {
    if let Some(answer) = repeated::<R>(cloud, user, request.as_ref()).await? {
        return Ok(answer);
    }
    let actor = user.actor();
    let new_id = cloud.env.next_id();
    for attempt in 0..ATTEMPTS {
        let asked = Asked {
            user,
            status,
            request: request.as_ref(),
            new_id,
            attempt,
        };
        let planned = plan_once::<R>(cloud, &asked, &decide)?;
        if planned.plan.writes.is_empty() {
            return Ok(planned.answer);
        }
        match commit(cloud.writer(&actor), planned.plan).await {
            Ok(revision) => {
                cloud.cache.reach(revision, CATCH_UP).await;
                // A request with an id is answered what a repeat of it will be answered.
                return Ok(match &request {
                    Some(_) => repeatable::<R>(cloud, planned.answer).at(revision),
                    None => {
                        object::<R>(cloud, &cloud.cache.view(), planned.id, status)?.unwrap_or(planned.answer)
                    }
                });
            }
            Err(CommitError::Conflict { key }) => {
                if let Some(answer) = repeated::<R>(cloud, user, request.as_ref()).await? {
                    return Ok(answer);
                }
                tracing::debug!(%key, attempt, "a request was overtaken and is tried again");
                let at = cloud.cache.revision();
                cloud
                    .cache
                    .reach(at.saturating_add(1), Duration::from_millis(20))
                    .await;
            }
            Err(error) => return Err(commit_problem(error)),
        }
    }
    Err(commit_problem(CommitError::Conflict {
        key: R::KIND.to_string(),
    }))
}

/// What the request would lead to, without doing it.
pub fn dry_run<R: Served>(
    cloud: &Cloud,
    user: &User,
    decide: impl Fn(&Context<'_>, &mut Plan) -> Result<Uuid, Problem> + Send + Sync,
) -> Result<Answer, Problem> {
    let asked = Asked {
        user,
        status: 200,
        request: None,
        new_id: cloud.env.next_id(),
        attempt: 0,
    };
    let planned = plan_once::<R>(cloud, &asked, &decide)?;
    let mut view = after::<R>(&cloud.cache.view(), &planned.plan);
    if let Some(next) = R::next_step(&view, planned.id, cloud.env.now()) {
        apply(&mut view, &next);
    }
    Ok(object::<R>(cloud, &view, planned.id, 200)?.unwrap_or(planned.answer))
}

/// One try of a request.
struct Asked<'a> {
    user: &'a User,
    status: u16,
    request: Option<&'a RequestId>,
    new_id: Uuid,
    attempt: u32,
}

/// What a request leads to.
struct Planned {
    plan: Plan,
    id: Uuid,
    /// The object as it will be, or as it was last if it goes at once.
    answer: Answer,
}

fn plan_once<R: Served>(
    cloud: &Cloud,
    asked: &Asked<'_>,
    decide: &impl Fn(&Context<'_>, &mut Plan) -> Result<Uuid, Problem>,
) -> Result<Planned, Problem> {
    let view = cloud.cache.view();
    let (user, status) = (asked.user, asked.status);
    let context = Context {
        view: &view,
        now: cloud.env.now(),
        new_id: asked.new_id,
        user,
        attempt: asked.attempt,
    };
    let mut plan = Plan::new("");
    let id = decide(&context, &mut plan)?;
    let next = after::<R>(&view, &plan);
    rely_on_needed(&view, &next, &mut plan)?;
    let answer = match object::<R>(cloud, &next, id, status)? {
        Some(answer) => answer,
        None => object::<R>(cloud, &view, id, status)?
            .ok_or_else(|| Problem::new(404, "gone", format!("the {} is gone meanwhile", R::KIND)))?,
    };
    if let Some(request) = asked.request {
        let kept = RequestRecord {
            user: user.name.clone(),
            fingerprint: request.fingerprint.clone(),
            status,
            body: without_texts(&answer.body),
            at: context.now,
        };
        plan.create(key::request(&user.name, &request.id), &kept);
    }
    Ok(Planned { plan, id, answer })
}

/// A view of what the plan's objects will be: enough to render the one that is answered.
fn after<R: Served>(view: &View, plan: &Plan) -> View {
    let keys = plan.writes.keys().chain(plan.relies_on.keys());
    let concerned = keys
        .filter_map(|key| key::parse(key))
        .map(|(kind, id, _)| (kind, id));
    let mut next = view.excerpt(concerned.chain(R::shown_with(view)));
    apply(&mut next, plan);
    next
}

fn apply(view: &mut View, plan: &Plan) {
    let revision = view.revision;
    for (key, value) in &plan.writes {
        view.apply(planner::view::Change {
            key,
            value: value.as_deref(),
            revision,
        });
    }
}

/// An object as it is shown; `None` if it is not there.
fn object<R: Served>(cloud: &Cloud, view: &View, id: Uuid, status: u16) -> Result<Option<Answer>, Problem> {
    let Some(object) = render::<R>(&cloud.heard, view, id) else {
        return Ok(None);
    };
    let body =
        serde_json::to_value(object).map_err(|error| Problem::new(500, "not-shown", error.to_string()))?;
    Ok(Some(Answer { status, body }))
}

/// An answer as it is kept: the texts are in the object, and one transaction has no room for them twice.
fn without_texts(body: &Value) -> Value {
    let mut body = body.clone();
    for pointer in user_data::IN_OBJECT {
        if let Some(text) = body.pointer_mut(pointer).filter(|text| !text.is_null()) {
            *text = NOT_SHOWN.into();
        }
    }
    body
}

/// An answer as a repeat of its request gets it.
fn repeatable<R: Served>(cloud: &Cloud, answer: Answer) -> Answer {
    Answer {
        body: with_texts::<R>(cloud, without_texts(&answer.body)),
        ..answer
    }
}

/// A kept answer with the texts that its object has now, if it is still there.
fn with_texts<R: Served>(cloud: &Cloud, mut body: Value) -> Value {
    let lacks = |pointer: &&str| body.pointer(pointer).is_some_and(|text| text == NOT_SHOWN);
    let lacking: Vec<_> = user_data::IN_OBJECT.into_iter().filter(lacks).collect();
    if lacking.is_empty() {
        return body;
    }
    let id = body["id"].as_str().and_then(|id| id.parse().ok());
    let now = id.and_then(|id| object::<R>(cloud, &cloud.cache.view(), id, 200).ok()?);
    for pointer in lacking {
        let text = body.pointer_mut(pointer);
        let present = now.as_ref().and_then(|now| now.body.pointer(pointer));
        if let (Some(text), Some(present)) = (text, present) {
            text.clone_from(present);
        }
    }
    body
}

/// The kept answer to a request id, if it was seen before.
pub(crate) async fn repeated<R: Served>(
    cloud: &Cloud,
    user: &User,
    request: Option<&RequestId>,
) -> Result<Option<Answer>, Problem> {
    let Some(request) = request else { return Ok(None) };
    let key = key::request(&user.name, &request.id);
    let found = cloud
        .store
        .range(RangeRequest::key(key))
        .await
        .map_err(|error| store_problem(&error))?;
    let Some(kv) = found.items.first() else {
        return Ok(None);
    };
    let kept: RequestRecord = record::decode(&kv.value).map_err(|error| {
        Problem::new(
            500,
            "unreadable",
            format!("the answer to this request id: {error}"),
        )
    })?;
    if kept.fingerprint != request.fingerprint {
        let detail = format!(
            "the request id {:?} was used for another request: take a new one",
            request.id
        );
        return Err(Problem::conflict("request-id-reused", detail));
    }
    // The record was written together with the object, so its revision is the object's.
    Ok(Some(
        Answer {
            status: kept.status,
            body: with_texts::<R>(cloud, kept.body),
        }
        .at(kv.mod_revision),
    ))
}

/// Puts a new object and its name into a plan, or refuses because the name is taken.
pub fn create_object<S: Spec>(
    context: &Context<'_>,
    kind: model::Kind,
    object: &Object<S>,
    plan: &mut Plan,
) -> Result<Uuid, Problem> {
    let meta = &object.meta;
    if context
        .view
        .names
        .contains_key(&(kind, meta.project.clone(), meta.name.clone()))
    {
        let detail = format!(
            "there is a {kind} {:?} already: take another name, or delete that one",
            meta.name
        );
        return Err(Problem::conflict("name-taken", detail));
    }
    plan.action = format!("create {kind} {}", meta.name);
    plan.create(key::object(kind, meta.id), object);
    plan.create(
        key::name_index(kind, meta.project.as_deref(), &meta.name),
        &meta.id,
    );
    Ok(meta.id)
}

/// Puts a changed object into a plan.
pub fn replace_object<S: Spec + Clone>(
    context: &Context<'_>,
    kind: model::Kind,
    at: &At<Object<S>>,
    change: impl FnOnce(&mut Object<S>),
    plan: &mut Plan,
) -> Uuid {
    let mut object = at.value.clone();
    change(&mut object);
    object.meta.updated_at = context.now;
    if plan.action.is_empty() {
        plan.action = format!("change {kind} {}", object.meta.name);
    }
    plan.replace(key::object(kind, object.meta.id), at.revision, &object);
    object.meta.id
}

/// Refuses if the object was changed after the revision that the client has seen.
pub fn check_revision(kind: model::Kind, name: &str, at: u64, expected: Option<u64>) -> Result<(), Problem> {
    match expected {
        Some(expected) if at > expected => {
            let detail =
                format!("{kind} {name} was changed at revision {at}, after {expected}: read it again");
            Err(Problem::conflict("stale-revision", detail).at_revision(at))
        }
        _ => Ok(()),
    }
}
