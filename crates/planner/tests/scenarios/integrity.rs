//! What is stored agrees with itself, and what does not is named.

use std::collections::BTreeMap;

use model::{Kind, VmId, key};
use planner::integrity::faults;

use crate::world::World;

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
