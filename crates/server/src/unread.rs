//! The rest of a body that nobody read, because its request was refused before.
//!
//! **Owns:** that a client which has sent all of a small body gets its answer and may go on with the connection. HTTP/1 ends
//! a connection on which part of a request was left, whether the client asks for something else by then or not.
//!
//! **Does not know:** why it was not read.
//!
//! **Start here:** [`take_the_rest`].

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Error;
use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Version};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::{Stream, StreamExt};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// The most that is read of it. A connection on which more was to come ends, and the answer says so.
const REST_MAX_BYTES: usize = 1 << 20;
/// How long that may take.
const REST_PATIENCE: Duration = Duration::from_secs(1);

/// Lets a request through, and then reads what was left of its body.
pub async fn take_the_rest(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() || request.version() > Version::HTTP_11 {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let (back, mut rest) = oneshot::channel();
    let lent = Lent {
        body: Some(body.into_data_stream()),
        back: Some(back),
    };
    let request = Request::from_parts(head, Body::from_stream(lent));
    let mut answer = next.run(request).await;
    // Who still reads it, or has read it, gives nothing back.
    if let Ok(rest) = rest.try_recv()
        && !matches!(timeout(REST_PATIENCE, is_read(rest)).await, Ok(true))
    {
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// Whether the end came within the bound.
async fn is_read(mut rest: BodyDataStream) -> bool {
    let mut left = REST_MAX_BYTES;
    while let Some(part) = rest.next().await {
        match part.ok().and_then(|part| left.checked_sub(part.len())) {
            Some(room) => left = room,
            None => return false,
        }
    }
    true
}

/// A body that comes back when whoever reads it has had enough.
struct Lent {
    body: Option<BodyDataStream>,
    back: Option<oneshot::Sender<BodyDataStream>>,
}

impl Stream for Lent {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let part = body.poll_next_unpin(context);
        if matches!(part, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        part
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(body), Some(back)) = (self.body.take(), self.back.take()) {
            // Nobody waits for it when the request itself was given up.
            drop(back.send(body));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::middleware::from_fn;
    use axum::routing::post;
    use futures_util::stream;
    use tower::ServiceExt;

    use super::*;

    const PART: usize = 1 << 10;

    /// The answer to a body of so many parts, and how many of them were read.
    async fn refused(parts: usize) -> (Response, usize) {
        let read = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&read);
        let body = stream::iter(0..parts).then(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            async {
                tokio::task::yield_now().await;
                Ok::<_, Error>(Bytes::from_static(&[b'x'; PART]))
            }
        });
        let refuse = post(|| async { axum::http::StatusCode::CONFLICT });
        let router = Router::new().route("/", refuse).layer(from_fn(take_the_rest));
        let request = Request::post("/").body(Body::from_stream(body)).unwrap();
        let answer = router.oneshot(request).await.unwrap();
        (answer, read.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn a_small_body_is_read_though_it_was_refused() {
        let (answer, read) = refused(3).await;
        assert_eq!((answer.status().as_u16(), read), (409, 3));
        assert_eq!(answer.headers().get(CONNECTION), None);
    }

    #[tokio::test]
    async fn of_a_large_one_a_bounded_part_is_read_and_the_connection_ends() {
        let (answer, read) = refused(usize::MAX).await;
        assert_eq!((answer.status().as_u16(), read), (409, REST_MAX_BYTES / PART + 1));
        assert_eq!(answer.headers()[CONNECTION], "close");
    }
}
