//! What each rule and each row is good for: each is taken away, and the search says what happens then.

use driver::column::Column;
use driver::table::{Document, Situation, Stage};
use driver::types::Lease;
use model::document::TargetState;
use model::migration::{MigrationIntent, MigrationPhase, MigrationSpec};
use model::report::{Outgoing, OutgoingState, RunState, RunStatus};
use model::vm::VmIntent;
use model::{Incarnation, Object, key};

use super::explore::{Plan, search};
use super::rules::{self, Lost, Rules};
use super::store::{Act, Keys, vm};
use super::world::{Class, Violation};

/// A rule of the protocol's page, without which something is found, or nothing.
pub(crate) struct Taken {
    /// Its number on the page, and what is done instead.
    pub(crate) name: &'static str,
    pub(crate) rules: fn() -> Rules,
    /// Where the search has to look: faults, wishes, and how many of these.
    pub(crate) faults: &'static [(Class, u8)],
    pub(crate) wishes: &'static [Act],
    /// It is found only where reports may be slow, and that takes long.
    pub(crate) is_long: bool,
    /// What has to be found first; `None`: the rule is defence only.
    pub(crate) found: Option<Violation>,
}

pub(crate) const TAKEN: &[Taken] = &[
    Taken {
        name: "1: targets start without -S",
        rules: || Rules {
            targets_start_running: true,
            ..Rules::default()
        },
        faults: &[(Class::Link, 1)],
        wishes: &[],
        is_long: false,
        found: Some(Violation::TwoRun),
    },
    Taken {
        name: "2: a target that has loaded goes on without go",
        rules: || Rules::reading(|s| Situation { go: true, ..s }),
        faults: &[],
        wishes: &[],
        is_long: false,
        found: Some(Violation::TargetTooEarly),
    },
    Taken {
        name: "3: a cancel counts as the source's promise",
        rules: || Rules::showing(cancel_is_promise),
        faults: &[],
        wishes: &[Act::Cancel],
        is_long: false,
        found: Some(Violation::Unforeseen),
    },
    Taken {
        name: "4: an incarnation that is being stopped counts as closed",
        rules: || Rules::showing(stopping_is_closed),
        faults: &[],
        wishes: &[Act::SwitchOff, Act::Start],
        is_long: false,
        found: Some(Violation::GrantedTooEarly),
    },
    Taken {
        name: "4: with the source lost, the target counts as closed",
        rules: || Rules::showing(revoking_is_closed),
        faults: &[(Class::Qemu, 1)],
        wishes: &[Act::Start],
        is_long: false,
        found: Some(Violation::GrantedTooEarly),
    },
    Taken {
        name: "5: a target that is revoked goes on instead of closing",
        rules: || Rules::reading(revoked_goes_on),
        faults: &[(Class::Link, 1)],
        wishes: &[],
        is_long: false,
        found: Some(Violation::TwoRun),
    },
    Taken {
        name: "6: RESUME before the target has closed",
        rules: || Rules::showing(completed_is_enough),
        faults: &[],
        wishes: &[],
        is_long: false,
        found: Some(Violation::SourceAfterHandOver),
    },
    Taken {
        name: "6: a guest that has to go on is saved before it did",
        rules: || Rules::showing(resume_is_over),
        faults: &[(Class::Qemu, 1)],
        wishes: &[Act::Suspend],
        is_long: false,
        found: Some(Violation::MemoryLost),
    },
    Taken {
        name: "6: ran(M) is not on disk before cont",
        rules: || losing(Lost::Ran),
        faults: &[(Class::Agent, 1), (Class::Qemu, 1)],
        wishes: &[],
        is_long: true,
        found: Some(Violation::OldMemoryRuns),
    },
    Taken {
        name: "7: closed(N) is not on disk before it is reported",
        rules: || losing(Lost::Closed),
        faults: &[],
        wishes: &[],
        is_long: false,
        found: Some(Violation::ClosedUntrue),
    },
    Taken {
        name: "8: plans are committed without their compares",
        rules: || Rules {
            commits_blindly: true,
            ..Rules::default()
        },
        faults: &[(Class::Controller, 1)],
        wishes: &[Act::SwitchOff],
        is_long: false,
        found: Some(Violation::Unforeseen),
    },
    Taken {
        name: "10: a document is fresh for ever",
        rules: || Rules::reading(|s| Situation { lease: ALWAYS, ..s }),
        faults: &[(Class::Agent, 1)],
        wishes: &[],
        is_long: false,
        found: None,
    },
    Taken {
        name: "11: launched(N) is not on disk before the process is started",
        rules: || losing(Lost::Launched),
        faults: &[(Class::Agent, 1), (Class::Qemu, 1)],
        wishes: &[],
        is_long: false,
        found: Some(Violation::LaunchedTwice),
    },
    Taken {
        name: "13: a document counts that a newer one has overtaken",
        rules: || Rules {
            takes_older_documents: true,
            ..Rules::default()
        },
        faults: &[(Class::Document, 1)],
        wishes: &[],
        is_long: false,
        found: Some(Violation::Unforeseen),
    },
    Taken {
        name: "14: the source does not obey a cancel",
        rules: || Rules::reading(cancel_is_not_heard),
        faults: &[(Class::Link, 1), (Class::Qemu, 1)],
        wishes: &[],
        is_long: false,
        found: Some(Violation::DeadEnd),
    },
    Taken {
        name: "15: a revocation outranks go",
        rules: || Rules::reading(revocation_outranks_go),
        faults: &[(Class::Go, 1)],
        wishes: &[],
        is_long: false,
        found: None,
    },
    Taken {
        name: "18: sent(M) is not on disk before migrate",
        rules: || losing(Lost::Sent),
        faults: &[(Class::Agent, 1)],
        wishes: &[Act::Cancel],
        is_long: false,
        found: Some(Violation::Unforeseen),
    },
    Taken {
        name: "18: no-switch(M) is not on disk before the promise",
        rules: || losing(Lost::NoSwitch),
        faults: &[],
        wishes: &[Act::Cancel],
        is_long: false,
        found: Some(Violation::PromiseUntrue),
    },
    Taken {
        name: "18: saving(N) is not on disk before a save",
        rules: || losing(Lost::Saving),
        faults: &[(Class::Agent, 1)],
        wishes: &[Act::Cancel, Act::Suspend],
        is_long: false,
        found: Some(Violation::MemoryLost),
    },
    Taken {
        name: "18: what was promised not to be sent is sent",
        rules: || Rules::reading(sends_in_spite),
        faults: &[],
        wishes: &[Act::Cancel],
        is_long: false,
        found: Some(Violation::DeadEnd),
    },
];

const ALWAYS: Lease = Lease {
    live: true,
    fresh: true,
};

fn losing(mark: Lost) -> Rules {
    Rules {
        lost: Some(mark),
        ..Rules::default()
    }
}

fn is_revoked(s: &Situation) -> bool {
    s.document == Document::Target(TargetState::Revoked)
}

fn revoked_goes_on(s: Situation) -> Situation {
    Situation {
        go: s.go || is_revoked(&s),
        ..s
    }
}

fn revocation_outranks_go(s: Situation) -> Situation {
    Situation {
        go: s.go && !is_revoked(&s),
        ..s
    }
}

fn cancel_is_not_heard(s: Situation) -> Situation {
    let document = match s.document {
        Document::Migrate(Stage::Cancelled) => Document::Migrate(Stage::Granted),
        document => document,
    };
    Situation { document, ..s }
}

fn sends_in_spite(s: Situation) -> Situation {
    let is_over = s.no_switch && s.qemu == Column::Running;
    Situation {
        no_switch: s.no_switch && !is_over,
        sent: s.sent && !is_over,
        ..s
    }
}

/// Shows another status of every incarnation.
fn change_runs(keys: &mut Keys, change: impl Fn(&mut RunStatus)) {
    for n in 1..=super::world::SLOTS as u64 {
        let key = key::vm_run(vm(), Incarnation(n));
        rules::change(keys, &key, &change);
    }
}

fn any<T: model::record::Stored>(
    keys: &mut Keys,
    is_of: impl Fn(&str) -> bool,
    holds: impl Fn(&T) -> bool,
) -> bool {
    let found = keys.iter().filter(|(key, _)| is_of(key));
    let values = found.filter_map(|(_, bytes)| model::record::decode(bytes).ok());
    { values }.any(|value: T| holds(&value))
}

fn is_migration_intent(key: &str) -> bool {
    key.starts_with("/migration/") && key.ends_with("/intent")
}

fn is_migration(key: &str) -> bool {
    key.starts_with("/migration/") && !key.ends_with("/intent")
}

fn cancel_is_promise(keys: &mut Keys) {
    let is_cancelled = any(keys, is_migration, |object: &Object<MigrationSpec>| {
        object.spec.cancel
    });
    if is_cancelled {
        rules::change(keys, &key::vm_run(vm(), Incarnation(1)), |run: &mut RunStatus| {
            run.outgoing = Some(Outgoing {
                to: Incarnation(2),
                state: OutgoingState::Promised,
                downtime_us: None,
                transfer_ms: None,
                bytes: None,
                error: None,
            });
        });
    }
}

fn stopping_is_closed(keys: &mut Keys) {
    change_runs(keys, |run| {
        if run.state == RunState::Stopping {
            run.state = RunState::Closed;
        }
    });
}

fn revoking_is_closed(keys: &mut Keys) {
    let is_revoking = |intent: &MigrationIntent| intent.phase == MigrationPhase::Revoking;
    if any(keys, is_migration_intent, is_revoking) {
        rules::change(keys, &key::vm_run(vm(), Incarnation(2)), |run: &mut RunStatus| {
            run.state = RunState::Closed;
            run.ran = false;
        });
    }
}

fn completed_is_enough(keys: &mut Keys) {
    let has_completed = |run: &RunStatus| {
        let outgoing = run.outgoing.as_ref();
        outgoing.is_some_and(|outgoing| outgoing.state == OutgoingState::Completed)
    };
    let source = key::vm_run(vm(), Incarnation(1));
    if any(keys, |key| key == source, has_completed) {
        rules::change(keys, &key::vm_run(vm(), Incarnation(2)), |run: &mut RunStatus| {
            run.state = RunState::Closed;
            run.ran = false;
        });
    }
}

fn resume_is_over(keys: &mut Keys) {
    rules::change(keys, &key::vm_intent(vm()), |intent: &mut VmIntent| {
        if let Some(open) = &mut intent.open {
            open.resume = false;
        }
    });
}

fn plan_of(taken: &Taken) -> Plan {
    Plan {
        name: taken.name.to_owned(),
        faults: taken.faults.to_vec(),
        wishes: taken.wishes.to_vec(),
        most_wishes: u8::try_from(taken.wishes.len()).unwrap(),
        is_eager: !taken.is_long,
        most_states: 5_000_000,
    }
}

/// What is found first without a rule.
pub(crate) fn without_rule(taken: &Taken) -> (Option<Violation>, usize, Vec<String>) {
    let found = search(&plan_of(taken), (taken.rules)());
    let (what, trace) = found
        .wrong
        .map_or((None, Vec::new()), |wrong| (Some(wrong.what), wrong.trace));
    (what, found.states, trace)
}
