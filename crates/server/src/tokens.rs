//! Tokens of people and programs: made, listed and revoked by administrators.
//!
//! Only a token's hash is kept. One that is revoked stays as a record of that, so that it never counts again, whoever knows
//! the secret; its name is free for another.

use api::Problem;
use api::token::{NewToken, Token, TokenBody, Tokens};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use controller::commit::commit;
use model::token::TokenRecord;
use model::{key, record};
use planner::Plan;
use planner::view::At;
use store::RangeRequest;

use crate::agents::secret;
use crate::answer::{Body, Path, Refused, commit_problem, store_problem};
use crate::auth::{ADMIN, User, sha256_hex};
use crate::routes::{App, parse};

/// How many tokens there may be at a time: all are read to list them.
const TOKENS_MAX: usize = 1000;

/// A token that is not revoked, with its key.
struct Found {
    key: String,
    record: At<TokenRecord>,
}

/// All tokens that are not revoked.
pub async fn list(State(app): State<App>, user: User) -> Result<Response, Refused> {
    user.must_be_admin("list tokens")?;
    let mut items: Vec<Token> = present(&app)
        .await?
        .into_iter()
        .map(|found| shown(&found))
        .collect();
    items.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(axum::Json(Tokens { items }).into_response())
}

/// Makes a token, and shows its secret this once.
pub async fn create(State(app): State<App>, user: User, Body(body): Body) -> Result<Response, Refused> {
    user.must_be_admin("make tokens")?;
    let asked: TokenBody = parse(&body)?;
    model::limits::check_name(&asked.name)?;
    let now = app.env.now();
    if asked.expires_at.is_some_and(|at| at <= now) {
        let detail = "the token would have expired already: give a time in the future";
        return Err(Problem::invalid("expires-in-the-past", detail).into());
    }
    let present = present(&app).await?;
    let is_taken = present.iter().any(|found| found.record.value.name == asked.name);
    if is_taken || asked.name == ADMIN {
        return Err(name_taken(&asked.name).into());
    }
    if present.len() >= TOKENS_MAX {
        let detail = format!("there are {TOKENS_MAX} tokens already: delete those that are not needed");
        return Err(Problem::conflict("too-many-tokens", detail).into());
    }
    let secret = secret("sterna-");
    let record = TokenRecord {
        user: asked.name.clone(),
        name: asked.name.clone(),
        role: asked.role,
        created_at: now,
        expires_at: asked.expires_at,
        revoked_at: None,
    };
    let mut plan = Plan::new(format!("make token {}", asked.name));
    let hash = sha256_hex(secret.as_bytes());
    plan.create(key::token(&hash), &record);
    plan.create(key::token_name(&asked.name), &hash);
    write(&app, &user, plan)
        .await
        .map_err(|problem| match problem.code.as_ref() {
            "busy" => name_taken(&asked.name),
            _ => problem,
        })?;
    let made = NewToken {
        secret,
        token: token_of(&record),
    };
    Ok((StatusCode::CREATED, axum::Json(made)).into_response())
}

/// Revokes a token: from the next request on it does not count.
pub async fn delete(
    State(app): State<App>,
    user: User,
    Path(name): Path<String>,
) -> Result<Response, Refused> {
    user.must_be_admin("revoke tokens")?;
    let mut present = present(&app).await?.into_iter();
    let found = present
        .find(|found| found.record.value.name == name)
        .ok_or_else(|| {
            let detail = format!("there is no token {name:?}: `sterna token list` shows all");
            Problem::new(404, "not-found", detail)
        })?;
    let mut plan = Plan::new(format!("revoke token {name}"));
    let revoked = TokenRecord {
        revoked_at: Some(app.env.now()),
        ..found.record.value.clone()
    };
    plan.replace(found.key.clone(), found.record.revision, &revoked);
    plan.writes.insert(key::token_name(&name), None);
    write(&app, &user, plan).await?;
    Ok(axum::Json(shown(&found)).into_response())
}

async fn write(app: &App, user: &User, plan: Plan) -> Result<(), Problem> {
    let actor = user.actor();
    commit(app.writer(&actor), plan).await.map_err(commit_problem)?;
    Ok(())
}

fn name_taken(name: &str) -> Problem {
    let detail = format!("there is a token {name:?} already: take another name, or delete that one");
    Problem::conflict("name-taken", detail)
}

/// The tokens that are not revoked. One that cannot be read does not count either.
async fn present(app: &App) -> Result<Vec<Found>, Problem> {
    let request = RangeRequest::prefix(key::TOKEN_PREFIX);
    let all = app
        .store
        .range(request)
        .await
        .map_err(|error| store_problem(&error))?;
    let read = |kv: store::KeyValue| {
        let value: TokenRecord = record::decode(&kv.value).ok()?;
        let record = At {
            value,
            revision: kv.mod_revision,
        };
        Some(Found {
            key: kv.key.to_string(),
            record,
        })
    };
    let found = all.items.into_iter().filter_map(read);
    Ok(found
        .filter(|found| found.record.value.revoked_at.is_none())
        .collect())
}

fn shown(found: &Found) -> Token {
    token_of(&found.record.value)
}

fn token_of(record: &TokenRecord) -> Token {
    Token {
        name: record.name.clone(),
        user: record.user.clone(),
        role: record.role,
        created_at: record.created_at,
        expires_at: record.expires_at,
    }
}
