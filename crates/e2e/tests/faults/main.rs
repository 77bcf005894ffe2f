//! Whatever fails, and whenever: every VM runs on, runs again, or says why it does not; and never twice.
//!
//! There is no script for a fault. There are four tables, by what goes on when something fails:
//!
//! | table | what goes on | what fails |
//! |---|---|---|
//! | [`table`] | a VM runs, moves, or needs room on disk | server, agents, QEMUs, links in each direction, the datastore, clocks |
//! | [`life`] | any other operation of a VM's life | server, agent, QEMU, at each trace that the operation leaves |
//! | [`images`] | an image comes to the server, or to a host | server, agent; it is deleted |
//! | [`fleet`] | operations on several VMs and on hosts | server, agent |
//!
//! `make test` makes those entries that are marked as usual, `make soak` all of them. [`greedy`] has what no single fault
//! is: a guest that takes all it can get, and one that ends again and again.

mod calendar;
mod fleet;
mod full;
mod greedy;
mod held;
mod images;
mod life;
mod moves;
mod streams;
mod table;
mod traces;
