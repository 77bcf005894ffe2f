//! A small model of the controller: one migration from its order to its end, by what the agents report.

use model::document::{MigrateTo, Order, StartFrom, Stop, Target, TargetState};
use model::report::{OutgoingState, RunState};

use crate::world::{M, N, SOURCE, TARGET, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Preparing,
    Transferring,
    Decided,
    Activated,
    Done,
    /// The source goes on; the target has to close.
    Aborting,
    /// The source is closed or killed without having handed over.
    Revoking,
    /// The VM runs at the source.
    Aborted,
    /// Neither side has it any more: it may be started elsewhere, from its disk.
    Restart,
}

pub(crate) struct Controller {
    pub(crate) phase: Phase,
    pub(crate) cancel: bool,
    pub(crate) paused: bool,
    /// The record is never told that the source completed, so only `go` helps.
    pub(crate) is_deaf: bool,
    resume: bool,
    /// The source has to end, since the target ran.
    is_over: bool,
}

impl Controller {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Preparing,
            cancel: false,
            paused: false,
            is_deaf: false,
            resume: false,
            is_over: false,
        }
    }

    /// Reads the reports, and orders anew. Answers whether anything changed.
    pub(crate) fn step(&mut self, world: &mut World) -> bool {
        let phase = self.next(world);
        let is_new = phase != self.phase;
        self.phase = phase;
        let source = world.order(SOURCE, self.source_order(world));
        let target = world.order(TARGET, self.target_order(world));
        is_new || source || target
    }

    fn next(&mut self, world: &World) -> Phase {
        let source = world.hosts[SOURCE].reports.last();
        let target = world.hosts[TARGET].reports.last();
        let source_closed = source.is_some_and(|status| status.state.is_closed());
        let target_closed = target.is_some_and(|status| status.state.is_closed());
        let target_ran = target.is_some_and(|status| status.ran);
        let target_lives = target_ran
            && target.is_some_and(|status| matches!(status.state, RunState::Running | RunState::Paused));
        let outgoing = source
            .and_then(|status| status.outgoing.as_ref())
            .filter(|outgoing| outgoing.to == M);
        let has = |state| outgoing.is_some_and(|outgoing| outgoing.state == state);
        match self.phase {
            Phase::Preparing | Phase::Transferring | Phase::Decided | Phase::Revoking if target_lives => {
                Phase::Activated
            }
            Phase::Preparing | Phase::Transferring | Phase::Decided | Phase::Revoking
                if target_closed && target_ran =>
            {
                self.is_over = true;
                if source_closed {
                    Phase::Restart
                } else {
                    Phase::Revoking
                }
            }
            Phase::Preparing | Phase::Transferring if has(OutgoingState::Promised) => Phase::Aborting,
            Phase::Preparing | Phase::Transferring | Phase::Decided | Phase::Revoking if source_closed => {
                if target_closed {
                    Phase::Restart
                } else {
                    Phase::Revoking
                }
            }
            Phase::Preparing if target_closed || self.cancel => {
                self.cancel = true;
                Phase::Preparing
            }
            Phase::Preparing if target.is_some_and(|status| status.stream.is_some()) => Phase::Transferring,
            Phase::Transferring | Phase::Decided if has(OutgoingState::Completed) && target_closed => {
                self.resume = true;
                Phase::Aborting
            }
            Phase::Transferring if has(OutgoingState::Completed) && !self.is_deaf => Phase::Decided,
            Phase::Transferring if target_closed => {
                self.cancel = true;
                Phase::Transferring
            }
            Phase::Aborting if target_closed => {
                if source_closed {
                    Phase::Restart
                } else {
                    Phase::Aborted
                }
            }
            Phase::Activated if source_closed => Phase::Done,
            phase => phase,
        }
    }

    fn source_order(&self, world: &World) -> Option<Order> {
        let run = Order::Run {
            paused: self.paused,
            resume: self.resume,
            start: StartFrom::Disk,
        };
        match self.phase {
            Phase::Preparing | Phase::Transferring | Phase::Decided => Some(Order::MigrateTo(MigrateTo {
                to: M,
                host: world.hosts[TARGET].id.host,
                host_name: "h2".to_owned(),
                stream: world.hosts[TARGET]
                    .reports
                    .last()
                    .and_then(|status| status.stream.clone()),
                peer: Some("192.0.2.2:7000".to_owned()),
                granted: self.phase != Phase::Preparing,
                cancel: self.cancel,
                paused: self.paused,
                timeout_ms: 5_000,
            })),
            Phase::Aborting | Phase::Aborted => Some(run),
            Phase::Activated => Some(Order::Stop(Stop::Release)),
            Phase::Revoking if self.is_over => Some(Order::Stop(Stop::Kill)),
            Phase::Revoking => Some(run),
            Phase::Done | Phase::Restart => None,
        }
    }

    fn target_order(&self, world: &World) -> Option<Order> {
        let target = |state| {
            Some(Order::Target(Target {
                from: N,
                host: world.hosts[SOURCE].id.host,
                host_name: "h1".to_owned(),
                state,
                paused: self.paused,
                timeout_ms: 10_000,
            }))
        };
        match self.phase {
            Phase::Preparing if self.cancel => target(TargetState::Revoked),
            Phase::Preparing => target(TargetState::Prepare),
            Phase::Transferring => target(TargetState::Granted),
            Phase::Decided => target(TargetState::Decided),
            Phase::Activated | Phase::Done => Some(Order::Run {
                paused: self.paused,
                resume: false,
                start: StartFrom::Never,
            }),
            Phase::Aborting | Phase::Revoking => target(TargetState::Revoked),
            Phase::Aborted | Phase::Restart => None,
        }
    }
}
