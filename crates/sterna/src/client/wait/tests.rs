//! When waiting ends: every goal against every phase.

use serde_json::json;

use super::*;

fn vm(phase: &str, power: &str) -> Value {
    json!({
        "kind": "vm", "id": "01890000-0000-7000-8000-000000000001", "name": "web", "project": "default",
        "owner": "admin", "labels": {}, "revision": 7, "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z", "deleted_at": null,
        "spec": { "power": power },
        "status": {
            "phase": phase, "availability": "inactive", "host": null, "incarnation": null, "addresses": [],
            "ready": false, "migration": null, "operation": null, "at_next_start": [], "reason": null, "placement": null, "steps": [], "next_commands": [],
        },
    })
}

fn judge(goal: WaitState, vm: Value) -> Verdict {
    goal.judge(&serde_json::from_value(vm).unwrap())
}

fn impossible(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Impossible(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_goal_is_reached_in_its_phase() {
    for (goal, phase, power) in [
        (WaitState::Running, "Running", "running"),
        (WaitState::Paused, "Paused", "paused"),
        (WaitState::Suspended, "Suspended", "suspended"),
        (WaitState::Stopped, "Stopped", "stopped"),
        (WaitState::Off, "Off", "off"),
        // Its guest switched itself off.
        (WaitState::Off, "Off", "running"),
        (WaitState::Hold, "Hold", "hold"),
    ] {
        assert_eq!(judge(goal, vm(phase, power)), Verdict::Reached, "{goal:?}");
    }
}

#[test]
fn ready_needs_the_guests_answer() {
    let mut running = vm("Running", "running");
    assert_eq!(judge(WaitState::Ready, running.clone()), Verdict::NotYet);
    running["status"]["ready"] = json!(true);
    assert_eq!(judge(WaitState::Ready, running), Verdict::Reached);
}

#[test]
fn on_the_way_is_not_yet() {
    for (goal, phase, power) in [
        (WaitState::Running, "Pending", "running"),
        (WaitState::Running, "Prolog", "running"),
        (WaitState::Ready, "Boot", "running"),
        // Resumed just now: the host has not acted yet.
        (WaitState::Running, "Paused", "running"),
        (WaitState::Running, "Migrating", "running"),
        (WaitState::Running, "Unknown", "running"),
        (WaitState::Paused, "Running", "paused"),
        (WaitState::Suspended, "Shutdown", "suspended"),
        (WaitState::Off, "Shutdown", "off"),
        (WaitState::Off, "Running", "running"),
    ] {
        assert_eq!(judge(goal, vm(phase, power)), Verdict::NotYet, "{goal:?} {phase}");
    }
}

#[test]
fn what_leads_elsewhere_ends_the_waiting_with_the_reason() {
    let mut failed = vm("Failed", "running");
    failed["status"]["reason"] = json!({ "code": "qemu-exited", "message": "QEMU ended with status 1" });
    let verdict = judge(WaitState::Running, failed.clone());
    assert_eq!(
        impossible(&verdict),
        "it is Failed: QEMU ended with status 1 (qemu-exited)"
    );
    failed["spec"]["power"] = json!("off");
    assert!(impossible(&judge(WaitState::Off, failed)).contains("qemu-exited"));

    assert_eq!(
        impossible(&judge(WaitState::Running, vm("Off", "running"))),
        "it is Off"
    );
    assert_eq!(
        impossible(&judge(WaitState::Ready, vm("Suspended", "suspended"))),
        "it is Suspended"
    );
    assert_eq!(
        impossible(&judge(WaitState::Off, vm("Suspended", "suspended"))),
        "it is Suspended"
    );
    let overtaken = judge(WaitState::Running, vm("Running", "off"));
    assert_eq!(overtaken, Verdict::Reached, "it was there, whatever comes");
    let overtaken = judge(WaitState::Running, vm("Shutdown", "off"));
    assert_eq!(
        impossible(&overtaken),
        "it shall be Off now, as was asked meanwhile"
    );

    let mut deleted = vm("Running", "running");
    deleted["deleted_at"] = json!("2026-01-01T00:00:01Z");
    assert_eq!(
        impossible(&judge(WaitState::Running, deleted)),
        "it is being deleted"
    );
    assert_eq!(
        impossible(&Goal::<Vm>::gone(&WaitState::Running)),
        "it was deleted"
    );
}

#[test]
fn every_phase_has_a_verdict_that_its_goal_agrees_with() {
    for phase in Phase::ALL {
        for goal in [
            WaitState::Running,
            WaitState::Paused,
            WaitState::Suspended,
            WaitState::Stopped,
            WaitState::Off,
            WaitState::Hold,
        ] {
            let wanted = serde_json::to_value(power(goal)).unwrap();
            let verdict = judge(goal, vm(&phase.to_string(), wanted.as_str().unwrap()));
            assert_eq!(
                verdict == Verdict::Reached,
                phase == goal.phase(),
                "{goal:?} {phase}"
            );
        }
    }
}

#[test]
fn an_error_names_what_leads_on() {
    let mut failed = vm("Failed", "running");
    failed["status"]["next_commands"] = json!(["sterna vm start web", "sterna vm delete web"]);
    let failed: ObjectOf<Vm> = serde_json::from_value(failed).unwrap();
    assert_eq!(
        next_commands::<Vm>(&failed),
        "; what leads on: `sterna vm start web`, `sterna vm delete web`"
    );
    let fine: ObjectOf<Vm> = serde_json::from_value(vm("Running", "running")).unwrap();
    assert_eq!(next_commands::<Vm>(&fine), "");
}

#[test]
fn deletion_ends_when_the_object_is_gone() {
    let web: ObjectOf<Vm> = serde_json::from_value(vm("Epilog", "running")).unwrap();
    assert_eq!(Goal::<Vm>::judge(&Gone, &web), Verdict::NotYet);
    assert_eq!(Goal::<Vm>::gone(&Gone), Verdict::Reached);
}

#[test]
fn a_migration_ends_done_or_aborted() {
    let migration = |phase: &str| -> ObjectOf<Migration> {
        serde_json::from_value(json!({
            "kind": "migration", "id": "01890000-0000-7000-8000-000000000002", "name": "web-m2",
            "project": "default", "owner": "admin", "labels": {}, "revision": 9,
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z", "deleted_at": null,
            "spec": { "vm": "web", "to": null, "cancel": false },
            "status": {
                "phase": phase, "reason": { "code": "link-lost", "message": "the link broke" }, "method": null,
                "source": null, "target": null, "from_incarnation": null, "to_incarnation": null,
                "predicted": null, "measured": null, "progress": null,
            },
        }))
        .unwrap()
    };
    let (done, aborted) = (MigrationGoal::Done, MigrationGoal::Aborted);
    for phase in [
        "Planned",
        "Preparing",
        "Transferring",
        "SwitchingOver",
        "Decided",
        "Activated",
        "Aborting",
    ] {
        assert_eq!(done.judge(&migration(phase)), Verdict::NotYet, "{phase}");
        assert_eq!(aborted.judge(&migration(phase)), Verdict::NotYet, "{phase}");
    }
    assert_eq!(done.judge(&migration("Done")), Verdict::Reached);
    assert!(impossible(&done.judge(&migration("Aborted"))).contains("the link broke (link-lost)"));
    assert_eq!(aborted.judge(&migration("Aborted")), Verdict::Reached);
    assert!(impossible(&aborted.judge(&migration("Done"))).contains("too late"));
}

#[test]
fn a_reboot_is_over_when_its_operation_is() {
    let judge = |goal: Rebooted, vm: &Value| goal.judge(&serde_json::from_value(vm.clone()).unwrap());
    let mut rebooting = vm("Running", "running");
    rebooting["status"]["operation"] = json!("web-reboot-1");
    rebooting["status"]["ready"] = json!(true);
    assert_eq!(judge(Rebooted::Done, &rebooting), Verdict::NotYet);
    rebooting["status"]["operation"] = Value::Null;
    assert_eq!(judge(Rebooted::Ready, &rebooting), Verdict::Reached);
    rebooting["status"]["ready"] = json!(false);
    assert_eq!(judge(Rebooted::Done, &rebooting), Verdict::Reached);
    assert_eq!(judge(Rebooted::Ready, &rebooting), Verdict::NotYet);
    assert!(impossible(&judge(Rebooted::Done, &vm("Off", "off"))).contains("Off"));
}
