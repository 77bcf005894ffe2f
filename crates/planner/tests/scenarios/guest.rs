//! What guests are told: what of it goes to hosts, and what of it stays in the audit trail.

use model::audit::AuditRecord;
use model::report::RunState;
use model::user_data::{NOT_SHOWN, UserData};
use model::vm::{GuestConfig, Power};
use model::{Kind, VmId, key, record};
use serde_json::Value;

use super::world::World;

/// Up to here a text is in every document.
const SENT_ALWAYS_BYTES: usize = 16 << 10;

impl World {
    fn tell(&mut self, vm: VmId, data: Option<UserData>) {
        self.change_vm(vm, |object| object.spec.guest.user_data = data);
    }

    fn guest(&self, vm: VmId) -> GuestConfig {
        self.order("h1", vm).unwrap().machine.guest
    }

    /// Whether its host is sent a text, in a state of the VM's run.
    fn sends(&mut self, vm: VmId, text: &str, state: RunState) -> bool {
        self.tell(vm, Some(UserData::Text(text.to_owned())));
        let open = self.open(vm);
        self.report("h1", vm, open, |run| run.state = state);
        self.guest(vm).user_data.is_some()
    }

    /// What the last audit record says of the texts of a VM before and after.
    fn audited(&self, vm: VmId) -> (Value, Value) {
        let of_vm = key::object(Kind::Vm, vm.0);
        let records = self.store.iter().filter(|(key, _)| key.starts_with("/audit/"));
        let last = records.max_by_key(|(_, (_, revision))| *revision).unwrap();
        let record: AuditRecord = record::decode(&last.1.0).unwrap();
        let change = record.changes.into_iter().find(|change| change.key == of_vm);
        let change = change.unwrap();
        let text = |value: Option<Value>| {
            let text = value.and_then(|value| value.pointer("/data/spec/guest/user_data").cloned());
            text.unwrap_or_default()
        };
        (text(change.before), text(change.after))
    }
}

#[test]
fn long_texts_are_sent_until_the_seed_is_made() {
    let mut world = World::new(1);
    let vm = world.vm("web", Power::Running);
    let long = "x".repeat(SENT_ALWAYS_BYTES + 1);
    world.tell(vm, Some(UserData::Text(long.clone())));
    assert!(world.guest(vm).user_data.is_some(), "nothing is known of its run");
    for (state, is_sent) in [
        (RunState::Preparing, true),
        (RunState::Booting, false),
        (RunState::Running, false),
        (RunState::Paused, false),
    ] {
        assert_eq!(world.sends(vm, &long, state), is_sent, "{state:?}");
        assert!(world.sends(vm, &long[1..], state), "{state:?}");
    }
}

#[test]
fn parts_go_to_the_host_as_one_text() {
    let mut world = World::new(1);
    let vm = world.vm("web", Power::Running);
    let data = UserData::Parts(vec!["#!/bin/sh\n".to_owned(), "#cloud-config\n{}\n".to_owned()]);
    world.tell(vm, Some(data.clone()));
    let sent = world.guest(vm);
    assert_eq!(sent.user_data, Some(UserData::Text(data.merged())));
    assert_eq!(sent.hostname.as_deref(), Some("web"));
}

#[test]
fn texts_leave_a_trace_in_the_audit_trail_and_no_more() {
    let mut world = World::new(1);
    let vm = world.vm("web", Power::Hold);
    let text = |text: &str| Some(UserData::Text(text.to_owned()));
    let parts = Some(UserData::Parts(vec!["a".to_owned(), "b".to_owned()]));
    let (hidden, changed) = (Value::from(NOT_SHOWN), Value::from("[not shown, changed]"));
    for (told, before, after) in [
        (text("a"), Value::Null, hidden.clone()),
        (text("a"), hidden.clone(), hidden.clone()),
        (parts, hidden.clone(), changed),
        (None, hidden, Value::Null),
    ] {
        world.tell(vm, told);
        assert_eq!(world.audited(vm), (before, after));
    }
}

#[test]
fn a_vm_whose_record_cannot_be_read_is_not_left_out() {
    let mut world = World::new(1);
    let vm = world.running("web", "h1");
    world.damage(&key::object(Kind::Vm, vm.0));
    let document = world.document("h1");
    assert!(document.vms.is_empty() && document.unreadable.contains(&vm));
}
