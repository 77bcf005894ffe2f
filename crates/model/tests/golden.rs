//! The stored form of every kind. A golden file is never changed: what a release once wrote, every later one reads. A
//! field that comes later has a default, and its file is a new one beside the old.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fmt::Debug;

use model::Object;
use model::audit::AuditRecord;
use model::datastore::DatastoreSpec;
use model::event::EventSpec;
use model::host::{HostContact, HostIntent, HostSpec, HostStatus, JoinToken, Reservations};
use model::image::{ImageSpec, ImageStatus};
use model::migration::{MigrationIntent, MigrationSpec};
use model::network::{AddressHolder, NetworkSpec};
use model::operation::{OperationSpec, OperationStatus};
use model::profile::ProfileSpec;
use model::record::{self, Stored};
use model::report::RunStatus;
use model::template::{TemplateIntent, TemplateSpec, TemplateVersion};
use model::token::{RequestRecord, TokenRecord};
use model::vm::{VmIntent, VmSpec};
use serde_json::Value;

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// Reads a stored form and writes it again.
type Again = fn(&[u8]) -> Value;

fn again<T: Stored + PartialEq + Debug>(bytes: &[u8]) -> Value {
    let value: T = record::decode(bytes).unwrap_or_else(|error| panic!("{error}"));
    let written = record::encode(&value);
    assert_eq!(record::decode::<T>(&written).unwrap(), value);
    serde_json::from_slice(&written).unwrap()
}

/// The files by their names, each with its type. `vm-intent-kill` is a `vm-intent`.
const KINDS: [(&str, Again); 26] = [
    ("vm", again::<Object<VmSpec>>),
    ("vm-intent", again::<VmIntent>),
    ("vm-run", again::<RunStatus>),
    ("host", again::<Object<HostSpec>>),
    ("host-status", again::<HostStatus>),
    ("host-reservations", again::<Reservations>),
    ("host-contact", again::<HostContact>),
    ("host-intent", again::<HostIntent>),
    ("join-token", again::<JoinToken>),
    ("image", again::<Object<ImageSpec>>),
    ("image-status", again::<ImageStatus>),
    ("template", again::<Object<TemplateSpec>>),
    ("template-intent", again::<TemplateIntent>),
    ("template-version", again::<TemplateVersion>),
    ("profile", again::<Object<ProfileSpec>>),
    ("network", again::<Object<NetworkSpec>>),
    ("network-address", again::<AddressHolder>),
    ("datastore", again::<Object<DatastoreSpec>>),
    ("migration", again::<Object<MigrationSpec>>),
    ("migration-intent", again::<MigrationIntent>),
    ("operation", again::<Object<OperationSpec>>),
    ("operation-status", again::<OperationStatus>),
    ("event", again::<Object<EventSpec>>),
    ("audit", again::<AuditRecord>),
    ("token", again::<TokenRecord>),
    ("request", again::<RequestRecord>),
];

#[test]
fn what_was_once_written_is_read_and_written_alike() {
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(DIR).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let matching = KINDS
            .iter()
            .filter(|(kind, _)| name == *kind || name.starts_with(&format!("{kind}-")));
        let (kind, again) = matching
            .max_by_key(|(kind, _)| kind.len())
            .unwrap_or_else(|| panic!("{name} is of no kind"));
        seen.insert(*kind);
        let bytes = std::fs::read(&path).unwrap();
        let golden: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(again(&bytes), golden, "{name}");
    }
    assert_eq!(
        seen,
        KINDS.iter().map(|(kind, _)| *kind).collect(),
        "every kind has its file"
    );
}

#[test]
fn what_came_later_may_be_missing() {
    let mut vm: Value = serde_json::from_slice(&std::fs::read(format!("{DIR}/vm.json")).unwrap()).unwrap();
    for (pointer, key) in [
        ("/data/meta", "deleted_at"),
        ("/data/meta", "labels"),
        ("/data/spec", "force"),
    ] {
        vm.pointer_mut(pointer)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove(key)
            .unwrap();
    }
    let object: Object<VmSpec> = record::decode(vm.to_string().as_bytes()).unwrap();
    assert!(!object.spec.force && object.meta.deleted_at.is_none());
}
