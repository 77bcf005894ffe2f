//! Scenarios: a store in memory, every plan committed as the controller commits it, agents that report what a scenario
//! says, and the invariants checked after every single write.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod apply;
mod build;
mod copies;
mod drain;
mod flatten;
mod guest;
mod host;
mod integrity;
mod invariants;
mod keep_warm;
mod migration;
mod operation;
mod reports;
mod rules;
mod vm;
mod warm;
mod world;
