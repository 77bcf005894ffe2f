//! Exactly one row matches whatever can be reached, and each row is needed for that.

use super::*;

const DOCUMENTS: [Document; 14] = [
    Document::Unreadable,
    Document::Older,
    Document::Nothing,
    Document::Run(Run::Start),
    Document::Run(Run::Adopted),
    Document::Run(Run::Resume),
    Document::Stop,
    Document::Migrate(Stage::Ungranted),
    Document::Migrate(Stage::Granted),
    Document::Migrate(Stage::Cancelled),
    Document::Target(TargetState::Prepare),
    Document::Target(TargetState::Granted),
    Document::Target(TargetState::Decided),
    Document::Target(TargetState::Revoked),
];

const COLUMNS: [Column; 16] = [
    Column::None,
    Column::Silent,
    Column::Leftover,
    Column::Booting,
    Column::Ended,
    Column::Running,
    Column::Paused,
    Column::PreCopy,
    Column::PreSwitchover,
    Column::Device,
    Column::Stray,
    Column::Failed,
    Column::Completed,
    Column::Incoming,
    Column::Loaded,
    Column::Odd,
];

const LEASES: [Lease; 3] = [
    Lease {
        live: false,
        fresh: false,
    },
    Lease {
        live: true,
        fresh: false,
    },
    Lease {
        live: true,
        fresh: true,
    },
];

/// The whole product.
fn product() -> Vec<Situation> {
    let mut all = Vec::new();
    for document in DOCUMENTS {
        for qemu in COLUMNS {
            for lease in LEASES {
                for bits in 0..64_u8 {
                    let bit = |at: u8| bits & (1 << at) != 0;
                    all.push(Situation {
                        document,
                        qemu,
                        lease,
                        launched: bit(0),
                        closed: bit(1),
                        ran: bit(2),
                        sent: bit(3),
                        no_switch: bit(4),
                        go: bit(5),
                    });
                }
            }
        }
    }
    all
}

/// What can be, by the order in which marks are written and by what [`Column::of`] answers under which order.
fn reachable(s: &Situation) -> bool {
    // Marks are written in this order, and a process needs the first of them.
    let marks = s.launched || !s.ran && s.qemu == Column::None;
    // A process of a closed incarnation has a word of its own.
    let closed = s.closed == (s.qemu == Column::Leftover) || s.closed && s.qemu == Column::None;
    marks && closed && reachable_marks(s) && reachable_column(s)
}

/// Marks of M exist under *migrate to M* only; sent(M) needs the grant, and either one needs a launch.
fn reachable_marks(s: &Situation) -> bool {
    let go = !s.go || s.is_target() && s.launched;
    match s.document {
        Document::Migrate(Stage::Ungranted) => go && !s.sent && !s.no_switch && s.launched,
        Document::Migrate(_) => go && s.launched,
        _ => go && !s.sent && !s.no_switch,
    }
}

/// The words that an order knows.
fn reachable_column(s: &Situation) -> bool {
    let always = matches!(s.qemu, Column::None | Column::Silent | Column::Leftover);
    let here = matches!(
        s.qemu,
        Column::Booting | Column::Ended | Column::Running | Column::Paused | Column::Device | Column::Failed
    );
    match s.document {
        // These rows do not look at QEMU.
        Document::Unreadable | Document::Older | Document::Nothing | Document::Stop => true,
        // What was launched before (`Adopted`, `Resume`) carries the mark.
        Document::Run(run) => {
            let known = run == Run::Start || s.launched;
            // A source that completed is told to run on by RESUME only.
            known
                && (always
                    || here
                    || s.is_before_switch()
                    || s.qemu == Column::Completed && run == Run::Resume)
        }
        // Nothing of M is under way before its grant. Something older may be.
        Document::Migrate(Stage::Ungranted) => always || here || s.qemu == Column::Stray,
        Document::Migrate(_) => {
            let of_m = s.is_before_switch() || matches!(s.qemu, Column::Failed | Column::Completed);
            let of_any = matches!(s.qemu, Column::Ended | Column::Running | Column::Device);
            always || of_any || of_m && s.sent || s.qemu == Column::Stray && !s.sent
        }
        Document::Target(state) => {
            let came = matches!(s.qemu, Column::Incoming | Column::Loaded | Column::Running);
            let ended = s.qemu == Column::Ended && s.ran;
            // ran(M) is written when the stream is loaded, and before the guest runs.
            let order = match s.qemu {
                Column::Incoming => !s.ran,
                Column::Running => s.ran,
                _ => true,
            };
            // Decided is set by the report of a source that completed, so the stream was loaded.
            let decided = state != TargetState::Decided || s.launched;
            (always || came || ended) && order && decided
        }
    }
}

/// How many reachable situations have not exactly one row, with the first of them.
fn gaps(rows: &[(Row, Condition)]) -> (usize, Option<(Situation, Vec<Row>)>) {
    let mut count = 0;
    let mut first = None;
    for situation in product().into_iter().filter(reachable) {
        let matching: Vec<Row> = rows
            .iter()
            .filter(|(_, holds)| holds(&situation))
            .map(|(row, _)| *row)
            .collect();
        if matching.len() != 1 {
            count += 1;
            first.get_or_insert((situation, matching));
        }
    }
    (count, first)
}

#[test]
fn exactly_one_row_matches_whatever_can_be_reached() {
    assert_eq!(gaps(ROWS), (0, None));
}

#[test]
fn without_any_one_row_something_is_left_out() {
    for left_out in 0..ROWS.len() {
        let mut rows = ROWS.to_vec();
        let (row, _) = rows.remove(left_out);
        assert_ne!(gaps(&rows).0, 0, "{row:?} is not needed");
    }
}

#[test]
fn a_row_that_holds_too_often_is_found() {
    for widened in 0..ROWS.len() {
        let mut rows = ROWS.to_vec();
        rows[widened].1 = |_| true;
        assert_ne!(gaps(&rows).0, 0, "{:?} may hold always", rows[widened].0);
    }
}

#[test]
fn each_row_stands_once_and_what_is_left_is_unforeseen() {
    let mut rows: Vec<Row> = ROWS.iter().map(|(row, _)| *row).collect();
    rows.sort_unstable();
    rows.dedup();
    assert_eq!(rows.len(), ROWS.len());
    assert!(!rows.contains(&Row::Unforeseen));
    for situation in product().iter().filter(|situation| reachable(situation)) {
        assert_ne!(row(situation), Row::Unforeseen, "{situation:?}");
    }
}

#[test]
fn no_situation_at_all_leads_to_a_second_launch_or_to_a_cont_of_what_may_run_elsewhere() {
    for s in product() {
        let row = row(&s);
        if matches!(row, Row::Boot | Row::Target) {
            assert!(!s.launched && !s.closed && s.qemu == Column::None, "{s:?}");
        }
        if row == Row::Go {
            let is_called = s.go || s.document == Document::Target(TargetState::Decided);
            assert!(is_called && s.qemu == Column::Loaded, "{s:?}");
        }
        let continues = [Row::Keep, Row::Paused, Row::RunFailed, Row::Failed, Row::Booting];
        assert!(s.qemu != Column::Completed || !continues.contains(&row), "{s:?}");
        if row == Row::Resume {
            assert!(s.lease.fresh && s.document == Document::Run(Run::Resume), "{s:?}");
        }
        if matches!(row, Row::Start | Row::Switch) {
            assert!(
                !s.no_switch && s.lease.live && s.document == Document::Migrate(Stage::Granted),
                "{s:?}"
            );
        }
    }
}
