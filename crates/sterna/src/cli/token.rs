//! Tokens of people and programs.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use model::token::Role;

use crate::units;

/// What is done with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token, and print its secret, which is shown this once
    Create(CreateTokenArgs),
    /// List the tokens that count, without their secrets
    #[command(after_help = "Example: sterna token list")]
    List,
    /// Revoke tokens: from now on they do not count
    #[command(visible_alias = "revoke", after_help = "Example: sterna token delete ci")]
    Delete {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Which token.
#[derive(Debug, Args)]
#[command(
    after_help = "A reader reads, except consoles, tokens and backups; an operator also changes things and uses consoles; \
    an admin also makes and revokes tokens, lets hosts join, and handles the store.\n\n\
    Examples:\n  sterna token create prometheus --role reader > sterna.token\n  \
    sterna token create ci --role operator --expires 90d"
)]
pub(crate) struct CreateTokenArgs {
    /// Its name, which is also that of the user who shows it
    pub(crate) name: String,
    /// What it may do
    #[arg(long, value_enum)]
    pub(crate) role: RoleArg,
    /// When it stops to be accepted, counted from now, as in 90d; never if left out
    #[arg(long, value_name = "DURATION", value_parser = units::duration, allow_hyphen_values = true)]
    pub(crate) expires: Option<Duration>,
}

/// A role as it is written.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum RoleArg {
    /// Reads.
    Reader,
    /// Also changes things.
    Operator,
    /// Also handles tokens, hosts that join, and the store.
    Admin,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Reader => Self::Reader,
            RoleArg::Operator => Self::Operator,
            RoleArg::Admin => Self::Admin,
        }
    }
}
