//! The commands that ask a server.
//!
//! **Owns:** one file a kind for what only that kind has, [`kinds`] for what every kind has, [`wait`] for waiting,
//! [`output`] for printing.
//!
//! **Does not know:** whether something is allowed or possible: the server says so, with what to do about it.
//!
//! **Start here:** [`run`], then [`kinds`].

mod drain;
mod edit;
mod events;
mod explain;
mod host;
mod image;
mod kinds;
mod migration;
mod output;
mod status;
mod template;
mod vm;
mod wait;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use api::client::Client;
use api::kinds::{Datastore, DatastoreSpec, Event, Network, NetworkSpec, Operation};
use futures_util::{StreamExt, stream};
use indicatif::MultiProgress;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::cli::{
    CatalogCommand, ClientCommand, Global, HostCommand, ImageCommand, MigrationCommand, Output, VmCommand,
};
use crate::units;

/// How long to wait if nobody says.
const TIMEOUT: Duration = Duration::from_secs(300);
/// How many requests are under way at a time when a command names several objects.
const PARALLEL: usize = 8;

/// What every command needs.
pub(crate) struct Context {
    client: Client,
    output: Output,
    /// Draws on a terminal's standard error, and nowhere else.
    progress: MultiProgress,
    started: Instant,
    timeout: Option<Duration>,
}

impl Context {
    fn new(global: &Global) -> anyhow::Result<Self> {
        Ok(Self {
            client: client(global)?,
            output: global.output,
            progress: MultiProgress::new(),
            started: Instant::now(),
            timeout: global.timeout,
        })
    }

    /// When waiting ends.
    fn deadline(&self) -> Instant {
        self.started + self.timeout.unwrap_or(TIMEOUT)
    }

    /// Tells whoever looks at a terminal how far things are.
    fn note(&self, line: &str) {
        if !self.progress.is_hidden() {
            self.progress.suspend(|| eprintln!("{line}"));
        }
    }

    /// Asks for each name, a few at a time. Failures are reported, and the others go on.
    async fn each<T, I, E: Into<anyhow::Error>>(
        &self,
        names: impl IntoIterator<Item = I>,
        ask: impl AsyncFn(I) -> Result<T, E>,
    ) -> (Vec<T>, ExitCode) {
        let mut answers = stream::iter(names).map(|name| ask(name)).buffered(PARALLEL);
        let (mut done, mut code) = (Vec::new(), ExitCode::SUCCESS);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(answer) => done.push(answer),
                Err(error) => {
                    report(&error.into());
                    code = ExitCode::FAILURE;
                }
            }
        }
        (done, code)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the command line is where the clock is read"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

fn client(global: &Global) -> anyhow::Result<Client> {
    let (Some(server), Some(token), Some(cacert)) = (&global.server, &global.token, &global.cacert) else {
        let missing = [
            (global.server.is_none(), "STERNA_SERVER (--server)"),
            (global.token.is_none(), "STERNA_TOKEN (--token)"),
            (global.cacert.is_none(), "STERNA_CACERT (--cacert)"),
        ];
        let missing: Vec<_> = missing
            .into_iter()
            .filter(|(is, _)| *is)
            .map(|(_, name)| name)
            .collect();
        bail!(
            "{} not set: `. DIR/env`, where DIR is the --data-dir of `sterna up`, sets all",
            missing.join(", ")
        );
    };
    if global.project != "default" {
        bail!(
            "there is no project {:?}: the only one is `default`",
            global.project
        );
    }
    let read = || {
        format!(
            "reading the CA certificate {}: check --cacert or STERNA_CACERT",
            cacert.display()
        )
    };
    let pem = std::fs::read_to_string(cacert).with_context(read)?;
    Ok(Client::new(server, token, &pem)?)
}

fn report(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

/// Runs a command to its end.
pub(crate) fn run(global: Global, command: ClientCommand) -> anyhow::Result<ExitCode> {
    let answer = match command {
        ClientCommand::Openapi => output::document(&api::openapi::document()),
        command => {
            let context = Context::new(&global)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(bounded(&context, command))
        }
    };
    match answer {
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        answer => answer,
    }
}

/// Whoever reads our output has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

async fn bounded(context: &Context, command: ClientCommand) -> anyhow::Result<ExitCode> {
    let Some(timeout) = context.timeout else {
        return dispatch(context, command).await;
    };
    // Waiting ends by itself at the deadline, and says how far it came.
    let limit = context.deadline() + Duration::from_millis(250);
    match tokio::time::timeout_at(limit, dispatch(context, command)).await {
        Ok(answer) => answer,
        Err(_) => bail!(
            "not done after {}: give a longer --timeout",
            units::elapsed(timeout)
        ),
    }
}

async fn dispatch(context: &Context, command: ClientCommand) -> anyhow::Result<ExitCode> {
    match command {
        ClientCommand::Status => status::status(context).await,
        ClientCommand::Vm(VmCommand::Write(command)) => {
            kinds::write::<api::kinds::Vm>(context, command).await
        }
        ClientCommand::Vm(command) => vm::run(context, command).await,
        ClientCommand::Host(HostCommand::Write(command)) => {
            kinds::write::<api::kinds::Host>(context, command).await
        }
        ClientCommand::Host(command) => host::run(context, command).await,
        ClientCommand::Image(ImageCommand::Write(command)) => {
            kinds::write::<api::kinds::Image>(context, command).await
        }
        ClientCommand::Image(ImageCommand::Import(args)) => image::import(context, args).await,
        ClientCommand::Template(CatalogCommand::Write(command)) => {
            kinds::write::<api::kinds::Template>(context, command).await
        }
        ClientCommand::Template(CatalogCommand::Create(args)) => template::create(context, args).await,
        ClientCommand::Network(CatalogCommand::Write(command)) => {
            kinds::write::<Network>(context, command).await
        }
        ClientCommand::Network(CatalogCommand::Create(args)) => {
            let spec = NetworkSpec {
                cidr: args.cidr,
                vni: args.vni,
            };
            kinds::create::<Network>(context, args.create, spec).await
        }
        ClientCommand::Datastore(CatalogCommand::Write(command)) => {
            kinds::write::<Datastore>(context, command).await
        }
        ClientCommand::Datastore(CatalogCommand::Create(args)) => {
            let spec = DatastoreSpec {
                path: args.path,
                coherent: args.coherent,
            };
            kinds::create::<Datastore>(context, args.create, spec).await
        }
        ClientCommand::Migration(MigrationCommand::Write(command)) => {
            kinds::write::<api::kinds::Migration>(context, command).await
        }
        ClientCommand::Migration(MigrationCommand::Cancel { names, wait }) => {
            migration::cancel(context, &names.names, wait.wait).await
        }
        ClientCommand::Operation(command) => kinds::read::<Operation>(context, command).await,
        ClientCommand::Event(command) => kinds::read::<Event>(context, command).await,
        ClientCommand::Events { follow } => events::events(context, follow).await,
        ClientCommand::Openapi => output::document(&api::openapi::document()),
    }
}
