//! Which server is meant, kept by name in a file.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What can be asked of the file with contexts.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example: sterna context set local --from /tmp/cloud/env\n\n\
    Contexts are kept in $XDG_CONFIG_HOME/sterna/config.yaml (~/.config/sterna/config.yaml). An option wins over the \
    environment (STERNA_SERVER, STERNA_TOKEN, STERNA_CACERT), and that over the context. A context that is named by \
    --context is used without the environment.")]
pub(crate) enum ContextCommand {
    /// List the contexts; the one that is used is marked
    #[command(after_help = "Example: sterna context list")]
    List,
    /// Use this one from now on
    #[command(after_help = "Example: sterna context use local")]
    Use(ContextName),
    /// Make one, or change what is given of it; the first one is used from now on
    Set(SetContextArgs),
    /// Forget one
    #[command(after_help = "Example: sterna context delete local")]
    Delete(ContextName),
}

/// Which context.
#[derive(Debug, Args)]
pub(crate) struct ContextName {
    /// The context's name
    pub(crate) name: String,
}

/// What a context says.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sterna context set local --from /tmp/cloud/env\n  \
    sterna context set prod --server https://cloud:8443 --token-file ~/.sterna-token --cacert ca.pem"
)]
pub(crate) struct SetContextArgs {
    /// The context's name
    pub(crate) name: String,
    /// Take server, token and certificate from the file `env` of a `sterna up`
    #[arg(long, value_name = "PATH")]
    pub(crate) from: Option<PathBuf>,
    /// A file with the token, instead of the token itself
    #[arg(long, value_name = "PATH")]
    pub(crate) token_file: Option<PathBuf>,
}
