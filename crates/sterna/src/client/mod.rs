//! placeholder
use std::process::ExitCode;
use crate::cli::{ClientCommand, Global};
/// Runs a command.
pub(crate) fn run(_global: Global, _command: ClientCommand) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not yet")
}
