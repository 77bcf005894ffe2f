//! The public wire types, the document that describes them, and the client.
//!
//! **Owns:** the shape of every request and answer ([`resource`], [`kinds`], [`document`],
//! [`history`], [`store`], [`token`], [`problem`]), the OpenAPI document
//! ([`openapi`]), what may be asked of a list ([`query`]), the typed client ([`client`]), a console as a stream ([`console`]),
//! what is done in a guest that runs ([`apply`]).
//!
//! **Does not know:** how anything is stored or decided.
//!
//! **Start here:** [`resource`] for what every kind has in common, then [`kinds`].

pub mod agent;
pub mod apply;
pub mod client;
pub mod console;
pub mod document;
pub mod drain;
pub mod history;
pub mod image;
pub mod kinds;
pub mod object_store;
pub mod openapi;
pub mod placement;
pub mod problem;
pub mod profile;
pub mod query;
pub mod resource;
pub mod store;
pub mod template;
pub mod tls;
pub mod token;

pub use problem::Problem;
pub use resource::{Change, ChangeType, Changes, Create, List, Object, Resource};
