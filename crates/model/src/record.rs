//! The stored form: a schema version beside the data, so that a newer release reads what an older one wrote and an older
//! one refuses what it would misread.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::VmId;
use crate::audit::AuditRecord;
use crate::datastore::DatastoreSpec;
use crate::event::EventSpec;
use crate::host::{HostContact, HostIntent, HostSpec, HostStatus, JoinToken, Reservations};
use crate::image::{ImageSpec, ImageStatus};
use crate::meta::Object;
use crate::migration::{MigrationIntent, MigrationSpec};
use crate::network::{AddressHolder, NetworkSpec};
use crate::operation::{OperationSpec, OperationStatus};
use crate::profile::ProfileSpec;
use crate::report::RunStatus;
use crate::restored::Restored;
use crate::template::{TemplateIntent, TemplateSpec, TemplateVersion};
use crate::token::{RequestRecord, TokenRecord};
use crate::vm::{VmIntent, VmSpec};

/// The schema version that this release writes.
pub const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Write<'a, T> {
    schema: u32,
    data: &'a T,
}

#[derive(Deserialize)]
struct Version {
    schema: u32,
}

#[derive(Deserialize)]
struct Read<T> {
    schema: u32,
    data: T,
}

/// A stored object that cannot be read. It is reported on the object concerned, and the rest goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not what this release or an older one wrote.
    #[error("the stored object is damaged ({0}): restore it from a backup, or delete it")]
    Damaged(String),
    /// Written by a newer release.
    #[error(
        "the stored object has schema {0}, this release reads up to {SCHEMA}: use the newer release again"
    )]
    Newer(u32),
}

/// What is stored under a key of its own. How it is read and written is compiled here once: what serde makes of these types
/// is a third of the code of each crate that would do it for itself.
pub trait Stored: Sized {
    /// The bytes to store.
    fn encode(&self) -> Vec<u8>;
    /// The object in stored bytes.
    fn decode(bytes: &[u8]) -> Result<Self, Unreadable>;
}

/// What a user says of an object of one kind: it is stored with its names and times.
pub trait Spec: Sized {
    /// The bytes to store.
    fn encode(object: &Object<Self>) -> Vec<u8>;
    /// The object in stored bytes.
    fn decode(bytes: &[u8]) -> Result<Object<Self>, Unreadable>;
}

impl<S: Spec> Stored for Object<S> {
    fn encode(&self) -> Vec<u8> {
        S::encode(self)
    }

    fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        S::decode(bytes)
    }
}

macro_rules! specs {
    ($($spec:ty),+ $(,)?) => {$(
        impl Spec for $spec {
            fn encode(object: &Object<Self>) -> Vec<u8> {
                write(object)
            }

            fn decode(bytes: &[u8]) -> Result<Object<Self>, Unreadable> {
                read(bytes)
            }
        }
    )+};
}

macro_rules! parts {
    ($($part:ty),+ $(,)?) => {$(
        impl Stored for $part {
            fn encode(&self) -> Vec<u8> {
                write(self)
            }

            fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
                read(bytes)
            }
        }
    )+};
}

specs!(
    DatastoreSpec,
    EventSpec,
    HostSpec,
    ImageSpec,
    MigrationSpec,
    NetworkSpec,
    OperationSpec,
    ProfileSpec,
    TemplateSpec,
    VmSpec,
);

parts!(
    AddressHolder,
    AuditRecord,
    HostContact,
    HostIntent,
    HostStatus,
    ImageStatus,
    JoinToken,
    MigrationIntent,
    OperationStatus,
    RequestRecord,
    Reservations,
    Restored,
    RunStatus,
    String,
    TemplateIntent,
    TemplateVersion,
    TokenRecord,
    Uuid,
    VmId,
    VmIntent,
);

/// The bytes to store.
pub fn encode<T: Stored>(data: &T) -> Vec<u8> {
    data.encode()
}

/// The object in stored bytes.
pub fn decode<T: Stored>(bytes: &[u8]) -> Result<T, Unreadable> {
    T::decode(bytes)
}

fn write<T: Serialize>(data: &T) -> Vec<u8> {
    // Stored types have string keys and no failing serialisers; a test encodes each of them.
    serde_json::to_vec(&Write { schema: SCHEMA, data }).unwrap_or_default()
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
    let newer = |schema: u32| (schema > SCHEMA).then_some(Unreadable::Newer(schema));
    match serde_json::from_slice::<Read<T>>(bytes) {
        Ok(read) => newer(read.schema).map_or(Ok(read.data), Err),
        // What a newer release wrote may have another shape.
        Err(error) => {
            let version = serde_json::from_slice::<Version>(bytes).ok();
            let newer = version.and_then(|version| newer(version.schema));
            Err(newer.unwrap_or_else(|| Unreadable::Damaged(error.to_string())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_schema_is_refused_and_damage_is_named() {
        assert_eq!(read::<u8>(br#"{"schema":2,"data":1}"#), Err(Unreadable::Newer(2)));
        assert!(matches!(read::<u8>(b"{"), Err(Unreadable::Damaged(_))));
        assert!(matches!(
            read::<u8>(br#"{"schema":1,"data":"x"}"#),
            Err(Unreadable::Damaged(_))
        ));
        assert_eq!(read::<u8>(&write(&7u8)), Ok(7));
    }
}
