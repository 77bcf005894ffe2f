//! The connections of agents: a host joins, is streamed its desired document, and reports.

use std::convert::Infallible;
use std::time::Duration;

use api::Problem;
use api::agent::{JoinRequest, JoinResponse, KEEP_ALIVE_MS, RenewRequest, TIME_HEADER};
use api::kinds::{JoinToken, JoinTokenBody};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use controller::commit::commit;
use futures_util::stream;
use model::audit::Actor;
use model::host::JoinToken as StoredJoinToken;
use model::report::Report;
use model::{HostId, Kind, key, record};
use planner::Plan;
use planner::view::At;
use rand::Rng;
use store::RangeRequest;
use tokio::sync::watch;

use crate::answer::{Body, Refused, commit_problem, store_problem};
use crate::auth::{Agent, Connection, User, hex, sha256_hex};
use crate::hosts::{Documents, Joining, Said, Wish, take_report};
use crate::metrics::Present;
use crate::routes::App;
use crate::speakers::speaks;
use crate::watch::{Waited, push, until_changed};

/// How long a join token is accepted.
const JOIN_TOKEN_LIFE: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

/// A secret that nobody guesses: 256 random bits in hexadecimal.
pub fn secret(prefix: &str) -> String {
    let mut bytes = [0u8; 32];
    #[expect(
        clippy::disallowed_methods,
        reason = "a secret must not be reproducible from a seed"
    )]
    rand::rng().fill_bytes(&mut bytes);
    format!("{prefix}{}", hex(&bytes))
}

/// Makes a token with which one host joins.
pub async fn make_join_token(app: &App, user: &User, request: JoinTokenBody) -> Result<JoinToken, Problem> {
    let token = secret("join-");
    let now = app.env.now();
    let expires_at = now.checked_add(JOIN_TOKEN_LIFE).unwrap_or(now);
    let mut plan = Plan::new("make a join token");
    let stored = StoredJoinToken {
        name: request.name,
        expires_at,
        used_by: None,
        used_key_sha256: None,
    };
    plan.create(key::join_token(&sha256_hex(token.as_bytes())), &stored);
    let actor = user.actor();
    commit(app.writer(&actor), plan).await.map_err(commit_problem)?;
    Ok(JoinToken { token, expires_at })
}

/// Takes a host in, unless too many wrong tokens came from its address.
pub async fn join(
    State(app): State<App>,
    connection: Option<Extension<Connection>>,
    Body(body): Body,
) -> Result<Json<JoinResponse>, Refused> {
    let from = connection.map(|Extension(connection)| connection.peer.ip());
    let now = std::time::Instant::now();
    app.limits.knock(None, from, now)?;
    let joined = take_in(&app, &body).await;
    if joined.as_ref().is_err_and(|problem| problem.status == 401) {
        app.limits.turned_away(from, now)?;
    }
    Ok(Json(joined?))
}

/// The same token with the same key gets the same host again, so that a lost answer does no harm.
async fn take_in(app: &App, body: &[u8]) -> Result<JoinResponse, Problem> {
    let request: JoinRequest = serde_json::from_slice(body).map_err(|error| {
        Problem::new(
            400,
            "bad-json",
            format!("the join request is not understood: {error}"),
        )
    })?;
    let token_key = key::join_token(&sha256_hex(request.token.trim().as_bytes()));
    let found = app
        .store
        .range(RangeRequest::key(&token_key))
        .await
        .map_err(|error| store_problem(&error))?;
    let refused = || {
        let detail = "the join token is unknown, used or expired: make a new one with `sterna host token`";
        Problem::new(401, "bad-join-token", detail)
    };
    let kv = found.items.into_iter().next().ok_or_else(refused)?;
    let token: StoredJoinToken = record::decode(&kv.value).map_err(|_| refused())?;
    if app.env.now() >= token.expires_at {
        return Err(refused());
    }
    // Two copies of one machine may ask at the same time: each sees who joined before it.
    let _turn = app.joins.lock().await;
    let used = At {
        value: token,
        revision: kv.mod_revision,
    };
    let (host, name, plan, response) = admit(app, &request, &token_key, &used)?;
    let actor = Actor {
        name: format!("agent:{name}"),
        from: None,
        request: None,
    };
    let revision = commit(app.writer(&actor), plan).await.map_err(commit_problem)?;
    app.cache.reach(revision, Duration::from_secs(5)).await;
    tracing::info!(%host, name, "a host joined");
    Ok(response)
}

fn bad_request(error: crate::pki::PkiError) -> Problem {
    Problem::invalid("bad-certificate-request", error.to_string())
}

/// The digest of the host's key. A token that was used takes no other key than then.
fn admitted_key(request: &JoinRequest, token: &StoredJoinToken) -> Result<String, Problem> {
    let key_sha256 = sha256_hex(&crate::pki::public_key(&request.agent_csr_pem).map_err(bad_request)?);
    if token.used_by.is_some() && token.used_key_sha256.as_deref() != Some(key_sha256.as_str()) {
        let detail = "the join token was used with another key: make a new one with `sterna host token`";
        return Err(Problem::new(401, "bad-join-token", detail));
    }
    Ok(key_sha256)
}

/// What tells a machine from others, if it says and that is a digest.
fn machine(said: Option<&str>) -> Result<Option<&str>, Problem> {
    match said {
        Some(text) if !model::limits::is_sha256(text) => {
            let detail = "the machine is not told by 64 hexadecimal digits";
            Err(Problem::new(400, "bad-json", detail))
        }
        said => Ok(said),
    }
}

type Admitted = (HostId, String, Plan, JoinResponse);

/// Signs the host's keys and writes it down. A host that is there under that name with this token's mark is the same one;
/// one that was declared dead may come back under its name.
fn admit(
    app: &App,
    request: &JoinRequest,
    token_key: &str,
    token: &At<StoredJoinToken>,
) -> Result<Admitted, Problem> {
    let key_sha256 = admitted_key(request, &token.value)?;
    let view = app.cache.view();
    let wished = token.value.name.clone().or_else(|| request.name.clone());
    let name = wished
        .ok_or_else(|| Problem::invalid("name-missing", "the host says no name: start it with --name"))?;
    model::limits::check_name(&name)?;
    let wish = Wish {
        name: &name,
        machine: machine(request.machine.as_deref())?,
        used_by: token.value.used_by,
    };
    let joining = Joining::under(&view, wish, || app.env.next_id())?;
    let host = joining.host;
    let csrs = (request.agent_csr_pem.as_str(), request.migration_csr_pem.as_str());
    let (agent_sha256, response) = certificates(app, host, &name, csrs)?;
    let mut plan = joining.plan(app.env.now(), agent_sha256);
    let used = StoredJoinToken {
        used_by: Some(host),
        used_key_sha256: Some(key_sha256),
        ..token.value.clone()
    };
    plan.replace(token_key.to_owned(), token.revision, &used);
    Ok((host, name, plan, response))
}

/// Signs a host's two keys. The digest is of the certificate that it shows to servers.
fn certificates(
    app: &App,
    host: HostId,
    name: &str,
    (agent_csr, migration_csr): (&str, &str),
) -> Result<(String, JoinResponse), Problem> {
    let (now, life) = (app.env.now(), app.pki.life);
    let sign = |ca: &crate::pki::Ca, csr: &str| ca.sign_host(csr, host, name, now, life).map_err(bad_request);
    let (agent_pem, agent_der) = sign(&app.pki.agents, agent_csr)?;
    let (migration_pem, _) = sign(&app.pki.migration, migration_csr)?;
    let response = JoinResponse {
        host_id: host,
        name: name.to_owned(),
        agent_certificate_pem: agent_pem,
        agent_ca_pem: app.pki.agents.pem.clone(),
        migration_certificate_pem: migration_pem,
        migration_ca_pem: app.pki.migration.pem.clone(),
        renew_at: now.checked_add(life / 2).ok(),
    };
    Ok((sha256_hex(&agent_der), response))
}

/// Signs a host's keys anew, well before its certificates expire. The one that it shows goes on counting, until it has
/// asked with another one.
pub async fn renew(
    State(app): State<App>,
    agent: Agent,
    Body(body): Body,
) -> Result<Json<JoinResponse>, Refused> {
    let request: RenewRequest = serde_json::from_slice(&body)
        .map_err(|error| Problem::new(400, "bad-json", format!("the request is not understood: {error}")))?;
    let actor = agent.actor();
    let csrs = (request.agent_csr_pem.as_str(), request.migration_csr_pem.as_str());
    let (agent_sha256, response) = certificates(&app, agent.host, &agent.name, csrs)?;
    let mut plan = Plan::new(format!("renew the certificates of host {}", agent.name));
    {
        let view = app.cache.view();
        let at = view.hosts.get(&agent.host).and_then(|host| host.object.as_ref());
        let at = at.ok_or_else(|| Problem::not_found(Kind::Host, &agent.name))?;
        let mut object = at.value.clone();
        if let Some(machine) = machine(request.machine.as_deref())? {
            object.spec.machine = Some(machine.to_owned());
        }
        object.spec.certificate_sha256 = Some(agent_sha256);
        object.spec.former_certificate_sha256 = Some(agent.certificate_sha256.clone());
        plan.replace(key::object(Kind::Host, agent.host.0), at.revision, &object);
    }
    let revision = commit(app.writer(&actor), plan).await.map_err(commit_problem)?;
    app.cache.reach(revision, Duration::from_secs(5)).await;
    tracing::info!(host = agent.name, "a host has new certificates");
    Ok(Json(response))
}

/// Streams the host's desired document: a line when it changes, an empty line to show that the connection lives.
pub async fn document(State(app): State<App>, agent: Agent) -> Result<Response, Refused> {
    let bell = app.bells.listen(agent.host);
    let present = app.metrics.agent();
    let documents = Documents::begin(&app, agent.host).await?;
    let state = DocumentStream {
        app,
        bell,
        documents,
        agent,
        _present: present,
    };
    let lines = stream::unfold(state, |mut stream| async move {
        let chunk = stream.next().await?;
        Some((Ok::<Bytes, Infallible>(Bytes::from(chunk)), stream))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, axum::body::Body::from_stream(lines)).into_response())
}

struct DocumentStream {
    app: App,
    bell: watch::Receiver<u64>,
    documents: Documents,
    agent: Agent,
    _present: Present,
}

impl DocumentStream {
    /// What there is to tell now, if the machine at the other end speaks for the host in the view that it is made from.
    fn said(&mut self) -> Said {
        let view = self.app.cache.view();
        if speaks(&view, &self.agent) {
            self.documents.next(&view)
        } else {
            Said::Ended
        }
    }

    async fn next(&mut self) -> Option<Vec<u8>> {
        let quiet_until = tokio::time::Instant::now() + Duration::from_millis(KEEP_ALIVE_MS);
        loop {
            self.bell.borrow_and_update();
            match self.said() {
                Said::Document(document) => {
                    let mut line = Vec::new();
                    push(&mut line, &*document);
                    return Some(line);
                }
                Said::Nothing => {}
                Said::Ended => return None,
            }
            match until_changed(&mut self.bell, quiet_until).await {
                Waited::Changed => {}
                Waited::Closed => return None,
                Waited::Quiet => return Some(b"\n".to_vec()),
            }
        }
    }
}

/// Takes a report, and says what time it is.
pub async fn report(
    State(app): State<App>,
    agent: Agent,
    Body(body): Body,
) -> Result<impl IntoResponse + use<>, Refused> {
    let report: Report = serde_json::from_slice(&body)
        .map_err(|error| Problem::new(400, "bad-json", format!("the report is not understood: {error}")))?;
    take_report(&app, agent.host, &agent.actor(), report).await?;
    let time = [(TIME_HEADER, app.env.now().to_string())];
    Ok((StatusCode::NO_CONTENT, time))
}
