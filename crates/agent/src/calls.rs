//! Calls: a server wants a stream of bytes, and the agent dials it.
//!
//! **Owns:** the stream on which calls come, and the connections that answer them. A call that fails ends with its reason;
//! nothing of it is kept, and nobody waits for it but the person who asked.
//!
//! **Does not know:** who may ask: that is the server's.
//!
//! **Start here:** [`answer_all`].

use std::sync::Arc;

use api::agent::{Call, CallFor};
use api::apply::{ApplyAnswer, ApplyOrder, ORDER_MAX_BYTES};
use api::console::{Console, MESSAGE_MAX_BYTES, Said};
use model::Reason;
use model::operation::Applied;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::link::{self, Backoff, StreamError};
use crate::vm::Host;
use crate::vm::console::{self, Attachment, Shown};

/// How many are answered at once; more wait, and their callers give up by themselves.
const MAX_CALLS: usize = 64;
/// How much of a log is sent.
const TAIL_BYTES: u64 = 256 << 10;

/// Answers calls for as long as it is let.
pub async fn answer_all(client: reqwest::Client, server: String, host: &Arc<Host>) {
    let mut backoff = Backoff::new();
    loop {
        let mut was_heard = false;
        let ended = hear(&client, &server, host, &mut was_heard).await;
        if was_heard {
            backoff = Backoff::new();
        }
        if let Err(error) = ended {
            tracing::debug!(%server, error = link::chain(&error), "the stream of calls ended; trying again");
        }
        backoff.wait().await;
    }
}

async fn hear(
    client: &reqwest::Client,
    server: &str,
    host: &Arc<Host>,
    was_heard: &mut bool,
) -> Result<(), StreamError> {
    let places = Arc::new(Semaphore::new(MAX_CALLS));
    let mut answers = JoinSet::new();
    let mut lines = link::open(client, &format!("{server}/agent/v1/calls")).await?;
    loop {
        let line = lines.next().await?;
        *was_heard = true;
        while answers.try_join_next().is_some() {}
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let call: Call = serde_json::from_slice(&line)?;
        let dial = client.get(format!("{server}/agent/v1/calls/{}", call.id));
        let (places, host) = (Arc::clone(&places), Arc::clone(host));
        answers.spawn(async move {
            let _place = places.acquire_owned().await;
            match Console::dial(dial).await {
                Ok(line) => answer(line, &host, call).await,
                Err(error) => tracing::warn!(error = link::chain(&error), "a call was not answered"),
            }
        });
    }
}

async fn answer(mut line: Console, host: &Host, call: Call) {
    let reason = match call.what {
        CallFor::Console { who, from_start } => {
            let place = host.consoles.find(call.vm).and_then(|hub| hub.attach(&who));
            match place {
                Some(place) => at_console(&mut line, place, from_start).await,
                None => "its console is not there, or too many are at it".to_owned(),
            }
        }
        CallFor::ConsoleLog => send_log(&mut line, host, &call).await,
        CallFor::Apply => apply(&mut line, host, &call).await,
    };
    line.end(&reason).await;
}

async fn send_log(line: &mut Console, host: &Host, call: &Call) -> String {
    let path = host.dir.vm(call.vm).console_log();
    let tail = tokio::task::spawn_blocking(move || console::tail(&path, TAIL_BYTES)).await;
    match tail {
        Ok(Ok(tail)) => {
            send_all(line, &tail).await;
            String::new()
        }
        Ok(Err(error)) => format!("its log cannot be read: {error}"),
        Err(error) => format!("its log cannot be read: {error}"),
    }
}

/// Takes an order for a guest and says what came of it. Whoever gave it may go; what was begun goes on.
async fn apply(line: &mut Console, host: &Host, call: &Call) -> String {
    let given = take_order(line).await;
    let answer = match given.and_then(|order| host.guests.give(call.vm, order)) {
        Ok(mut answered) => loop {
            tokio::select! {
                answer = &mut answered => match answer {
                    Ok(answer) => break answer,
                    Err(_) => return "its QEMU ended".to_owned(),
                },
                said = line.next() => if let Said::Ended(_) = said {
                    return String::new();
                },
            }
        },
        Err(reason) => ApplyAnswer {
            applied: Applied::default(),
            reason: Some(reason),
        },
    };
    match serde_json::to_string(&answer) {
        Ok(text) => {
            line.notice(text).await;
            String::new()
        }
        Err(error) => format!("what came of it cannot be said: {error}"),
    }
}

/// The order that comes behind its length. Why there is none says nothing of what it has: that is a secret.
async fn take_order(line: &mut Console) -> Result<ApplyOrder, Reason> {
    let not_understood = || {
        let message =
            "nothing was done: the order is not understood; are server and agent of the same release?";
        Reason::new("apply-not-understood", message)
    };
    let Said::Notice(length) = line.next().await else {
        return Err(not_understood());
    };
    let length: usize = length.parse().map_err(|_| not_understood())?;
    if length > ORDER_MAX_BYTES {
        return Err(not_understood());
    }
    let mut order = Vec::new();
    while order.len() < length {
        match line.next().await {
            Said::Bytes(bytes) => order.extend(bytes),
            Said::Notice(_) => {}
            Said::Ended(_) => return Err(not_understood()),
        }
    }
    serde_json::from_slice(&order).map_err(|_| not_understood())
}

/// Until either side ends; why.
async fn at_console(line: &mut Console, mut place: Attachment, from_start: bool) -> String {
    let lost = || "the connection to the server was lost".to_owned();
    if from_start && !send_all(line, &place.recent).await {
        return lost();
    }
    if !place.others.is_empty() {
        let others = format!("also at this console: {}", place.others.join(", "));
        line.notice(others).await;
    }
    loop {
        let is_taken = tokio::select! {
            shown = place.shown.recv() => match shown {
                Some(Shown::Bytes(bytes)) => line.send(bytes.into()).await,
                Some(Shown::Lost(bytes)) => line.notice(format!("{bytes} bytes were not taken in time and are left out")).await,
                Some(Shown::Joined(who)) => line.notice(format!("{who} is at this console, too")).await,
                None => return "its QEMU ended".to_owned(),
            },
            said = line.next() => match said {
                Said::Bytes(bytes) => match place.typed.try_send(bytes) {
                    Ok(()) => true,
                    Err(_) => line.notice("the guest does not take what is typed".to_owned()).await,
                },
                Said::Notice(_) => true,
                Said::Ended(_) => return String::new(),
            },
        };
        if !is_taken {
            return lost();
        }
    }
}

async fn send_all(line: &mut Console, bytes: &[u8]) -> bool {
    for chunk in bytes.chunks(MESSAGE_MAX_BYTES / 2) {
        if !line.send(chunk.to_vec()).await {
            return false;
        }
    }
    true
}
