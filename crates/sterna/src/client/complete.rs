//! Names of objects and contexts for a shell that completes a command. Whatever fails, it offers nothing: nobody has asked for an error yet.

use std::time::Duration;

use api::Resource;
use api::client::Client;
use model::Kind;

use super::config::Config;
use super::files::of_kind;

/// How long somebody who types is kept waiting.
const PATIENCE: Duration = Duration::from_millis(800);

/// The names of a kind's objects.
pub(crate) fn names(kind: Kind) -> Vec<String> {
    found(kind).unwrap_or_default()
}

/// The names of the contexts.
pub(crate) fn contexts() -> Vec<String> {
    let config = Config::path().and_then(|path| Config::load(&path));
    config
        .map(|config| config.contexts.into_keys().collect())
        .unwrap_or_default()
}

fn found(kind: Kind) -> anyhow::Result<Vec<String>> {
    let client = super::client(&crate::cli::surroundings()?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let asked = async { of_kind!(kind, listed(&client).await) };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await })?
}

async fn listed<R: Resource>(client: &Client) -> anyhow::Result<Vec<String>> {
    Ok(client.names::<R>().await?)
}
