//! The binary `sterna`: the command line, and the composition root.
//!
//! **Owns:** the commands ([`cli`]), what they do as clients of a server ([`client`]) and to the files of one
//! ([`offline`]), how servers and agents are put together ([`daemon`]), and the simulator ([`simulation`]).
//!
//! **Does not know:** how anything is decided: clients ask a server, and daemons run the crates that do.
//!
//! **Start here:** [`cli`] for the tree of commands, then `client/mod.rs` for what happens to one.

mod cli;
mod client;
mod daemon;
mod offline;
mod simulation;
mod units;

use std::process::ExitCode;

use cli::{ClientCommand, Command};

/// It gives a server's many connections a third less memory than glibc's does (docs/performance.md). Its settings are in
/// `.cargo/config.toml`, and for one start in the environment as `_RJEM_MALLOC_CONF`.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Daemons run before any runtime or thread exists: they fork, change namespaces, and choose their own runtime.
fn main() -> ExitCode {
    if cli::answered() {
        return ExitCode::SUCCESS;
    }
    let cli = cli::parse();
    let answer = match cli.command {
        Command::Up(args) => daemon::up(args),
        Command::Down(args) => daemon::down(args),
        Command::Server(args) => daemon::server(args),
        Command::Agent(args) => daemon::agent(args),
        Command::Outlet(args) => daemon::outlet(&args),
        Command::Sim(command) => simulation::run(command),
        Command::Client(ClientCommand::Store(command)) if command.is_on_files() => offline::run(command),
        Command::Client(command) => client::run(cli.global, command),
    };
    answer.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
