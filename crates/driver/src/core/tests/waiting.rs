//! What is done, and what is put off, while a guest stands still.

use super::*;

/// A guest stands still at each of these; an event that came during the look must not cost it another one.
#[test]
fn what_a_guest_waits_for_is_done_on_what_was_just_seen() {
    let after_event_in_look = |given: &Given| {
        let mut core = core_that_looks(given);
        core.step(now(), Input::LookAgain);
        let out = core.step(now(), Input::Observed(given.qemu.clone()));
        out.into_iter().map(|(_, effect)| effect).next().unwrap()
    };
    let expected = Effect::MigrateContinue { to: M };
    assert_eq!(after_event_in_look(&granted_at(pre_switchover())), expected);
    assert_eq!(after_event_in_look(&called(loaded())), mark(Mark::Ran));
    // What no guest waits for is looked at again.
    assert_eq!(after_event_in_look(&granted_at(pre_copy())), Effect::Look);
}

#[test]
fn reports_make_no_work_inside_the_downtime() {
    let reported_within = |given: &Given| {
        let (_, out) = core(given);
        let report = out.iter().find_map(|(_, effect)| match effect {
            Effect::Report { within_ms, .. } => Some(*within_ms),
            _ => None,
        });
        report.unwrap()
    };
    for given in [
        granted_at(pre_switchover()),
        granted_at(completed()),
        called(loaded()),
    ] {
        assert_eq!(reported_within(&given), SWITCH_PATIENCE_MS);
    }
    assert_eq!(reported_within(&granted_at(pre_copy())), 0);
    // Servers wait for this one: it commits.
    let marks = Marks {
        ran: true,
        ..launched()
    };
    let running = Given {
        marks,
        ..called(incoming(RunStatusWord::Running, MigrationWord::Completed))
    };
    assert_eq!(reported_within(&running), 0);
}

fn granted_at(qemu: Qemu) -> Given {
    Given {
        order: granted(),
        qemu,
        marks: sent(),
        lease: FRESH,
        go: false,
    }
}

fn called(qemu: Qemu) -> Given {
    Given {
        order: target(TargetState::Granted),
        qemu,
        marks: launched(),
        lease: FRESH,
        go: true,
    }
}
