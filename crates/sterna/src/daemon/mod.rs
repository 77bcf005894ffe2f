//! The commands that stay: a server, an agent, or both on one machine.

pub(crate) mod args;

use std::process::ExitCode;

use args::{AgentArgs, ServerArgs, UpArgs};

/// A server and agents on this machine.
pub(crate) fn up(_args: UpArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`sterna up` is not built yet")
}

/// A server.
pub(crate) fn server(_args: ServerArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`sterna server` is not built yet")
}

/// An agent.
pub(crate) fn agent(_args: AgentArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`sterna agent` is not built yet")
}
