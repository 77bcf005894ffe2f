//! The task of one incarnation: feeds its core, starts what the core asks for.
//!
//! **Owns:** the core, its timer, the effects under way.
//!
//! **Does not know:** what an effect does.
//!
//! **Start here:** [`run`].

use std::sync::Arc;
use std::time::Duration;

use driver::Core;
use driver::host::Orders;
use driver::types::{Effect, EffectId, Identity, Input, Marks};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use model::Incarnation;
use model::report::RunStatus;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::Host;
use super::exec::Vm;

/// `go` from the source's agent, checked to come from the host that the order names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Go {
    /// N.
    pub from: Incarnation,
    /// M.
    pub to: Incarnation,
}

/// What a task is given.
pub struct Inbox {
    /// Documents and lease.
    pub orders: watch::Receiver<Orders>,
    /// `go`.
    pub go: mpsc::Receiver<Go>,
    /// Where the status is shown, besides the report.
    pub status: watch::Sender<Option<Shown>>,
}

/// What is reported of an incarnation, for the rest of this agent.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The report.
    pub status: RunStatus,
    /// When QEMU said last that the guest goes on.
    pub continued_at: Option<std::time::Instant>,
}

type Running = FuturesUnordered<BoxFuture<'static, Input>>;

struct Task {
    core: Core,
    vm: Arc<Vm>,
    timer: Option<Instant>,
    running: Running,
    seen: Orders,
    status: watch::Sender<Option<Shown>>,
    forgetting: Option<EffectId>,
}

/// Runs until the incarnation is forgotten or nobody gives orders any more.
pub async fn run(id: Identity, marks: Marks, host: Arc<Host>, inbox: Inbox) {
    let Inbox {
        mut orders,
        mut go,
        status,
    } = inbox;
    let vm = Arc::new(Vm::new(id, host));
    let mut task = Task {
        core: Core::new(id, marks),
        vm,
        timer: None,
        running: Running::new(),
        seen: Orders::default(),
        status,
        forgetting: None,
    };
    let look = Arc::clone(&task.vm.look);
    orders.mark_changed();
    loop {
        let timer = task.timer;
        tokio::select! {
            biased;
            Some(input) = task.running.next() => {
                if task.is_forgotten(&input) {
                    return;
                }
                if let Some(how) = task.vm.take_ended() {
                    task.step(Input::Ended(how));
                }
                task.step(input);
            }
            Some(Go { from, to }) = go.recv() => task.step(Input::Go { from, to }),
            changed = orders.changed() => {
                let Ok(()) = changed else { return };
                let latest = orders.borrow_and_update().clone();
                task.obey(latest);
            }
            () = look.notified() => task.step(Input::LookAgain),
            () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {
                task.timer = None;
                task.step(Input::LookAgain);
            }
        }
    }
}

impl Task {
    fn obey(&mut self, latest: Orders) {
        let old = std::mem::replace(&mut self.seen, latest.clone());
        for input in latest.news(&old) {
            if let Input::Desired { document, .. } = &input {
                self.vm.follow(document.as_deref());
            }
            self.step(input);
        }
    }

    fn is_forgotten(&self, input: &Input) -> bool {
        matches!((input, self.forgetting), (Input::Done(done, _), Some(id)) if *done == id)
    }

    fn step(&mut self, input: Input) {
        let host = &self.vm.host;
        let span = self.vm.span();
        span.in_scope(|| tracing::debug!(?input, "step"));
        for (id, effect) in self.core.step(host.clock.now(), input) {
            span.in_scope(|| tracing::debug!(?id, ?effect, "effect"));
            match effect {
                Effect::Timer { at_us } => self.timer = Some(host.clock.instant(at_us)),
                Effect::Report { status, within_ms } => {
                    self.status.send_replace(Some(Shown {
                        status: (*status).clone(),
                        continued_at: self.vm.continued_at(),
                    }));
                    let within = Duration::from_millis(within_ms);
                    host.board.set_run(self.vm.id.vm, *status, within);
                }
                effect => {
                    self.forgetting = matches!(effect, Effect::Forget).then_some(id);
                    let work = Arc::clone(&self.vm).carry_out(id, effect);
                    self.running.push(Box::pin(work.instrument(span.clone())));
                }
            }
        }
    }
}
