//! The link between agents: `go`, the one message that they send each other.
//!
//! **Owns:** the listener and the warm connections.
//!
//! **Does not know:** whether a `go` may be obeyed: [`Targets`] does.
//!
//! **Start here:** [`serve`] for the target's side, [`Peers`] for the source's.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::agent::{GoRequest, GoResponse};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use model::HostId;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::pki;

/// How long the guest may take to run after `go`.
pub const GO_DEADLINE: Duration = Duration::from_secs(10);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const MAX_BODY_BYTES: usize = 64 << 10;
const MAX_CONNECTIONS: usize = 1024;

/// What became of a `go`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoAnswer {
    /// The guest runs.
    Runs {
        /// Since when, if QEMU said so.
        since: Option<Instant>,
    },
    /// This host is no target of such a migration, or the sender is not its source.
    Refused,
    /// The guest did not run in time.
    Late,
}

/// Who takes a `go`.
pub trait Targets: Send + Sync + 'static {
    /// The host from which a `go` for this target is taken, if it is one.
    fn source_of(&self, request: &GoRequest) -> Option<HostId>;
    /// Hands it over and waits until the guest runs.
    fn go(&self, request: GoRequest) -> impl Future<Output = GoAnswer> + Send;
}

/// Takes connections from other agents.
pub async fn serve<T: Targets>(listener: TcpListener, tls: Arc<ServerConfig>, targets: Arc<T>) {
    let acceptor = TlsAcceptor::from(tls);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection from another agent");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, targets) = (acceptor.clone(), Arc::clone(&targets));
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = connection(stream, acceptor, targets).await {
                tracing::debug!(
                    error = crate::link::chain(&*error),
                    "a connection from another agent ended"
                );
            }
        });
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn connection<T: Targets>(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    targets: Arc<T>,
) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let stream = timeout(CONNECT_DEADLINE, acceptor.accept(stream)).await??;
    let certificates = stream.get_ref().1.peer_certificates();
    let certificate = certificates
        .and_then(<[_]>::first)
        .ok_or("no certificate was shown")?;
    let certificate = certificate.clone().into_owned();
    let service = service_fn(move |request| {
        let (targets, certificate) = (Arc::clone(&targets), certificate.clone());
        async move { Ok::<_, Infallible>(answer(request, &*targets, &certificate).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

async fn answer<T: Targets>(
    request: Request<Incoming>,
    targets: &T,
    certificate: &CertificateDer<'_>,
) -> Response<Full<Bytes>> {
    let answered = match (request.method(), request.uri().path()) {
        (&Method::GET, "/peer/v1/ping") => Ok(None),
        (&Method::POST, "/peer/v1/go") => go(request, targets, certificate).await,
        _ => Err(StatusCode::NOT_FOUND),
    };
    let (status, since) = match answered {
        Ok(since) => (StatusCode::OK, since),
        Err(status) => (status, None),
    };
    let running_for_us = since.map_or(0, |since| micros(since.elapsed()));
    let answer = GoResponse { running_for_us };
    let mut response = Response::new(Full::from(serde_json::to_vec(&answer).unwrap_or_default()));
    *response.status_mut() = status;
    response
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Since when the guest runs.
async fn go<T: Targets>(
    request: Request<Incoming>,
    targets: &T,
    certificate: &CertificateDer<'_>,
) -> Result<Option<Instant>, StatusCode> {
    let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await;
    let Ok(Ok(request)) = body.map(|body| serde_json::from_slice::<GoRequest>(&body.to_bytes())) else {
        return Err(StatusCode::BAD_REQUEST);
    };
    let is_source = targets
        .source_of(&request)
        .is_some_and(|host| pki::is_certificate_of(certificate, host));
    if !is_source {
        return Err(StatusCode::FORBIDDEN);
    }
    match timeout(GO_DEADLINE, targets.go(request)).await {
        Ok(GoAnswer::Runs { since }) => Ok(since),
        Ok(GoAnswer::Refused) => Err(StatusCode::FORBIDDEN),
        Ok(GoAnswer::Late) | Err(_) => Err(StatusCode::GATEWAY_TIMEOUT),
    }
}

/// Why a `go` was not answered by "runs".
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Connecting.
    #[error("cannot connect to the agent of the target's host at {peer}")]
    Connect {
        /// Where it should listen.
        peer: String,
        /// Why not.
        source: BoxError,
    },
    /// Talking.
    #[error("the connection to the agent of the target's host broke")]
    Broken(#[source] BoxError),
    /// No answer.
    #[error("the agent of the target's host did not answer in time")]
    Late,
    /// Another answer.
    #[error("the agent of the target's host answered {0}")]
    Refused(StatusCode),
}

type Sender = SendRequest<Full<Bytes>>;

/// Connections to other agents, opened before they are needed and kept.
#[derive(Clone)]
pub struct Peers {
    tls: Arc<ClientConfig>,
    warm: Arc<Mutex<BTreeMap<(String, HostId), Sender>>>,
}

impl Peers {
    /// No connections yet.
    pub fn new(tls: Arc<ClientConfig>) -> Self {
        Self {
            tls,
            warm: Arc::default(),
        }
    }

    /// Opens a connection, if there is none that works, and tries it.
    pub async fn warm_up(&self, peer: &str, host: HostId) -> Result<(), PeerError> {
        self.request(peer, host, Method::GET, "/peer/v1/ping", Bytes::new())
            .await
            .map(drop)
    }

    /// Tells the target's agent that the source's QEMU completed; returns when the guest runs, and for how long it did
    /// when the answer was sent.
    pub async fn go(&self, peer: &str, host: HostId, request: &GoRequest) -> Result<Duration, PeerError> {
        let body = serde_json::to_vec(request).unwrap_or_default().into();
        let answer = self
            .request(peer, host, Method::POST, "/peer/v1/go", body)
            .await?;
        // That it runs is what counts: what cannot be read of its time is no time.
        let answer = serde_json::from_slice::<GoResponse>(&answer).unwrap_or_default();
        Ok(Duration::from_micros(answer.running_for_us))
    }

    /// Sends over the warm connection, and over a new one if that fails: both requests may be repeated.
    async fn request(
        &self,
        peer: &str,
        host: HostId,
        method: Method,
        path: &'static str,
        body: Bytes,
    ) -> Result<Bytes, PeerError> {
        let key = (peer.to_owned(), host);
        // The lock is not held while the other side is waited for.
        let warm = self.warm.lock().await.remove(&key);
        if let Some(mut sender) = warm {
            match send(&mut sender, method.clone(), path, body.clone()).await {
                Ok(answer) => {
                    self.warm.lock().await.insert(key, sender);
                    return judge(answer);
                }
                Err(error) => {
                    tracing::debug!(error = crate::link::chain(&error), "the warm connection is lost")
                }
            }
        }
        let mut sender = self.connect(peer, host).await?;
        let answer = send(&mut sender, method, path, body).await?;
        self.warm.lock().await.insert(key, sender);
        judge(answer)
    }

    async fn connect(&self, peer: &str, host: HostId) -> Result<Sender, PeerError> {
        let connected = timeout(CONNECT_DEADLINE, open(peer, host, Arc::clone(&self.tls))).await;
        let connected = connected.map_err(BoxError::from).and_then(|result| result);
        connected.map_err(|source| PeerError::Connect {
            peer: peer.to_owned(),
            source,
        })
    }
}

async fn open(peer: &str, host: HostId, tls: Arc<ClientConfig>) -> Result<Sender, BoxError> {
    let address: SocketAddr = peer.parse()?;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(pki::host_dns_name(host))?;
    let stream = TlsConnector::from(tls).connect(name, stream).await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to another agent ended");
        }
    });
    Ok(sender)
}

async fn send(
    sender: &mut Sender,
    method: Method,
    path: &'static str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), PeerError> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = http::Uri::from_static(path);
    request
        .headers_mut()
        .insert(http::header::HOST, http::HeaderValue::from_static("peer"));
    let exchange = async {
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY_BYTES)
            .collect()
            .await?;
        Ok::<_, BoxError>((status, body.to_bytes()))
    };
    let slack = Duration::from_secs(1);
    timeout(GO_DEADLINE + slack, exchange)
        .await
        .map_err(|_| PeerError::Late)?
        .map_err(PeerError::Broken)
}

fn judge((status, body): (StatusCode, Bytes)) -> Result<Bytes, PeerError> {
    if status.is_success() {
        Ok(body)
    } else {
        Err(PeerError::Refused(status))
    }
}
