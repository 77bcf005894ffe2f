//! What tests and the simulator begin with: an ordinary object of each kind, to be changed where a test is about it. Behind
//! the feature `samples`.
//!
//! **Owns:** their values. Nothing is decided by one of them that a test does not say itself.
//!
//! **Does not know:** where they are written, and under which ids.
//!
//! **Start here:** [`object`], [`vm_spec`].

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::datastore::DatastoreSpec;
use crate::host::{Accelerator, AcceleratorName, HostStatus};
use crate::image::{ImageContent, ImageFormat, ImageStatus};
use crate::placement::PlacementRule;
use crate::report::{RunState, RunStatus};
use crate::vm::{GuestConfig, Power, SavedIn, VmSpec};
use crate::{DatastoreId, HostId, ImageId, Incarnation, Kind, Meta, Object, Timestamp};

/// An object that somebody has just made, in the default project if its kind has one.
pub fn object<S>(kind: Kind, id: Uuid, name: &str, now: Timestamp, spec: S) -> Object<S> {
    let meta = Meta {
        id,
        name: name.to_owned(),
        project: (!kind.is_cloud_wide()).then(|| "default".to_owned()),
        owner: "ann".to_owned(),
        labels: BTreeMap::new(),
        created_at: now,
        updated_at: now,
        deleted_at: None,
    };
    Object { meta, spec }
}

/// An image of which all is there.
pub fn image_status() -> ImageStatus {
    ImageStatus {
        content: Some(ImageContent {
            sha256: "0".repeat(64),
            format: ImageFormat::Qcow2,
            file_bytes: 1,
            virtual_bytes: 1 << 20,
            source_sha256: None,
            is_medium: false,
        }),
        failure: None,
        importer: None,
        copied: None,
    }
}

/// A datastore whose writes all hosts see.
pub fn datastore_spec() -> DatastoreSpec {
    DatastoreSpec {
        path: "/datastore".to_owned(),
        coherent: true,
    }
}

/// The nth host, without KVM.
pub fn host_status(number: usize, memory_mib: u64) -> HostStatus {
    HostStatus {
        agent_version: "1".to_owned(),
        qemu_version: "10.0.2".to_owned(),
        cpus: 4,
        memory_mib,
        reserved_mib: 0,
        accelerator: Accelerator {
            name: AcceleratorName::Tcg,
            why: None,
        },
        peer_address: format!("192.0.2.{number}:7000").parse().ok(),
        lacks: Vec::new(),
        cpu_model: "qemu64".to_owned(),
        boot_id: "boot".to_owned(),
        qemu_user: None,
        uefi: true,
    }
}

/// A VM of 256 MiB that shall run.
pub fn vm_spec(image: ImageId, datastore: DatastoreId) -> VmSpec {
    VmSpec {
        template: None,
        template_version: None,
        profile: None,
        vcpus: 1,
        memory_mib: 256,
        image: Some(image),
        disk_bytes: None,
        datastore,
        nics: Vec::new(),
        guest: GuestConfig::default(),
        placement: PlacementRule::default(),
        power: Power::Running,
        force: false,
        power_request: 1,
        reboot: None,
        cdrom: None,
        boot: Vec::new(),
        clone_of: None,
        firmware: crate::vm::Firmware::default(),
        start: crate::vm::StartChoice::Boot,
        warms: None,
        flatten_request: 0,
        builds: None,
    }
}

/// What a host reports of an incarnation of which nothing is known but its state.
pub fn run_status(incarnation: Incarnation, host: HostId, state: RunState) -> RunStatus {
    RunStatus {
        incarnation,
        host,
        document_revision: 0,
        state,
        ran: false,
        ready: false,
        addresses: Vec::new(),
        stream: None,
        outgoing: None,
        saved_bytes: None,
        saved_in: SavedIn::Host,
        reason: None,
        steps: Vec::new(),
        rebooted: None,
        cdrom: None,
        copies: BTreeMap::new(),
        has_identity: false,
        built: None,
    }
}
