//! What every kind has: list, get, watch, create, delete.

use std::collections::BTreeMap;
use std::process::ExitCode;

use api::client::{Choice, ClientError, ObjectOf};
use api::{Change, ChangeType, Create, Resource};
use clap::Args;
use futures_util::StreamExt;

use super::output::Printer;
use super::select::{self, choice};
use super::wait::{Gone, PAUSE_MAX, PAUSE_MIN, until};
use super::{Context, edit, history, live, output};
use crate::cli::{CreateArgs, DeleteArgs, GetArgs, ListArgs, Output, ReadCommand, WriteCommand};

/// What can be asked of every kind.
pub(super) async fn read<R: Resource>(
    context: &Context,
    command: ReadCommand<impl Args + Into<GetArgs>, impl Args + Into<ListArgs>>,
) -> anyhow::Result<ExitCode> {
    match command {
        ReadCommand::List { which, sort, watch } => {
            let which = which.into();
            let choice = Choice {
                sort,
                ..choice(&which)
            };
            if watch {
                return live::live::<R>(context, choice, which.labels).await;
            }
            let (mut items, revision) = context.client.list_of::<R>(&choice).await?;
            if choice.sort.is_none() {
                items.sort_by_cached_key(by_name::<R>);
            }
            output::list::<R>(context, &items, revision)
        }
        ReadCommand::Get(args) => {
            let object = context.client.get::<R>(&args.into().name).await?;
            output::one::<R>(context, &object)
        }
        ReadCommand::Watch(args) => watch::<R>(context, &args).await,
        ReadCommand::History(args) => history::history::<R>(context, args).await,
    }
}

/// The order of lists, unless another one is asked for. The server's is that of their making, and costs it nothing.
pub(super) fn by_name<R: Resource>(object: &ObjectOf<R>) -> String {
    object.name.to_lowercase()
}

/// What can be asked of the kinds that users change.
pub(super) async fn write<R: Resource>(
    context: &Context,
    command: WriteCommand<impl Args + Into<GetArgs>, impl Args + Into<ListArgs>>,
) -> anyhow::Result<ExitCode> {
    match command {
        WriteCommand::Read(command) => read::<R>(context, command).await,
        WriteCommand::Edit(args) => edit::edit::<R>(context, &args.name).await,
        WriteCommand::Delete(args) => delete::<R>(context, args).await,
    }
}

async fn watch<R: Resource>(context: &Context, args: &ListArgs) -> anyhow::Result<ExitCode> {
    let printer = Printer::changes::<R>(context);
    follow::<R>(context, printer, None, &choice(args)).await
}

/// Prints changes for ever.
pub(super) async fn follow<R: Resource>(
    context: &Context,
    mut printer: Printer,
    from: Option<u64>,
    choice: &Choice,
) -> anyhow::Result<ExitCode> {
    each_change::<R>(context, from, choice, |change| {
        printer.change::<R>(context, &change)
    })
    .await
}

/// Sees changes for ever. A stream that breaks is taken up where it broke.
pub(super) async fn each_change<R: Resource>(
    context: &Context,
    mut from: Option<u64>,
    choice: &Choice,
    mut see: impl FnMut(Change<ObjectOf<R>>) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let mut pause = PAUSE_MIN;
    let mut changes = context.client.watch_of::<R>(from, choice).await?;
    loop {
        match changes.next().await {
            Some(Ok(change)) => {
                (from, pause) = (Some(change.revision), PAUSE_MIN);
                see(change)?;
                continue;
            }
            None | Some(Err(ClientError::Unreachable { .. })) => {}
            Some(Err(error)) => return Err(error.into()),
        }
        loop {
            tokio::time::sleep(pause).await;
            match context.client.watch_of::<R>(from, choice).await {
                Err(ClientError::Unreachable { .. }) => pause = (pause * 2).min(PAUSE_MAX),
                answer => {
                    changes = answer?;
                    break;
                }
            }
        }
    }
}

/// Creates an object.
pub(super) async fn create<R: Resource>(
    context: &Context,
    args: CreateArgs,
    spec: R::Spec,
) -> anyhow::Result<ExitCode> {
    let labels: BTreeMap<String, String> = args.labels.into_iter().collect();
    let body = Create {
        name: Some(args.name),
        labels,
        spec,
    };
    let object = context.client.create::<R>(&body, None, args.dry_run).await?;
    output::one::<R>(context, &object)
}

async fn delete<R: Resource>(context: &Context, args: DeleteArgs) -> anyhow::Result<ExitCode> {
    let client = context.writer(args.dry_run);
    let ask = async |id: &str| client.delete::<R>(id).await;
    let (asked, code) = select::act::<R, _>(context, &args.which, ask).await?;
    if !args.wait {
        let lines = asked.iter().map(|object| {
            let ended = match object.deleted_at {
                _ if args.dry_run => "would be deleted",
                Some(_) => "is being deleted",
                // What owns nothing is gone at once, and is answered as it was.
                None => "deleted",
            };
            (object, ended)
        });
        print_deleted::<R>(context, lines.collect())?;
        return Ok(code);
    }
    let ended = until::<R, _>(context, asked, &Gone).await;
    let lines = ended.objects.iter().map(|object| (object, "deleted")).collect();
    print_deleted::<R>(context, lines)?;
    Ok(ended.code_after(code))
}

fn print_deleted<R: Resource>(context: &Context, objects: Vec<(&ObjectOf<R>, &str)>) -> anyhow::Result<()> {
    if context.output == Output::Table {
        let lines = objects
            .iter()
            .map(|(object, ended)| format!("{} {ended}", output::name::<R>(object)));
        return output::lines(lines);
    }
    let objects: Vec<_> = objects.into_iter().map(|(object, _)| object).collect();
    output::several::<R>(context, &objects)
}

/// The word for what happened, in tables.
pub(super) const fn word(change: ChangeType) -> &'static str {
    match change {
        ChangeType::Added => "added",
        ChangeType::Modified => "modified",
        ChangeType::Deleted => "deleted",
    }
}
