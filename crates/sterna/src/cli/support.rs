//! What helps whoever is asked for help.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What is done for support.
#[derive(Debug, Subcommand)]
pub(crate) enum SupportCommand {
    /// Write a file with what is needed to find a fault, without secrets
    Bundle(BundleArgs),
}

/// What goes into the bundle, and where that goes.
#[derive(Debug, Args)]
#[command(
    after_help = "The bundle has versions, every object and the last events, the store's status, metrics, and the ends of \
    logs: those of this machine's units, and those that --logs names. User data and ssh keys of guests are left out, and \
    tokens and private keys are blotted out wherever they stand. Names, addresses and labels stay: look through it before \
    you send it.\n\n\
    Examples:\n  sterna support bundle fault.tar.gz\n  sterna support bundle fault.tar.gz --logs /tmp/cloud/log"
)]
pub(crate) struct BundleArgs {
    /// The file to write, readable by you alone
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    pub(crate) force: bool,
    /// A log, or a directory of logs, as `log` in the directory of `sterna up`; may be given several times
    #[arg(long, value_name = "PATH")]
    pub(crate) logs: Vec<PathBuf>,
}
