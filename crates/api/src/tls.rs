//! TLS for clients: trust one CA, show a certificate if there is one.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be used ({why}): check the file, or have it made again")]
pub struct TlsError {
    what: &'static str,
    why: String,
}

impl TlsError {
    fn new(what: &'static str, why: impl ToString) -> Self {
        Self {
            what,
            why: why.to_string(),
        }
    }
}

/// The certificates in a PEM text.
pub fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|error| TlsError::new(what, error))?;
    if all.is_empty() {
        Err(TlsError::new(what, "there is no certificate in it"))
    } else {
        Ok(all)
    }
}

/// The private key in a PEM text.
pub fn private_key(what: &'static str, pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| TlsError::new(what, error))
}

/// A store that trusts the CAs in a PEM text.
pub fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("the CA certificate", ca_pem)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::new("the CA certificate", error))?;
    }
    Ok(roots)
}

/// A client that trusts this CA and shows this certificate and key, each as PEM.
pub fn client(ca_pem: &str, identity: Option<(&str, &str)>) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::new("TLS", error))?
        .with_root_certificates(roots(ca_pem)?);
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => builder
            .with_client_auth_cert(
                certificates("the client certificate", certificate)?,
                private_key("the client key", key)?,
            )
            .map_err(|error| TlsError::new("the client certificate", error)),
    }
}
