//! The cloud's own data: the store, its backups, and what becomes of a restored one.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What is done with the store.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Show how the store is
    #[command(after_help = "Example: sterna store status")]
    Status,
    /// Write a copy of the store to a file, while it is used
    Backup(BackupArgs),
    /// Make a store from a backup, where there is none
    Restore(RestoreArgs),
    /// Look for what is broken in a store or a backup
    Check(CheckArgs),
    /// Let a restored store go on, once every host has said what it runs
    Resume(ResumeArgs),
}

impl StoreCommand {
    /// Whether it works on files, and asks no server.
    pub(crate) fn is_on_files(&self) -> bool {
        match self {
            Self::Restore(_) | Self::Check(_) => true,
            Self::Backup(args) => args.data.is_some(),
            Self::Status | Self::Resume(_) => false,
        }
    }
}

/// Where a backup goes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sterna store backup cloud.db\n  sterna store backup cloud.db --data /var/lib/sterna/server\n\n\
    The backup holds every object, the audit trail and the hashes of tokens. Not in it, and to be kept beside it: the \
    directories `pki` (the cloud's CAs, without which hosts have to join again) and `images` of the server's data \
    directory, and the datastores."
)]
pub(crate) struct BackupArgs {
    /// The file to write, readable by you alone
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    pub(crate) force: bool,
    /// Copy the store of a server that is stopped: its data directory, or that of `sterna up`
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

/// What is restored where.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: sterna store restore cloud.db --data /var/lib/sterna/server\n\n\
    Hosts may run what a backup does not know. So a restored store is held: servers answer, guests run on, and nothing is \
    started, moved or ended until `sterna store resume`. Nobody can read or watch what was before the restore."
)]
pub(crate) struct RestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The data directory of the server, which must be stopped, or that of `sterna up`
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
}

/// What is looked at.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sterna store check cloud.db\n  sterna store check --data /var/lib/sterna/server\n\n\
    It changes nothing, and a server may be running. Each thing that is broken is named; the exit code is 1 if there is one."
)]
#[group(required = true, multiple = false)]
pub(crate) struct CheckArgs {
    /// A backup
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The data directory of a server, or that of `sterna up`
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

/// How a restored store goes on.
#[derive(Debug, Args)]
#[command(after_help = "Example: sterna store resume --end-unknown\n\n\
    It is refused while a host has not said what it runs, and while one runs what the backup does not know. Hosts that \
    joined after the backup are not known at all: let them join again, or see to it that they are off.")]
pub(crate) struct ResumeArgs {
    /// End what hosts run and the backup does not know, and keep its disks
    #[arg(long)]
    pub(crate) end_unknown: bool,
}
