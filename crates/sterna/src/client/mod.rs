//! The commands that ask a server.
//!
//! **Owns:** one file a kind for what only that kind has, [`kinds`] for what every kind has, [`wait`] for waiting,
//! [`output`] for printing.
//!
//! **Does not know:** whether something is allowed or possible: the server says so, with what to do about it.
//!
//! **Start here:** [`run`], then [`kinds`].

mod build;
mod clone;
mod complete;
mod config;
mod console;
mod contexts;
mod drain;
mod edit;
mod events;
mod explain;
mod files;
mod guest;
mod history;
mod host;
mod image;
mod kinds;
mod live;
mod migration;
mod output;
mod select;
mod status;
mod store;
mod support;
mod template;
mod timing;
mod token;
mod versions;
mod vm;
mod wait;
mod warm;

use std::io::{self, Write};
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
    CatalogCommand, ClientCommand, Global, HostCommand, ImageCommand, MigrationCommand, Output,
    SupportCommand, VmCommand,
};
use crate::units;

pub(crate) use complete::{contexts, names};

/// How long to wait if nobody says.
const TIMEOUT: Duration = Duration::from_secs(300);
/// How many requests are under way at a time when a command names several objects.
const PARALLEL: usize = 8;

/// What every command needs.
pub(crate) struct Context {
    client: Client,
    output: Output,
    /// Whether tables have the columns that few people need.
    is_wide: bool,
    /// Draws on a terminal's standard error, and nowhere else.
    progress: MultiProgress,
    started: Instant,
    timeout: Option<Duration>,
}

impl Context {
    fn new(global: &Global) -> anyhow::Result<Self> {
        Ok(Self {
            client: client(global)?,
            output: global.output.form,
            is_wide: global.output.is_wide,
            progress: MultiProgress::new(),
            started: Instant::now(),
            timeout: global.timeout,
        })
    }

    /// Who writes: with `is_rehearsal` it only says what would be.
    fn writer(&self, is_rehearsal: bool) -> Client {
        if is_rehearsal {
            self.note("This is a dry run: nothing is done.");
            return self.client.rehearsal();
        }
        self.client.clone()
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
    let connection = config::connection(global)?;
    let (server, token, cacert) = (
        connection.server.as_ref(),
        connection.token()?,
        connection.cacert.as_ref(),
    );
    let (Some(server), Some(token), Some(cacert)) = (server, &token, cacert) else {
        let missing = [
            (server.is_none(), "STERNA_SERVER (--server)"),
            (token.is_none(), "STERNA_TOKEN (--token)"),
            (cacert.is_none(), "STERNA_CACERT (--cacert)"),
        ];
        let missing: Vec<_> = missing
            .into_iter()
            .filter(|(is, _)| *is)
            .map(|(_, name)| name)
            .collect();
        bail!(
            "{} not set: `. DIR/env`, where DIR is the --data-dir of `sterna up`, sets all for this shell; \
             `sterna context set local --from DIR/env` keeps it",
            missing.join(", ")
        );
    };
    if let Some(project) = connection
        .project
        .as_ref()
        .filter(|project| *project != "default")
    {
        bail!("there is no project {project:?}: the only one is `default`");
    }
    let read = || {
        format!(
            "reading the CA certificate {}: check --cacert, STERNA_CACERT or the context",
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
        ClientCommand::Context(command) => contexts::run(&global, command),
        ClientCommand::Completion(args) => completion(args.shell),
        ClientCommand::Manual(args) => crate::cli::write_manual(&args.dir).map(|()| ExitCode::SUCCESS),
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

/// Prints the script that a shell loads.
fn completion(shell: crate::cli::Shell) -> anyhow::Result<ExitCode> {
    io::stdout().write_all(&crate::cli::script(shell)?)?;
    Ok(ExitCode::SUCCESS)
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
    // Waiting ends by itself at the deadline, and says how far it came. What is done in a guest is told its end after that.
    let patience = match &command {
        ClientCommand::Vm(VmCommand::Apply(_)) => guest::PATIENCE,
        _ => Duration::ZERO,
    };
    let limit = context.deadline() + patience + Duration::from_millis(250);
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
        ClientCommand::Vm(command) => vm::run(context, command).await,
        ClientCommand::Host(HostCommand::Write(command)) => {
            kinds::write::<api::kinds::Host>(context, command).await
        }
        ClientCommand::Host(command) => host::run(context, command).await,
        ClientCommand::Image(ImageCommand::Write(command)) => {
            kinds::write::<api::kinds::Image>(context, command).await
        }
        ClientCommand::Image(ImageCommand::Import(args)) => image::import(context, args).await,
        ClientCommand::Image(ImageCommand::Create(args)) => image::capture(context, args).await,
        ClientCommand::Template(command) => template::run(context, command).await,
        ClientCommand::Profile(CatalogCommand::Write(command)) => {
            kinds::write::<api::kinds::Profile>(context, command).await
        }
        ClientCommand::Profile(CatalogCommand::Create(args)) => template::create_profile(context, args).await,
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
        ClientCommand::Migration(MigrationCommand::Cancel { which, wait }) => {
            migration::cancel(context, &which, wait.wait).await
        }
        ClientCommand::Operation(command) => kinds::read::<Operation>(context, command).await,
        ClientCommand::Event(command) => kinds::read::<Event>(context, command).await,
        ClientCommand::Store(command) => store::run(context, command).await,
        ClientCommand::Token(command) => token::run(context, command).await,
        ClientCommand::Support(SupportCommand::Bundle(args)) => support::bundle(context, args).await,
        ClientCommand::Apply(args) => files::apply::apply(context, args).await,
        ClientCommand::Export(args) => files::export::export(context, args).await,
        ClientCommand::Events { follow } => events::events(context, follow).await,
        ClientCommand::Openapi
        | ClientCommand::Context(_)
        | ClientCommand::Completion(_)
        | ClientCommand::Manual(_) => bail!("this command asks no server"),
    }
}
