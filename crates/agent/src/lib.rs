//! The agent.
pub mod config;
pub mod host;
pub mod journal;
pub mod link;
pub mod peer;
pub mod pki;
pub mod seed;
