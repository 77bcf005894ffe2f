//! Problems and objects as HTTP answers.

use api::Problem;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use controller::commit::CommitError;
use store::StoreError;

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
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(api::problem::MEDIA_TYPE));
        if matches!(self.0.status, 429 | 503) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// What the store's failure means to a client.
pub fn store_problem(error: &StoreError) -> Problem {
    match error {
        StoreError::Full { .. } => Problem::new(503, "store-full", format!("nothing was changed: {error}")),
        StoreError::TooLarge { .. } => Problem::new(413, "too-large", format!("nothing was changed: {error}")),
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
            format!("{key} was changed by others each time this was tried, and nothing was changed: try again"),
        ),
    }
}
