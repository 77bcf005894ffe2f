//! What only hosts have: cordon, uncordon, a person's word that one is off, tokens to join with.

use std::process::ExitCode;

use api::client::ObjectOf;
use api::kinds::{ActionBody, Host, JoinToken, JoinTokenBody};

use super::{Context, output};
use crate::cli::{HostCommand, Output, TokenArgs};

pub(super) async fn run(context: &Context, command: HostCommand) -> anyhow::Result<ExitCode> {
    match command {
        HostCommand::Token(args) => token(context, args).await,
        HostCommand::Cordon(args) => act(context, &args.names, "cordon").await,
        HostCommand::Uncordon(args) => act(context, &args.names, "uncordon").await,
        HostCommand::ConfirmDead(args) => act(context, &args.names, "confirm-dead").await,
        HostCommand::Write(command) => super::kinds::write::<Host>(context, command).await,
    }
}

async fn act(context: &Context, names: &[String], word: &str) -> anyhow::Result<ExitCode> {
    let ask = async |name: &String| {
        context
            .client
            .action::<Host, _>(name, word, &ActionBody::default())
            .await
    };
    let (hosts, code) = context.each(names, ask).await;
    let hosts: Vec<&ObjectOf<Host>> = hosts.iter().collect();
    output::several::<Host>(context, &hosts)?;
    Ok(code)
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
