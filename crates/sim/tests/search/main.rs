//! The protocol as built, searched exhaustively: every order of steps, faults and wishes, for one VM on three hosts.
//!
//! **Owns:** the world around the real driver and the real planner ([`world`], [`qemu`], [`effects`]), the steps that each party
//! may take ([`machine`]), the search ([`explore`]), and what is taken away to see that it is missed ([`taken`], [`rows`]).
//!
//! **Does not know:** any rule. Agents are [`driver::Core`], controllers are `planner`'s functions; each runs once for every
//! state and input that it meets ([`agents`], [`store`]), and is looked up from then on.
//!
//! **Start here:** `docs/protocol-search.md`, then [`tests`].
//!
//! Of the tests that the protocol's page asks for:
//!
//! | test | here |
//! |---|---|
//! | 1 the table and the rules, searched | all of [`tests`]; without post-copy |
//! | 3 agents killed at each step of the switch-over | [`world::Class::Agent`] |
//! | 4 the target's QEMU killed after `cont`, before commit | [`world::Class::Qemu`] |
//! | 5 the source resumed by itself and wrote | [`world::Class::Link`]; [`world::World::note_writes`] |
//! | 6 hosts cut from the store in each phase | [`world::Class::Connection`]; leases are not built |
//! | 7 reports and documents late, repeated, replayed | [`world::Class::Report`], [`world::Class::Document`], [`world::Class::Go`] |
//! | 8 two controllers on stale caches | [`world::Class::Controller`] |
//! | 9 cancel, stop, delete at every step | the wishes of [`tests`] |
//! | 12 a restored backup, 13 a mirror | not here: `e2e` has the first, mirrors are not built |

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agents;
mod effects;
mod explore;
mod intern;
mod machine;
mod qemu;
mod rows;
mod rules;
mod store;
mod taken;
mod tests;
mod world;
