//! Problems and objects as HTTP answers.

use api::Problem;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use controller::commit::CommitError;
use serde::de::DeserializeOwned;
use store::StoreError;

use crate::requests::RefusedWith;

/// A problem on its way out.
#[derive(Debug)]
pub struct Refused(pub Problem);

impl<P: Into<Problem>> From<P> for Refused {
    fn from(problem: P) -> Self {
        Self(problem.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut response = (status, body).into_response();
        let code = RefusedWith(self.0.code.to_string());
        response.extensions_mut().insert(code);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(api::problem::MEDIA_TYPE),
        );
        if self.0.code == "certificate-replaced" {
            // On a new connection the host shows the certificate that it has now.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(seconds) = self.0.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// A request's whole body; one that is too large or breaks off is refused with problem details.
#[derive(Debug)]
pub struct Body(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        Bytes::from_request(request, state)
            .await
            .map(Self)
            .map_err(|error| {
                let problem = match error.status() {
                    StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
                        413,
                        "too-large",
                        "the request's body is larger than is taken here: send less at once",
                    ),
                    _ => Problem::new(
                        400,
                        "body-broken",
                        format!("the request's body ended early ({error}): send it again"),
                    ),
                };
                problem.into()
            })
    }
}

/// What a path names; a path that is not text is refused with problem details.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let found = axum::extract::Path::from_request_parts(parts, state).await;
        found
            .map(|axum::extract::Path(names)| Self(names))
            .map_err(|error| {
                Problem::new(
                    400,
                    "bad-path",
                    format!("the URL's path is not understood: {error}"),
                )
                .into()
            })
    }
}

/// What the store's failure means to a client.
pub fn store_problem(error: &StoreError) -> Problem {
    match error {
        StoreError::Full { .. } => Problem::new(503, "store-full", format!("nothing was changed: {error}")),
        StoreError::TooLarge { .. } => {
            Problem::new(413, "too-large", format!("nothing was changed: {error}"))
        }
        _ if error.is_retryable() => Problem::new(503, "store-unavailable", format!("try again: {error}")),
        _ => Problem::new(500, "store-failed", error.to_string()),
    }
}

/// What a failed commit means to a client.
pub fn commit_problem(error: CommitError) -> Problem {
    match error {
        CommitError::Store(error) => store_problem(&error),
        CommitError::Conflict { key } => Problem::conflict(
            "busy",
            format!(
                "{key} was changed by others each time this was tried, and nothing was changed: try again"
            ),
        ),
    }
}
