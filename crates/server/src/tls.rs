//! Connections: TLS 1.2 and 1.3, a client certificate if there is one, HTTP/1.1 and HTTP/2, bounded in number and time.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use futures_util::TryFutureExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::auth::Connection;
use crate::pki::Pki;
use crate::places::{self, OfConnection};
use crate::routes::App;

/// How many connections are open at once on one listener.
const CONNECTIONS_MAX: usize = 20_000;
/// The longest sleep until a certificate is due: the clock may be set meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Between tries to renew a certificate.
const RETRY_PAUSE: Duration = Duration::from_secs(60);
/// How long a handshake may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a request's header may take.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);
/// How long a request's header may be; what is read of a body at once has the same bound.
const HEADER_MAX_BYTES: usize = 64 << 10;
/// How many requests are under way at a time on one HTTP/2 connection: those that may not end, and some that do.
const STREAMS_MAX: u32 = places::CONNECTION_MAX + 56;

/// HTTP/2's name in a TLS handshake.
const HTTP2: &[u8] = b"h2";

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The certificate that new connections are shown.
#[derive(Debug)]
pub struct OwnCertificate(RwLock<Arc<CertifiedKey>>);

impl OwnCertificate {
    /// A new one.
    pub fn make(pki: &Pki, now: Timestamp) -> Result<Self, Error> {
        Ok(Self(RwLock::new(Arc::new(certified(pki, now)?))))
    }

    fn replace(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn certified(pki: &Pki, now: Timestamp) -> Result<CertifiedKey, Error> {
    let identity = pki.server(now)?;
    let chain = api::tls::certificates("the server's certificate", &identity.chain_pem)?;
    let key = api::tls::private_key("the server's key", &identity.key_pem)?;
    let provider = rustls::crypto::ring::default_provider();
    Ok(CertifiedKey::from_der(chain, key, &provider)?)
}

/// Makes the server's certificate anew whenever half of its life is over, until the task is dropped. Connections that are
/// open are not disturbed.
pub async fn renew(app: App, own: Arc<OwnCertificate>) {
    let half = app.pki.life / 2;
    let mut made = app.env.now();
    loop {
        let now = app.env.now();
        let left = half.saturating_sub(now.duration_since(made));
        if let Some(left) = Duration::try_from(left).ok().filter(|left| !left.is_zero()) {
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
            continue;
        }
        match certified(&app.pki, now) {
            Ok(key) => {
                own.replace(key);
                made = now;
                tracing::info!("the server has a new certificate");
            }
            Err(error) => {
                tracing::error!(%error, "the server's certificate was not renewed; it is tried again");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// The server's side of TLS: agents' certificates are verified against the CA, and people need none.
pub fn config(pki: &Pki, own: Arc<OwnCertificate>) -> Result<ServerConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = Arc::new(api::tls::roots(&pki.agents.pem)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(own);
    config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Serves a listener until the task is dropped.
pub async fn serve(listener: TcpListener, config: Arc<ServerConfig>, router: Router) {
    let front = Arc::new(Front::new(config, router));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the peer went away: others may still be served.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let front = front.clone();
        tokio::spawn(async move {
            if let Err(error) = front.connection(stream, peer).await {
                tracing::debug!(%peer, %error, "a connection ended");
            }
            drop(place);
        });
    }
}

/// What the connections of a listener have in common.
///
/// A connection may be idle for days, and there are thousands. So what it needs to be opened is in a box of its own that is
/// gone once it is open, and what it is served with takes the room of its own protocol, not of the larger one.
struct Front {
    acceptor: TlsAcceptor,
    router: Router,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

/// A connection on its way to its end.
type Serving = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

impl Front {
    fn new(config: Arc<ServerConfig>, router: Router) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_PATIENCE)
            .max_buf_size(HEADER_MAX_BYTES);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(Duration::from_secs(20)))
            .max_header_list_size(HEADER_MAX_BYTES as u32)
            .max_concurrent_streams(STREAMS_MAX);
        Self {
            acceptor: TlsAcceptor::from(config),
            router,
            http1,
            http2,
        }
    }

    async fn connection(&self, stream: TcpStream, peer: SocketAddr) -> Result<(), Error> {
        Box::pin(self.open(stream, peer)).await?.await
    }

    async fn open(&self, stream: TcpStream, peer: SocketAddr) -> Result<Serving, Error> {
        stream.set_nodelay(true)?;
        let stream = tokio::time::timeout(HANDSHAKE_PATIENCE, self.acceptor.accept(stream)).await??;
        let session = stream.get_ref().1;
        let certificate = session.peer_certificates().and_then(|all| all.first());
        let known = Connection {
            peer,
            certificate: certificate.map(|der| der.to_vec()),
        };
        let is_http2 = session.alpn_protocol() == Some(HTTP2);
        let places = is_http2.then(OfConnection::default);
        let router = self.router.clone();
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(known.clone());
            if let Some(places) = &places {
                request.extensions_mut().insert(places.clone());
            }
            // In a box, which is gone when the answer has begun.
            Box::pin(router.clone().oneshot(request.map(axum::body::Body::new)))
        });
        let io = TokioIo::new(stream);
        Ok(if is_http2 {
            Box::pin(self.http2.serve_connection(io, service).map_err(Error::from))
        } else {
            let serving = self.http1.serve_connection(io, service).with_upgrades();
            Box::pin(serving.map_err(Error::from))
        })
    }
}
