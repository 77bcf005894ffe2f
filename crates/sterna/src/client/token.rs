//! Tokens: made, listed, revoked.

use std::process::ExitCode;

use anyhow::Context as _;
use api::token::{Token, TokenBody};

use super::output::Table;
use super::{Context, now, output};
use crate::cli::{CreateTokenArgs, Output, TokenCommand};

pub(super) async fn run(context: &Context, command: TokenCommand) -> anyhow::Result<ExitCode> {
    match command {
        TokenCommand::Create(args) => create(context, args).await,
        TokenCommand::List => list(context).await,
        TokenCommand::Delete { names } => delete(context, names).await,
    }
}

async fn create(context: &Context, args: CreateTokenArgs) -> anyhow::Result<ExitCode> {
    let expires_at = args.expires.map(|life| now().checked_add(life)).transpose();
    let body = TokenBody {
        name: args.name,
        role: args.role.into(),
        expires_at: expires_at.context("reckoning when the token expires: give a shorter --expires")?,
    };
    let made = context.client.create_token(&body).await?;
    match context.output {
        Output::Table | Output::Name => {
            let until = made.token.expires_at;
            let until = until.map_or("until it is deleted".to_owned(), |at| format!("until {at}"));
            context.note(&format!("This token counts {until}. It is shown this once."));
            output::lines([made.secret])?;
        }
        output => output::value(output, &made)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(context: &Context) -> anyhow::Result<ExitCode> {
    let tokens = context.client.tokens().await?;
    match context.output {
        Output::Table => {
            let mut table = Table::new(["NAME", "USER", "ROLE", "CREATED", "EXPIRES"]);
            tokens.items.into_iter().for_each(|token| table.push(row(token)));
            output::table(&table)?;
        }
        Output::Name => output::lines(tokens.items.into_iter().map(|token| token.name))?,
        output => output::value(output, &tokens)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn row(token: Token) -> Vec<String> {
    let expires = token.expires_at.map_or("-".to_owned(), |at| at.to_string());
    vec![
        token.name,
        token.user,
        token.role.word().to_owned(),
        token.created_at.to_string(),
        expires,
    ]
}

async fn delete(context: &Context, names: Vec<String>) -> anyhow::Result<ExitCode> {
    let revoke = async |name: String| context.client.revoke_token(&name).await;
    let (tokens, code) = context.each(names, revoke).await;
    match context.output {
        Output::Table => {
            let says = |token: &Token| format!("token/{} is revoked", token.name);
            output::lines(tokens.iter().map(says))?;
        }
        Output::Name => output::lines(tokens.into_iter().map(|token| token.name))?,
        output => output::value(output, &tokens)?,
    }
    Ok(code)
}
