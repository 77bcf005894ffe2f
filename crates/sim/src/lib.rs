//! The control plane without a machine: what decides in servers and agents, run against simulated hosts, under a seed.
//!
//! **Owns:** virtual time, simulated hosts, QEMUs and links, faults, the checks of what must hold, the way from a seed
//! that fails to a short script that fails.
//!
//! **Does not know:** any rule: what is run is the code that servers and agents run.
//!
//! **Start here:** [`Script::of`] for what a seed stands for, then [`run`]. [`live`] has the same hosts in real time, beside a
//! real server.

mod agents;
mod bugs;
mod check;
mod disks;
mod effects;
mod faults;
mod host;
mod live;
mod runs;
mod script;
mod store;
mod tasks;
mod templates;
mod time;
mod users;
mod world;

use driver::qemu_model as qemu;

pub use bugs::Bug;
pub use live::{HOSTS_MAX, join, live, make_template};
pub use runs::{Failure, Outcome, Tally, check, run, shrink};
pub use script::{Catalog, Node, Rule, Script, Size, Step};
