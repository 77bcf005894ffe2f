//! Which of a host's reports counts, whatever overtook it on its way.

use std::time::Duration;

use model::report::{Report, Samples};
use planner::reports::{ReportOrder, Turn};
use uuid::Uuid;

fn report(session: u128, sequence: u64) -> Report {
    Report {
        session: Uuid::from_u128(session),
        sequence,
        host: None,
        runs: Vec::new(),
        is_complete: true,
        samples: Samples::default(),
    }
}

/// What is done with a report, which is taken if it is its turn.
fn turn(order: &mut ReportOrder, session: u128, sequence: u64, second: u64) -> Turn {
    let (report, now) = (report(session, sequence), Duration::from_secs(second));
    let turn = order.turn_of(&report, now);
    if turn == Turn::Next {
        order.note(&report, now);
    }
    turn
}

#[test]
fn what_was_overtaken_is_not_taken() {
    let mut order = ReportOrder::default();
    assert_eq!(turn(&mut order, 1, 1, 0), Turn::Next);
    assert_eq!(turn(&mut order, 1, 3, 0), Turn::Next);
    assert_eq!(turn(&mut order, 1, 2, 1), Turn::Over);
    assert_eq!(turn(&mut order, 1, 3, 1), Turn::Over);
    // The agent was started again, its clock set back.
    assert_eq!(turn(&mut order, 0, 1, 1), Turn::Next);
    assert_eq!(turn(&mut order, 1, 3, 2), Turn::Over);
    assert_eq!(turn(&mut order, 1, 4, 2), Turn::NotYet);
    assert_eq!(turn(&mut order, 0, 2, 3), Turn::Next);
}

#[test]
fn an_agent_is_heard_again_when_its_formers_first_report_came_late() {
    let mut order = ReportOrder::default();
    assert_eq!(turn(&mut order, 2, 1, 0), Turn::Next);
    // Nobody can know that it is not of a later start.
    assert_eq!(turn(&mut order, 1, 1, 1), Turn::Next);
    assert_eq!(turn(&mut order, 2, 2, 2), Turn::NotYet);
    assert_eq!(turn(&mut order, 2, 2, 5), Turn::NotYet);
    assert_eq!(turn(&mut order, 2, 2, 6), Turn::Next);
    assert_eq!(turn(&mut order, 1, 1, 20), Turn::Over);
    assert_eq!(turn(&mut order, 2, 3, 21), Turn::Next);
}
