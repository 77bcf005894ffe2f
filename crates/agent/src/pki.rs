//! Who the host is: its keys, its certificates, and how it came by them.
//!
//! **Owns:** the files below `pki/`, the request to join, the TLS settings of every connection that the agent makes or
//! takes.
//!
//! **Does not know:** what is said on those connections.
//!
//! **Start here:** [`join`]. Keys are made before the request is sent and kept, so that a request repeated after a lost
//! answer is the same request.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use api::agent::{HOST_SAN_SUFFIX, JoinRequest, JoinResponse, RenewRequest, SPEAKER_HEADER};
use model::{HostId, Timestamp};
use qemu::migration_tls::{DH_PARAMETERS_FILE, DH_PARAMETERS_PEM};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use reqwest::header::{HeaderName, HeaderValue};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::config::{Config, HostDir, JoinToken};
use crate::machine;

/// How long a server may take to answer a request to join.
const JOIN_DEADLINE: Duration = Duration::from_secs(20);
/// Between tries to renew the certificates.
const RENEW_PAUSE: Duration = Duration::from_secs(5);
/// The longest sleep until they are due.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Which host this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostIdentity {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// When new certificates are due; at once if it was never said.
    #[serde(default)]
    pub renew_at: Option<Timestamp>,
    /// The machine that joined, by its `/etc/machine-id`, if it has one.
    #[serde(default)]
    pub machine: Option<String>,
}

/// Why the host has no identity, or cannot use it.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("cannot {what} {path}")]
    File {
        /// What was attempted.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file's content.
    #[error("{path} is not what it should be: {why}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A copy of another host's directory.
    #[error(
        "{path} is of host {name}, which joined from another machine: two agents with its keys would be one host twice. Give \
         this machine a directory of its own and a new token (`sterna host token`); if it is that host with a new \
         /etc/machine-id, remove the line `machine` from that file"
    )]
    OtherMachine {
        /// The host's identity.
        path: PathBuf,
        /// Its name.
        name: String,
    },
    /// Keys and requests for certificates.
    #[error("cannot make a key or a request for a certificate")]
    Make(#[from] rcgen::Error),
    /// No token.
    #[error(
        "this host has not joined yet: start its agent with a join token (`sterna host create` prints one)"
    )]
    NoToken,
    /// The server could not be asked; it may be asked again.
    #[error("cannot ask {server} to let this host join")]
    Unreachable {
        /// The server.
        server: String,
        /// Why not.
        source: reqwest::Error,
    },
    /// The server refused.
    #[error("{server} refused to let this host join: {answer}")]
    Refused {
        /// The server.
        server: String,
        /// Its words.
        answer: String,
    },
    /// TLS settings.
    #[error("the certificates cannot be used")]
    Tls(#[from] rustls::Error),
}

impl PkiError {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// The host's identity, with the files that prove it. Joins if the host has not joined before.
pub async fn join(config: &Config, dir: &HostDir) -> Result<HostIdentity, PkiError> {
    if dir.identity().exists() {
        let identity = read_identity(dir)?;
        return match is_of(&identity, machine::id().as_deref()) {
            true => Ok(identity),
            false => Err(PkiError::OtherMachine {
                path: dir.identity(),
                name: identity.name,
            }),
        };
    }
    let request = join_request(config, dir)?;
    let response = ask(config, &request).await?;
    keep(dir, &response)
}

/// Whether the host's directory is used on the machine that joined, as far as that is known.
fn is_of(identity: &HostIdentity, machine: Option<&str>) -> bool {
    identity
        .machine
        .as_deref()
        .zip(machine)
        .is_none_or(|(then, now)| then == now)
}

fn read_identity(dir: &HostDir) -> Result<HostIdentity, PkiError> {
    let path = dir.identity();
    let text = read_text(&path)?;
    serde_json::from_str(&text).map_err(|error| PkiError::Content {
        path,
        why: error.to_string(),
    })
}

fn join_request(config: &Config, dir: &HostDir) -> Result<JoinRequest, PkiError> {
    let token = match &config.join_token {
        None => return Err(PkiError::NoToken),
        Some(JoinToken::Text(text)) => text.clone(),
        Some(JoinToken::File(path)) => read_text(path)?,
    };
    fs::create_dir_all(dir.migration_pki()).map_err(|source| file("make", &dir.migration_pki(), source))?;
    Ok(JoinRequest {
        token: token.trim().to_owned(),
        name: config.name.clone(),
        machine: machine::digest(&dir.0),
        agent_csr_pem: certificate_request(&agent_key(dir))?,
        migration_csr_pem: certificate_request(&migration_key(dir))?,
    })
}

fn agent_key(dir: &HostDir) -> PathBuf {
    dir.pki().join("agent-key.pem")
}

fn migration_key(dir: &HostDir) -> PathBuf {
    dir.migration_pki().join("server-key.pem")
}

/// Keeps the host's certificates from expiring, for as long as it is let. The keys stay, and so do connections; QEMU reads
/// its files anew for each stream.
pub async fn renew(
    client: reqwest::Client,
    server: String,
    dir: HostDir,
    own: Arc<OwnCertificate>,
    clock: Clock,
) {
    let mut due = read_identity(&dir).ok().and_then(|identity| identity.renew_at);
    loop {
        let left = due.map_or(Duration::ZERO, |at| until(at, clock.cloud()));
        if !left.is_zero() {
            // The server's clock may be set meanwhile.
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
            continue;
        }
        match renewed(&client, &server, &dir, &own).await {
            // A server that says no time is asked again when this agent starts.
            Ok(None) => return,
            Ok(next) => {
                due = next;
                tracing::info!("this host has new certificates");
            }
            Err(error) => {
                tracing::warn!(
                    error = crate::link::chain(&error),
                    "this host's certificates are not renewed yet"
                );
                tokio::time::sleep(RENEW_PAUSE).await;
            }
        }
    }
}

fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}

async fn renewed(
    client: &reqwest::Client,
    server: &str,
    dir: &HostDir,
    own: &OwnCertificate,
) -> Result<Option<Timestamp>, PkiError> {
    let request = RenewRequest {
        machine: machine::digest(&dir.0),
        agent_csr_pem: certificate_request(&agent_key(dir))?,
        migration_csr_pem: certificate_request(&migration_key(dir))?,
    };
    let answer = client.post(format!("{server}/agent/v1/renew")).json(&request);
    let response = answered(answer, server).await?;
    let identity = keep(dir, &response)?;
    own.load(dir)?;
    Ok(identity.renew_at)
}

/// A request for a certificate for the key in that file, which is made if there is none. The server sets the names.
fn certificate_request(key_file: &Path) -> Result<String, PkiError> {
    let key = match fs::read_to_string(key_file) {
        Ok(pem) => KeyPair::from_pem(&pem)?,
        Err(_) => {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            write(key_file, key.serialize_pem().as_bytes())?;
            key
        }
    };
    Ok(CertificateParams::default().serialize_request(&key)?.pem()?)
}

async fn ask(config: &Config, request: &JoinRequest) -> Result<JoinResponse, PkiError> {
    let server = || config.server.clone();
    let tls = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(&[&config.server_ca])?)
        .with_no_client_auth();
    let url = format!("{}/agent/v1/join", config.server);
    let unreachable = |source| PkiError::Unreachable {
        server: server(),
        source,
    };
    let client = http_client(tls, None).map_err(unreachable)?;
    answered(client.post(url).json(request), &config.server).await
}

/// What a server answers to a request for certificates.
async fn answered(request: reqwest::RequestBuilder, server: &str) -> Result<JoinResponse, PkiError> {
    let server = || server.to_owned();
    let unreachable = |source| PkiError::Unreachable {
        server: server(),
        source,
    };
    let answer = request.timeout(JOIN_DEADLINE).send().await.map_err(unreachable)?;
    let status = answer.status();
    if status.is_client_error() {
        let text = answer.text().await.unwrap_or_default();
        let said = serde_json::from_str::<api::Problem>(&text);
        return Err(PkiError::Refused {
            server: server(),
            answer: said.map_or_else(|_| format!("{status} {text}"), |problem| problem.detail),
        });
    }
    let answer = answer.error_for_status().map_err(unreachable)?;
    answer.json().await.map_err(unreachable)
}

/// Keeps what the server answered; the identity last, since it says that all the rest is there.
fn keep(dir: &HostDir, response: &JoinResponse) -> Result<HostIdentity, PkiError> {
    let (pki, migration) = (dir.pki(), dir.migration_pki());
    write(
        &pki.join("agent-cert.pem"),
        response.agent_certificate_pem.as_bytes(),
    )?;
    write(&pki.join("agent-ca.pem"), response.agent_ca_pem.as_bytes())?;
    write(
        &migration.join("ca-cert.pem"),
        response.migration_ca_pem.as_bytes(),
    )?;
    let key = read_text(&migration.join("server-key.pem"))?;
    write(&migration.join("client-key.pem"), key.as_bytes())?;
    for name in ["server-cert.pem", "client-cert.pem"] {
        write(
            &migration.join(name),
            response.migration_certificate_pem.as_bytes(),
        )?;
    }
    // Without them QEMU makes its own at each start of a stream, for up to two seconds.
    write(&migration.join(DH_PARAMETERS_FILE), DH_PARAMETERS_PEM.as_bytes())?;
    let identity = HostIdentity {
        id: response.host_id,
        name: response.name.clone(),
        renew_at: response.renew_at,
        machine: machine::id(),
    };
    let json = serde_json::to_vec_pretty(&identity).map_err(|error| PkiError::Content {
        path: dir.identity(),
        why: error.to_string(),
    })?;
    write(&dir.identity(), &json)?;
    Ok(identity)
}

/// The host's certificate, which new connections are shown.
#[derive(Debug)]
pub struct OwnCertificate(RwLock<Arc<CertifiedKey>>);

impl OwnCertificate {
    fn open(dir: &HostDir) -> Result<Arc<Self>, PkiError> {
        Ok(Arc::new(Self(RwLock::new(Arc::new(own_certificate(dir)?)))))
    }

    /// Takes what is in the files now.
    fn load(&self, dir: &HostDir) -> Result<(), PkiError> {
        let key = Arc::new(own_certificate(dir)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = key;
        Ok(())
    }

    fn present(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.present())
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.present())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The TLS settings of a host that has joined.
#[derive(Clone)]
pub struct Tls {
    /// What all of them show.
    pub own: Arc<OwnCertificate>,
    /// For connections to servers.
    pub to_servers: ClientConfig,
    /// For connections to other agents.
    pub to_peers: Arc<ClientConfig>,
    /// For connections from other agents.
    pub from_peers: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the host's certificates.
    pub fn load(config: &Config, dir: &HostDir) -> Result<Self, PkiError> {
        let ca = dir.pki().join("agent-ca.pem");
        let own = OwnCertificate::open(dir)?;
        let mut to_servers = client(roots(&[&config.server_ca, &ca])?, &own)?;
        to_servers.alpn_protocols = vec![b"http/1.1".to_vec()];
        let to_peers = Arc::new(client(roots(&[&ca])?, &own)?);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&[&ca])?), provider()).build();
        let verifier = verifier.map_err(|error| PkiError::Content {
            path: ca,
            why: error.to_string(),
        })?;
        let from_peers = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(own.clone());
        Ok(Self {
            own,
            to_servers,
            to_peers,
            from_peers: Arc::new(from_peers),
        })
    }
}

/// The name in the certificate of a host.
pub fn host_dns_name(host: HostId) -> String {
    format!("{host}{HOST_SAN_SUFFIX}")
}

/// Whether the certificate is that host's. Its signature was checked when the connection was made.
pub fn is_certificate_of(certificate: &CertificateDer<'_>, host: HostId) -> bool {
    let Ok(name) = ServerName::try_from(host_dns_name(host)) else {
        return false;
    };
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|certificate| verify_server_name(&certificate, &name).is_ok())
}

/// An HTTP client with these TLS settings and no proxy.
/// A client that says with every request what tells this machine from others, if that is known.
pub fn http_client(tls: ClientConfig, speaker: Option<&str>) -> reqwest::Result<reqwest::Client> {
    let said = speaker.and_then(|text| HeaderValue::try_from(text).ok());
    let said = said.map(|value| (HeaderName::from_static(SPEAKER_HEADER), value));
    reqwest::Client::builder()
        .default_headers(said.into_iter().collect())
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(5))
        .build()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A session that is resumed would show the certificate that it began with, so none is.
fn client(roots: RootCertStore, own: &Arc<OwnCertificate>) -> Result<ClientConfig, PkiError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_cert_resolver(own.clone());
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn own_certificate(dir: &HostDir) -> Result<CertifiedKey, PkiError> {
    let path = agent_key(dir);
    let key = PrivateKeyDer::from_pem_file(&path).map_err(|error| PkiError::Content {
        path,
        why: error.to_string(),
    })?;
    let chain = certificates(&dir.pki().join("agent-cert.pem"))?;
    Ok(CertifiedKey::from_der(chain, key, &provider())?)
}

fn roots(files: &[&Path]) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    for file in files {
        for certificate in certificates(file)? {
            roots.add(certificate)?;
        }
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let content = |why: String| PkiError::Content {
        path: path.to_owned(),
        why,
    };
    let all = CertificateDer::pem_file_iter(path).map_err(|error| content(error.to_string()))?;
    let all: Result<Vec<_>, _> = all.collect();
    let all = all.map_err(|error| content(error.to_string()))?;
    if all.is_empty() {
        Err(content("it holds no certificate".to_owned()))
    } else {
        Ok(all)
    }
}

fn read_text(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| file("read", path, source))
}

/// Writes a file that only its owner may read, whole or not at all.
fn write(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    let temporary = path.with_extension("new");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            io::Write::write_all(&mut file, content)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|source| file("write", path, source))
}

fn file(what: &'static str, path: &Path, source: io::Error) -> PkiError {
    PkiError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_directory_is_told_from_one_that_says_nothing() {
        let text = r#"{"id": "0190b2a4-0000-7000-8000-000000000001", "name": "h1", "machine": "a"}"#;
        let identity: HostIdentity = serde_json::from_str(text).unwrap();
        assert!(is_of(&identity, Some("a")) && is_of(&identity, None));
        assert!(!is_of(&identity, Some("b")));
        let before = HostIdentity {
            machine: None,
            ..identity
        };
        assert!(is_of(&before, Some("b")));
    }
}
