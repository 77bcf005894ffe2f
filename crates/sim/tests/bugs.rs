//! Every check can fail: bugs that are put in on purpose are found, each within a stated number of seeds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sim::{Bug, Catalog, Rule, Script, Size, Step, run, shrink};

/// The first script that finds a bug, of so many seeds.
fn found(bug: Bug, seeds: u64) -> (Script, String) {
    let first = (1..=seeds).find_map(|seed| {
        let script = Script::of(seed, Size::of(seed));
        let wrong = run(&script, Some(bug), false).wrong?;
        println!("{bug:?}: seed {seed}: {wrong}");
        Some((script, wrong))
    });
    first.unwrap_or_else(|| panic!("{bug:?} is not found within {seeds} seeds"))
}

#[test]
fn compares_that_are_left_out_are_found() {
    found(Bug::ComparesLeftOut, 30);
}

#[test]
fn a_lost_wake_up_is_found() {
    found(Bug::WakeUpLost, 30);
}

#[test]
fn an_ignored_fence_is_found() {
    found(Bug::FenceIgnored, 30);
}

#[test]
fn a_promise_that_is_not_kept_is_found() {
    found(Bug::PromiseNotKept, 30);
}

#[test]
fn a_target_that_does_not_wait_is_found() {
    found(Bug::GoBeforeTheEnd, 30);
}

#[test]
fn a_missing_audit_record_is_found() {
    found(Bug::AuditLeftOut, 1);
}

#[test]
fn a_process_that_goes_on_is_found() {
    found(Bug::KillIgnored, 30);
}

#[test]
fn servers_that_do_not_see_each_other_are_found() {
    found(Bug::ServersUnseen, 5);
}

#[test]
fn an_address_that_is_given_twice_is_found() {
    found(Bug::AddressUncompared, 30);
}

#[test]
fn an_address_that_is_not_given_back_is_found() {
    found(Bug::AddressKept, 30);
}

#[test]
fn rules_that_are_forgotten_are_found() {
    found(Bug::RulesLost, 30);
}

#[test]
fn a_server_that_tells_what_is_long_past_is_found() {
    found(Bug::ServerBehind, 30);
}

/// A cloud in which nothing breaks: of one VM an image and a template are made, and two others start from memory and end, one
/// after the other, between which their template becomes another. That is rare among what chance makes of seeds.
fn of_templates(seed: u64) -> Script {
    let create = Step::Create {
        vm: 0,
        memory_mib: 256,
        rule: Rule::None,
        has_nic: false,
    };
    let change = Catalog::Change {
        nth: 0,
        memory_mib: 512,
    };
    let steps = [
        (1, create),
        (1, Step::Of(Catalog::KeepWarm { nth: 0, on: true })),
        (12, Step::Of(Catalog::Capture { of: 0 })),
        (20, Step::Of(Catalog::Build { of: 0 })),
        (21, Step::Of(Catalog::Start { vm: 1, nth: 0 })),
        (21, Step::Of(Catalog::Start { vm: 2, nth: 0 })),
        (40, Step::Delete { vm: 1 }),
        (45, Step::Of(change)),
        (50, Step::Delete { vm: 2 }),
    ];
    let size = Size {
        servers: 1,
        hosts: 2,
        vms: 3,
        seconds: 60,
        faults: 0,
    };
    let at = |(second, step): (u64, Step)| (second * 1_000_000, step);
    let steps = steps.into_iter().map(at).collect();
    Script { seed, size, steps }
}

/// The check that is for such a bug finds it, and no other does, in one of three worlds.
fn found_by(bug: Bug, check: &str) {
    let all = (1..=3).filter_map(|seed| run(&of_templates(seed), Some(bug), false).wrong);
    let all: Vec<String> = all.collect();
    println!("{bug:?}: {all:#?}");
    assert!(
        !all.is_empty() && all.iter().all(|wrong| wrong.contains(check)),
        "{bug:?}: {all:?}"
    );
}

#[test]
fn templates_without_a_bug_leave_nothing() {
    for seed in 1..=3 {
        assert_eq!(run(&of_templates(seed), None, false).wrong, None);
    }
}

#[test]
fn a_layer_that_goes_under_a_disk_is_found() {
    found_by(Bug::LayerTakenAlong, "lies over what is gone");
}

#[test]
fn a_script_that_fails_becomes_a_short_one_that_fails() {
    let bug = Bug::PromiseNotKept;
    let (script, _) = found(bug, 30);
    let failure = shrink(&script, Some(bug));
    assert!(failure.script.steps.len() * 4 < script.steps.len(), "{failure}");
    assert_eq!(run(&failure.script, Some(bug), false).wrong, Some(failure.wrong));
}
