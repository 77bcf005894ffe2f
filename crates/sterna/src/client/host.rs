//! What only hosts have: cordon, uncordon, a person's word that one is off, tokens to join with.

use std::process::ExitCode;

use api::client::ObjectOf;
use api::kinds::{ActionBody, Host, JoinToken, JoinTokenBody};

use super::{Context, output, select};
use crate::cli::{HostCommand, Output, Selection, TokenArgs};

pub(super) async fn run(context: &Context, command: HostCommand) -> anyhow::Result<ExitCode> {
    match command {
        HostCommand::Token(args) => token(context, args).await,
        HostCommand::Cordon(args) => act(context, &args, "cordon").await,
        HostCommand::Uncordon(args) => act(context, &args, "uncordon").await,
        HostCommand::ConfirmDead(args) => act(context, &args, "confirm-dead").await,
        HostCommand::Write(command) => super::kinds::write::<Host>(context, command).await,
    }
}

async fn act(context: &Context, which: &Selection, word: &str) -> anyhow::Result<ExitCode> {
    let body = ActionBody::default();
    let ask = async |id: &str| context.client.action::<Host, _>(id, word, &body).await;
    let (hosts, code) = select::act::<Host, _>(context, which, ask).await?;
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
