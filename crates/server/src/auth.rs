//! Who asks: a bearer token for people and programs, a client certificate for agents.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use api::Problem;
use api::agent::SPEAKER_HEADER;
use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use model::audit::Actor;
pub use model::digest::hex;
use model::token::{Role, TokenRecord};
use model::{HostId, key, record};
use sha2::{Digest, Sha256};
use store::RangeRequest;

use crate::answer::{Refused, store_problem};
use crate::requests::RequestId;
use crate::routes::App;

/// The project that tokens of the first release work in.
pub const PROJECT: &str = "default";

/// A person or program that has shown a token.
#[derive(Debug, Clone)]
pub struct User {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The digest of its token.
    pub digest: String,
    /// Where the request came from.
    pub from: Option<SocketAddr>,
    /// The id of the request.
    pub request: Option<String>,
}

/// Whose token the server makes by itself.
pub const ADMIN: &str = "admin";

impl User {
    /// Refuses what only an administrator may do.
    pub fn must_be_admin(&self, what: &str) -> Result<(), Problem> {
        if self.role >= Role::Admin {
            return Ok(());
        }
        let detail =
            format!("only an administrator may {what}: use the token in the server's data directory");
        Err(Problem::new(403, "not-admin", detail))
    }

    /// Refuses what needs more than a reader's token.
    pub fn must_be_operator(&self, what: &str) -> Result<(), Problem> {
        if self.role >= Role::Operator {
            return Ok(());
        }
        let detail = format!("a token of the role reader may not {what}: use an operator's");
        Err(Problem::new(403, "read-only-token", detail))
    }

    /// Who writes, for the audit trail.
    pub fn actor(&self) -> Actor {
        Actor {
            name: format!("user:{}", self.name),
            from: self.from.map(|address| address.to_string()),
            request: self.request.clone(),
        }
    }
}

/// What is known of a connection.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The other end.
    pub peer: SocketAddr,
    /// The certificate that it has shown, as DER; its chain is verified.
    pub certificate: Option<Vec<u8>>,
}

/// The lower-case hexadecimal SHA-256 of something.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

impl FromRequestParts<App> for User {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refused> {
        let now = Instant::now();
        let connection = parts.extensions.get::<Connection>();
        let from = connection.map(|connection| connection.peer);
        let address = from.map(|from| from.ip());
        let header = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let digest = header
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(|token| sha256_hex(token.trim().as_bytes()));
        app.limits.knock(digest.as_deref(), address, now)?;
        let Some(digest) = digest else {
            app.limits.turned_away(address, now)?;
            let detail = "the request shows no token: set STERNA_TOKEN, or send `Authorization: Bearer …`";
            return Err(Problem::new(401, "no-token", detail).into());
        };
        let Some(token) = valid_token(app, &digest).await? else {
            app.limits.turned_away(address, now)?;
            let detail = "the token is unknown or has expired: take the one in the server's data directory, \
                          or ask for a new one";
            return Err(Problem::new(401, "bad-token", detail).into());
        };
        app.limits.let_in(&digest, now);
        app.limits.request(&token.user, now)?;
        let user = Self {
            name: token.user,
            role: token.role,
            digest,
            from,
            request: parts.extensions.get::<RequestId>().map(|id| id.0.clone()),
        };
        if !parts.method.is_safe() {
            user.must_be_operator("change anything")?;
        }
        Ok(user)
    }
}

/// What a token with this digest stands for, if it counts.
async fn valid_token(app: &App, digest: &str) -> Result<Option<TokenRecord>, Problem> {
    let request = RangeRequest::key(key::token(digest));
    let found = app
        .store
        .range(request)
        .await
        .map_err(|error| store_problem(&error))?;
    let token = found
        .items
        .first()
        .and_then(|kv| record::decode::<TokenRecord>(&kv.value).ok());
    let now = app.env.now();
    Ok(token.filter(|token| token.counts(now)))
}

/// How often it is asked whether the token of an open stream still counts.
const RECHECK: Duration = Duration::from_secs(30);

/// Whether somebody who follows a stream may still do so.
#[derive(Debug)]
pub struct Standing {
    digest: String,
    asked_at: Instant,
}

impl Standing {
    /// The user's token counted just now.
    pub fn of(user: &User) -> Self {
        Self {
            digest: user.digest.clone(),
            asked_at: Instant::now(),
        }
    }

    /// Asks again, now and then. While the store does not answer, what was known holds.
    pub async fn holds(&mut self, app: &App) -> bool {
        if self.asked_at.elapsed() < RECHECK {
            return true;
        }
        self.asked_at = Instant::now();
        !matches!(valid_token(app, &self.digest).await, Ok(None))
    }
}

/// An agent that has shown its host's certificate, from the machine that speaks for the host.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its host.
    pub host: HostId,
    /// The host's name.
    pub name: String,
    /// The digest of the certificate that was shown.
    pub certificate_sha256: String,
    /// What tells its machine from a copy of it, if it says.
    pub speaker: Option<String>,
    /// Where the request came from.
    pub from: SocketAddr,
}

impl Agent {
    /// Who writes, for the audit trail.
    pub fn actor(&self) -> Actor {
        Actor {
            name: format!("agent:{}", self.name),
            from: Some(self.from.to_string()),
            request: None,
        }
    }
}

impl FromRequestParts<App> for Agent {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refused> {
        let agent = certified(parts, app)?;
        app.heard.speakers.admit(app, &agent).await?;
        Ok(agent)
    }
}

/// The agent of a host that is one of the cloud's, with the certificate that it got last.
fn certified(parts: &Parts, app: &App) -> Result<Agent, Problem> {
    let refuse = |code, detail: String| Problem::new(403, code, detail);
    let connection = parts.extensions.get::<Connection>();
    let Some((certificate, from)) = connection.and_then(|c| Some((c.certificate.as_deref()?, c.peer))) else {
        let detail = "agents show the certificate that they got when they joined: join with a token first";
        return Err(Problem::new(401, "no-certificate", detail));
    };
    let host = host_of_certificate(certificate)
        .ok_or_else(|| refuse("not-an-agent", "the certificate is not one of a host".to_owned()))?;
    let shown = sha256_hex(certificate);
    let view = app.cache.view();
    let object = view.hosts.get(&host).and_then(|host| host.object.as_ref());
    let Some(object) = object.map(|at| &at.value) else {
        return Err(refuse(
            "host-removed",
            format!("host {host} was removed from the cloud: join again"),
        ));
    };
    if object.spec.confirmed_dead_at.is_some() {
        let detail = format!(
            "host {} was declared dead, and its VMs may run elsewhere: join again",
            object.meta.name
        );
        return Err(refuse("host-dead", detail));
    }
    let spec = &object.spec;
    let known = [&spec.certificate_sha256, &spec.former_certificate_sha256];
    if !known
        .into_iter()
        .any(|digest| digest.as_deref() == Some(shown.as_str()))
    {
        let detail = format!(
            "the certificate is not the one that host {} got last: join again",
            object.meta.name
        );
        return Err(refuse("certificate-replaced", detail));
    }
    Ok(Agent {
        host,
        name: object.meta.name.clone(),
        certificate_sha256: shown,
        speaker: speaker(parts),
        from,
    })
}

/// What the agent says that tells its machine from a copy of it.
fn speaker(parts: &Parts) -> Option<String> {
    let said = parts.headers.get(SPEAKER_HEADER)?.to_str().ok()?;
    model::limits::is_sha256(said).then(|| said.to_owned())
}

/// The host that a verified certificate was made for.
pub fn host_of_certificate(der: &[u8]) -> Option<HostId> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        x509_parser::extensions::GeneralName::DNSName(name) => {
            name.strip_suffix(api::agent::HOST_SAN_SUFFIX)?.parse().ok()
        }
        _ => None,
    })
}
