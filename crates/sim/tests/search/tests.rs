//! The searches. Those that take minutes are for `make soak`.
//!
//! The numbers of states are in snapshots: one that changes shows that the protocol, or the world around it, has changed.
//! `INSTA_UPDATE=always cargo test -p sim` accepts them.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::explore::{Plan, search};
use super::rows::{self, TAKEN_ROWS, Why};
use super::rules::Rules;
use super::store::Act;
use super::taken::{TAKEN, Taken, without_rule};
use super::world::{CLASSES, Class};

const WISHES: [Act; 7] = [
    Act::Cancel,
    Act::Shutdown,
    Act::Suspend,
    Act::SwitchOff,
    Act::Delete,
    Act::Pause,
    Act::Start,
];

fn eager(name: &str, faults: &[(Class, u8)], wishes: &[Act], most_wishes: u8) -> Plan {
    Plan {
        name: name.to_owned(),
        faults: faults.to_vec(),
        wishes: wishes.to_vec(),
        most_wishes,
        is_eager: true,
        most_states: 20_000_000,
    }
}

/// With every order of looks and reports.
fn every_order(plan: Plan) -> Plan {
    Plan {
        name: format!("{}, every order", plan.name),
        is_eager: false,
        ..plan
    }
}

fn of_class(class: Class, count: u8) -> Plan {
    let plan = eager(&format!("{class:?} × {count}"), &[(class, count)], &[], 0);
    // A report that comes late is seen only where it may overtake the next one.
    if class == Class::Report {
        every_order(plan)
    } else {
        plan
    }
}

/// Searches all, and answers how many states there were.
fn counts(plans: impl IntoIterator<Item = Plan>) -> String {
    let mut text = String::new();
    let mut wrongs = Vec::new();
    for plan in plans {
        let found = search(&plan, Rules::default());
        let (states, steps) = (found.states, found.steps);
        let (stores, cores) = (found.stores, found.cores);
        let name = plan.name;
        let line = format!("{name}: {states} states, {steps} steps, {stores} stores, {cores} cores");
        println!("{line}");
        if let Some(wrong) = found.wrong {
            wrongs.push(format!("{name}: {:?}\n{}\n", wrong.what, wrong.trace.join("\n")));
        }
        writeln!(text, "{line}").unwrap();
    }
    assert!(wrongs.is_empty(), "{}", wrongs.concat());
    text
}

#[test]
fn nothing_goes_wrong() {
    let plan = eager("no fault", &[], &[], 0);
    insta::assert_snapshot!(counts([plan.clone(), every_order(plan)]));
}

#[test]
fn agents_die() {
    insta::assert_snapshot!(counts([of_class(Class::Agent, 1)]));
}

#[test]
fn connections_are_lost() {
    insta::assert_snapshot!(counts([of_class(Class::Connection, 1)]));
}

#[test]
fn reports_come_late() {
    insta::assert_snapshot!(counts([of_class(Class::Report, 1)]));
}

#[test]
fn three_faults_of_each_other_class() {
    let others = CLASSES
        .into_iter()
        .filter(|class| !matches!(class, Class::Agent | Class::Connection | Class::Report));
    insta::assert_snapshot!(counts(others.map(|class| of_class(class, 3))));
}

#[test]
fn the_link_and_another_fault() {
    let others = [
        Class::Go,
        Class::Document,
        Class::Controller,
        Class::Guest,
        Class::Effect,
    ];
    let plans = others.map(|other| {
        let name = format!("Link and {other:?}");
        eager(&name, &[(Class::Link, 1), (other, 1)], &[], 0)
    });
    insta::assert_snapshot!(counts(plans));
}

#[test]
#[ignore = "takes minutes: for `make soak`"]
fn a_second_migration() {
    insta::assert_snapshot!(counts([eager("a second migration", &[], &[Act::Migrate], 1)]));
}

#[test]
#[ignore = "takes minutes: for `make soak`"]
fn three_faults_of_every_class() {
    insta::assert_snapshot!(counts(CLASSES.map(|class| of_class(class, 3))));
}

#[test]
#[ignore = "takes minutes: for `make soak`"]
fn every_pair_of_classes() {
    let pairs = CLASSES.into_iter().enumerate().flat_map(|(at, one)| {
        let others = CLASSES.into_iter().skip(at + 1);
        others.map(move |other| {
            let name = format!("{one:?} and {other:?}");
            eager(&name, &[(one, 1), (other, 1)], &[], 0)
        })
    });
    insta::assert_snapshot!(counts(pairs));
}

fn with_a_wish(class: Class) -> Plan {
    let name = format!("{class:?} and a wish");
    eager(&name, &[(class, 1)], &WISHES, 1)
}

/// Also all in which the link does not break: then that fault is still to come.
#[test]
fn a_broken_link_and_a_wish() {
    insta::assert_snapshot!(counts([with_a_wish(Class::Link)]));
}

/// Each of these takes as long as the others together.
const MANY_STATES: [Class; 3] = [Class::Agent, Class::Connection, Class::Report];

#[test]
#[ignore = "takes minutes: for `make soak`"]
fn a_fault_and_a_wish() {
    let others = CLASSES.into_iter().filter(|class| !MANY_STATES.contains(class));
    insta::assert_snapshot!(counts(others.map(with_a_wish)));
}

#[test]
#[ignore = "takes minutes: for `make soak`"]
fn a_fault_of_many_states_and_a_wish() {
    insta::assert_snapshot!(counts(MANY_STATES.map(with_a_wish)));
}

#[test]
#[ignore = "takes minutes: for `make soak`"]
fn every_class_in_every_order() {
    insta::assert_snapshot!(counts(CLASSES.map(|class| every_order(of_class(class, 1)))));
}

fn take_away(wanted: impl Fn(&Taken) -> bool) {
    for taken in TAKEN.iter().filter(|taken| wanted(taken)) {
        let (what, states, trace) = without_rule(taken);
        println!("{}: {what:?} after {states} states", taken.name);
        assert_eq!(what, taken.found, "{}\n{}", taken.name, trace.join("\n"));
    }
}

#[test]
fn each_rule_that_is_taken_away_is_missed() {
    take_away(|taken| !taken.is_long);
}

#[test]
#[ignore = "takes minutes: for `make soak`"]
fn each_rule_that_is_taken_away_is_missed_also_far_on() {
    take_away(|taken| taken.is_long);
}

/// Everything about a row that the search can say.
fn why(row: rows::Name) -> &'static Why {
    let known = TAKEN_ROWS.iter().find(|(known, _)| *known == row);
    &known.unwrap_or_else(|| panic!("{row:?} is not in the table")).1
}

/// Every second row, so that each half takes half the time.
fn take_rows_away(from: usize) {
    for row in rows::all().skip(from).step_by(2) {
        if let Why::Missed(by, violation) = why(row) {
            let plans: Vec<_> = { rows::plans() }
                .into_iter()
                .filter(|plan| plan.name == *by)
                .collect();
            let found = rows::without(row, &plans).map(|(_, what)| what);
            assert_eq!(found, Some(*violation), "{row:?}");
        }
    }
}

#[test]
fn each_row_that_is_taken_away_is_missed_one_half() {
    take_rows_away(0);
}

#[test]
fn each_row_that_is_taken_away_is_missed_the_other_half() {
    take_rows_away(1);
}

#[test]
#[ignore = "takes minutes: for `make soak`"]
fn the_other_rows_are_defence_or_say_to_wait() {
    let (rules, met) = rows::noting();
    for plan in rows::plans() {
        assert!(search(&plan, rules).wrong.is_none());
    }
    let met: BTreeSet<rows::Name> = met.lock().unwrap().clone();
    for row in rows::all() {
        match why(row) {
            Why::Missed(..) => assert!(met.contains(&row), "{row:?} is never met"),
            Why::NeverMet(why) => assert!(!met.contains(&row), "{row:?} is met: {why}"),
            Why::Waits => assert_eq!(rows::without(row, &rows::plans()), None, "{row:?}"),
            Why::Defence(why) => assert_eq!(rows::without(row, &rows::plans()), None, "{row:?}: {why}"),
        }
    }
}
