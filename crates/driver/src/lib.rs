//! The state machine of one incarnation of a VM on its host: (desired, observed, marks) → host commands.
//!
//! **Owns:** the protocol's table of what an agent may do ([`table`]), what QEMU's answers mean for it ([`mod@column`]), when
//! a transfer's downtime limit is raised ([`passes`]), and the core that turns all that into effects one at a time
//! ([`core`]).
//!
//! **Does not know:** how an effect is carried out, which sockets and files there are, what time it is: time is an
//! argument, and effects come back as inputs.
//!
//! **Start here:** [`types`] for what goes in and out, then [`table`].

pub mod column;
pub mod core;
pub mod passes;
pub mod table;
pub mod types;

pub use crate::core::Core;
