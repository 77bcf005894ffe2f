//! The routes: the same for every kind, and the few that one kind has beside them.

use std::sync::Arc;

use api::drain::HostActionBody;
use api::kinds::{
    ActionBody, Datastore, Event, Host, Image, ImageSpec, JoinToken, JoinTokenBody, Migration, Network,
    Operation, Profile, Template, Vm,
};
use api::{Create, Problem};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use model::{Kind, VmId};
use planner::view::At;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use crate::answer::{Body, Path, Refused};
use crate::auth::{PROJECT, User, sha256_hex};
use crate::kinds::{Served, explanation, host_action, image_import, missing, vm_action};
use crate::service::{self, Answer, Context, RequestId, check_revision, create_object, replace_object};
use crate::shared::Shared;
use crate::{
    agents, apply, backup, calls, check, console, docs, history, images, lists, metrics, progress, removal,
    requests, restored, tokens, unread, versions,
};

/// What handlers share.
pub type App = Arc<Shared>;

/// The largest body, images' content and objects left out.
const BODY_MAX_BYTES: usize = 1 << 20;
/// The largest object in a body: as JSON, a guest's texts may take several times their size.
const OBJECT_MAX_BYTES: usize = 4 << 20;

/// Every route.
pub fn router(app: App) -> Router {
    let kinds = Router::new()
        .merge(kind::<Vm>())
        .merge(kind::<Host>())
        .merge(kind::<Image>())
        .merge(kind::<Template>())
        .merge(kind::<Profile>())
        .merge(kind::<Network>())
        .merge(kind::<Datastore>())
        .merge(kind::<Migration>())
        .merge(kind::<Operation>())
        .merge(kind::<Event>())
        .merge(versions::routes());
    kinds
        .route("/v1/vms/{name}/actions/{action}", post(act_on_vm))
        .route("/v1/vms/{name}/console", get(console::attach))
        .route("/v1/vms/{name}/explain", get(explain))
        .route(
            "/v1/vms/{name}/apply",
            post(apply::apply).layer(DefaultBodyLimit::max(apply::BODY_MAX_BYTES)),
        )
        .route("/v1/hosts/{name}/actions/{action}", post(act_on_host))
        .route(
            "/v1/migrations/{name}/progress",
            get(progress::follow::<Migration>),
        )
        .route("/v1/images/{name}/progress", get(progress::follow::<Image>))
        .route("/v1/images/{name}/actions/{action}", post(act_on_image))
        .route("/v1/join-tokens", post(join_token))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{name}", axum::routing::delete(tokens::delete))
        .route(
            "/v1/check",
            post(check::check).layer(DefaultBodyLimit::max(check::BODY_MAX_BYTES)),
        )
        .route(
            "/v1/images/{name}/content",
            put(images::upload::upload).layer(DefaultBodyLimit::disable()),
        )
        .route("/v1/images/{name}/upload", get(images::upload::sent))
        .route("/agent/v1/join", post(agents::join))
        .route("/agent/v1/renew", post(agents::renew))
        .route("/agent/v1/document", get(agents::document))
        .route("/agent/v1/report", post(agents::report))
        .route("/agent/v1/calls", get(calls::listen))
        .route("/agent/v1/calls/{id}", get(calls::answer))
        .route("/agent/v1/images", get(images::needed::contents))
        .route("/agent/v1/images/{sha256}", get(images::download))
        .route(
            "/agent/v1/copies/{image}/{incarnation}",
            get(images::upload::sent_by_host)
                .put(images::upload::upload_by_host)
                .layer(DefaultBodyLimit::disable()),
        )
        .route("/v1/store", get(restored::status))
        .route("/v1/store/backup", get(backup::backup))
        .route("/v1/store/resume", post(restored::resume))
        .route("/openapi.json", get(docs::openapi))
        .route("/docs", get(docs::page))
        .route("/docs/style.css", get(docs::style))
        .route("/metrics", get(metrics::serve))
        .route("/healthz", get(|| async { "ok\n" }))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .layer(from_fn(unread::take_the_rest))
        .layer(from_fn_with_state(app.clone(), requests::pass))
        .with_state(app)
}

fn kind<R: Served>() -> Router<App> {
    let plural = R::KIND.plural();
    let mut all = get(lists::list::<R>);
    if R::CREATES || R::KIND == Kind::Host {
        all = all.post(create::<R>);
    }
    let mut one = get(lists::get_one::<R>);
    if R::CHANGES {
        one = one.put(replace::<R>).patch(patch::<R>).delete(delete::<R>);
    }
    Router::new()
        .route(&format!("/v1/{plural}"), all)
        .route(&format!("/v1/{plural}/{{name}}"), one)
        .route(&format!("/v1/changes/{plural}"), get(lists::poll::<R>))
        .route(
            &format!("/v1/{plural}/{{name}}/history"),
            get(history::history::<R>),
        )
        .layer(DefaultBodyLimit::max(OBJECT_MAX_BYTES))
}

async fn no_route(uri: Uri) -> Refused {
    let detail = format!(
        "there is nothing at {}: /docs describes what there is",
        uri.path()
    );
    Problem::new(404, "no-route", detail).into()
}

async fn no_method(method: Method, uri: Uri) -> Refused {
    let detail = format!(
        "{} does not take {method}: /docs describes what it takes",
        uri.path()
    );
    Problem::new(405, "no-method", detail).into()
}

/// What may stand behind the `?` of a write.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WriteQuery {
    request_id: Option<String>,
    pub(crate) expected_revision: Option<u64>,
    pub(crate) dry_run: bool,
}

/// What stands behind the `?`, or a problem that says what of it is not understood.
pub fn query<T: DeserializeOwned>(
    found: Result<Query<T>, axum::extract::rejection::QueryRejection>,
) -> Result<T, Refused> {
    found.map(|Query(query)| query).map_err(|error| {
        let detail = format!("the part of the URL after `?` is not understood: {error}");
        Problem::new(400, "bad-query", detail).into()
    })
}

/// A body that is JSON, or a problem that names the place.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let detail = format!("the request's body is not understood: {error}; /docs describes it");
        if error.is_data() {
            Problem::invalid("invalid-body", detail)
        } else {
            Problem::new(400, "bad-json", detail)
        }
    })
}

/// What a repeat of a request is recognised by, if the client gave an id: with the path, what of the body is given here.
pub fn request_id(
    query: &WriteQuery,
    method: &str,
    path: &str,
    body: &[u8],
) -> Result<Option<RequestId>, Problem> {
    let Some(id) = query.request_id.clone() else {
        return Ok(None);
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if id.is_empty() || id.len() > 128 || !id.bytes().all(plain) {
        let detail = "a request_id is 1 to 128 letters, digits, dashes, dots or underscores";
        return Err(Problem::invalid("invalid-request-id", detail));
    }
    let asked = [method.as_bytes(), b" ", path.as_bytes(), b"\n", body].concat();
    Ok(Some(RequestId {
        id,
        fingerprint: sha256_hex(&asked),
    }))
}

/// An answer of the service as one of HTTP.
pub fn respond(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    (status, axum::Json(answer.body)).into_response()
}

/// The id that a name or id in a path stands for.
pub fn find<R: Served>(view: &planner::View, name: &str) -> Result<Uuid, Problem> {
    let project = (!R::KIND.is_cloud_wide()).then_some(PROJECT);
    view.find(R::KIND, project, name)
        .ok_or_else(|| missing(view, R::KIND, project, name))
}

/// What may stand behind the `?`.
pub type QueryOf<T> = Result<Query<T>, axum::extract::rejection::QueryRejection>;

async fn explain(State(app): State<App>, _: User, Path(name): Path<String>) -> Result<Response, Refused> {
    let view = app.cache.view();
    let id = find::<Vm>(&view, &name)?;
    let found = explanation(&view, VmId(id), app.env.now());
    let found = found.ok_or_else(|| Problem::not_found(Kind::Vm, &name))?;
    Ok(axum::Json(found).into_response())
}

async fn create<R: Served>(
    State(app): State<App>,
    user: User,
    uri: Uri,
    found: QueryOf<WriteQuery>,
    Body(body): Body,
) -> Result<Response, Refused> {
    let query = query(found)?;
    let request: Create<Value> = parse(&body)?;
    let request_id = request_id(&query, "POST", uri.path(), &body)?;
    let decide =
        |context: &Context<'_>, plan: &mut planner::Plan| decide_create::<R>(context, plan, request.clone());
    write::<R>(&app, &user, &query, 201, request_id, decide).await
}

/// Puts a new object into a plan.
pub fn decide_create<R: Served>(
    context: &Context<'_>,
    plan: &mut planner::Plan,
    request: Create<Value>,
) -> Result<Uuid, Problem> {
    let spec: R::Spec = spec::<R>(request.spec)?;
    let name = R::name(context, request.name.as_deref(), &spec)?;
    model::limits::check_name(&name)?;
    model::limits::check_labels(&request.labels)?;
    let stored = R::create(context, &name, spec, plan)?;
    let object = model::Object {
        meta: context.meta(R::KIND, &name, request.labels),
        spec: stored,
    };
    create_object(context, R::KIND, &object, plan)
}

fn spec<R: Served>(value: Value) -> Result<R::Spec, Problem> {
    serde_json::from_value(value).map_err(|error| {
        let detail = format!(
            "the spec of the {} is not understood: {error}; /docs describes it",
            R::KIND
        );
        Problem::invalid("invalid-spec", detail)
    })
}

async fn replace<R: Served>(
    State(app): State<App>,
    user: User,
    uri: Uri,
    Path(name): Path<String>,
    found: QueryOf<WriteQuery>,
    Body(body): Body,
) -> Result<Response, Refused> {
    let query = query(found)?;
    let request: Create<Value> = parse(&body)?;
    let id = request_id(&query, "PUT", uri.path(), &body)?;
    let wanted = |_: Value| Ok(request.clone());
    change::<R>(&app, &user, &name, &query, id, wanted).await
}

async fn patch<R: Served>(
    State(app): State<App>,
    user: User,
    uri: Uri,
    Path(name): Path<String>,
    found: QueryOf<WriteQuery>,
    Body(body): Body,
) -> Result<Response, Refused> {
    let query = query(found)?;
    let patch: Value = parse(&body)?;
    let only = |key: &String| matches!(key.as_str(), "name" | "labels" | "spec");
    if !patch.as_object().is_some_and(|patch| patch.keys().all(only)) {
        let detail =
            "a patch is an object with `labels`, `spec` or both: the rest of an object cannot be changed";
        return Err(Problem::invalid("invalid-patch", detail).into());
    }
    let id = request_id(&query, "PATCH", uri.path(), &body)?;
    let wanted = |mut present: Value| {
        merge(&mut present, &patch);
        parse(present.to_string().as_bytes())
    };
    change::<R>(&app, &user, &name, &query, id, wanted).await
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

async fn change<R: Served>(
    app: &App,
    user: &User,
    name: &str,
    query: &WriteQuery,
    request: Option<RequestId>,
    wanted: impl Fn(Value) -> Result<Create<Value>, Problem> + Send + Sync,
) -> Result<Response, Refused> {
    let expected = query.expected_revision;
    let decide = |context: &Context<'_>, plan: &mut planner::Plan| {
        decide_change::<R>(context, plan, name, expected, &wanted)
    };
    write::<R>(app, user, query, 200, request, decide).await
}

/// Puts a changed object into a plan: `wanted` makes it of what is there.
pub fn decide_change<R: Served>(
    context: &Context<'_>,
    plan: &mut planner::Plan,
    name: &str,
    expected_revision: Option<u64>,
    wanted: impl Fn(Value) -> Result<Create<Value>, Problem>,
) -> Result<Uuid, Problem> {
    let at = stored::<R>(context, name, expected_revision)?;
    let meta = &at.value.meta;
    let shown = R::spec(context.view, &at.value.spec);
    let shown =
        serde_json::to_value(&shown).map_err(|error| Problem::new(500, "not-shown", error.to_string()))?;
    let present = serde_json::json!({ "name": meta.name, "labels": meta.labels, "spec": shown });
    let wanted = wanted(present)?;
    if wanted.name.as_ref().is_some_and(|name| *name != meta.name) {
        return Err(Problem::invalid(
            "immutable",
            format!("the name of a {} cannot be changed", R::KIND),
        ));
    }
    model::limits::check_labels(&wanted.labels)?;
    let stored = R::change(context, &at.value, spec::<R>(wanted.spec)?)?;
    if let Some((key, revision)) = R::relies_on(context.view, &at.value, &stored) {
        plan.rely(key, revision);
    }
    R::keep(context, at, &stored, plan)?;
    let change = |object: &mut model::Object<R::Stored>| {
        object.spec = stored;
        object.meta.labels = wanted.labels;
    };
    Ok(replace_object(context, R::KIND, at, change, plan))
}

async fn delete<R: Served>(
    State(app): State<App>,
    user: User,
    uri: Uri,
    Path(name): Path<String>,
    found: QueryOf<WriteQuery>,
) -> Result<Response, Refused> {
    let query = query(found)?;
    let request = request_id(&query, "DELETE", uri.path(), b"")?;
    if removal::may_be_needed(R::KIND) && !query.dry_run {
        let expected = query.expected_revision;
        return Ok(respond(
            removal::remove::<R>(&app, &user, request, &name, expected).await?,
        ));
    }
    let decide = |context: &Context<'_>, plan: &mut planner::Plan| {
        decide_delete::<R>(context, plan, &name, query.expected_revision)
    };
    write::<R>(&app, &user, &query, 200, request, decide).await
}

/// An object that is there, unless it was changed after the revision that the client has seen.
pub(crate) fn stored<'v, R: Served>(
    context: &Context<'v>,
    name: &str,
    expected_revision: Option<u64>,
) -> Result<&'v At<model::Object<R::Stored>>, Problem> {
    let id = find::<R>(context.view, name)?;
    let at = R::stored(context.view, id).ok_or_else(|| Problem::not_found(R::KIND, name))?;
    check_revision(R::KIND, name, at.revision, expected_revision)?;
    Ok(at)
}

/// Puts an object's end into a plan.
pub fn decide_delete<R: Served>(
    context: &Context<'_>,
    plan: &mut planner::Plan,
    name: &str,
    expected_revision: Option<u64>,
) -> Result<Uuid, Problem> {
    R::delete(context, stored::<R>(context, name, expected_revision)?, plan)
}

/// Commits, or with `dry_run` only says what would be.
pub(crate) async fn write<R: Served>(
    app: &App,
    user: &User,
    query: &WriteQuery,
    status: u16,
    request: Option<RequestId>,
    decide: impl Fn(&Context<'_>, &mut planner::Plan) -> Result<Uuid, Problem> + Send + Sync,
) -> Result<Response, Refused> {
    if query.dry_run {
        return Ok(respond(service::dry_run::<R>(app, user, decide)?));
    }
    Ok(respond(
        service::write::<R>(app, user, status, request, decide).await?,
    ))
}

async fn act_on_vm(
    State(app): State<App>,
    user: User,
    uri: Uri,
    Path((name, word)): Path<(String, String)>,
    found: QueryOf<WriteQuery>,
    Body(body): Body,
) -> Result<Response, Refused> {
    let query = query(found)?;
    let force = optional::<ActionBody>(&body)?.force;
    let request = request_id(&query, "POST", uri.path(), &body)?;
    let decide = |context: &Context<'_>, plan: &mut planner::Plan| {
        decide_vm_action(context, plan, &name, &word, force, query.expected_revision)
    };
    write::<Vm>(&app, &user, &query, 200, request, decide).await
}

/// Puts what a user asks of a VM into a plan.
pub fn decide_vm_action(
    context: &Context<'_>,
    plan: &mut planner::Plan,
    name: &str,
    word: &str,
    force: bool,
    expected_revision: Option<u64>,
) -> Result<Uuid, Problem> {
    let at = stored::<Vm>(context, name, expected_revision)?;
    vm_action(context, at, word, force, plan)
}

async fn act_on_host(
    State(app): State<App>,
    user: User,
    uri: Uri,
    Path((name, word)): Path<(String, String)>,
    found: QueryOf<WriteQuery>,
    Body(body): Body,
) -> Result<Response, Refused> {
    let query = query(found)?;
    let asked: HostActionBody = optional(&body)?;
    let request = request_id(&query, "POST", uri.path(), &body)?;
    let decide = |context: &Context<'_>, plan: &mut planner::Plan| {
        decide_host_action(context, plan, &name, &word, &asked, query.expected_revision)
    };
    write::<Host>(&app, &user, &query, 200, request, decide).await
}

/// Puts what an operator asks of a host into a plan.
pub fn decide_host_action(
    context: &Context<'_>,
    plan: &mut planner::Plan,
    name: &str,
    word: &str,
    asked: &HostActionBody,
    expected_revision: Option<u64>,
) -> Result<Uuid, Problem> {
    let at = stored::<Host>(context, name, expected_revision)?;
    host_action(context, at, word, asked, plan)
}

async fn act_on_image(
    State(app): State<App>,
    user: User,
    uri: Uri,
    Path((name, word)): Path<(String, String)>,
    found: QueryOf<WriteQuery>,
    Body(body): Body,
) -> Result<Response, Refused> {
    if word != "import" {
        let detail = format!("images have no action {word:?}");
        return Err(Problem::new(404, "no-such-action", detail).into());
    }
    let query = query(found)?;
    let asked: ImageSpec = optional(&body)?;
    let request = request_id(&query, "POST", uri.path(), &body)?;
    let decide = |context: &Context<'_>, plan: &mut planner::Plan| {
        let at = stored::<Image>(context, &name, query.expected_revision)?;
        image_import(context, at, asked.clone(), plan)
    };
    write::<Image>(&app, &user, &query, 200, request, decide).await
}

/// A body that may be left out.
pub fn optional<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Problem> {
    if body.is_empty() {
        Ok(T::default())
    } else {
        parse(body)
    }
}

async fn join_token(State(app): State<App>, user: User, Body(body): Body) -> Result<Response, Refused> {
    user.must_be_admin("let hosts join")?;
    let request: JoinTokenBody = optional(&body)?;
    if let Some(name) = &request.name {
        model::limits::check_name(name).map_err(Problem::from)?;
    }
    let token: JoinToken = agents::make_join_token(&app, &user, request).await?;
    Ok((StatusCode::CREATED, axum::Json(token)).into_response())
}
