//! Whole stories: cores on two small hosts with a model of QEMU, a model of the controller, and every fault at every
//! effect. After each step of each story the invariants of [`world`] are checked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cdrom;
mod controller;
mod copies;
mod faults;
mod host;
mod life;
mod migration;
mod warm;
mod world;
