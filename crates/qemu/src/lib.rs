//! Everything that knows how QEMU wants to be spoken to, and nothing about who asks.
//!
//! *Owns:* the command line and block graph of a VM, the two JSON protocols (QMP and the guest agent's), the settings of a
//! migration and of its TLS, `qemu-img`, and the life of a QEMU process (start, find again, kill, reap).
//!
//! *Does not know:* desired documents, incarnations, journals, hosts or the store. It reports what QEMU says; what that means
//! for a VM (the QEMU column of the protocol's table) is decided by `driver`.
//!
//! *Start here:* [`command_line`] for what a VM is made of, [`spawn`] for how it is started and found again, [`qmp`] for how
//! it is driven, [`migration_settings`] for the recipe of a live migration.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod command_line;
pub mod guest_agent;
pub mod image;
pub mod memory;
pub mod migration_settings;
pub mod migration_sockets;
pub mod migration_tls;
pub mod probe_accelerator;
pub mod qmp;
pub mod spawn;

mod command_output;
mod json_line;
mod unix_socket;
