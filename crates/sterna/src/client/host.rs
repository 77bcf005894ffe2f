//! What only hosts have: cordon, uncordon, drain, a person's word that one is off, tokens to join with.

use std::collections::BTreeMap;
use std::process::ExitCode;

use api::client::ObjectOf;
use api::drain::HostActionBody;
use api::kinds::{Host, JoinToken, JoinTokenBody};

use serde_json::json;

use super::{Context, drain, output, select};
use crate::cli::{HostCommand, LabelArgs, Output, Selection, TokenArgs};

pub(super) async fn run(context: &Context, command: HostCommand) -> anyhow::Result<ExitCode> {
    match command {
        HostCommand::Token(args) => token(context, args).await,
        HostCommand::Cordon(args) => act(context, &args, "cordon").await,
        HostCommand::Uncordon(args) => act(context, &args, "uncordon").await,
        HostCommand::Drain(args) => drain::drain(context, args).await,
        HostCommand::Undrain(args) => act(context, &args, "undrain").await,
        HostCommand::Label(args) => label(context, args).await,
        HostCommand::ConfirmDead(args) => act(context, &args, "confirm-dead").await,
        HostCommand::Write(command) => super::kinds::write::<Host>(context, command).await,
    }
}

async fn act(context: &Context, which: &Selection, word: &str) -> anyhow::Result<ExitCode> {
    let body = HostActionBody::default();
    let ask = async |id: &str| context.client.action::<Host, _>(id, word, &body).await;
    let (hosts, code) = select::act::<Host, _>(context, which, ask).await?;
    let hosts: Vec<&ObjectOf<Host>> = hosts.iter().collect();
    output::several::<Host>(context, &hosts)?;
    Ok(code)
}

async fn label(context: &Context, args: LabelArgs) -> anyhow::Result<ExitCode> {
    let labels: BTreeMap<String, Option<String>> = args.labels.into_iter().collect();
    let patch = json!({ "labels": labels });
    let host = context.client.patch::<Host>(&args.name, &patch, None).await?;
    if context.output == Output::Table {
        let labels = host.labels.iter().map(|(key, value)| format!("{key}={value}"));
        let labels = labels.collect::<Vec<_>>().join(", ");
        let says = if labels.is_empty() {
            "no labels".to_owned()
        } else {
            format!("the labels: {labels}")
        };
        output::lines([format!("host/{} has {says}", host.name)])?;
        return Ok(ExitCode::SUCCESS);
    }
    output::one::<Host>(context, &host)
}

async fn token(context: &Context, args: TokenArgs) -> anyhow::Result<ExitCode> {
    let token: JoinToken = context
        .client
        .post("/v1/join-tokens", &JoinTokenBody::from(args))
        .await?;
    match context.output {
        Output::Table | Output::Name => {
            context.note(&format!(
                "One host can join with this token until {}.",
                token.expires_at
            ));
            output::lines([token.token])?;
        }
        output => output::value(output, &token)?,
    }
    Ok(ExitCode::SUCCESS)
}
