//! The nouns of Sterna: what is stored, in which state it may be, and how a state is named.
//!
//! **Owns:** the stored types with their schema versions ([`record`]), their keys ([`key`]), ids and units, the life of a
//! VM ([`lifecycle`]), and the two messages between a server and a host: the desired document ([`document`]) and the
//! report ([`report`]).
//!
//! **Does not know:** where anything is stored, who asks for it, what time it is, and how a decision is made.
//!
//! **Start here:** [`lifecycle`] for the chart, then [`vm`] and [`migration`] for who writes which field.

pub mod audit;
pub mod build;
pub mod copy;
pub mod datastore;
pub mod digest;
pub mod document;
pub mod event;
pub mod host;
pub mod id;
pub mod image;
pub mod key;
pub mod lifecycle;
pub mod limits;
pub mod meta;
pub mod migration;
pub mod network;
pub mod operation;
pub mod placement;
pub mod profile;
pub mod reason;
pub mod record;
pub mod report;
pub mod restored;
#[cfg(feature = "samples")]
pub mod samples;
pub mod template;
pub mod token;
pub mod user_data;
pub mod vm;

pub use id::{
    DatastoreId, EventId, HostId, ImageId, Incarnation, MigrationId, NetworkId, OperationId, ProfileId,
    TemplateId, TokenId, VmId,
};
pub use jiff::Timestamp;
pub use meta::{Kind, Meta, Object};
pub use reason::Reason;
