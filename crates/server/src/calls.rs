//! Calls: what a server asks of an agent that has a connection of its own. The agent hears of it on a stream that it keeps
//! open, and dials back.
//!
//! **Owns:** the agents that listen, and who waits for one of them to dial.
//!
//! **Does not know:** what goes over the connection.
//!
//! An agent listens at one server. Where there are several, a call for its host succeeds at that one only.
//!
//! **Start here:** [`Calls::dial`].

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::Problem;
use api::agent::{Call, CallFor, KEEP_ALIVE_MS};
use api::console::MESSAGE_MAX_BYTES;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use model::{HostId, VmId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::agents::secret;
use crate::answer::{Path, Refused};
use crate::auth::Agent;
use crate::routes::App;
use crate::speakers::speaks;
use crate::watch::push;

/// How long an agent may take to dial.
const DIAL_PATIENCE: Duration = Duration::from_secs(10);
/// Calls that an agent has not read yet.
const MAX_WAITING: usize = 64;

/// Who listens, and who waits.
#[derive(Debug, Default)]
pub struct Calls {
    listening: Mutex<BTreeMap<HostId, mpsc::Sender<Call>>>,
    waiting: Mutex<BTreeMap<String, (HostId, oneshot::Sender<WebSocket>)>>,
}

impl Calls {
    fn listening(&self) -> MutexGuard<'_, BTreeMap<HostId, mpsc::Sender<Call>>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<String, (HostId, oneshot::Sender<WebSocket>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to a host's agent, for this.
    pub async fn dial(&self, host: HostId, vm: VmId, what: CallFor) -> Result<WebSocket, Problem> {
        let away = |why: &str| {
            let detail = format!("the agent of the VM's host {why}: see `sterna status`, and try again");
            Problem::new(503, "agent-away", detail)
        };
        let sender = self.listening().get(&host).cloned();
        let sender = sender.ok_or_else(|| away("is not connected to this server"))?;
        let id = secret("call-");
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting {
            calls: self,
            id: id.clone(),
        };
        self.waiting().insert(id.clone(), (host, answer));
        sender
            .try_send(Call { id, vm, what })
            .map_err(|_| away("does not listen"))?;
        let socket = timeout(DIAL_PATIENCE, answered).await;
        drop(waiting);
        match socket {
            Ok(Ok(socket)) => Ok(socket),
            _ => Err(away("did not answer in time")),
        }
    }
}

/// Whoever does not wait any more is not there any more.
struct Waiting<'a> {
    calls: &'a Calls,
    id: String,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.calls.waiting().remove(&self.id);
    }
}

/// Streams calls to an agent: a line for each, an empty one to show that the connection lives. A newer stream of the same
/// host takes the place of an older one.
pub async fn listen(State(app): State<App>, agent: Agent) -> Response {
    let (sender, calls) = mpsc::channel(MAX_WAITING);
    app.calls.listening().insert(agent.host, sender);
    let lines = stream::unfold((calls, app, agent), |(mut calls, app, agent)| async move {
        let quiet = Duration::from_millis(KEEP_ALIVE_MS);
        let mut line = Vec::new();
        match timeout(quiet, calls.recv()).await {
            Ok(call) => push(&mut line, &call?),
            Err(_) => line.push(b'\n'),
        }
        let goes_on = speaks(&app.cache.view(), &agent);
        goes_on.then(|| (Ok::<_, Infallible>(Bytes::from(line)), (calls, app, agent)))
    });
    (
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(lines),
    )
        .into_response()
}

/// An agent dials. A call is answered once, by the host that was called.
pub async fn answer(
    State(app): State<App>,
    agent: Agent,
    Path(id): Path<String>,
    socket: WebSocketUpgrade,
) -> Result<Response, Refused> {
    let gone = || Problem::new(404, "no-call", "nobody waits for an answer to this call");
    let mut waiting = app.calls.waiting();
    if waiting.get(&id).is_none_or(|(host, _)| *host != agent.host) {
        return Err(gone().into());
    }
    let (_, answer) = waiting.remove(&id).ok_or_else(gone)?;
    drop(waiting);
    let socket = socket.max_message_size(MESSAGE_MAX_BYTES);
    Ok(socket.on_upgrade(async move |socket| drop(answer.send(socket))))
}
