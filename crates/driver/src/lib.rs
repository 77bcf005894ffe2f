//! What an agent decides: for each incarnation of a VM on its host, (desired, observed, marks) → host commands; for the host,
//! which document counts and what has to be reported.
//!
//! **Owns:** the protocol's table of what an agent may do ([`table`]), what QEMU's answers mean for it ([`mod@column`]), when
//! a transfer's downtime limit is raised ([`passes`]), and the core that turns all that into effects one at a time
//! ([`core`]); which of a host's documents counts ([`host`]), what its journal says ([`journal`]), and what it has to tell
//! the servers ([`link`]).
//!
//! **Does not know:** how an effect is carried out, which sockets and files there are, what time it is: time is an
//! argument, and effects come back as inputs.
//!
//! **Start here:** [`types`] for what goes in and out, then [`table`].

pub mod column;
pub mod core;
pub mod host;
pub mod journal;
pub mod link;
pub mod passes;
#[cfg(feature = "qemu-model")]
pub mod qemu_model;
pub mod table;
pub mod types;

pub use crate::core::Core;
pub use crate::host::HostCore;
pub use crate::link::Board;
