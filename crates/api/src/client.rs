//! The client: one connection pool, typed calls for every kind, watches as streams of lines.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use reqwest::header::{HeaderMap, HeaderName, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::apply::ApplyBody;
use crate::console::{Console, DialError};
use crate::document::{CheckAnswer, CheckBody};
use crate::history::History;
use crate::kinds::UploadStatus;
use crate::problem::Problem;
use crate::resource::{Change, Create, List, Object, Resource};
use crate::store::{ResumeBody, StoreStatus};
use crate::tls;
use crate::token::{NewToken, Token, TokenBody, Tokens};

/// The header with the digest of what is sent (RFC 9530).
pub const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
/// The header with the revision that a backup holds.
pub const REVISION: HeaderName = HeaderName::from_static("sterna-revision");

/// The longest line of a stream that is read.
const LINE_MAX_BYTES: usize = 4 << 20;
/// A stream that says nothing for so long, not even an empty line, is lost.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// How often a request is sent that the server has no time for.
const ATTEMPTS: u32 = 5;
/// The longest wait between, whatever the server says.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// What was sent of a content before.
#[derive(Debug, Clone)]
pub struct Uploaded {
    /// How much.
    pub bytes: u64,
    /// Its digest, in hexadecimal.
    pub sha256: String,
}

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server refused.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The server was not reached, or the connection broke.
    #[error("{server} was not reached ({why}): is it running, and is STERNA_SERVER right?")]
    Unreachable {
        /// Its URL.
        server: String,
        /// What the connection said.
        why: String,
    },
    /// The answer is not what this release understands.
    #[error("the server's answer is not understood ({0}): are client and server of the same release?")]
    NotUnderstood(String),
    /// A certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

impl ClientError {
    /// The problem's code, if the server refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Problem(problem) => Some(&problem.code),
            _ => None,
        }
    }
}

/// The objects of a kind.
pub type ObjectOf<R> = Object<<R as Resource>::Spec, <R as Resource>::Status>;

/// A backup of the store on its way.
pub struct BackupStream<S> {
    /// How long it will be.
    pub bytes: Option<u64>,
    /// The revision that it holds.
    pub revision: u64,
    /// What [`REPR_DIGEST`] says of it.
    pub digest: String,
    /// Its content.
    pub chunks: S,
}

/// Which objects, and in which order: see [`crate::query`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Those with these labels: `key=value`, several with commas.
    pub label: Option<String>,
    /// Those for which these conditions hold.
    pub filter: Option<String>,
    /// By which fields; not for a watch.
    pub sort: Option<String>,
}

impl Choice {
    fn on(&self, request: RequestBuilder) -> RequestBuilder {
        let words = [
            ("label", &self.label),
            ("filter", &self.filter),
            ("sort", &self.sort),
        ];
        let said = words
            .into_iter()
            .filter_map(|(word, said)| Some((word, said.as_ref()?)));
        request.query(&said.collect::<Vec<_>>())
    }
}

/// Talks to one server.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    server: String,
    token: String,
    is_rehearsal: bool,
}

impl Client {
    /// A client of the server at this URL that trusts this CA (PEM) and shows this token.
    pub fn new(server: &str, token: &str, ca_pem: &str) -> Result<Self, ClientError> {
        Self::over(tls::client(ca_pem, None)?, server, token)
    }

    /// The same, with all requests on one HTTP/2 connection: for a program that watches much. It opens no consoles.
    pub fn multiplexed(server: &str, token: &str, ca_pem: &str) -> Result<Self, ClientError> {
        let mut config = tls::client(ca_pem, None)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self::over(config, server, token)
    }

    fn over(config: rustls::ClientConfig, server: &str, token: &str) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .tcp_nodelay(true)
            .no_proxy()
            .connect_timeout(Duration::from_secs(10))
            .build()
            .map_err(|error| ClientError::NotUnderstood(chain(&error)))?;
        Ok(Self {
            http,
            server: server.trim_end_matches('/').to_owned(),
            token: token.to_owned(),
            is_rehearsal: false,
        })
    }

    /// The same client, but its writes to objects only say what they would lead to.
    #[must_use]
    pub fn rehearsal(&self) -> Self {
        Self {
            is_rehearsal: true,
            ..self.clone()
        }
    }

    /// A request that changes an object, or only says how.
    fn write(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.request(method, path);
        if self.is_rehearsal {
            request.query(&[("dry_run", "true")])
        } else {
            request
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.server))
            .bearer_auth(&self.token)
    }

    /// Sends a request; again if the server says that it was too often, and so did nothing. What is streamed cannot be
    /// sent again.
    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let mut request = request;
        for attempt in 1.. {
            let again = request.try_clone().filter(|_| attempt < ATTEMPTS);
            let answer = request.send().await.map_err(|error| self.unreachable(&error))?;
            let status = answer.status();
            if status.is_success() {
                return Ok(answer);
            }
            let wait = retry_after(answer.headers());
            let body = answer.bytes().await.map_err(|error| self.unreachable(&error))?;
            match again {
                Some(again) if status == StatusCode::TOO_MANY_REQUESTS => request = again,
                _ => return Err(ClientError::Problem(Box::new(problem(status, &body)))),
            }
            tokio::time::sleep(pause(wait, RandomState::new().hash_one(attempt))).await;
        }
        Err(ClientError::NotUnderstood("it was asked too often".to_owned()))
    }

    fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        ClientError::Unreachable {
            server: self.server.clone(),
            why: chain(error),
        }
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let answer = self.send(request.timeout(Duration::from_secs(60))).await?;
        let body = answer.bytes().await.map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&body).map_err(|error| ClientError::NotUnderstood(error.to_string()))
    }

    /// One object, by name or id.
    pub async fn get<R: Resource>(&self, name: &str) -> Result<ObjectOf<R>, ClientError> {
        self.json(self.request(Method::GET, &path::<R>(Some(name)))).await
    }

    /// Every object of a kind, page by page, and the revision to watch from.
    pub async fn list<R: Resource>(&self) -> Result<(Vec<ObjectOf<R>>, u64), ClientError> {
        self.list_of::<R>(&Choice::default()).await
    }

    /// As [`Client::list`], but those that are meant, in the order that is wanted.
    pub async fn list_of<R: Resource>(
        &self,
        choice: &Choice,
    ) -> Result<(Vec<ObjectOf<R>>, u64), ClientError> {
        let mut all = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut request = choice.on(self.request(Method::GET, &path::<R>(None)));
            if let Some(after) = &after {
                request = request.query(&[("after", after)]);
            }
            let page: List<ObjectOf<R>> = self.json(request).await?;
            all.extend(page.items);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok((all, page.revision)),
            }
        }
    }

    /// The names of a kind's objects, and nothing else of them.
    pub async fn names<R: Resource>(&self) -> Result<Vec<String>, ClientError> {
        #[derive(Deserialize)]
        struct Named {
            name: String,
        }
        let request = self
            .request(Method::GET, &path::<R>(None))
            .query(&[("fields", "name")]);
        let page: List<Named> = self.json(request).await?;
        Ok(page.items.into_iter().map(|named| named.name).collect())
    }

    /// The store's revision now: a watch from it misses nothing that is read after this call.
    pub async fn revision<R: Resource>(&self) -> Result<u64, ClientError> {
        let request = self.request(Method::GET, &path::<R>(None)).query(&[("limit", 1)]);
        let page: List<Value> = self.json(request).await?;
        Ok(page.revision)
    }

    /// Creates an object. The same request id gets the same answer.
    pub async fn create<R: Resource>(
        &self,
        body: &Create<R::Spec>,
        request_id: Option<&str>,
        dry_run: bool,
    ) -> Result<ObjectOf<R>, ClientError> {
        let mut request = self.write(Method::POST, &path::<R>(None)).json(body);
        if dry_run && !self.is_rehearsal {
            request = request.query(&[("dry_run", "true")]);
        }
        if let Some(id) = request_id {
            request = request.query(&[("request_id", id)]);
        }
        self.json(request).await
    }

    /// Merges a JSON merge patch (RFC 7396) into an object's labels and spec.
    pub async fn patch<R: Resource>(
        &self,
        name: &str,
        patch: &Value,
        expected_revision: Option<u64>,
    ) -> Result<ObjectOf<R>, ClientError> {
        let mut request = self.write(Method::PATCH, &path::<R>(Some(name))).json(patch);
        if let Some(revision) = expected_revision {
            request = request.query(&[("expected_revision", revision)]);
        }
        self.json(request).await
    }

    /// Replaces an object's labels and spec.
    pub async fn replace<R: Resource>(
        &self,
        name: &str,
        body: &Create<R::Spec>,
        expected_revision: Option<u64>,
    ) -> Result<ObjectOf<R>, ClientError> {
        let mut request = self.write(Method::PUT, &path::<R>(Some(name))).json(body);
        if let Some(revision) = expected_revision {
            request = request.query(&[("expected_revision", revision)]);
        }
        self.json(request).await
    }

    /// Asks for an object's deletion; answers the object as it is then.
    pub async fn delete<R: Resource>(&self, name: &str) -> Result<ObjectOf<R>, ClientError> {
        self.json(self.write(Method::DELETE, &path::<R>(Some(name))))
            .await
    }

    /// Posts to a path below an object.
    pub async fn action<R: Resource, B: Serialize>(
        &self,
        name: &str,
        action: &str,
        body: &B,
    ) -> Result<ObjectOf<R>, ClientError> {
        let path = format!("{}/actions/{action}", path::<R>(Some(name)));
        self.json(self.write(Method::POST, &path).json(body)).await
    }

    /// Has something done in a VM's guest, which runs; the operation tells how far it is. The same request id gets the same
    /// answer.
    pub async fn apply(
        &self,
        vm: &str,
        body: &ApplyBody,
        request_id: Option<&str>,
    ) -> Result<ObjectOf<crate::kinds::Operation>, ClientError> {
        let path = format!("{}/apply", path::<crate::kinds::Vm>(Some(vm)));
        let mut request = self.write(Method::POST, &path).json(body);
        if let Some(id) = request_id {
            request = request.query(&[("request_id", id)]);
        }
        self.json(request).await
    }

    /// What writing documents would lead to, one after the other.
    pub async fn check(&self, documents: &CheckBody) -> Result<CheckAnswer, ClientError> {
        self.post("/v1/check", documents).await
    }

    /// Who changed what of an object, oldest first: the last so many writes.
    pub async fn history<R: Resource>(
        &self,
        name: &str,
        limit: usize,
        with_reports: bool,
    ) -> Result<History, ClientError> {
        let path = format!("{}/history", path::<R>(Some(name)));
        let request = self.request(Method::GET, &path).query(&[("limit", limit)]);
        self.json(request.query(&[("reports", with_reports)])).await
    }

    /// Why a VM is where it is and not elsewhere.
    pub async fn explain(&self, vm: &str) -> Result<crate::placement::Explanation, ClientError> {
        let path = format!("{}/explain", path::<crate::kinds::Vm>(Some(vm)));
        self.json(self.request(Method::GET, &path)).await
    }

    /// The versions of a template, the newest first.
    pub async fn template_versions(
        &self,
        name: &str,
    ) -> Result<crate::template::TemplateVersions, ClientError> {
        let path = format!("{}/versions", path::<crate::kinds::Template>(Some(name)));
        self.json(self.request(Method::GET, &path)).await
    }

    /// One version of a template.
    pub async fn template_version(
        &self,
        name: &str,
        version: u64,
    ) -> Result<crate::template::TemplateVersion, ClientError> {
        let path = format!(
            "{}/versions/{version}",
            path::<crate::kinds::Template>(Some(name))
        );
        self.json(self.request(Method::GET, &path)).await
    }

    /// Deletes a version of a template that is not the newest; answers the template.
    pub async fn delete_template_version(
        &self,
        name: &str,
        version: u64,
    ) -> Result<ObjectOf<crate::kinds::Template>, ClientError> {
        let path = format!(
            "{}/versions/{version}",
            path::<crate::kinds::Template>(Some(name))
        );
        self.json(self.write(Method::DELETE, &path)).await
    }

    /// Posts to any path.
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    /// All tokens; for administrators.
    pub async fn tokens(&self) -> Result<Tokens, ClientError> {
        self.json(self.request(Method::GET, "/v1/tokens")).await
    }

    /// Makes a token; for administrators.
    pub async fn create_token(&self, body: &TokenBody) -> Result<NewToken, ClientError> {
        self.post("/v1/tokens", body).await
    }

    /// Revokes a token; for administrators.
    pub async fn revoke_token(&self, name: &str) -> Result<Token, ClientError> {
        let path = format!("/v1/tokens/{}", escape(name));
        self.json(self.request(Method::DELETE, &path)).await
    }

    /// How much of an image's content was sent before.
    pub async fn uploaded(&self, name: &str) -> Result<UploadStatus, ClientError> {
        let path = format!("{}/upload", path::<crate::kinds::Image>(Some(name)));
        self.json(self.request(Method::GET, &path)).await
    }

    /// Sends so many bytes of an image's content, behind what was sent of it before.
    pub async fn upload(
        &self,
        name: &str,
        before: Option<&Uploaded>,
        bytes: u64,
        content: impl Stream<Item = Result<Vec<u8>, std::io::Error>> + Send + 'static,
    ) -> Result<ObjectOf<crate::kinds::Image>, ClientError> {
        let behind = before.map(|sent| format!("?from={}&held_sha256={}", sent.bytes, sent.sha256));
        let path = format!(
            "{}/content{}",
            path::<crate::kinds::Image>(Some(name)),
            behind.unwrap_or_default()
        );
        let request = self
            .request(Method::PUT, &path)
            .header("content-length", bytes)
            .header("content-type", "application/octet-stream")
            .body(reqwest::Body::wrap_stream(content));
        let answer = self.send(request).await?;
        let body = answer.bytes().await.map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&body).map_err(|error| ClientError::NotUnderstood(error.to_string()))
    }

    /// How the store is.
    pub async fn store_status(&self) -> Result<StoreStatus, ClientError> {
        self.json(self.request(Method::GET, "/v1/store")).await
    }

    /// Lets a restored store go on; repeat it until the answer shows no more that it was restored.
    pub async fn resume_store(&self, body: &ResumeBody) -> Result<StoreStatus, ClientError> {
        self.post("/v1/store/resume", body).await
    }

    /// A backup of the store.
    pub async fn backup(
        &self,
    ) -> Result<
        BackupStream<impl Stream<Item = Result<impl AsRef<[u8]> + use<>, ClientError>> + Unpin + use<>>,
        ClientError,
    > {
        let answer = self.send(self.request(Method::GET, "/v1/store/backup")).await?;
        let header = |name: HeaderName| {
            let value = answer.headers().get(&name).and_then(|value| value.to_str().ok());
            let missing = || ClientError::NotUnderstood(format!("it has no header {name}"));
            value.map(str::to_owned).ok_or_else(missing)
        };
        let revision = header(REVISION)?.parse();
        let revision = revision.map_err(|_| ClientError::NotUnderstood("no revision".to_owned()))?;
        Ok(BackupStream {
            bytes: answer.content_length(),
            revision,
            digest: header(REPR_DIGEST)?,
            chunks: Box::pin(heard(answer.bytes_stream(), self.server.clone())),
        })
    }

    /// Follows a kind from a revision on; without one, every object comes first as `added`.
    pub async fn watch<R: Resource>(
        &self,
        from: Option<u64>,
    ) -> Result<impl Stream<Item = Result<Change<ObjectOf<R>>, ClientError>> + Unpin + use<R>, ClientError>
    {
        self.watch_of::<R>(from, &Choice::default()).await
    }

    /// As [`Client::watch`], but only those that are meant; they come in the order of their changes.
    pub async fn watch_of<R: Resource>(
        &self,
        from: Option<u64>,
        choice: &Choice,
    ) -> Result<impl Stream<Item = Result<Change<ObjectOf<R>>, ClientError>> + Unpin + use<R>, ClientError>
    {
        let mut request = self
            .request(Method::GET, &path::<R>(None))
            .query(&[("watch", "true")]);
        if let Some(from) = from {
            request = request.query(&[("from", from)]);
        }
        self.lines(choice.on(request)).await
    }

    /// A stream of JSON lines from any path.
    pub async fn stream<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<T, ClientError>> + Unpin + use<T>, ClientError> {
        self.lines(self.request(Method::GET, path)).await
    }

    async fn lines<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<impl Stream<Item = Result<T, ClientError>> + Unpin + use<T>, ClientError> {
        let answer = self.send(request).await?;
        let chunks = heard(answer.bytes_stream(), self.server.clone());
        Ok(Box::pin(split(chunks).map(|line| {
            let line = line?;
            serde_json::from_slice(&line).map_err(|error| ClientError::NotUnderstood(error.to_string()))
        })))
    }

    /// A VM's console; or the last part of its log, after which the stream ends.
    pub async fn console(&self, name: &str, log: bool) -> Result<Console, ClientError> {
        let path = format!("{}/console", path::<crate::kinds::Vm>(Some(name)));
        let request = self.request(Method::GET, &path).query(&[("log", log)]);
        match Console::dial(request).await {
            Ok(console) => Ok(console),
            Err(DialError::Http(error)) => Err(self.unreachable(&error)),
            Err(DialError::Refused(answer)) => {
                let status = answer.status();
                let body = answer.bytes().await.map_err(|error| self.unreachable(&error))?;
                Err(ClientError::Problem(Box::new(problem(status, &body))))
            }
            Err(error @ DialError::NotUnderstood) => Err(ClientError::NotUnderstood(error.to_string())),
        }
    }

    /// Any path, as text.
    pub async fn text(&self, path: &str) -> Result<String, ClientError> {
        let answer = self.send(self.request(Method::GET, path)).await?;
        answer.text().await.map_err(|error| self.unreachable(&error))
    }
}

/// Chunks until the connection breaks or falls silent: a server sends at least an empty line every few seconds.
fn heard<B>(
    chunks: impl Stream<Item = reqwest::Result<B>>,
    server: String,
) -> impl Stream<Item = Result<B, ClientError>> {
    let silence = || format!("nothing was heard for {} s", SILENCE_MAX.as_secs());
    stream::unfold(Some(Box::pin(chunks)), move |chunks| {
        let server = server.clone();
        async move {
            let mut chunks = chunks?;
            let lost = |why| Err(ClientError::Unreachable { server, why });
            match tokio::time::timeout(SILENCE_MAX, chunks.next()).await {
                Ok(None) => None,
                Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(chunks))),
                Ok(Some(Err(error))) => Some((lost(chain(&error)), None)),
                Err(_) => Some((lost(silence()), None)),
            }
        }
    })
}

/// Cuts chunks into lines; empty ones, which keep the connection alive, are left out.
fn split<B: AsRef<[u8]>>(
    chunks: impl Stream<Item = Result<B, ClientError>>,
) -> impl Stream<Item = Result<Vec<u8>, ClientError>> {
    chunks
        .scan(Vec::new(), |rest: &mut Vec<u8>, chunk| {
            let lines = chunk.and_then(|chunk| {
                rest.extend_from_slice(chunk.as_ref());
                if rest.len() > LINE_MAX_BYTES {
                    return Err(ClientError::NotUnderstood(
                        "a line is longer than 4 MiB".to_owned(),
                    ));
                }
                let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else {
                    return Ok(Vec::new());
                };
                let whole: Vec<u8> = rest.drain(..=end).collect();
                Ok(whole
                    .split(|byte| *byte == b'\n')
                    .filter(|line| !line.is_empty())
                    .map(<[u8]>::to_vec)
                    .collect())
            });
            std::future::ready(Some(lines))
        })
        .flat_map(|lines| {
            let all: Vec<Result<Vec<u8>, ClientError>> = match lines {
                Ok(lines) => lines.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            futures_util::stream::iter(all)
        })
}

fn path<R: Resource>(name: Option<&str>) -> String {
    let plural = R::KIND.plural();
    name.map_or_else(
        || format!("/v1/{plural}"),
        |name| format!("/v1/{plural}/{}", escape(name)),
    )
}

/// A name as part of a path: whatever a person typed, it stays one segment.
fn escape(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let shown = |byte: u8| {
        if plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    match name {
        "." | ".." => name.replace('.', "%2E"),
        _ => name.bytes().map(shown).collect(),
    }
}

/// How long the server asks to wait; a second if it does not say, or says it as a date.
fn retry_after(headers: &HeaderMap) -> Duration {
    let text = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let seconds = text.and_then(|text| text.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(1))
}

/// How long to wait: as asked, up to a half longer, so that those who were refused together do not come back together.
fn pause(asked: Duration, random: u64) -> Duration {
    let share = f64::from((random % 1000) as u32) / 2000.0;
    asked.min(PAUSE_MAX).mul_f64(1.0 + share).min(PAUSE_MAX)
}

fn problem(status: StatusCode, body: &[u8]) -> Problem {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
        Problem::new(
            status.as_u16(),
            "not-understood",
            format!("the server answered {status}: {text}"),
        )
    })
}

/// An error with all its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_asked_to_wait_waits_a_little_longer_and_never_for_ever() {
        let asked = Duration::from_secs(2);
        for random in [0, 1, 999, u64::MAX] {
            let pause = pause(asked, random);
            assert!(pause >= asked && pause <= asked * 3 / 2, "{pause:?}");
        }
        assert_ne!(pause(asked, 1), pause(asked, 500));
        assert_eq!(pause(Duration::from_secs(u64::MAX), 500), PAUSE_MAX);
        let headers = |text: &str| HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
        assert_eq!(retry_after(&headers("7")), Duration::from_secs(7));
        for odd in ["", "-1", "soon", "Wed, 21 Oct 2026 07:28:00 GMT"] {
            assert_eq!(retry_after(&headers(odd)), Duration::from_secs(1), "{odd}");
        }
    }
}
