//! The cloud's CAs: one for servers and agents, another for QEMU's migration streams, whose keys QEMU's user can read.
//!
//! Both are made at the first start and kept in the server's data directory, readable by their owner only.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use model::HostId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};

/// Why the CAs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("{attempt} {path}: {source}; see that the data directory is writable and whole")]
    File {
        /// What was tried.
        attempt: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A certificate or request.
    #[error("{attempt}: {source}")]
    Certificate {
        /// What was tried.
        attempt: &'static str,
        /// What is wrong.
        source: rcgen::Error,
    },
}

fn cert_error(attempt: &'static str) -> impl Fn(rcgen::Error) -> PkiError {
    move |source| PkiError::Certificate { attempt, source }
}

/// A CA with its key.
pub struct Ca {
    /// Its certificate.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// The server's certificate with its key.
pub struct ServerIdentity {
    /// With the CA's behind it.
    pub chain_pem: String,
    /// Its key.
    pub key_pem: String,
}

/// Everything that is signed with.
pub struct Pki {
    /// For servers and agents.
    pub agents: Ca,
    /// For migration streams.
    pub migration: Ca,
    /// How long the certificates of servers and hosts are good for. After half of it they are made anew.
    pub life: SignedDuration,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl Pki {
    /// Reads the CAs, or makes them. The server is called by these names and addresses.
    pub fn open(
        dir: &Path,
        names: &[String],
        addresses: &[IpAddr],
        life: SignedDuration,
    ) -> Result<Self, PkiError> {
        fs::create_dir_all(dir).map_err(|source| file_error("making", dir)(source))?;
        let agents = Ca::open(dir, "ca", "Sterna CA")?;
        let migration = Ca::open(dir, "migration-ca", "Sterna migration CA")?;
        Ok(Self {
            agents,
            migration,
            life,
            names: names.to_vec(),
            addresses: addresses.to_vec(),
        })
    }

    /// A new key and certificate for this server.
    pub fn server(&self, now: Timestamp) -> Result<ServerIdentity, PkiError> {
        let until = expiry(now, self.life);
        self.agents.server(&self.names, &self.addresses, until)
    }
}

fn file_error<'a>(attempt: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> PkiError + 'a {
    move |source| PkiError::File {
        attempt,
        path: path.to_owned(),
        source,
    }
}

/// Writes a file that only its owner reads, whole or not at all.
pub fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

impl Ca {
    fn open(dir: &Path, file: &str, common_name: &str) -> Result<Self, PkiError> {
        let key_path = dir.join(format!("{file}.key"));
        let cert_path = dir.join(format!("{file}.crt"));
        if !cert_path.exists() {
            let key = KeyPair::generate().map_err(cert_error("making a CA's key"))?;
            let params = ca_params(common_name);
            let certificate = params
                .self_signed(&key)
                .map_err(cert_error("making a CA's certificate"))?;
            write_private(&key_path, &key.serialize_pem()).map_err(file_error("writing", &key_path))?;
            write_private(&cert_path, &certificate.pem()).map_err(file_error("writing", &cert_path))?;
        }
        let key_pem = fs::read_to_string(&key_path).map_err(file_error("reading", &key_path))?;
        let pem = fs::read_to_string(&cert_path).map_err(file_error("reading", &cert_path))?;
        let key = KeyPair::from_pem(&key_pem).map_err(cert_error("reading a CA's key"))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(cert_error("reading a CA's certificate"))?;
        Ok(Self { pem, issuer })
    }

    fn server(
        &self,
        names: &[String],
        addresses: &[IpAddr],
        until: Timestamp,
    ) -> Result<ServerIdentity, PkiError> {
        let key = KeyPair::generate().map_err(cert_error("making the server's key"))?;
        let mut params =
            CertificateParams::new(names.to_vec()).map_err(cert_error("making the server's certificate"))?;
        params
            .subject_alt_names
            .extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.distinguished_name = distinguished_name("sterna-server");
        leaf(&mut params, until);
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(cert_error("signing the server's certificate"))?;
        Ok(ServerIdentity {
            chain_pem: format!("{}{}", certificate.pem(), self.pem),
            key_pem: key.serialize_pem(),
        })
    }

    /// Signs a host's request. Of the request only the key counts: the names are the server's word. Returns the
    /// certificate as PEM and as DER.
    pub fn sign_host(
        &self,
        csr_pem: &str,
        host: HostId,
        name: &str,
        now: Timestamp,
        life: SignedDuration,
    ) -> Result<(String, Vec<u8>), PkiError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(cert_error("reading the certificate request"))?;
        let names = vec![name.to_owned(), format!("{host}{}", api::agent::HOST_SAN_SUFFIX)];
        let mut params =
            CertificateParams::new(names).map_err(cert_error("making the host's certificate"))?;
        params.distinguished_name = distinguished_name(name);
        leaf(&mut params, expiry(now, life));
        request.params = params;
        let certificate = request
            .signed_by(&self.issuer)
            .map_err(cert_error("signing the host's certificate"))?;
        Ok((certificate.pem(), certificate.der().to_vec()))
    }
}

/// The public key that a certificate request is for.
pub fn public_key(csr_pem: &str) -> Result<Vec<u8>, PkiError> {
    let request = CertificateSigningRequestParams::from_pem(csr_pem)
        .map_err(cert_error("reading the certificate request"))?;
    Ok(request.public_key.subject_public_key_info())
}

/// When a certificate that is made now expires.
fn expiry(now: Timestamp, life: SignedDuration) -> Timestamp {
    now.checked_add(life).unwrap_or(Timestamp::MAX)
}

fn ca_params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2060, 1, 1);
    params
}

/// QEMU's TLS wants keyEncipherment beside digitalSignature.
/// It is good from long ago on: a clock that is behind must not shut a host out.
fn leaf(params: &mut CertificateParams, until: Timestamp) {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    // Never later than the CA's own end.
    let seconds = u64::try_from(until.as_second()).unwrap_or(0);
    let until = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    params.not_after = until.min(rcgen::date_time_ymd(2060, 1, 1));
}
