//! The chart in the documentation is the table, and the projection is total.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use model::lifecycle::{Facts, Phase, TRANSITIONS, project, reason};
use model::migration::MigrationPhase;
use model::report::RunState;
use model::vm::{Ended, Goal, GuestConfig, Open, Outcome, PlacementRule, Power, Start, VmIntent, VmSpec};
use model::{DatastoreId, HostId, ImageId, Incarnation, Timestamp, samples};
use proptest::prelude::*;
use uuid::Uuid;

fn phases(text: &str) -> Vec<Phase> {
    let named = |word: &str| Phase::ALL.into_iter().find(|phase| phase.to_string() == word);
    text.split(|c: char| !c.is_alphabetic())
        .filter_map(named)
        .collect()
}

/// The steps that a line of the chart draws: each arrow from the word before it to the words after it.
fn drawn(line: &str) -> Vec<(Phase, Phase)> {
    let mut found = Vec::new();
    // Three spaces or a colon end what an arrow ties together.
    for part in line.split("   ").flat_map(|part| part.split([':', '('])) {
        for (arrow, both) in [("→", false), ("⇄", true)] {
            let sides: Vec<_> = part.split(arrow).collect();
            for pair in sides.windows(2) {
                let Some(from) = phases(pair[0]).last().copied() else {
                    continue;
                };
                for to in phases(pair[1]) {
                    found.push((from, to));
                    found.extend(both.then_some((to, from)));
                }
            }
        }
    }
    found
}

#[test]
fn every_arrow_of_the_chart_is_legal() {
    let source = include_str!("../src/lifecycle.rs");
    let chart = source
        .split("//! ```")
        .nth(1)
        .expect("the chart stands in the module's documentation");
    let steps: BTreeSet<_> = chart
        .lines()
        .filter(|line| !line.contains("any →"))
        .flat_map(drawn)
        .collect();
    assert!(steps.len() >= 15, "{steps:?}");
    for (from, to) in steps {
        assert!(
            from.may_become(to),
            "{from} → {to} is drawn, and not in the table"
        );
    }
    // The last line: any → Failed, host silent → Unknown.
    for (from, targets) in TRANSITIONS {
        let can_fail = !matches!(from, Phase::Hold | Phase::Done | Phase::Failed);
        assert!(
            !can_fail || targets.contains(&Phase::Failed),
            "{from} cannot fail"
        );
    }
    assert!(Phase::Unknown.may_become(Phase::Pending));
}

#[test]
fn every_phase_has_its_row_and_leads_on() {
    let rows: BTreeSet<_> = TRANSITIONS.iter().map(|(from, _)| *from).collect();
    assert_eq!(rows, Phase::ALL.into_iter().collect());
    for phase in Phase::ALL {
        assert_eq!(phase.next_commands().is_empty(), phase == Phase::Done, "{phase}");
        assert!(leads_to_done(phase), "{phase}");
    }
}

fn leads_to_done(from: Phase) -> bool {
    let mut reached = BTreeSet::from([from]);
    loop {
        let more: Vec<_> = TRANSITIONS
            .iter()
            .filter(|(from, _)| reached.contains(from))
            .flat_map(|(_, to)| *to)
            .collect();
        let before = reached.len();
        reached.extend(more);
        if reached.len() == before {
            return reached.contains(&Phase::Done);
        }
    }
}

fn one_of<T: Clone + std::fmt::Debug + 'static>(all: &[T]) -> impl Strategy<Value = T> + use<T> {
    prop::sample::select(all.to_vec())
}

fn spec(power: Power, power_request: u64) -> VmSpec {
    VmSpec {
        template: None,
        template_version: None,
        profile: None,
        vcpus: 1,
        memory_mib: 64,
        image: Some(ImageId(Uuid::nil())),
        disk_bytes: None,
        datastore: DatastoreId(Uuid::nil()),
        nics: Vec::new(),
        guest: GuestConfig::default(),
        placement: PlacementRule::default(),
        power,
        force: false,
        power_request,
        reboot: None,
        cdrom: None,
        clone_of: None,
        firmware: model::vm::Firmware::default(),
        start: model::vm::StartChoice::Boot,
        warms: None,
        flatten_request: 0,
        builds: None,
        boot: Vec::new(),
    }
}

fn goal() -> impl Strategy<Value = Goal> {
    let at = Timestamp::UNIX_EPOCH;
    one_of(&[
        Goal::Run { paused: false },
        Goal::Run { paused: true },
        Goal::Shutdown { force_at: at },
        Goal::Kill,
        Goal::Suspend,
        Goal::Prepare,
        Goal::Copy,
        Goal::Stop,
    ])
}

prop_compose! {
    fn intent()(
        answered_request in 0..3u64,
        open in prop::option::of((1..3u64, goal())),
        ended in prop::option::of(one_of(&[Outcome::Off, Outcome::Suspended, Outcome::Stopped, Outcome::Failed, Outcome::Fenced])),
        has_volumes in any::<bool>(),
    ) -> VmIntent {
        VmIntent {
            answered_request,
            host: Some(HostId(Uuid::nil())),
            has_volumes,
            open: open.map(|(n, goal)| Open {
                incarnation: Incarnation(n),
                granted_at: Timestamp::UNIX_EPOCH,
                goal,
                start: Start::Disk,
                memory_mib: 64,
                vcpus: 1,
                resume: false,
                reboot: None,
                copies: std::collections::BTreeSet::new(),
            }),
            ended: ended.map(|outcome| Ended {
                incarnation: Incarnation(1),
                at: Timestamp::UNIX_EPOCH,
                outcome,
                reason: None,
            }),
            ..VmIntent::default()
        }
    }
}

fn stage() -> impl Strategy<Value = MigrationPhase> {
    use MigrationPhase as M;
    one_of(&[
        M::Planned,
        M::Preparing,
        M::Transferring,
        M::Decided,
        M::Activated,
        M::Done,
        M::Aborting,
        M::Revoking,
        M::Aborted,
    ])
}

fn states() -> impl Strategy<Value = RunState> {
    use RunState as S;
    one_of(&[
        S::Preparing,
        S::Booting,
        S::Running,
        S::Paused,
        S::Saving,
        S::Stopping,
        S::Incoming,
        S::Loaded,
        S::Closed,
        S::Removed,
    ])
}

proptest! {
    #[test]
    fn everything_stored_has_a_phase_that_leads_on(
        power in one_of(&[Power::Running, Power::Paused, Power::Suspended, Power::Stopped, Power::Off, Power::Prepared, Power::Hold]),
        request in 0..3u64,
        deleted in any::<bool>(),
        intent in prop::option::of(intent()),
        runs in prop::collection::btree_map(1..4u64, states(), 0..3),
        host_silent in any::<bool>(),
        migration in prop::option::of(stage()),
    ) {
        let spec = spec(power, request);
        let runs = runs.into_iter().map(|(n, state)| (Incarnation(n), samples::run_status(Incarnation(n), HostId(Uuid::nil()), state))).collect();
        let facts = Facts { spec: &spec, deleted, intent: intent.as_ref(), runs: &runs, host_silent, migration };
        let (phase, availability) = project(facts);
        prop_assert_eq!(phase.next_commands().is_empty(), phase == Phase::Done);
        prop_assert!(phase == Phase::Unknown || availability == phase.availability());
        prop_assert!(phase != Phase::Done || deleted || runs.values().any(|run| run.state == RunState::Removed));
        let is_open = intent.as_ref().is_some_and(|intent| intent.open.is_some());
        prop_assert!(!is_open || !host_silent || phase == Phase::Unknown, "a silent host's VM is {phase}");
        let _ = reason(facts, phase);
    }
}
