//! The public wire types, the document that describes them, and the client.
//!
//! **Owns:** the shape of every request and answer, the OpenAPI document, the typed client.
//!
//! **Does not know:** how anything is stored or decided.
//!
//! **Start here:** [`agent`].

pub mod agent;
