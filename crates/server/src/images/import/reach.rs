//! Connections to sources.
//!
//! **Owns:** from a URL's host and port to a connection, encrypted if the URL says so, and never to an address that is
//! not allowed.
//!
//! **Does not know:** what is said on it.
//!
//! **Start here:** [`Reach::connect`]. An address is checked after the name was resolved, and it is the checked address
//! that is connected to: a name that means another address a moment later changes nothing.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, fs, io};

use api::Problem;
use rustls::pki_types::{ServerName, TrustAnchor};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::addresses::Addresses;
use super::download::Broken;
use super::outlet::Outlet;

/// How long a name may take to be resolved, an address to answer, and TLS to be agreed upon.
const DEADLINE: Duration = Duration::from_secs(10);

/// Bytes both ways.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// CAs that are trusted beside those that the machine trusts.
#[derive(Debug, Clone, Default)]
pub struct Authorities(Vec<TrustAnchor<'static>>);

impl Authorities {
    /// Those of these files, in each of which is one at least, as PEM.
    pub fn read<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Result<Self, String> {
        let mut all = Vec::new();
        for file in files {
            let said = |why: &dyn fmt::Display| format!("{}: {why}", file.as_ref().display());
            let pem = fs::read_to_string(&file).map_err(|error| said(&error))?;
            all.extend(api::tls::roots(&pem).map_err(|error| said(&error))?.roots);
        }
        Ok(Self(all))
    }
}

/// How sources are reached.
#[derive(Debug, Default)]
pub struct Reach {
    addresses: Addresses,
    outlet: Option<Outlet>,
    authorities: Authorities,
    tls: OnceCell<Arc<ClientConfig>>,
}

impl Reach {
    /// Within these bounds, by this way out if there is one.
    pub fn within(addresses: Addresses, outlet: Option<Outlet>, authorities: Authorities) -> Self {
        Self {
            addresses,
            outlet,
            authorities,
            tls: OnceCell::new(),
        }
    }

    /// A connection to where a URL leads.
    pub(super) async fn connect(&self, url: &Url) -> Result<Box<dyn Connection>, Broken> {
        let host = host(url)?;
        let stream = self.connect_plainly(url).await?;
        if url.scheme() != "https" {
            return Ok(Box::new(stream));
        }
        let name = match &host {
            Host::Domain(name) => {
                ServerName::try_from((*name).to_owned()).map_err(|_| final_problem("its host has no name"))?
            }
            Host::Ipv4(address) => ServerName::from(IpAddr::V4(*address)),
            Host::Ipv6(address) => ServerName::from(IpAddr::V6(*address)),
        };
        let config = self
            .tls
            .get_or_try_init(|| async { trusting(&self.authorities) })
            .await?;
        let agreed = TlsConnector::from(config.clone()).connect(name, stream);
        match timeout(DEADLINE, agreed).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(tls_broken(&error, &host)),
            Err(_) => Err(late()),
        }
    }

    /// A connection to where a URL leads that is never encrypted.
    pub(super) async fn connect_plainly(&self, url: &Url) -> Result<TcpStream, Broken> {
        self.connect_plainly_to(url, url.port_or_known_default().unwrap_or_default())
            .await
    }

    /// The same for a scheme with this port, if the URL names none.
    pub(super) async fn connect_plainly_to(&self, url: &Url, usual_port: u16) -> Result<TcpStream, Broken> {
        self.dial(&host(url)?, url.port().unwrap_or(usual_port)).await
    }

    /// A connection to an address.
    pub(super) async fn connect_to(&self, address: SocketAddr) -> Result<TcpStream, Broken> {
        let host: Host<&str> = match address.ip() {
            IpAddr::V4(address) => Host::Ipv4(address),
            IpAddr::V6(address) => Host::Ipv6(address),
        };
        self.dial(&host, address.port()).await
    }

    async fn dial(&self, host: &Host<&str>, port: u16) -> Result<TcpStream, Broken> {
        let mut last = Broken::Passing("its name has no address".to_owned());
        for address in self.allowed(host, port).await? {
            match timeout(DEADLINE, self.open(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = Broken::Passing(format!("{address}: {error}")),
                Err(_) => last = late(),
            }
        }
        Err(last)
    }

    async fn open(&self, address: SocketAddr) -> io::Result<TcpStream> {
        match &self.outlet {
            Some(outlet) => outlet.connect(address).await,
            None => TcpStream::connect(address).await,
        }
    }

    async fn resolved(&self, host: &Host<&str>, port: u16) -> Result<Vec<SocketAddr>, Broken> {
        let name = match host {
            Host::Ipv4(address) => return Ok(vec![(*address, port).into()]),
            Host::Ipv6(address) => return Ok(vec![(*address, port).into()]),
            Host::Domain(name) => *name,
        };
        let resolving = async {
            match &self.outlet {
                Some(outlet) => outlet.resolve(name).await,
                None => {
                    let found = tokio::net::lookup_host((name, port)).await?;
                    Ok(found.map(|address| address.ip()).collect())
                }
            }
        };
        match timeout(DEADLINE, resolving).await {
            Ok(Ok(found)) => Ok(found.into_iter().map(|address| (address, port).into()).collect()),
            Ok(Err(error)) => Err(Broken::Passing(format!("resolving {name}: {error}"))),
            Err(_) => Err(late()),
        }
    }

    /// The addresses of a host that may be reached; a refusal if there are others only.
    async fn allowed(&self, host: &Host<&str>, port: u16) -> Result<Vec<SocketAddr>, Broken> {
        let found = self.resolved(host, port).await?;
        let (mut allowed, mut refused) = (Vec::new(), None);
        for address in found {
            match self.addresses.check(address.ip()) {
                Ok(()) => allowed.push(address),
                Err(why) => refused = Some(why),
            }
        }
        match refused {
            Some(why) if allowed.is_empty() => {
                Err(Broken::Final(Problem::invalid("address-not-allowed", why)))
            }
            _ => Ok(allowed),
        }
    }
}

fn host(url: &Url) -> Result<Host<&str>, Broken> {
    url.host()
        .ok_or_else(|| final_problem("there is no host in the URL"))
}

/// Trusts the CAs that the machine trusts, and these.
fn trusting(authorities: &Authorities) -> Result<Arc<ClientConfig>, Broken> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots.extend(authorities.0.iter().cloned());
    if roots.is_empty() {
        return Err(final_problem(
            "the server's machine trusts no CA: install ca-certificates on it, or start the server with `--import-ca FILE`",
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| final_problem(&error.to_string()))?;
    Ok(Arc::new(
        builder.with_root_certificates(roots).with_no_client_auth(),
    ))
}

/// A certificate that is not trusted now will not be in a moment; a connection that broke may hold.
fn tls_broken(error: &io::Error, host: &Host<&str>) -> Broken {
    use CertificateError as Why;
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(why)) = inner else {
        return Broken::Passing(error.to_string());
    };
    let why = match why {
        // The second: a CA of that name is known, and has another key.
        Why::UnknownIssuer | Why::BadSignature => {
            "it is signed by a CA that is not known here: `sterna server --import-ca FILE` has the server \
                               trust it, and so does `sterna up`"
                .to_owned()
        }
        Why::Expired | Why::ExpiredContext { .. } => "its time is over".to_owned(),
        Why::NotValidYet | Why::NotValidYetContext { .. } => "its time has not come".to_owned(),
        Why::NotValidForName | Why::NotValidForNameContext { .. } => {
            format!("it is not for {host}: give the URL with a name that it is for")
        }
        other => format!("{other:?}"),
    };
    final_problem(&format!("its certificate is not trusted: {why}"))
}

fn late() -> Broken {
    Broken::Passing(format!("no answer in {} s", DEADLINE.as_secs()))
}

/// What trying again does not change.
pub(super) fn final_problem(why: &str) -> Broken {
    Broken::Final(Problem::invalid("source-refused", why.to_owned()))
}
