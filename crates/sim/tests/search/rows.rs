//! What each row of the table is good for: an agent waits where the row would have acted.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use driver::table::{self, ROWS, Row, Situation, Table};

use super::explore::{Plan, search};
use super::rules::Rules;
use super::store::Act;
use super::world::{Class, Violation};

/// The rows that were met.
pub(crate) type Met = &'static Mutex<BTreeSet<Row>>;

/// The searches in which a row is looked for, until one finds something.
pub(crate) fn plans() -> Vec<Plan> {
    let all = [
        Act::Cancel,
        Act::Shutdown,
        Act::SwitchOff,
        Act::Delete,
        Act::Pause,
    ];
    let of = |name: &str, faults: &[Class], wishes: &[Act]| Plan {
        name: name.to_owned(),
        faults: faults.iter().map(|class| (*class, 1)).collect(),
        wishes: wishes.to_vec(),
        most_wishes: 1,
        is_eager: true,
        most_states: 3_000_000,
    };
    let resumed = Plan {
        most_wishes: 2,
        ..of("resumed", &[], &[Act::Pause, Act::Resume])
    };
    vec![
        resumed,
        of("guest", &[Class::Guest], &[]),
        of("qemu", &[Class::Qemu], &[]),
        of("link", &[Class::Link], &[Act::Cancel]),
        of("wishes", &[], &all),
        of("connection, paused", &[Class::Connection], &[Act::Pause]),
        of("link, paused", &[Class::Link], &[Act::Pause]),
        of("agent", &[Class::Agent], &[]),
        of("connection and link", &[Class::Connection, Class::Link], &[]),
    ]
}

/// The protocol as built, and a note of every row that holds.
pub(crate) fn noting() -> (Rules, Met) {
    let met: Met = Box::leak(Box::default());
    let row: &'static _ = Box::leak(Box::new(move |s: &Situation| {
        let row = table::row(s);
        met.lock().unwrap_or_else(PoisonError::into_inner).insert(row);
        row
    }));
    let rules = Rules {
        table: Table::new(row),
        ..Rules::default()
    };
    (rules, met)
}

/// The table in which an agent waits where this row holds.
fn waiting(gone: Row) -> Rules {
    let row: &'static _ = Box::leak(Box::new(move |s: &Situation| {
        let row = table::row(s);
        if row == gone { Row::BootStale } else { row }
    }));
    Rules {
        table: Table::new(row),
        ..Rules::default()
    }
}

/// What is found first without a row, and by which of the plans; `None`: nothing.
pub(crate) fn without(row: Row, plans: &[Plan]) -> Option<(String, Violation)> {
    let rules = waiting(row);
    plans.iter().find_map(|plan| {
        let wrong = search(plan, rules).wrong?;
        Some((plan.name.clone(), wrong.what))
    })
}

/// A row's name.
pub(crate) type Name = Row;

/// What is known of a row.
pub(crate) enum Why {
    /// Where an agent waits instead, this plan finds this.
    Missed(&'static str, Violation),
    /// It says to wait, or to keep what there is.
    Waits,
    /// Nothing is found without it, because of this.
    Defence(&'static str),
    /// The search does not come to it, because of this.
    NeverMet(&'static str),
}

/// Every row of the table. The numbers of the plans' states are with the searches.
pub(crate) const TAKEN_ROWS: &[(Row, Why)] = &[
    (
        Row::Unreadable,
        Why::NeverMet("every record of this world can be read"),
    ),
    (
        Row::Older,
        Why::NeverMet("an agent keeps older documents from its cores"),
    ),
    (
        Row::Nothing,
        Why::Defence("what no document names was closed by an order before: it frees what is left"),
    ),
    (Row::Stop, Why::Missed("guest", Violation::DeadEnd)),
    (
        Row::Silent,
        Why::NeverMet("every QEMU of this world answers, or is gone"),
    ),
    (Row::Leftover, Why::Missed("guest", Violation::DeadEnd)),
    (Row::Gone, Why::Missed("guest", Violation::DeadEnd)),
    (Row::Ended, Why::Missed("guest", Violation::DeadEnd)),
    (Row::Boot, Why::Missed("guest", Violation::DeadEnd)),
    (Row::BootStale, Why::NeverMet(FIRST_BOOT)),
    (Row::Booting, Why::Missed("guest", Violation::DeadEnd)),
    (Row::BootingStale, Why::NeverMet(FIRST_BOOT)),
    (Row::Keep, Why::Missed("wishes", Violation::DeadEnd)),
    (Row::Paused, Why::Missed("resumed", Violation::DeadEnd)),
    (Row::PausedOffline, Why::Waits),
    (Row::RunUnderWay, Why::NeverMet(PROMISED_BEFORE)),
    (Row::RunDevice, Why::NeverMet(PROMISED_BEFORE)),
    (Row::RunFailed, Why::Missed("resumed", Violation::DeadEnd)),
    (Row::RunFailedStale, Why::Waits),
    (Row::Resume, Why::Missed("guest", Violation::DeadEnd)),
    (Row::ResumeStale, Why::Waits),
    (Row::Start, Why::Missed("guest", Violation::NeverMoves)),
    (Row::StartOffline, Why::Waits),
    (
        Row::PreCopy,
        Why::Defence("the target's own deadline ends the transfer too, and the source is asked to cancel"),
    ),
    (Row::Switch, Why::Missed("guest", Violation::NeverMoves)),
    (
        Row::SwitchOffline,
        Why::Defence("the host comes back and then switches: it bounds for how long the guest stands still"),
    ),
    (Row::CancelAgain, Why::Missed("link", Violation::DeadEnd)),
    (Row::Device, Why::Missed("link", Violation::DeadEnd)),
    (Row::Completed, Why::Missed("guest", Violation::DeadEnd)),
    (Row::Promise, Why::Missed("guest", Violation::DeadEnd)),
    (Row::Failed, Why::Missed("link", Violation::DeadEnd)),
    (Row::FailedOffline, Why::Waits),
    (Row::PromiseUnsent, Why::Missed("guest", Violation::DeadEnd)),
    (Row::Cancel, Why::Missed("link", Violation::DeadEnd)),
    (
        Row::Stray,
        Why::NeverMet("the promise before it says that nothing of an earlier migration is under way"),
    ),
    (Row::Target, Why::Missed("guest", Violation::NeverMoves)),
    (Row::TargetStale, Why::Waits),
    (Row::Incoming, Why::Missed("guest", Violation::NeverMoves)),
    (Row::Loaded, Why::Waits),
    (Row::Go, Why::Missed("guest", Violation::DeadEnd)),
    (Row::TargetRan, Why::Missed("wishes", Violation::DeadEnd)),
    (Row::TargetRunning, Why::Waits),
    (Row::Revoked, Why::Missed("guest", Violation::DeadEnd)),
];

const FIRST_BOOT: &str =
    "these searches begin when the VM runs, and lose no connection before it starts again";
const PROMISED_BEFORE: &str = "an order to run follows a promise, which says that nothing is under way";

/// Every row, in the table's order.
pub(crate) fn all() -> impl Iterator<Item = Row> {
    ROWS.iter().map(|(row, _)| *row)
}
