//! The program as people and scripts run it, against a server on the loopback interface: what it prints, what it refuses,
//! and how it ends. No guests: what needs them is told in `e2e`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod certificates;
mod contexts;
mod files;
mod images;
mod lists;
mod simulated;
mod store;
mod templates;
mod tokens;
mod world;
