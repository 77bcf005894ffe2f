//! The options of the commands that stay.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// Options of `sterna up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// How many hosts: h1, h2, …
    #[arg(long, default_value_t = 3)]
    pub(crate) hosts: u8,
    /// Where everything is kept
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where the server listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
}

/// Options of `sterna server`.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// Where the store, the keys and the images are kept
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Where the server listens; may be given several times
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Vec<SocketAddr>,
}

/// Options of `sterna agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Where the agent keeps its journal, its keys and its VMs
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
}
