//! Every check can fail: bugs that are put in on purpose are found, each within a stated number of seeds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use sim::{Bug, Script, Size, run, shrink};

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

#[test]
fn a_script_that_fails_becomes_a_short_one_that_fails() {
    let bug = Bug::PromiseNotKept;
    let (script, _) = found(bug, 30);
    let failure = shrink(&script, Some(bug));
    assert!(failure.script.steps.len() * 4 < script.steps.len(), "{failure}");
    assert_eq!(run(&failure.script, Some(bug), false).wrong, Some(failure.wrong));
}
