//! The stored form: a schema version beside the data, so that a newer release reads what an older one wrote and an older
//! one refuses what it would misread.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

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

/// The bytes to store.
pub fn encode<T: Serialize>(data: &T) -> Vec<u8> {
    // Stored types have string keys and no failing serialisers; a test encodes each of them.
    serde_json::to_vec(&Write { schema: SCHEMA, data }).unwrap_or_default()
}

/// The object in stored bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
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
        assert_eq!(
            decode::<u8>(br#"{"schema":2,"data":1}"#),
            Err(Unreadable::Newer(2))
        );
        assert!(matches!(decode::<u8>(b"{"), Err(Unreadable::Damaged(_))));
        assert!(matches!(
            decode::<u8>(br#"{"schema":1,"data":"x"}"#),
            Err(Unreadable::Damaged(_))
        ));
        assert_eq!(decode::<u8>(&encode(&7u8)), Ok(7));
    }
}
