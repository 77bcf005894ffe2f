//! Whole clouds for tests: `sterna up` in a directory of its own, with real guests, and the proof that nothing stays behind.
//!
//! **Owns:** the start and the end of a [`world::World`]; waiting for what its server, its guests and its processes do; what
//! to look at to know that a VM runs once ([`executing`]) and that a machine is as it was before ([`clean`]).
//!
//! **Does not know:** what is tested. It finds nothing out by asking the parts under test where it can look by itself: a
//! VM runs if its processors use time, and a process is gone if the kernel says so.
//!
//! **Start here:** [`world::World::up`], then [`vms`] and [`pair`].

#![allow(
    clippy::disallowed_methods,
    reason = "it waits for real processes and looks at real clocks; no simulator runs it"
)]

pub mod clean;
pub mod clocks;
pub mod console;
pub mod counter;
pub mod executing;
pub mod link;
pub mod pair;
pub mod process;
pub mod promise;
pub mod vms;
pub mod wait;
pub mod watcher;
pub mod world;
