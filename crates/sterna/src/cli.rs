//! The tree of commands.
//!
//! **Owns:** what each command takes, and its help with an example.
//!
//! **Does not know:** what a command does: see [`crate::client`] and [`crate::daemon`].
//!
//! **Start here:** [`Command`], then [`ClientCommand`].

mod completion;
mod contexts;
mod files;
mod guest;
mod kinds;
mod manual;
mod output;
mod store;
mod support;
mod token;
mod vm;

use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub(crate) use completion::{CompletionArgs, Shell, answered, script};
pub(crate) use contexts::{ContextCommand, SetContextArgs};
pub(crate) use files::{ApplyArgs, DESCRIBED, ExportArgs};
pub(crate) use guest::GuestApplyArgs;
pub(crate) use kinds::{
    BuildArgs, CaptureArgs, CatalogCommand, CreateArgs, DatastoreArgs, DeleteArgs, DrainArgs, GetArgs,
    GuestArgs, HistoryArgs, HostCommand, ImageCommand, ImportArgs, LabelArgs, ListArgs, MigrationCommand,
    NetworkArgs, ProfileArgs, ReadCommand, RefreshArgs, Selection, TemplateArgs, TemplateCommand, TokenArgs,
    WarmArgs, WriteCommand,
};
pub(crate) use manual::{ManualArgs, write as write_manual};
pub(crate) use output::{Output, Printing};
pub(crate) use store::{CheckArgs, RestoreArgs, StoreCommand};
pub(crate) use support::{BundleArgs, SupportCommand};
pub(crate) use token::{CreateTokenArgs, TokenCommand};
pub(crate) use vm::{
    ActionArgs, Bootable, CloneArgs, ConsoleArgs, MediaArgs, MigrateArgs, RebootArgs, Rebooted, RuleArgs,
    VmArgs, VmCommand, WaitState,
};

use crate::daemon::args::{AgentArgs, DownArgs, OutletArgs, ServerArgs, UpArgs};
use crate::simulation::SimCommand;
use crate::units;

/// Runs virtual machines on your own hosts: places them, watches them, moves them while they run.
#[derive(Debug, Parser)]
#[command(
    name = "sterna",
    version,
    propagate_version = false,
    disable_help_subcommand = true
)]
#[command(
    after_help = "Begin with `sterna up`, which says what to do next; then, in another terminal:\n  \
    . DIR/env\n  sterna image import tiny --file guest.qcow2\n  \
    sterna template create small --image tiny --memory 256MiB --vcpus 1\n  \
    sterna vm create web --template small --wait=ready\n\n\
    Exit codes: 0 done; 1 refused, failed or timed out; 2 wrong usage."
)]
pub(crate) struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What holds for every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The server's URL
    #[arg(
        long,
        global = true,
        env = "STERNA_SERVER",
        hide_env_values = true,
        value_name = "URL"
    )]
    #[arg(help_heading = "Global options")]
    pub(crate) server: Option<String>,
    /// The token to show
    #[arg(
        long,
        global = true,
        env = "STERNA_TOKEN",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub(crate) token: Option<String>,
    /// The certificate of the CA that signed the server's, as PEM
    #[arg(
        long,
        global = true,
        env = "STERNA_CACERT",
        hide_env_values = true,
        value_name = "PATH"
    )]
    #[arg(help_heading = "Global options")]
    pub(crate) cacert: Option<PathBuf>,
    /// The context to use; as an option it replaces the environment too
    #[arg(
        long,
        global = true,
        env = "STERNA_CONTEXT",
        hide_env_values = true,
        value_name = "NAME"
    )]
    #[arg(help_heading = "Global options")]
    pub(crate) context: Option<String>,
    /// The project to work in [default: the context's, or `default`]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    pub(crate) project: Option<String>,
    /// How to print: table, wide, json, yaml, name, or jsonpath=PATH as in jsonpath=$.status.phase
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORM",
        default_value = "table",
        help_heading = "Global options"
    )]
    pub(crate) output: Printing,
    /// Give up after this long, as in 90s or 5m [default: 5m with --wait]
    #[arg(long, global = true, value_name = "DURATION", value_parser = units::duration, allow_hyphen_values = true)]
    #[arg(help_heading = "Global options")]
    pub(crate) timeout: Option<Duration>,
}

/// The commands: those that stay, and those that ask a server.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a server and hosts on this machine
    Up(UpArgs),
    /// End what `sterna up --keep` left running
    Down(DownArgs),
    /// Run a server
    Server(ServerArgs),
    /// Run a host's agent
    Agent(AgentArgs),
    /// Connect for the server of `sterna up`
    #[command(hide = true)]
    Outlet(OutletArgs),
    /// Try the control plane without a machine, under faults
    #[command(subcommand)]
    Sim(SimCommand),
    /// Everything that asks a server.
    #[command(flatten)]
    Client(ClientCommand),
}

/// The commands that ask a server.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// Show what there is and what needs attention
    #[command(after_help = "Example: sterna status")]
    Status,
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// Hosts: the machines that run VMs
    #[command(subcommand)]
    Host(HostCommand),
    /// Images: what disks begin with
    #[command(subcommand)]
    Image(ImageCommand),
    /// Templates: what VMs are made from
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Profiles: sizes that many VMs share
    #[command(subcommand)]
    Profile(CatalogCommand<ProfileArgs>),
    /// Networks over hosts
    #[command(subcommand)]
    Network(CatalogCommand<NetworkArgs>),
    /// Datastores: where images and volumes are kept
    #[command(subcommand)]
    Datastore(CatalogCommand<DatastoreArgs>),
    /// Migrations: moves of VMs from host to host
    #[command(subcommand)]
    Migration(MigrationCommand),
    /// Operations: long actions and how far they are
    #[command(subcommand)]
    Operation(ReadCommand),
    /// Events: what happened to objects
    #[command(subcommand)]
    Event(ReadCommand),
    /// Show what happened, oldest first
    #[command(after_help = "Example: sterna events --follow")]
    Events {
        /// Go on with what happens from now on
        #[arg(short, long)]
        follow: bool,
    },
    /// The store, which has the cloud's own data: backups, restoring, checking
    #[command(subcommand)]
    Store(StoreCommand),
    /// Tokens: what people and programs show, and what each may do
    #[command(subcommand)]
    Token(TokenCommand),
    /// What helps whoever is asked for help
    #[command(subcommand)]
    Support(SupportCommand),
    /// Make what files describe so: create and change objects
    Apply(ApplyArgs),
    /// Write objects as documents for `apply`
    Export(ExportArgs),
    /// Choose between servers: named contexts in a file
    #[command(subcommand)]
    Context(ContextCommand),
    /// Print the script with which a shell completes commands and names
    Completion(CompletionArgs),
    /// Write the manual pages, one for each command
    Manual(ManualArgs),
    /// Print the OpenAPI document of the server's interface
    #[command(after_help = "Example: sterna openapi > sterna.json")]
    Openapi,
}

/// What the command line says. Ends the process on wrong usage, and for `--help`.
pub(crate) fn parse() -> Cli {
    let matches = command().get_matches();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let says = |id: &str, source| matches.value_source(id) == Some(source);
    let edits = matches!(cli.command, Command::Client(ClientCommand::Context(_)));
    if edits || says("context", ValueSource::CommandLine) {
        cli.global.forget(|id| says(id, ValueSource::EnvVariable));
    }
    cli
}

impl Global {
    /// Forgets how the server is reached where that came from elsewhere: a context that is named on the command line must
    /// not be mixed with the environment's token.
    fn forget(&mut self, is_from_elsewhere: impl Fn(&str) -> bool) {
        self.server.take_if(|_| is_from_elsewhere("server"));
        self.token.take_if(|_| is_from_elsewhere("token"));
        self.cacert.take_if(|_| is_from_elsewhere("cacert"));
    }
}

/// What the surroundings say, for a command line that is not finished yet.
pub(crate) fn surroundings() -> anyhow::Result<Global> {
    Ok(Cli::try_parse_from(["sterna", "status"])?.global)
}

/// The tree, with an example of its own for every kind's common commands.
fn command() -> clap::Command {
    model::Kind::ALL.into_iter().fold(Cli::command(), |tree, kind| {
        tree.mut_subcommand(kind.name(), |tree| {
            let tree = tree.after_help(example(kind, "list"));
            let present: Vec<String> = tree
                .get_subcommands()
                .map(|sub| sub.get_name().to_owned())
                .collect();
            let common = ["list", "get", "delete", "watch", "edit", "history"].into_iter();
            let common = common.filter(|name| present.iter().any(|present| present == name));
            common.fold(tree, |tree, name| {
                tree.mut_subcommand(name, |sub| sub.after_help(example(kind, name)))
            })
        })
    })
}

fn example(kind: model::Kind, command: &str) -> String {
    let name = match kind {
        model::Kind::Vm => "web",
        model::Kind::Host => "h1",
        model::Kind::Image => "tiny",
        model::Kind::Template => "small",
        model::Kind::Profile => "large",
        model::Kind::Network => "front",
        model::Kind::Datastore => "shared",
        model::Kind::Migration => "web-m2",
        model::Kind::Operation => "web-start-1",
        model::Kind::Event => "NAME",
    };
    match command {
        "list" => format!(
            "Examples:\n  sterna {kind} list -l tier=web -o json\n  sterna {kind} list --filter '{}' --sort name,-created_at\n\n\
            Fields are those of `-o json`; conditions compare with = != < <= > >= and null is no value.",
            condition(kind)
        ),
        "watch" => format!("Example: sterna {kind} watch -o json"),
        "get" if kind == model::Kind::Vm => {
            format!("Examples:\n  sterna {kind} get {name} -o yaml\n  sterna {kind} get {name} --timing")
        }
        "get" if kind == model::Kind::Template => {
            format!("Examples:\n  sterna {kind} get {name} -o yaml\n  sterna {kind} get {name}@2 -o yaml")
        }
        "delete" if kind == model::Kind::Template => format!(
            "Examples:\n  sterna {kind} delete {name}\n  sterna {kind} delete {name}@2\n\n{name}@2 is the second version alone."
        ),
        "get" => format!("Example: sterna {kind} get {name} -o yaml"),
        _ => format!("Example: sterna {kind} {command} {name}"),
    }
}

/// A condition that holds for some objects of a kind.
const fn condition(kind: model::Kind) -> &'static str {
    match kind {
        model::Kind::Vm => "status.phase=running,status.host=h1",
        model::Kind::Host => "status.state=up,status.vms<10",
        model::Kind::Image => "status.state=ready",
        model::Kind::Template => "status.memory_mib>=1024",
        model::Kind::Profile => "spec.vcpus>=4",
        model::Kind::Network => "spec.vni>1000",
        model::Kind::Datastore => "spec.coherent=true",
        model::Kind::Migration => "status.phase=aborted,spec.vm=web",
        model::Kind::Operation => "status.phase=failed",
        model::Kind::Event => "created_at>2026-01-31T12:00:00Z",
    }
}

#[cfg(test)]
mod tests;
