//! As many seeds as fit into a bounded time; more of them with `make soak`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use sim::{Script, Size, Tally, run};

/// For how long seeds are run, unless `STERNA_SIM_SECONDS` says otherwise.
const SECONDS: u64 = 60;

/// How many seeds are run at most where every run has to be as the last one was.
const SEEDS: u64 = 1000;

/// Runs so many seeds from one on, or fewer if the time is over before. Answers how many.
fn seeds_for(first: u64, most: u64, seconds: u64, size: fn(u64) -> Size) -> u64 {
    let begun = Instant::now();
    let mut tally = Tally::default();
    while tally.seeds == 0 || tally.seeds < most && begun.elapsed() < Duration::from_secs(seconds) {
        if let Err(failure) = tally.check(first + tally.seeds, size(first + tally.seeds)) {
            panic!("{failure}after {tally}");
        }
    }
    println!("{tally}");
    tally.seeds
}

fn seconds(otherwise: u64) -> u64 {
    let given = std::env::var("STERNA_SIM_SECONDS").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn nothing_is_wrong_under_any_seed_that_there_is_time_for() {
    assert!(seeds_for(1, SEEDS, seconds(SECONDS), Size::of) > 0);
}

#[test]
#[ignore = "long: `make soak` runs it"]
fn nothing_is_wrong_under_the_seeds_of_an_hour() {
    assert!(seeds_for(1_000_000, u64::MAX, seconds(3600), Size::any_of) > 0);
}

/// How fast a cloud of 20 hosts goes, with faults: a figure for people, and for who makes it faster.
#[test]
#[ignore = "a measurement: `cargo test --release -p sim --test seeds -- --ignored --nocapture twenty_hosts`"]
fn twenty_hosts_are_simulated_much_faster_than_they_live() {
    let begun = Instant::now();
    let mut virtual_us = 0;
    for seed in 1..=10 {
        let size = Size {
            servers: 1,
            hosts: 20,
            vms: 40,
            seconds: 60,
            faults: 20,
        };
        let outcome = run(&Script::of(seed, size), None, false);
        assert_eq!(outcome.wrong, None, "seed {seed}");
        virtual_us += outcome.virtual_us;
    }
    let times = Duration::from_micros(virtual_us).as_secs_f64() / begun.elapsed().as_secs_f64();
    println!("{times:.0} x real time");
}

#[test]
fn a_world_in_which_nothing_breaks_comes_to_rest() {
    let size = Size {
        faults: 0,
        ..Size::of(2)
    };
    let outcome = run(&Script::of(2, size), None, false);
    assert_eq!(outcome.wrong, None);
}
