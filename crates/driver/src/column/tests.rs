//! Each word of the column, from what QEMU says under which order and with which marks.

use model::document::{MigrateTo, Stop, Target, TargetState};
use model::{HostId, Incarnation};

use super::*;
use crate::types::Guest;

const M: Incarnation = Incarnation(2);
const BEFORE: Incarnation = Incarnation(1);

fn host() -> HostId {
    "01900000-0000-7000-8000-00000000000a".parse().unwrap()
}

fn run(start: StartFrom) -> Order {
    Order::Run {
        paused: false,
        resume: false,
        start,
    }
}

fn migrate(granted: bool, paused: bool) -> Order {
    Order::MigrateTo(MigrateTo {
        to: M,
        host: host(),
        host_name: "h2".to_owned(),
        stream: None,
        peer: None,
        granted,
        cancel: false,
        paused,
        timeout_ms: 1,
    })
}

fn target() -> Order {
    Order::Target(Target {
        from: BEFORE,
        host: host(),
        host_name: "h1".to_owned(),
        state: TargetState::Granted,
        paused: false,
        timeout_ms: 1,
    })
}

fn state(run: RunStatusWord, migration: MigrationWord, is_incoming: bool) -> Qemu {
    Qemu::Answers(QemuState {
        run,
        migration,
        migration_error: None,
        progress: None,
        downtime_limit_ms: None,
        is_incoming,
        guest: Guest::default(),
        ended: None,
        resets: 0,
        cdrom: None,
        copies: None,
    })
}

fn sent(to: &[Incarnation]) -> Marks {
    Marks {
        launched: true,
        ran: true,
        sent: to.iter().copied().collect(),
        ..Marks::default()
    }
}

fn check(order: &Order, marks: &Marks, cases: &[(RunStatusWord, MigrationWord, Column)]) {
    for (run, migration, column) in cases {
        let is_incoming = matches!(order, Order::Target(_));
        let seen = Column::of(&state(*run, *migration, is_incoming), marks, Some(order));
        assert_eq!(seen, *column, "{run:?}, {migration:?} under {order:?}");
    }
}

use MigrationWord as Word;
use RunStatusWord as Is;

#[test]
fn a_source_is_judged_by_what_was_sent() {
    check(
        &migrate(true, false),
        &sent(&[M]),
        &[
            (Is::Running, Word::None, Column::Running),
            (Is::Running, Word::Setup, Column::PreCopy),
            (Is::Running, Word::Active, Column::PreCopy),
            (Is::FinishMigrate, Word::Active, Column::PreCopy),
            (Is::FinishMigrate, Word::PreSwitchover, Column::PreSwitchover),
            (Is::FinishMigrate, Word::Device, Column::Device),
            (Is::FinishMigrate, Word::Completed, Column::Device),
            (Is::PostMigrate, Word::Completed, Column::Completed),
            (Is::PostMigrate, Word::None, Column::Odd),
            (Is::Running, Word::Failed, Column::Running),
            (Is::Running, Word::Completed, Column::Running),
            (Is::Paused, Word::Completed, Column::Running),
            (Is::Paused, Word::Failed, Column::Failed),
            (Is::FinishMigrate, Word::Failed, Column::Failed),
            (Is::Paused, Word::Cancelled, Column::Failed),
            (Is::FinishMigrate, Word::Cancelling, Column::PreCopy),
            (Is::Shutdown, Word::Failed, Column::Ended),
            (Is::Shutdown, Word::Active, Column::PreCopy),
        ],
    );
}

#[test]
fn what_was_sent_to_another_is_not_this_migrations() {
    check(
        &migrate(true, false),
        &sent(&[BEFORE]),
        &[
            (Is::Running, Word::Cancelled, Column::Running),
            (Is::Paused, Word::Failed, Column::Running),
            (Is::Running, Word::Active, Column::Stray),
            (Is::FinishMigrate, Word::PreSwitchover, Column::Stray),
            (Is::FinishMigrate, Word::Device, Column::Device),
            (Is::PostMigrate, Word::Completed, Column::Odd),
        ],
    );
}

#[test]
fn a_guest_that_the_user_paused_has_not_been_stopped_by_a_failure() {
    check(
        &migrate(true, true),
        &sent(&[M]),
        &[
            (Is::Paused, Word::Failed, Column::Running),
            (Is::Paused, Word::Cancelled, Column::Running),
            (Is::FinishMigrate, Word::Failed, Column::Failed),
            (Is::PostMigrate, Word::Completed, Column::Completed),
        ],
    );
}

#[test]
fn before_the_grant_it_is_run_n_by_another_name() {
    check(
        &migrate(false, false),
        &sent(&[]),
        &[
            (Is::Running, Word::None, Column::Running),
            (Is::Paused, Word::None, Column::Paused),
            (Is::Running, Word::Active, Column::Stray),
        ],
    );
}

#[test]
fn a_qemu_that_was_a_target_shows_an_old_completed_while_it_runs() {
    let order = run(StartFrom::Never);
    for (is, column) in [
        (Is::Running, Column::Running),
        (Is::Paused, Column::Paused),
        (Is::Shutdown, Column::Ended),
    ] {
        assert_eq!(
            Column::of(&state(is, Word::Completed, true), &sent(&[]), Some(&order)),
            column
        );
    }
}

#[test]
fn run_knows_the_boot_the_save_and_the_migrations_before() {
    let disk = run(StartFrom::Disk);
    check(
        &disk,
        &sent(&[]),
        &[
            (Is::Prelaunch, Word::None, Column::Booting),
            (Is::Paused, Word::None, Column::Paused),
            (Is::IoError, Word::None, Column::Paused),
            (Is::InternalError, Word::None, Column::Paused),
            (Is::GuestPanicked, Word::None, Column::Ended),
            // A save, and one that failed.
            (Is::FinishMigrate, Word::Active, Column::PreCopy),
            (Is::PostMigrate, Word::Completed, Column::Paused),
            (Is::Paused, Word::Failed, Column::Paused),
        ],
    );
    check(
        &disk,
        &sent(&[M]),
        &[
            (Is::PostMigrate, Word::Completed, Column::Completed),
            (Is::Running, Word::Completed, Column::Running),
            (Is::Paused, Word::Failed, Column::Failed),
            (Is::Paused, Word::Completed, Column::Paused),
        ],
    );
}

#[test]
fn a_saved_state_boots_until_it_is_continued() {
    let saved = run(StartFrom::Saved {
        incarnation: BEFORE,
        saved_in: model::vm::SavedIn::Host,
    });
    let launched = Marks {
        launched: true,
        ..Marks::default()
    };
    for word in [Word::None, Word::Active, Word::Failed, Word::Completed] {
        assert_eq!(
            Column::of(&state(Is::InMigrate, word, true), &launched, Some(&saved)),
            Column::Booting
        );
    }
    let loaded = state(Is::Paused, Word::Completed, true);
    assert_eq!(Column::of(&loaded, &launched, Some(&saved)), Column::Booting);
    assert_eq!(Column::of(&loaded, &sent(&[]), Some(&saved)), Column::Paused);
}

#[test]
fn a_target_is_incoming_until_the_whole_stream_is_loaded() {
    let launched = Marks {
        launched: true,
        ..Marks::default()
    };
    check(
        &target(),
        &launched,
        &[
            (Is::InMigrate, Word::None, Column::Incoming),
            (Is::InMigrate, Word::Active, Column::Incoming),
            (Is::InMigrate, Word::Failed, Column::Incoming),
            (Is::InMigrate, Word::Completed, Column::Incoming),
            (Is::Paused, Word::Completed, Column::Loaded),
            // The guest had powered off at the source when its state was taken.
            (Is::Shutdown, Word::Completed, Column::Loaded),
            (Is::Running, Word::Completed, Column::Running),
        ],
    );
    check(
        &target(),
        &sent(&[]),
        &[
            (Is::Paused, Word::Completed, Column::Loaded),
            (Is::Shutdown, Word::Completed, Column::Ended),
        ],
    );
}

#[test]
fn a_process_of_a_closed_incarnation_is_only_that() {
    let closed = Marks {
        closed: true,
        ..sent(&[M])
    };
    for order in [
        run(StartFrom::Disk),
        migrate(true, false),
        target(),
        Order::Stop(Stop::Kill),
    ] {
        assert_eq!(
            Column::of(&state(Is::Running, Word::None, false), &closed, Some(&order)),
            Column::Leftover
        );
        assert_eq!(Column::of(&Qemu::Silent, &closed, Some(&order)), Column::Leftover);
        assert_eq!(Column::of(&Qemu::None, &closed, Some(&order)), Column::None);
    }
}
