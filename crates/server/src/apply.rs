//! Something done in a guest that runs, through its agent: a script, files, users.
//!
//! ```text
//!  client ──POST, the content──▶ server ◀──WebSocket, dialled by the agent── agent ──▶ the guest's agent
//!    ▲                             │ the record, without the content
//!    └────── watches ── STORE ◀────┘ how it ended
//! ```
//!
//! **Owns:** what is asked for, checked; its content, for as long as the agent has not got it and nowhere but in memory;
//! and the end of its record, which this server writes unless it is gone by then.
//!
//! **Does not know:** how it is done in the guest, which is the agent's; when it counts as lost, which is the planner's.
//!
//! **Start here:** [`apply`].

mod body;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::Problem;
use api::agent::CallFor;
use api::apply::{ApplyAnswer, ApplyBody, ApplyOrder, TIMEOUT_S, WAITING_MAX};
use api::console::{KEEP_ALIVE, MESSAGE_MAX_BYTES, SEND_PATIENCE};
use api::kinds::{Operation, Vm};
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket};
use axum::http::Uri;
use axum::response::Response;
use controller::commit::{CommitError, commit};
use jiff::SignedDuration;
use model::audit::Actor;
use model::lifecycle::Phase;
use model::operation::{Applied, Apply};
use model::vm::Power;
use model::{HostId, OperationId, Reason, Timestamp, VmId, key};
use planner::admission::Stamp;
use planner::{Plan, View, operation};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::answer::{Body, Path, Refused};
use crate::auth::User;
use crate::kinds::{Served, vm_leads_on};
use crate::routes::{App, QueryOf, WriteQuery, find, query, request_id, respond};
use crate::service::{self, Context};

/// The largest body: what may be a mebibyte may take several times that as JSON.
pub const BODY_MAX_BYTES: usize = 4 << 20;
/// How many this server does at once.
pub const AT_ONCE_MAX: usize = 32;
/// How long after its deadline an agent may take to say how an apply ended. The planner waits longer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);
/// After so long without anything an agent counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(40);
/// How long after a failed write it is tried again, at first; each pause is twice the one before.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(10);

/// Takes a request, and has it done.
pub async fn apply(
    State(app): State<App>,
    user: User,
    uri: Uri,
    Path(name): Path<String>,
    found: QueryOf<WriteQuery>,
    Body(body): Body,
) -> Result<Response, Refused> {
    let query = query(found)?;
    let asked: ApplyBody = body::parse(&body)?;
    let timeout = body::timeout(asked.timeout_s.unwrap_or(TIMEOUT_S))?;
    let order = body::order(asked, timeout)?;
    drop(body);
    let steps: Vec<String> = order.steps.iter().map(api::apply::ApplyStep::words).collect();
    // What the content is, is left out: a digest of a password would tell of it.
    let fingerprint = steps.join("\n");
    let request = request_id(&query, "POST", uri.path(), fingerprint.as_bytes())?;
    let place = app.applies.clone().try_acquire_owned().map_err(|_| {
        let detail =
            format!("this server does {AT_ONCE_MAX} applies at once: try again when some have ended");
        Problem::new(503, "too-many-applies", detail)
    })?;
    let made = Mutex::new(None);
    let decide = |context: &Context<'_>, plan: &mut Plan| {
        let asking = decide(context, plan, &name, &steps, timeout)?;
        let operation = asking.operation;
        *made.lock().unwrap_or_else(PoisonError::into_inner) = Some(asking);
        Ok(operation.0)
    };
    if query.dry_run {
        return Ok(respond(service::dry_run::<Operation>(&app, &user, decide)?));
    }
    let answer = service::write::<Operation>(&app, &user, 202, request, decide).await?;
    let made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    // A repeat of a request is answered with the operation of the first, which is under way or has ended.
    if let Some(asking) = made.filter(|asking| answer.body["id"] == asking.operation.to_string()) {
        tokio::spawn(carry_out(app, asking, order, place));
    }
    Ok(respond(answer))
}

/// An apply that was asked for.
#[derive(Debug, Clone)]
struct Asking {
    operation: OperationId,
    vm: VmId,
    vm_name: String,
    apply: Apply,
}

/// Puts the record of an apply into a plan, or says why there can be none now.
fn decide(
    context: &Context<'_>,
    plan: &mut Plan,
    name: &str,
    steps: &[String],
    timeout: Duration,
) -> Result<Asking, Problem> {
    let id = VmId(find::<Vm>(context.view, name)?);
    let at = Vm::stored(context.view, id.0).ok_or_else(|| Problem::not_found(model::Kind::Vm, name))?;
    let meta = &at.value.meta;
    may_be_done(context.view, id, at.value.spec.power, &meta.name)?;
    let patience = SignedDuration::try_from(timeout).unwrap_or(SignedDuration::MAX);
    let apply = Apply {
        steps: steps.to_vec(),
        deadline: context.now.checked_add(patience).unwrap_or(Timestamp::MAX),
    };
    plan.action = format!("apply to vm {}: {}", meta.name, steps.join(", "));
    plan.rely(key::object(model::Kind::Vm, meta.id), at.revision);
    let intent = context.view.vms.get(&id).and_then(|vm| vm.intent.as_ref());
    plan.rely(key::vm_intent(id), intent.map_or(0, |at| at.revision));
    let asked = operation::asked_to_apply(context.view, meta, apply.clone());
    let mut next_id = || context.new_id;
    let mut stamp = Stamp {
        actor: &context.user.actor(),
        now: context.now,
        next_id: &mut next_id,
    };
    operation::create(plan, context.view, &asked, &mut stamp);
    Ok(Asking {
        operation: OperationId(context.new_id),
        vm: id,
        vm_name: meta.name.clone(),
        apply,
    })
}

/// Only a guest that runs where it is, and shall go on to, is told anything.
fn may_be_done(view: &View, id: VmId, power: Power, name: &str) -> Result<(), Problem> {
    let phase = view.phase(id).map_or(Phase::Unknown, |(phase, _)| phase);
    if phase != Phase::Running || power != Power::Running {
        let why = match phase {
            Phase::Running => "it is about to be something else",
            Phase::Migrating => {
                "while it moves, what is done in it could not be followed: wait for the end of its migration"
            }
            _ => "something can be done in a guest that runs, and in no other",
        };
        let detail = format!("VM {name} is {phase}: {why}; {}", vm_leads_on(view, id, phase));
        return Err(Problem::conflict("wrong-phase", detail));
    }
    if !is_ready(view, id) {
        let detail = format!(
            "the guest agent of {name} has not answered since it started: wait for it with `sterna vm start {name} --wait=ready`; a \
             guest without qemu-guest-agent cannot be told anything"
        );
        return Err(Problem::conflict("guest-not-ready", detail));
    }
    if operation::applies_under_way(view, id) >= WAITING_MAX {
        let detail = format!(
            "{WAITING_MAX} applies to {name} are under way, one after the other: wait for the end of one, `sterna operation list` \
             shows them"
        );
        return Err(Problem::conflict("under-way", detail));
    }
    Ok(())
}

/// Whether its guest's agent has answered.
fn is_ready(view: &View, id: VmId) -> bool {
    let vm = view.vms.get(&id);
    let open = vm.and_then(|vm| vm.intent.as_ref()?.value.open.as_ref());
    let run = open.and_then(|open| vm?.runs.get(&open.incarnation));
    run.is_some_and(|run| run.ready)
}

/// Has an apply done by the agent of the VM's host, and writes down how it ended.
async fn carry_out(app: App, asking: Asking, order: ApplyOrder, _place: OwnedSemaphorePermit) {
    let left = asking.apply.deadline.duration_since(app.env.now());
    let until = Instant::now() + Duration::try_from(left).unwrap_or_default() + ANSWER_PATIENCE;
    let ended = match timeout_at(until, ask(&app, &asking, &order)).await {
        Ok(ended) => ended,
        Err(_) => Err(lost(&asking)),
    };
    drop(order);
    if let Err((reason, _)) = &ended {
        tracing::info!(operation = %asking.operation, vm = %asking.vm, code = reason.code, "an apply has failed");
    }
    conclude(&app, &asking, ended).await;
}

type Outcome = Result<Applied, (Reason, Applied)>;

fn failed(code: &str, message: String) -> (Reason, Applied) {
    (Reason::new(code, message), Applied::default())
}

fn lost(asking: &Asking) -> (Reason, Applied) {
    let reason = operation::lost_reason(&asking.vm_name, &asking.apply);
    (reason, Applied::default())
}

/// Sends the order to the agent, and hears how it ended.
async fn ask(app: &App, asking: &Asking, order: &ApplyOrder) -> Outcome {
    let host = host_of(&app.cache.view(), asking.vm);
    let nowhere = || {
        failed(
            "apply-no-guest",
            format!("nothing was done: {} has no host any more", asking.vm_name),
        )
    };
    let host = host.ok_or_else(nowhere)?;
    let dialled = app.calls.dial(host, asking.vm, CallFor::Apply).await;
    let not_reached = |problem: Problem| {
        let message = format!("nothing was done: {}", problem.detail);
        failed(&problem.code, message)
    };
    let mut agent = dialled.map_err(not_reached)?;
    let text = serde_json::to_vec(order).map_err(|_| lost(asking))?;
    if !send_all(&mut agent, &text).await {
        // An order that has not come as a whole is not begun.
        let message = "nothing was done: the connection to the VM's host was lost; apply again".to_owned();
        return Err(failed("agent-away", message));
    }
    drop(text);
    match answer(&mut agent).await {
        Some(ApplyAnswer {
            applied,
            reason: None,
        }) => Ok(applied),
        Some(ApplyAnswer {
            applied,
            reason: Some(reason),
        }) => Err((reason, applied)),
        None => Err(lost(asking)),
    }
}

fn host_of(view: &View, vm: VmId) -> Option<HostId> {
    view.vms.get(&vm)?.intent.as_ref()?.value.host
}

async fn send_all(agent: &mut WebSocket, text: &[u8]) -> bool {
    let length = Message::Text(text.len().to_string().into());
    let chunks = text.chunks(MESSAGE_MAX_BYTES / 2);
    let chunks = chunks.map(|chunk| Message::Binary(chunk.to_vec().into()));
    for message in std::iter::once(length).chain(chunks) {
        if !send(agent, message).await {
            return false;
        }
    }
    true
}

async fn send(agent: &mut WebSocket, message: Message) -> bool {
    matches!(timeout(SEND_PATIENCE, agent.send(message)).await, Ok(Ok(())))
}

/// What the agent says in the end; `None` if it is lost before.
async fn answer(agent: &mut WebSocket) -> Option<ApplyAnswer> {
    let mut keep_alive = Instant::now() + KEEP_ALIVE;
    let mut heard_at = Instant::now();
    loop {
        tokio::select! {
            said = agent.recv() => {
                heard_at = Instant::now();
                match said?.ok()? {
                    Message::Text(text) => return serde_json::from_str(&text).ok(),
                    Message::Close(_) => return None,
                    _ => {}
                }
            }
            () = sleep_until(keep_alive) => {
                keep_alive = Instant::now() + KEEP_ALIVE;
                let is_silent = heard_at.elapsed() > SILENCE_MAX;
                if is_silent || !send(agent, Message::Ping(Vec::new().into())).await {
                    return None;
                }
            }
        }
    }
}

/// Writes down how an apply ended, unless that is written already: when it is late, the planner has.
async fn conclude(app: &App, asking: &Asking, ended: Outcome) {
    let actor = Actor {
        name: "server".to_owned(),
        from: None,
        request: None,
    };
    let mut pause = AGAIN;
    loop {
        let plan = end(app, asking.operation, ended.clone());
        let Some(plan) = plan else { return };
        match commit(app.writer(&actor), plan).await {
            Ok(_) => return,
            Err(CommitError::Conflict { .. }) => {
                let next = app.cache.revision().saturating_add(1);
                app.cache.reach(next, AGAIN).await;
            }
            Err(CommitError::Store(error)) => {
                tracing::warn!(%error, operation = %asking.operation, "how an apply ended was not stored; it is tried again");
                app.env.sleep(pause).await;
                pause = pause.saturating_mul(2).min(AGAIN_MAX);
            }
        }
    }
}

fn end(app: &App, id: OperationId, ended: Outcome) -> Option<Plan> {
    operation::end_apply(&app.cache.view(), id, ended, app.env.now())
}
