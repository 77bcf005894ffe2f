//! One incarnation of a VM: a task that owns its core and carries out what the core asks for.
//!
//! ```text
//! documents, lease, go ─┐
//! QEMU's events, timer ─┼─▶ task ─▶ Core::step ─▶ effects ─▶ exec ─▶ QEMU, files, ports, journal, peers
//! answers to effects  ──┘     ▲                                │
//!                             └────── Done / Failed / Observed ┘
//! ```
//!
//! **Owns:** everything that touches one incarnation from outside the core. Nothing here decides: every `if` on what a VM
//! is or shall be belongs to `driver`.
//!
//! **Does not know:** other incarnations, where documents come from, what becomes of reports.
//!
//! **Start here:** [`task::run`], then [`exec::Vm::carry_out`].

pub mod apply;
mod build;
mod cdrom;
pub mod console;
mod copies;
pub mod errand;
pub mod exec;
mod flatten;
pub mod guest;
pub mod live;
mod migrate;
pub mod observe;
mod saved;
mod stopwatch;
pub mod task;
pub mod turns;
mod warm;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use driver::types::Failure;
use model::Reason;
use model::host::Accelerator;

use crate::clock::Clock;
use crate::config::HostDir;
use crate::journal::Journal;
use crate::link::Board;
use crate::network::Network;
use crate::peer::Peers;
use crate::pki::HostIdentity;
use crate::storage::Storage;
use crate::users::Users;

/// What all incarnations on a host share.
pub struct Host {
    /// Which host it is.
    pub identity: HostIdentity,
    /// Its files.
    pub dir: HostDir,
    /// What must be durable.
    pub journal: Journal,
    /// What is reported.
    pub board: Arc<Board>,
    /// Disks and images.
    pub storage: Storage,
    /// As whom QEMUs run.
    pub users: Users,
    /// Ports.
    pub network: Network,
    /// Other agents.
    pub peers: Peers,
    /// The guests' consoles.
    pub consoles: console::Consoles,
    /// Where orders for guests are taken.
    pub guests: apply::Guests,
    /// Who may load the host now.
    pub turns: turns::Turns,
    /// How guests are run.
    pub accelerator: Accelerator,
    /// The processor that guests see.
    pub cpu_model: String,
    /// QEMU's program.
    pub qemu: PathBuf,
    /// Where migration streams arrive.
    pub underlay: IpAddr,
    /// The size of their sockets' buffers, if it is not the kernel's business.
    pub migration_buffer: Option<usize>,
    /// The agent's start.
    pub clock: Clock,
}

/// A failure that trying again may help.
fn retryable(code: &str, error: &dyn std::error::Error) -> Failure {
    Failure {
        reason: Reason::new(code, crate::link::chain(error)),
        is_retryable: true,
    }
}

/// A failure that stays.
fn terminal(code: &str, error: &dyn std::error::Error) -> Failure {
    Failure {
        is_retryable: false,
        ..retryable(code, error)
    }
}
