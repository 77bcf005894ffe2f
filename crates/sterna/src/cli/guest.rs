//! What is done in a guest that runs.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use crate::units;

/// Which VM, and what is done in its guest.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("what").required(true).multiple(true),
    after_help = "What is done by its guest agent, in this order: the user, its password, its keys; the files; the script. The \
    first that fails ends it, and --timeout all of it.\n\
    Ends with 0 if all was done, with the status of what failed in the guest, and with 1 otherwise.\n\n\
    Examples:\n  sterna vm apply web --script install.sh --timeout 15m\n  \
    echo 'systemctl reload nginx' | sterna vm apply web --script -\n  \
    sterna vm apply web --file /etc/motd=motd.txt --file /etc/issue=issue.txt --mode 0644\n  \
    sterna vm apply web --user ann --ssh-key-file ann.pub\n  \
    pass show ann | sterna vm apply web --user ann --password-stdin"
)]
pub(crate) struct GuestApplyArgs {
    /// Name or id of the VM
    pub(crate) name: String,
    /// Run this program as root: a file, or - for standard input. It begins with #!, or is one for /bin/sh
    #[arg(long, value_name = "FILE", group = "what")]
    pub(crate) script: Option<PathBuf>,
    /// Write a file of the guest from one here; may be given several times
    #[arg(long = "file", value_name = "PATH=LOCALFILE", value_parser = units::file, group = "what")]
    pub(crate) files: Vec<(String, PathBuf)>,
    /// The mode of the files, in octal
    #[arg(long, value_name = "MODE", default_value = "0644", requires = "files")]
    pub(crate) mode: String,
    /// Whose the files are
    #[arg(
        long,
        value_name = "USER[:GROUP]",
        default_value = "root:root",
        requires = "files"
    )]
    pub(crate) owner: String,
    /// Make a user, if it is not there
    #[arg(long, value_name = "NAME", group = "what")]
    pub(crate) user: Option<String>,
    /// Set the user's password to the first line of standard input
    #[arg(long, requires = "user")]
    pub(crate) password_stdin: bool,
    /// Let the owners of the ssh public keys in this file log in as the user; may be given several times
    #[arg(long = "ssh-key-file", value_name = "PATH", requires = "user")]
    pub(crate) ssh_key_files: Vec<PathBuf>,
    /// Check it, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}
