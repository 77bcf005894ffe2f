//! Row by row: what each one leads to.
//!
//! A row's commands are those up to the first that touches QEMU, or up to a rest: after that only a look tells.

use model::document::{
    Disk, ImageFile, Machine, MigrateTo, Order, StartFrom, Stop, Target, TargetState, VmDocument,
};
use model::image::ImageFormat;
use model::report::{OutgoingState, RunState};
use model::vm::{BootDevice, GuestConfig};
use model::{HostId, Timestamp, VmId};

use super::*;
use crate::table::{self, ROWS};
use crate::types::{Guest, MigrationWord, RunStatusWord};

mod waiting;

const N: Incarnation = Incarnation(1);
const M: Incarnation = Incarnation(2);

const OFFLINE: Lease = Lease {
    live: false,
    fresh: false,
};
const LIVE: Lease = Lease {
    live: true,
    fresh: false,
};
const FRESH: Lease = Lease {
    live: true,
    fresh: true,
};

/// What a core finds.
struct Given {
    order: Option<Order>,
    qemu: Qemu,
    marks: Marks,
    lease: Lease,
    go: bool,
}

fn host(text: &str) -> HostId {
    format!("01900000-0000-7000-8000-00000000000{text}")
        .parse()
        .unwrap()
}

fn now() -> Now {
    Now {
        monotonic_us: 5_000_000,
        wall: Timestamp::from_second(1_700_000_000).unwrap(),
    }
}

fn identity(order: Option<&Order>) -> Identity {
    let is_target = matches!(order, Some(Order::Target(_)));
    let vm: VmId = "01900000-0000-7000-8000-000000000001".parse().unwrap();
    let incarnation = if is_target { M } else { N };
    Identity {
        vm,
        incarnation,
        host: host(if is_target { "b" } else { "a" }),
    }
}

fn document(incarnation: Incarnation, order: Order) -> Box<VmDocument> {
    let disk = Disk {
        datastore: "/data".to_owned(),
        coherent: true,
        image: Some(ImageFile {
            sha256: "00".to_owned(),
            format: ImageFormat::Qcow2,
        }),
        bytes: 1 << 30,
        layer: None,
    };
    let machine = Machine {
        name: "web".to_owned(),
        uuid: identity(None).vm.0,
        vcpus: 1,
        memory_mib: 256,
        disk,
        nics: Vec::new(),
        guest: GuestConfig::default(),
        cdrom: None,
        boot: BootDevice::USUAL.into(),
        firmware: Default::default(),
        keeps_memory: false,
        build: None,
    };
    Box::new(VmDocument {
        incarnation,
        order,
        machine,
        reboot: None,
        copies: Default::default(),
        cause: None,
    })
}

fn run() -> Option<Order> {
    Some(Order::Run {
        paused: false,
        resume: false,
        start: StartFrom::Disk,
    })
}

fn resume() -> Option<Order> {
    Some(Order::Run {
        paused: false,
        resume: true,
        start: StartFrom::Never,
    })
}

fn migrate(granted: bool, cancel: bool) -> Option<Order> {
    Some(Order::MigrateTo(MigrateTo {
        to: M,
        host: host("b"),
        host_name: "h2".to_owned(),
        stream: Some("tcp:192.0.2.2:4000".to_owned()),
        peer: Some("192.0.2.2:7000".to_owned()),
        granted,
        cancel,
        paused: false,
        timeout_ms: 60_000,
    }))
}

fn granted() -> Option<Order> {
    migrate(true, false)
}

fn cancelled() -> Option<Order> {
    migrate(true, true)
}

fn target(state: TargetState) -> Option<Order> {
    Some(Order::Target(Target {
        from: N,
        host: host("a"),
        host_name: "h1".to_owned(),
        state,
        paused: false,
        timeout_ms: 60_000,
    }))
}

fn qemu(run: RunStatusWord, migration: MigrationWord) -> Qemu {
    Qemu::Answers(QemuState {
        run,
        migration,
        migration_error: None,
        progress: None,
        downtime_limit_ms: None,
        is_incoming: false,
        guest: Guest::default(),
        ended: None,
        resets: 0,
        cdrom: None,
        copies: None,
    })
}

fn incoming(run: RunStatusWord, migration: MigrationWord) -> Qemu {
    match qemu(run, migration) {
        Qemu::Answers(state) => Qemu::Answers(QemuState {
            is_incoming: true,
            ..state
        }),
        other => other,
    }
}

fn running() -> Qemu {
    qemu(RunStatusWord::Running, MigrationWord::None)
}

fn pre_copy() -> Qemu {
    qemu(RunStatusWord::Running, MigrationWord::Active)
}

fn pre_switchover() -> Qemu {
    qemu(RunStatusWord::FinishMigrate, MigrationWord::PreSwitchover)
}

fn device() -> Qemu {
    qemu(RunStatusWord::FinishMigrate, MigrationWord::Device)
}

fn completed() -> Qemu {
    qemu(RunStatusWord::PostMigrate, MigrationWord::Completed)
}

fn failed() -> Qemu {
    qemu(RunStatusWord::Paused, MigrationWord::Failed)
}

fn loaded() -> Qemu {
    incoming(RunStatusWord::Paused, MigrationWord::Completed)
}

fn untouched() -> Marks {
    Marks::default()
}

fn launched() -> Marks {
    Marks {
        launched: true,
        ..Marks::default()
    }
}

fn ran() -> Marks {
    Marks {
        ran: true,
        ..launched()
    }
}

fn sent() -> Marks {
    Marks {
        sent: [M].into(),
        ..ran()
    }
}

fn no_switch(marks: Marks) -> Marks {
    Marks {
        no_switch: [M].into(),
        ..marks
    }
}

fn closed() -> Marks {
    Marks {
        closed: true,
        ..ran()
    }
}

/// A core that was told all and has not seen QEMU yet.
fn core_that_looks(given: &Given) -> Core {
    let id = identity(given.order.as_ref());
    let mut core = Core::new(id, given.marks.clone());
    let boxed = given.order.clone().map(|order| document(id.incarnation, order));
    let out = core.step(
        now(),
        Input::Desired {
            revision: 7,
            document: boxed,
        },
    );
    assert!(
        matches!(out.last(), Some((_, Effect::Look))),
        "it looks first: {out:?}"
    );
    core.step(now(), Input::Lease(given.lease));
    if given.go {
        core.step(now(), Input::Go { from: N, to: M });
    }
    core
}

/// A core that has looked once and is about to act.
fn core(given: &Given) -> (Core, Effects) {
    let mut core = core_that_looks(given);
    loop {
        let out = core.step(now(), Input::Observed(given.qemu.clone()));
        if !out.iter().any(|(_, effect)| *effect == Effect::Look) {
            return (core, out);
        }
    }
}

/// The commands that follow when each succeeds, up to the first that touches QEMU.
fn commands(core: &mut Core, given: &Given, mut out: Effects) -> Vec<Effect> {
    let mut commands = Vec::new();
    loop {
        let is_note = |effect: &Effect| matches!(effect, Effect::Report { .. } | Effect::Timer { .. });
        let Some((id, effect)) = out.into_iter().find(|(_, effect)| !is_note(effect)) else {
            return commands;
        };
        if effect == Effect::Look {
            out = core.step(now(), Input::Observed(given.qemu.clone()));
            continue;
        }
        commands.push(effect.clone());
        if touches_qemu(&effect) || matches!(effect, Effect::SendGo { .. }) {
            return commands;
        }
        out = core.step(now(), Input::Done(id, Outcome::Ok));
    }
}

fn leads_to(row: Row, given: &Given, expected: &[Effect]) {
    let (mut core, out) = core(given);
    let situation = core.situation(&given.qemu);
    assert_eq!(table::row(&situation), row, "{situation:?}");
    assert_eq!(commands(&mut core, given, out), expected);
}

fn promised(given: &Given) -> bool {
    let (mut core, out) = core(given);
    commands(&mut core, given, out);
    let outgoing = core.status().and_then(|status| status.outgoing.clone());
    outgoing.is_some_and(|outgoing| outgoing.state == OutgoingState::Promised)
}

fn mark(mark: Mark) -> Effect {
    Effect::Journal(mark)
}

fn close(code: Option<&str>) -> impl Fn(&Effect) -> bool {
    let code = code.map(str::to_owned);
    move |effect| match effect {
        Effect::Journal(Mark::Closed { reason, .. }) => {
            reason.as_ref().map(|reason| reason.code.clone()) == code
        }
        _ => false,
    }
}

/// As [`leads_to`], for a row that begins by closing: its sentence for people is not looked at.
fn closes(row: Row, given: &Given, code: Option<&str>, then: &[Effect]) {
    let (mut core, out) = core(given);
    assert_eq!(table::row(&core.situation(&given.qemu)), row);
    let commands = commands(&mut core, given, out);
    assert!(commands.first().is_some_and(close(code)), "{commands:?}");
    assert_eq!(commands[1..], *then);
}

const CANCEL: Effect = Effect::MigrateCancel;
const FORBID: Effect = Effect::Journal(Mark::NoSwitch { to: M });

macro_rules! rows {
    ($($name:ident: $row:ident, $order:expr, $qemu:expr, $marks:expr, $lease:expr => [$($effect:expr),*];)*) => {
        $(
            #[test]
            fn $name() {
                let given = Given { order: $order, qemu: $qemu, marks: $marks, lease: $lease, go: false };
                leads_to(Row::$row, &given, &[$($effect),*]);
            }
        )*

        /// Rows that have a test in this list.
        const LISTED: &[Row] = &[$(Row::$row),*];
    };
}

rows! {
    named_nowhere_it_is_killed: Nothing, None, running(), ran(), OFFLINE => [Effect::Kill];
    a_kill_is_carried_out: Stop, Some(Order::Stop(Stop::Kill)), running(), ran(), OFFLINE => [Effect::Kill];
    silence_is_borne: Silent, run(), Qemu::Silent, ran(), FRESH => [];
    what_is_left_of_a_closed_one_is_killed: Leftover, run(), running(), closed(), FRESH => [Effect::Kill];
    closed_without_a_process_it_is_unplugged: Gone, run(), Qemu::None, closed(), FRESH => [Effect::Release];
    a_boot: Boot, run(), Qemu::None, untouched(), FRESH => [
        Effect::Prepare { as_target: false }, mark(Mark::Launched), Effect::Spawn { incoming: false }
    ];
    no_boot_from_a_document_of_before: BootStale, run(), Qemu::None, untouched(), LIVE => [];
    a_boot_goes_on: Booting, run(), qemu(RunStatusWord::Prelaunch, MigrationWord::None), launched(), FRESH => [
        mark(Mark::Ran), Effect::OpenPorts, Effect::Continue
    ];
    no_boot_goes_on_without_a_fresh_document:
        BootingStale, run(), qemu(RunStatusWord::Prelaunch, MigrationWord::None), launched(), LIVE => [];
    what_runs_is_kept: Keep, run(), running(), ran(), OFFLINE => [Effect::OpenPorts];
    what_runs_before_the_grant_is_kept: Keep, migrate(false, false), running(), ran(), FRESH => [Effect::OpenPorts];
    what_is_paused_goes_on_as_the_spec_says:
        Paused, run(), qemu(RunStatusWord::Paused, MigrationWord::None), ran(), LIVE => [
            Effect::OpenPorts, Effect::Continue
        ];
    what_is_paused_stays_so_offline:
        PausedOffline, run(), qemu(RunStatusWord::Paused, MigrationWord::None), ran(), OFFLINE => [];
    run_cancels_a_transfer: RunUnderWay, run(), pre_copy(), sent(), OFFLINE => [CANCEL];
    run_waits_for_the_device_phase: RunDevice, run(), device(), sent(), FRESH => [];
    run_continues_what_failed: RunFailed, run(), failed(), sent(), FRESH => [Effect::OpenPorts, Effect::Continue];
    run_waits_with_what_failed_for_a_fresh_document: RunFailedStale, run(), failed(), sent(), LIVE => [];
    resume_continues_what_completed: Resume, resume(), completed(), sent(), FRESH => [
        Effect::OpenPorts, Effect::Continue
    ];
    resume_waits_for_a_fresh_document: ResumeStale, resume(), completed(), sent(), LIVE => [];
    a_transfer_starts: Start, granted(), running(), ran(), LIVE => [
        mark(Mark::Sent { to: M }), Effect::Migrate { to: M }
    ];
    no_transfer_starts_offline: StartOffline, granted(), running(), ran(), OFFLINE => [];
    a_transfer_goes_on: PreCopy, granted(), pre_copy(), sent(), OFFLINE => [];
    the_switch: Switch, granted(), pre_switchover(), sent(), LIVE => [Effect::MigrateContinue { to: M }];
    no_switch_offline: SwitchOffline, granted(), pre_switchover(), sent(), OFFLINE => [FORBID, CANCEL];
    a_cancel_is_repeated_in_pre_copy: CancelAgain, granted(), pre_copy(), no_switch(sent()), OFFLINE => [CANCEL];
    a_cancel_is_repeated_at_the_switch: CancelAgain, cancelled(), pre_switchover(), no_switch(sent()), FRESH => [CANCEL];
    the_device_phase_is_waited_for: Device, cancelled(), device(), no_switch(sent()), FRESH => [];
    go_is_sent_also_after_a_cancel: Completed, cancelled(), completed(), no_switch(sent()), OFFLINE => [
        Effect::SendGo {
            to: M, host: host("b"), host_name: "h2".to_owned(), peer: "192.0.2.2:7000".to_owned()
        }
    ];
    a_transfer_that_is_over_is_promised_away: Promise, granted(), running(), sent(), OFFLINE => [
        FORBID, Effect::OpenPorts
    ];
    what_failed_is_promised_away_and_goes_on: Failed, granted(), failed(), sent(), LIVE => [
        FORBID, Effect::OpenPorts, Effect::Continue
    ];
    what_failed_waits_offline: FailedOffline, cancelled(), failed(), sent(), OFFLINE => [];
    a_cancel_before_the_start_is_a_promise: PromiseUnsent, cancelled(), running(), ran(), OFFLINE => [
        FORBID, Effect::OpenPorts
    ];
    a_promise_stays_one_though_the_cancel_is_taken_back:
        PromiseUnsent, granted(), running(), no_switch(ran()), FRESH => [Effect::OpenPorts];
    a_cancel: Cancel, cancelled(), pre_switchover(), sent(), OFFLINE => [FORBID, CANCEL];
    what_is_not_ours_is_cancelled: Stray, granted(), pre_copy(), ran(), FRESH => [CANCEL];
    a_target_is_made: Target, target(TargetState::Prepare), Qemu::None, untouched(), FRESH => [
        Effect::Prepare { as_target: true }, mark(Mark::Launched), Effect::Spawn { incoming: true }
    ];
    no_target_from_a_document_of_before:
        TargetStale, target(TargetState::Granted), Qemu::None, untouched(), LIVE => [];
    a_target_listens:
        Incoming, target(TargetState::Prepare),
        incoming(RunStatusWord::InMigrate, MigrationWord::None), launched(), OFFLINE => [Effect::Listen];
    a_stream_is_waited_for:
        Incoming, target(TargetState::Granted),
        incoming(RunStatusWord::InMigrate, MigrationWord::Active), launched(), OFFLINE => [];
    a_loaded_target_waits: Loaded, target(TargetState::Granted), loaded(), launched(), FRESH => [];
    a_decided_target_runs: Go, target(TargetState::Decided), loaded(), launched(), OFFLINE => [
        mark(Mark::Ran), Effect::Continue
    ];
    a_target_that_ran_goes_on_though_it_is_revoked:
        TargetRan, target(TargetState::Revoked), loaded(), ran(), OFFLINE => [Effect::Continue];
    a_target_that_runs_is_kept_though_it_is_revoked:
        TargetRunning, target(TargetState::Revoked),
        incoming(RunStatusWord::Running, MigrationWord::Completed), ran(), OFFLINE => [
            Effect::OpenPorts, Effect::Announce
        ];
    what_cannot_be_is_left_as_it_is: Unforeseen, run(), loaded(), launched(), FRESH => [];
}

#[test]
fn an_unreadable_document_changes_nothing() {
    let mut core = Core::new(identity(None), ran());
    let reason = Reason::new("document-unreadable", "the document could not be read");
    core.step(now(), Input::Unreadable(reason.clone()));
    let out = core.step(now(), Input::Observed(running()));
    assert_eq!(table::row(&core.situation(&running())), Row::Unreadable);
    let [(_, Effect::Report { status, .. })] = &out[..] else {
        panic!("{out:?}")
    };
    assert_eq!((status.state, &status.reason), (RunState::Running, &Some(reason)));
}

#[test]
fn a_document_of_an_older_revision_is_ignored() {
    let given = Given {
        order: run(),
        qemu: running(),
        marks: ran(),
        lease: OFFLINE,
        go: false,
    };
    let (mut core, _) = core(&given);
    core.step(
        now(),
        Input::Desired {
            revision: 6,
            document: None,
        },
    );
    assert_eq!(table::row(&core.situation(&running())), Row::Keep);
    let older = Situation {
        document: Document::Older,
        ..core.situation(&running())
    };
    assert_eq!(table::row(&older), Row::Older);
    core.step(now(), Input::Lease(FRESH));
    assert!(
        !core.situation(&running()).lease.fresh,
        "it was not this document that was read now"
    );
}

#[test]
fn what_is_gone_is_closed() {
    let given = Given {
        order: run(),
        qemu: Qemu::None,
        marks: ran(),
        lease: OFFLINE,
        go: false,
    };
    closes(Row::Gone, &given, Some("qemu-exited"), &[Effect::Release]);
}

#[test]
fn a_guest_that_ended_is_closed_before_it_is_killed() {
    let ended = qemu(RunStatusWord::GuestPanicked, MigrationWord::None);
    let given = Given {
        order: run(),
        qemu: ended,
        marks: ran(),
        lease: OFFLINE,
        go: false,
    };
    closes(Row::Ended, &given, Some("guest-panic"), &[Effect::Kill]);
}

#[test]
fn a_target_that_is_revoked_is_closed() {
    let order = target(TargetState::Revoked);
    for (qemu, marks, then) in [
        (Qemu::None, untouched(), Effect::Release),
        (
            incoming(RunStatusWord::InMigrate, MigrationWord::Active),
            launched(),
            Effect::Kill,
        ),
        (loaded(), launched(), Effect::Kill),
    ] {
        let given = Given {
            order: order.clone(),
            qemu,
            marks,
            lease: OFFLINE,
            go: false,
        };
        closes(Row::Revoked, &given, None, &[then]);
    }
}

#[test]
fn an_incoming_stream_that_failed_closes_the_target() {
    let broken = incoming(RunStatusWord::InMigrate, MigrationWord::Failed);
    let order = target(TargetState::Granted);
    let given = Given {
        order,
        qemu: broken,
        marks: launched(),
        lease: OFFLINE,
        go: false,
    };
    closes(Row::Incoming, &given, Some("incoming-failed"), &[Effect::Kill]);
}

#[test]
fn go_makes_a_loaded_target_run_and_outranks_a_revocation() {
    for state in [TargetState::Prepare, TargetState::Granted, TargetState::Revoked] {
        let given = Given {
            order: target(state),
            qemu: loaded(),
            marks: launched(),
            lease: OFFLINE,
            go: true,
        };
        leads_to(Row::Go, &given, &[mark(Mark::Ran), Effect::Continue]);
    }
}

#[test]
fn go_at_a_target_that_is_known_to_have_loaded_needs_no_look() {
    let order = target(TargetState::Granted);
    let given = Given {
        order,
        qemu: loaded(),
        marks: launched(),
        lease: OFFLINE,
        go: false,
    };
    let (mut core, _) = core(&given);
    let out = core.step(now(), Input::Go { from: N, to: M });
    assert_eq!(out[0].1, mark(Mark::Ran));
    let out = core.step(now(), Input::LookAgain);
    assert_eq!(out, []);
    let out = core.step(now(), Input::Done(EffectId(core.last_effect), Outcome::Ok));
    assert_eq!(
        out[0].1,
        Effect::Continue,
        "an event in between does not hold it up"
    );
}

#[test]
fn a_source_that_completed_is_not_saved() {
    let suspend = Some(Order::Stop(Stop::Suspend));
    let given = Given {
        order: suspend,
        qemu: completed(),
        marks: sent(),
        lease: FRESH,
        go: false,
    };
    leads_to(Row::Stop, &given, &[Effect::Kill]);
}

#[test]
fn every_row_has_a_test() {
    let others = [Row::Unreadable, Row::Older, Row::Ended, Row::Revoked];
    for (row, _) in ROWS {
        assert!(LISTED.contains(row) || others.contains(row), "{row:?} has none");
    }
}

#[test]
fn the_promise_is_given_only_with_the_mark_and_with_nothing_under_way() {
    let given = |qemu, marks, lease| Given {
        order: cancelled(),
        qemu,
        marks,
        lease,
        go: false,
    };
    assert!(promised(&given(running(), ran(), OFFLINE)));
    assert!(promised(&given(running(), sent(), OFFLINE)));
    assert!(!promised(&given(pre_copy(), no_switch(sent()), OFFLINE)));
    assert!(!promised(&given(pre_switchover(), no_switch(sent()), FRESH)));
    assert!(!promised(&given(device(), no_switch(sent()), FRESH)));
    assert!(!promised(&given(completed(), no_switch(sent()), FRESH)));
    assert!(
        !promised(&given(failed(), no_switch(sent()), OFFLINE)),
        "not before it runs on"
    );
}

#[test]
fn the_promise_waits_for_a_look_after_the_mark() {
    let given = Given {
        order: cancelled(),
        qemu: running(),
        marks: sent(),
        lease: OFFLINE,
        go: false,
    };
    let (mut core, out) = core(&given);
    let (id, _) = out.iter().find(|(_, effect)| *effect == FORBID).unwrap();
    let out = core.step(now(), Input::Done(*id, Outcome::Ok));
    assert!(matches!(out[..], [(_, Effect::Look)]), "{out:?}");
    // It completed after all: the mark is void.
    let out = core.step(now(), Input::Observed(completed()));
    assert!(matches!(out[0].1, Effect::SendGo { .. }));
    let outgoing = core.status().and_then(|status| status.outgoing.clone()).unwrap();
    assert_eq!(outgoing.state, OutgoingState::Completed);
}

#[test]
fn nothing_comes_between_sent_and_migrate() {
    let given = Given {
        order: granted(),
        qemu: running(),
        marks: ran(),
        lease: LIVE,
        go: false,
    };
    let (mut core, out) = core(&given);
    let (id, effect) = &out[0];
    assert_eq!(*effect, mark(Mark::Sent { to: M }));
    let boxed = cancelled().map(|order| document(N, order));
    assert_eq!(
        core.step(
            now(),
            Input::Desired {
                revision: 8,
                document: boxed
            }
        ),
        []
    );
    assert_eq!(core.step(now(), Input::Lease(OFFLINE)), []);
    let out = core.step(now(), Input::Done(*id, Outcome::Ok));
    assert_eq!(out[0].1, Effect::Migrate { to: M });
}

#[test]
fn go_is_sent_before_completed_is_reported() {
    let given = Given {
        order: granted(),
        qemu: completed(),
        marks: sent(),
        lease: FRESH,
        go: false,
    };
    let (_, out) = core(&given);
    assert!(
        matches!(out[..], [(_, Effect::SendGo { .. }), (_, Effect::Report { .. })]),
        "{out:?}"
    );
}

#[test]
fn only_the_awaited_answer_counts() {
    let given = Given {
        order: Some(Order::Stop(Stop::Kill)),
        qemu: running(),
        marks: ran(),
        lease: FRESH,
        go: false,
    };
    let (mut core, out) = core(&given);
    let (id, effect) = &out[0];
    assert_eq!(*effect, Effect::Kill);
    // Answers to what came before, and what was seen before the kill.
    assert_eq!(core.step(now(), Input::Done(EffectId(id.0 - 1), Outcome::Ok)), []);
    assert_eq!(core.step(now(), Input::Observed(Qemu::None)), []);
    let out = core.step(now(), Input::Done(*id, Outcome::Ok));
    assert!(matches!(out[..], [(_, Effect::Look)]), "{out:?}");
}

#[test]
fn a_stream_that_does_not_arrive_in_time_closes_the_target() {
    let given = Given {
        order: target(TargetState::Granted),
        qemu: incoming(RunStatusWord::InMigrate, MigrationWord::Active),
        marks: launched(),
        lease: FRESH,
        go: false,
    };
    let (mut core, _) = core(&given);
    for (after_ms, is_closed) in [(59_999, false), (60_000, true)] {
        let now = Now {
            monotonic_us: now().monotonic_us + after_ms * 1000,
            ..now()
        };
        core.step(now, Input::LookAgain);
        let out = core.step(now, Input::Observed(given.qemu.clone()));
        assert_eq!(close(Some("incoming-timeout"))(&out[0].1), is_closed, "{out:?}");
    }
}

#[test]
fn a_mark_in_doubt_is_written_before_anything_else_is_done() {
    let given = Given {
        order: granted(),
        qemu: pre_switchover(),
        marks: sent(),
        lease: OFFLINE,
        go: false,
    };
    let (mut core, out) = core(&given);
    let reason = Reason::new("journal-timeout", "the journal did not answer");
    let failure = Failure {
        reason,
        is_retryable: true,
    };
    core.step(now(), Input::Failed(out[0].0, failure));
    // The connection is back, so the row would be the switch.
    core.step(now(), Input::Lease(FRESH));
    core.step(now(), Input::Observed(pre_switchover()));
    let later = Now {
        monotonic_us: now().monotonic_us + 1_000_000,
        ..now()
    };
    core.step(later, Input::LookAgain);
    let out = core.step(later, Input::Observed(pre_switchover()));
    assert_eq!(out[0].1, FORBID);
}

#[test]
fn a_save_that_waited_for_its_turn_in_vain_is_no_failure() {
    let given = Given {
        order: Some(Order::Stop(Stop::Suspend)),
        qemu: running(),
        marks: Marks {
            saving: true,
            ..ran()
        },
        lease: FRESH,
        go: false,
    };
    let (mut core, out) = core(&given);
    let (id, save) = &out[0];
    assert!(matches!(save, Effect::Save { .. }), "{out:?}");
    let desired = Input::Desired {
        revision: 8,
        document: run().map(|order| document(N, order)),
    };
    assert_eq!(core.step(now(), desired), []);
    let out = core.step(now(), Input::NotBegun(*id));
    assert_eq!(out[0].1, Effect::Look);
    core.step(now(), Input::Observed(running()));
    let status = core.status().unwrap();
    assert_eq!((status.state, &status.reason), (RunState::Running, &None));
}
