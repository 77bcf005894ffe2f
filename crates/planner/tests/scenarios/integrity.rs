//! What is stored agrees with itself, and what does not is named.

use std::collections::BTreeMap;

use model::vm::{Power, StartChoice};
use model::{Kind, VmId, key};
use planner::integrity::faults;

use super::keep_warm::{kept, succeed};
use super::warm::asked;
use super::world::World;

type Stored = BTreeMap<String, (Vec<u8>, u64)>;

fn found(stored: &Stored) -> Vec<String> {
    let read = stored
        .iter()
        .map(|(key, (value, _))| (key.as_str(), value.as_slice()));
    faults(read)
        .into_iter()
        .map(|(key, why)| format!("{key}: {why}"))
        .collect()
}

/// Names exactly one fault, of this key, with this word in it.
#[track_caller]
fn one(stored: &Stored, of: &str, word: &str) {
    let found = found(stored);
    assert!(
        matches!(&found[..], [only] if only.starts_with(&format!("{of}: ")) && only.contains(word)),
        "{of} {word}: {found:#?}"
    );
}

fn world() -> (World, VmId) {
    let mut world = World::new(2);
    let vm = world.running("web", "h1");
    let id = world.migrate(vm, Some("h2"));
    world.settle();
    assert!(world.view.migrations.contains_key(&id));
    (world, vm)
}

#[test]
fn what_the_planner_writes_agrees_with_itself() {
    let (mut world, vm) = world();
    assert_eq!(found(&world.store), Vec::<String>::new());
    world.delete(vm);
    world.settle();
    assert_eq!(found(&world.store), Vec::<String>::new());
}

#[test]
fn each_thing_that_is_broken_is_named() {
    let (world, vm) = world();
    let object = key::object(Kind::Vm, vm.0);
    let index = key::name_index(Kind::Vm, Some("default"), "web");
    let without = |key: &str| {
        let mut stored = world.store.clone();
        stored.remove(key).unwrap();
        stored
    };
    let with = |key: &str, value: &[u8]| {
        let mut stored = world.store.clone();
        stored.insert(key.to_owned(), (value.to_vec(), 1));
        stored
    };
    one(&without(&index), &object, "name web");
    let nobodys = key::name_index(Kind::Vm, Some("default"), "nobody");
    let id = model::record::encode(&vm);
    one(&with(&nobodys, &id), &nobodys, "no object");
    one(&with("/audit/x", b"{"), "/audit/x", "damaged");
    one(
        &with("/what/is/this", b"{}"),
        "/what/is/this",
        "no key of this release",
    );
    let host = world.host_id("h1");
    one(
        &without(&key::host_reservations(host)),
        &key::vm_intent(vm),
        "not reserved",
    );
    let datastore = world.view.find(Kind::Datastore, Some("default"), "default");
    let datastore = datastore
        .or_else(|| world.view.find(Kind::Datastore, None, "default"))
        .unwrap();
    let lost = found(&without(&key::object(Kind::Datastore, datastore)));
    assert!(
        lost.iter()
            .any(|fault| fault.starts_with(&object) && fault.contains("needs datastore")),
        "{lost:#?}"
    );
    let newer = found(&with(&key::vm_intent(vm), br#"{"schema":99,"data":{}}"#));
    assert!(
        newer.iter().any(|fault| fault.contains("schema 99")),
        "{newer:#?}"
    );
}

#[test]
fn nothing_is_decided_about_what_cannot_be_read() {
    let mut world = World::new(2);
    let (template, form) = kept(&mut world);
    succeed(&mut world, form);
    let quick = asked(&mut world, "quick", template, StartChoice::AtOnce);
    world.delete(form);
    let web = world.running("web", "h1");
    world.migrate(web, Some("h2"));
    let gone = world.running("gone", "h1");
    world.delete(gone);
    assert!(world.next_plan().is_none());
    let keys: Vec<String> = world.store.keys().cloned().collect();
    for key in keys.iter().filter(|key| key::parse(key).is_some()) {
        let before = world.damage(key);
        let plan = world.next_plan().map(|plan| plan.action);
        assert_eq!(plan, None, "{key}");
        world.overwrite(key, before);
        assert!(world.next_plan().is_none(), "{key}");
    }
    assert!(world.view.vms.contains_key(&form) && world.told("h1", quick).starts_with("run 1"));
}

/// The emptiest host by what can be read of it.
#[test]
fn a_host_of_which_something_cannot_be_read_gets_no_vm() {
    let mut world = World::new(1);
    world.running("web", "h1");
    let waits = world.vm("late", Power::Hold);
    world.damage(&key::host_reservations(world.host_id("h1")));
    let found = planner::explain::explain(&world.view, waits, world.now).unwrap();
    assert!(format!("{found:?}").contains("host-unreadable"), "{found:?}");
}

#[test]
fn a_dead_host_keeps_no_store_held() {
    let mut world = World::new(1);
    assert!(!world.view.is_held());
    let restored = model::restored::Restored {
        at: world.now,
        from_revision: 1,
        ends_unknown: false,
        put_back: None,
    };
    world.write(key::RESTORED.to_owned(), &restored);
    assert!(world.view.is_held());
    assert_eq!(found(&world.store), Vec::<String>::new());
    let none = planner::restored::unsettled(&world.view, |_| None);
    assert_eq!(none.silent, ["h1"]);
    world.confirm_dead("h1");
    let none = planner::restored::unsettled(&world.view, |_| None);
    assert_eq!((none.silent.len(), none.unknown.len()), (0, 0));
}
