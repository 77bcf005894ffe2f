//! A client of QEMU's monitor protocol (QMP) over a unix socket.
//!
//! *Owns:* one connection: the greeting, ids, deadlines, answers in any order, events as hints, and the bound on what QEMU may
//! send. *Does not know:* VMs, retries or what an answer means. *Start here:* [`Qmp::connect`], then [`Qmp::execute`]; the
//! typed commands are in [`commands`] and [`migration`], as methods of [`Qmp`].
//!
//! ```text
//! execute ──▶ queue (bounded) ──▶ writer task ──▶ socket ──▶ reader task ──▶ pending[id] ──▶ execute
//!                                                                   └─ event ─▶ Events (bounded; overflow is "look again")
//! ```
//! The connection ends when the last [`Qmp`] is dropped, when QEMU closes it, or at input that is no QMP; every command under
//! way then fails with the cause. A command that timed out leaves the connection usable: its late answer is dropped.
//! QEMU serves one client a monitor: a second one waits, without a greeting, until the first has gone.

pub mod cdrom;
mod client;
pub mod commands;
pub mod copies;
mod error;
pub mod migration;

pub use client::{Event, Events, Hint, LINE_BYTES_MAX, Qmp};
pub use error::QmpError;
