//! Which objects a command is about, by their names or by their labels, and asking for each of them.
//!
//! All are tried; what fails is reported with the object that it failed for, and the others go on.

use std::process::ExitCode;

use anyhow::bail;
use api::Resource;
use api::client::{Choice, Client, ClientError};
use futures_util::{StreamExt, stream};

use super::{Context, PARALLEL, report};
use crate::cli::{ListArgs, Selection};

/// One object to act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    /// What the server is asked for: what was typed, or the id of what carries the labels.
    pub(super) id: String,
    /// What people call it.
    pub(super) name: String,
}

/// Asks for each chosen object, a few at a time, in order.
pub(super) async fn act<R: Resource, T>(
    context: &Context,
    which: &Selection,
    ask: impl AsyncFn(&str) -> Result<T, ClientError>,
) -> anyhow::Result<(Vec<T>, ExitCode)> {
    let chosen = choose::<R>(&context.client, which).await?;
    let asked = chosen.iter().map(async |it| (it, ask(&it.id).await));
    let mut answers = stream::iter(asked).buffered(PARALLEL);
    let (mut done, mut code) = (Vec::new(), ExitCode::SUCCESS);
    while let Some((it, answer)) = answers.next().await {
        match answer {
            Ok(answer) => done.push(answer),
            Err(error) => {
                context.progress.suspend(|| report(&about::<R>(&it.name, error)));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok((done, code))
}

/// The objects that are meant.
pub(super) async fn choose<R: Resource>(client: &Client, which: &Selection) -> anyhow::Result<Vec<Chosen>> {
    if which.labels.is_empty() {
        let named = |name: &String| Chosen {
            id: name.clone(),
            name: name.clone(),
        };
        return Ok(which.names.iter().map(named).collect());
    }
    let choice = Choice {
        label: selector(&which.labels),
        ..Choice::default()
    };
    let (objects, _) = client.list_of::<R>(&choice).await?;
    if objects.is_empty() {
        let labels = choice.label.unwrap_or_default();
        bail!(
            "no {kind} carries {labels}: nothing was done; `sterna {kind} list -o wide` shows the labels",
            kind = R::KIND
        );
    }
    let carrying = objects.into_iter().map(|object| Chosen {
        id: object.id.to_string(),
        name: object.name,
    });
    Ok(carrying.collect())
}

/// Labels and conditions as the server takes them.
pub(super) fn choice(args: &ListArgs) -> Choice {
    Choice {
        label: selector(&args.labels),
        filter: (!args.filters.is_empty()).then(|| args.filters.join(",")),
        sort: None,
    }
}

/// Labels as the server takes them.
fn selector(labels: &[(String, String)]) -> Option<String> {
    let pairs: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    (!pairs.is_empty()).then(|| pairs.join(","))
}

/// The error, with the object that it is about unless it says so itself.
fn about<R: Resource>(name: &str, error: ClientError) -> anyhow::Error {
    let text = error.to_string();
    if text.contains(name) {
        return error.into();
    }
    anyhow::Error::from(error).context(format!("{} {name}", R::KIND))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::Problem;
    use api::kinds::Vm;

    #[test]
    fn an_error_names_its_object_once() {
        let problem = |detail: &str| ClientError::Problem(Box::new(Problem::conflict("busy", detail)));
        let text = |detail: &str| format!("{:#}", about::<Vm>("web", problem(detail)));
        assert_eq!(text("VM web is Off"), "VM web is Off");
        assert_eq!(text("try again"), "vm web: try again");
    }
}
