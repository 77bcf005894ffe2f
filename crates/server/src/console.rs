//! A person at a VM's console: who may be there, where the VM is, and following it when it moves.
//!
//! ```text
//!  client ──WebSocket──▶ server ◀──WebSocket, dialled by the agent── agent ──▶ QEMU
//! ```
//!
//! **Owns:** the connection of a person to the agent of the host that the VM is on, one after the other.
//!
//! **Does not know:** the console, which is the agent's.
//!
//! **Start here:** [`attach`].

use std::time::Duration;

use api::Problem;
use api::agent::CallFor;
use api::console::{KEEP_ALIVE, MESSAGE_MAX_BYTES, SEND_PATIENCE, short};
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Query, State};
use axum::response::Response;
use controller::commit::commit;
use model::lifecycle::Phase;
use model::{HostId, Incarnation, Kind, VmId};
use planner::{Plan, View};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::answer::{Path, Refused, commit_problem};
use crate::auth::{PROJECT, User};
use crate::routes::App;

/// How long a VM whose console ended may take to be somewhere else.
const MOVE_PATIENCE: Duration = Duration::from_secs(10);

/// What may stand behind the `?`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleQuery {
    log: bool,
}

/// Where a VM's console is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seat {
    host: HostId,
    incarnation: Incarnation,
}

/// Puts a person at a console, or shows the last part of its log.
pub async fn attach(
    State(app): State<App>,
    user: User,
    Path(name): Path<String>,
    query: Result<Query<ConsoleQuery>, axum::extract::rejection::QueryRejection>,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Refused> {
    user.must_be_operator("use a console")?;
    let Query(ConsoleQuery { log }) =
        query.map_err(|error| Problem::new(400, "bad-query", error.to_string()))?;
    let socket = socket.map_err(|error| {
        let detail = format!("a console is a WebSocket, and this is none: {error}");
        Problem::new(426, "no-websocket", detail)
    })?;
    let socket = socket.max_message_size(MESSAGE_MAX_BYTES);
    let vm = app.cache.view().find(Kind::Vm, Some(PROJECT), &name).map(VmId);
    let vm = vm.ok_or_else(|| Problem::not_found(Kind::Vm, &name))?;
    if log {
        let host = last_host(&app.cache.view(), vm, &name)?;
        let agent = app.calls.dial(host, vm, CallFor::ConsoleLog).await?;
        return Ok(socket.on_upgrade(async move |mut person| {
            let ended = Relay {
                person: &mut person,
                agent,
            }
            .until_it_ends()
            .await;
            close(person, if let Ended::Agent(why) = &ended { why } else { "" }).await;
        }));
    }
    let visit = Visit { app, vm, name, user };
    let seat = visit.seat().ok_or_else(|| visit.not_there())?;
    visit.note().await?;
    let agent = visit.dial(seat, false).await?;
    Ok(socket.on_upgrade(async move |person| visit.stay(person, seat, agent).await))
}

/// The host that has the VM's log.
fn last_host(view: &View, vm: VmId, name: &str) -> Result<HostId, Problem> {
    let intent = view.vms.get(&vm).and_then(|vm| vm.intent.as_ref());
    intent.and_then(|intent| intent.value.host).ok_or_else(|| {
        let detail = format!("{name} is on no host, so there is no log of its console: start it");
        Problem::conflict("no-console", detail)
    })
}

/// A person at the console of a VM.
struct Visit {
    app: App,
    vm: VmId,
    name: String,
    user: User,
}

impl Visit {
    fn phase(&self) -> Option<Phase> {
        self.app.cache.view().phase(self.vm).map(|(phase, _)| phase)
    }

    /// Where the console is now, if it has one.
    fn seat(&self) -> Option<Seat> {
        let has_console = matches!(
            self.phase()?,
            Phase::Boot | Phase::Running | Phase::Paused | Phase::Migrating | Phase::Shutdown
        );
        let view = self.app.cache.view();
        let intent = &view.vms.get(&self.vm)?.intent.as_ref()?.value;
        let seat = Seat {
            host: intent.host?,
            incarnation: intent.open.as_ref()?.incarnation,
        };
        has_console.then_some(seat)
    }

    fn not_there(&self) -> Problem {
        let name = &self.name;
        let is = self
            .phase()
            .map_or_else(|| "gone".to_owned(), |phase| phase.to_string());
        let detail = format!(
            "{name} is {is}, and only a VM that has a process has a console: `sterna vm explain {name}` says what leads \
             on, `sterna vm console {name} --log` shows what its guest wrote last"
        );
        Problem::conflict("no-console", detail)
    }

    /// For the audit trail.
    async fn note(&self) -> Result<(), Problem> {
        let plan = Plan::new(format!("attach to the console of vm {} ({})", self.name, self.vm));
        let actor = self.user.actor();
        commit(self.app.writer(&actor), plan)
            .await
            .map_err(commit_problem)?;
        Ok(())
    }

    async fn dial(&self, seat: Seat, from_start: bool) -> Result<WebSocket, Problem> {
        let from = self
            .user
            .from
            .map_or_else(String::new, |from| format!(" from {}", from.ip()));
        let who = format!("{}{from}", self.user.name);
        let what = CallFor::Console { who, from_start };
        self.app.calls.dial(seat.host, self.vm, what).await
    }

    /// Relays for as long as person and VM are there, wherever the VM goes.
    async fn stay(self, mut person: WebSocket, mut seat: Seat, mut agent: WebSocket) {
        let reason = loop {
            let relay = Relay {
                person: &mut person,
                agent,
            };
            let why = tokio::select! {
                ended = relay.until_it_ends() => match ended {
                    Ended::Person => return,
                    Ended::Agent(why) => why,
                },
                () = self.leaves(seat) => String::new(),
            };
            let Some(next) = self.next_seat(seat).await else {
                break self.farewell(&why);
            };
            match self.dial(next, true).await {
                Ok(dialled) => agent = dialled,
                Err(problem) => break problem.detail,
            }
            seat = next;
            let notice = format!("{} is on {} now", self.name, self.host_name(next.host));
            if !send(&mut person, Message::Text(notice.into())).await {
                return;
            }
        };
        close(person, &reason).await;
    }

    fn farewell(&self, why: &str) -> String {
        let is = self
            .phase()
            .map_or_else(|| "gone".to_owned(), |phase| phase.to_string());
        match why {
            "" => format!("{} is {is}", self.name),
            why => format!("{} is {is}: {why}", self.name),
        }
    }

    fn host_name(&self, host: HostId) -> String {
        let view = self.app.cache.view();
        let object = view.hosts.get(&host).and_then(|host| host.object.as_ref());
        object.map_or_else(|| host.to_string(), |at| at.value.meta.name.clone())
    }

    /// Until the VM has another incarnation, or none.
    async fn leaves(&self, seat: Seat) {
        let mut revisions = self.app.cache.subscribe();
        while self.seat() == Some(seat) && revisions.changed().await.is_ok() {}
    }

    /// Where the VM is after it was there, if it soon is somewhere.
    async fn next_seat(&self, before: Seat) -> Option<Seat> {
        let mut revisions = self.app.cache.subscribe();
        let deadline = Instant::now() + MOVE_PATIENCE;
        loop {
            match self.seat() {
                Some(seat) if seat != before => return Some(seat),
                // It ended for good, as far as anybody knows.
                None if !matches!(self.phase(), Some(Phase::Prolog | Phase::Pending | Phase::Epilog)) => {
                    return None;
                }
                _ => {}
            }
            timeout_at(deadline, revisions.changed()).await.ok()?.ok()?;
        }
    }
}

/// Why a relay ended.
enum Ended {
    Person,
    Agent(String),
}

/// Two connections whose messages are each other's.
struct Relay<'a> {
    person: &'a mut WebSocket,
    agent: WebSocket,
}

impl Relay<'_> {
    /// A side that does not take what it is sent in time is lost; the agent drops what is not taken meanwhile.
    async fn until_it_ends(mut self) -> Ended {
        let lost = || Ended::Agent("the connection to its host was lost".to_owned());
        let mut keep_alive = Instant::now() + KEEP_ALIVE;
        loop {
            let (to_person, message) = tokio::select! {
                said = self.person.recv() => match said {
                    Some(Ok(message @ Message::Binary(_))) => (false, message),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return Ended::Person,
                    Some(Ok(_)) => continue,
                },
                said = self.agent.recv() => match said {
                    Some(Ok(message @ (Message::Binary(_) | Message::Text(_)))) => (true, message),
                    Some(Ok(Message::Close(frame))) => {
                        return Ended::Agent(frame.map_or_else(String::new, |frame| frame.reason.to_string()));
                    }
                    Some(Err(_)) | None => return lost(),
                    Some(Ok(_)) => continue,
                },
                () = sleep_until(keep_alive) => {
                    keep_alive = Instant::now() + KEEP_ALIVE;
                    if !send(&mut self.agent, Message::Ping(Vec::new().into())).await {
                        return lost();
                    }
                    (true, Message::Ping(Vec::new().into()))
                }
            };
            if to_person {
                if !send(self.person, message).await {
                    return Ended::Person;
                }
            } else if !send(&mut self.agent, message).await {
                return lost();
            }
        }
    }
}

async fn send(socket: &mut WebSocket, message: Message) -> bool {
    matches!(timeout(SEND_PATIENCE, socket.send(message)).await, Ok(Ok(())))
}

async fn close(mut socket: WebSocket, reason: &str) {
    let frame = CloseFrame {
        code: close_code::NORMAL,
        reason: short(reason).into(),
    };
    send(&mut socket, Message::Close(Some(frame))).await;
}
