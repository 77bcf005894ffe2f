//! The versions of templates: showing them, and deleting those that are not needed any more.

use api::Problem;
use api::kinds::Template;
use api::template::{TemplateVersion, TemplateVersions};
use axum::Router;
use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use model::token::Role;

use crate::answer::{Path, Refused};
use crate::auth::User;
use crate::kinds::{Served, delete_version, versions};
use crate::routes::{App, QueryOf, WriteQuery, find, query, request_id, stored, write};
use crate::service::Context;

/// Their routes.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/v1/templates/{name}/versions", get(list))
        .route("/v1/templates/{name}/versions/{version}", get(one).delete(delete))
}

async fn list(State(app): State<App>, user: User, Path(name): Path<String>) -> Result<Response, Refused> {
    let items = shown(&app, &user, &name)?;
    Ok(axum::Json(TemplateVersions { items }).into_response())
}

async fn one(
    State(app): State<App>,
    user: User,
    Path((name, version)): Path<(String, u64)>,
) -> Result<Response, Refused> {
    let all = shown(&app, &user, &name)?;
    let found = all.into_iter().find(|found| found.version == version);
    let found = found.ok_or_else(|| {
        let detail = format!(
            "template {name} has no version {version}: `sterna template versions {name}` shows those that there are"
        );
        Problem::new(404, "not-found", detail)
    })?;
    Ok(axum::Json(found).into_response())
}

/// All versions, as whoever asks may see them.
fn shown(app: &App, user: &User, name: &str) -> Result<Vec<TemplateVersion>, Problem> {
    let view = app.cache.view();
    let id = find::<Template>(&view, name)?;
    let mut all = versions(&view, id);
    if user.role < Role::Operator {
        all.iter_mut()
            .for_each(|version| Template::hide_secrets(&mut version.spec));
    }
    Ok(all)
}

async fn delete(
    State(app): State<App>,
    user: User,
    uri: Uri,
    Path((name, version)): Path<(String, u64)>,
    found: QueryOf<WriteQuery>,
) -> Result<Response, Refused> {
    let query = query(found)?;
    let request = request_id(&query, "DELETE", uri.path(), b"")?;
    let decide = |context: &Context<'_>, plan: &mut planner::Plan| {
        let at = stored::<Template>(context, &name, query.expected_revision)?;
        delete_version(context.view, at, version, plan)
    };
    write::<Template>(&app, &user, &query, 200, request, decide).await
}
