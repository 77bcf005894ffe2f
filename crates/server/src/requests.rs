//! Every request on its way through: it gets an id, which its answer, its lines in the log, the audit trail and the
//! operation that it asks for all carry; and it is counted.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use crate::routes::App;

/// The header with the request's id, in the answer and, from whoever has one already, in the request.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id that is taken over.
const ID_MAX_BYTES: usize = 128;
/// What a request is counted under that meets no route: what people make up must not become labels.
const NO_ROUTE: &str = "none";

/// The id of a request.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// The code of the problem that an answer is.
#[derive(Debug, Clone)]
pub struct RefusedWith(pub String);

/// Lets a request through.
pub async fn pass(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = given(&request).unwrap_or_else(|| app.env.next_id().to_string());
    let (method, route) = (method(request.method()), route(&request));
    request.extensions_mut().insert(RequestId(id.clone()));
    let span = tracing::info_span!("request", request = %id);
    let mut answer = next.run(request).instrument(span.clone()).await;
    let (status, took) = (answer.status().as_u16(), began.elapsed());
    app.metrics.answered(method, &route, status, took);
    let code = answer
        .extensions()
        .get::<RefusedWith>()
        .map(|code| code.0.clone());
    if let Some(code) = &code {
        app.metrics.refused(code);
    }
    span.in_scope(|| {
        let took_us = took.as_micros();
        tracing::debug!(method, route, status, code, took_us, "answered");
    });
    if let Ok(id) = HeaderValue::from_str(&id) {
        answer.headers_mut().insert(REQUEST_ID, id);
    }
    answer
}

/// The id that the request brought, if it is one that can stand in a log.
fn given(request: &Request) -> Option<String> {
    let id = request.headers().get(REQUEST_ID)?.to_str().ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_plain = !id.is_empty() && id.len() <= ID_MAX_BYTES && id.bytes().all(plain);
    is_plain.then(|| id.to_owned())
}

fn route(request: &Request) -> String {
    let matched = request.extensions().get::<MatchedPath>();
    matched.map_or(NO_ROUTE, MatchedPath::as_str).to_owned()
}

fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        _ => "other",
    }
}
