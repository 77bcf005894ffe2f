//! What can go wrong with a QMP command.
//!
//! *Owns:* the error's kinds and texts. *Does not know:* how to recover: the caller looks again with `query-*`.
//! *Start here:* [`QmpError`].

use std::io;
use std::path::PathBuf;

/// Why a QMP command or connection failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket could not be connected to: QEMU is not there (yet, or any more).
    #[error("cannot connect to the QEMU monitor {}: is its QEMU running?", path.display())]
    Connect {
        /// The monitor's socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// QEMU refused the command; it has had no effect.
    #[error("QEMU refused `{command}`: {desc} ({class})")]
    Command {
        /// The command's name.
        command: String,
        /// QMP's error class, mostly `GenericError`.
        class: String,
        /// QEMU's own words.
        desc: String,
    },
    /// No answer in time. Whether the command has had, or will have, an effect is unknown.
    #[error("QEMU did not answer `{command}` within {deadline_ms} ms; whether it took effect is unknown")]
    Timeout {
        /// The command's name, or `greeting`.
        command: String,
        /// How long it was waited for.
        deadline_ms: u64,
    },
    /// The connection ended before the answer came. Whether the command took effect is unknown.
    #[error("the QEMU monitor closed before it answered `{command}`: {cause}")]
    Closed {
        /// The command's name, or `greeting`.
        command: String,
        /// Why it ended.
        cause: String,
    },
    /// QEMU answered something that the command's answer cannot be.
    #[error("QEMU's answer to `{command}` cannot be read: {detail}")]
    Protocol {
        /// The command's name, or `greeting`.
        command: String,
        /// What was wrong with it.
        detail: String,
    },
}

impl QmpError {
    /// Whether it is unknown if the command took effect: look with a `query-*` before doing anything else.
    pub fn effect_is_unknown(&self) -> bool {
        matches!(
            self,
            Self::Timeout { .. } | Self::Closed { .. } | Self::Protocol { .. }
        )
    }
}
