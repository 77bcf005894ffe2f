//! Editing: an object's labels and spec as YAML in the user's editor, sent back with the revision that was read.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use api::client::ObjectOf;
use api::{Create, Resource};
use console::Term;
use serde::{Deserialize, Serialize};

use super::{Context, output};

/// What is edited. The rest of an object is not the user's to change.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Draft<S> {
    labels: BTreeMap<String, String>,
    spec: S,
}

pub(super) async fn edit<R: Resource>(context: &Context, name: &str) -> anyhow::Result<ExitCode> {
    if !R::CHANGES {
        bail!("a {} cannot be changed", R::KIND);
    }
    let object = context.client.get::<R>(name).await?;
    let (id, revision) = (object.id.to_string(), object.revision);
    let before = text::<R>(object)?;
    let mut shown = before.clone();
    loop {
        let (file, after) = edited(&shown)?;
        if after == before {
            context.note("Nothing was changed.");
            return Ok(ExitCode::SUCCESS);
        }
        match send::<R>(context, &id, revision, &after).await {
            Ok(object) => {
                note_later::<R>(context, &object);
                return output::one::<R>(context, &object);
            }
            // Whoever sits at a terminal can mend it at once; closing it as it is gives up.
            Err(error) if after != shown && Term::stdout().features().is_attended() => {
                shown = with_error(&error, &after);
            }
            Err(error) => {
                let (_, path) = file.keep()?;
                return Err(error.context(format!(
                    "the {} was not changed; what you wrote is in {}",
                    R::KIND,
                    path.display()
                )));
            }
        }
    }
}

/// Says which of the changes do not hold yet.
fn note_later<R: Resource>(context: &Context, object: &ObjectOf<R>) {
    let status = serde_json::to_value(&object.status).unwrap_or_default();
    let later = status.get("at_next_start").and_then(serde_json::Value::as_array);
    let later: Vec<&str> = later
        .into_iter()
        .flatten()
        .filter_map(|part| part.as_str())
        .collect();
    if !later.is_empty() {
        context.note(&format!(
            "From the next start on: {}; the rest holds now.",
            later.join(", ")
        ));
    }
}

/// Sends what was written. The server checks it first: a refusal changes nothing.
async fn send<R: Resource>(
    context: &Context,
    id: &str,
    revision: u64,
    text: &str,
) -> anyhow::Result<ObjectOf<R>> {
    let draft: Draft<R::Spec> = yaml_serde::from_str(text)?;
    let body = Create {
        name: None,
        labels: draft.labels,
        spec: draft.spec,
    };
    Ok(context.client.replace::<R>(id, &body, Some(revision)).await?)
}

/// The text under what is wrong with it, in the place of what was wrong before.
fn with_error(error: &anyhow::Error, text: &str) -> String {
    let mark = "# It was refused: ";
    let rest = text.lines().filter(|line| !line.starts_with(mark));
    let error = format!("{error:#}").replace(char::is_control, " ");
    let lines = std::iter::once(format!("{mark}{error}")).chain(rest.map(str::to_owned));
    lines.map(|line| line + "\n").collect()
}

fn text<R: Resource>(object: ObjectOf<R>) -> anyhow::Result<String> {
    let head = format!(
        "# {} {}: save and close to apply, or leave it as it is.\n",
        R::KIND,
        object.name
    );
    Ok(head
        + &yaml_serde::to_string(&Draft {
            labels: object.labels,
            spec: object.spec,
        })?)
}

/// Opens the editor on the text; answers what is there when it closes.
fn edited(text: &str) -> anyhow::Result<(tempfile::NamedTempFile, String)> {
    let mut file = tempfile::Builder::new()
        .prefix("sterna-")
        .suffix(".yaml")
        .tempfile()?;
    file.write_all(text.as_bytes())?;
    let editor = ["VISUAL", "EDITOR"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|it| !it.is_empty()));
    let editor = editor.unwrap_or_else(|| "vi".to_owned());
    // The variable may hold arguments, so a shell splits it; the path is passed beside it.
    let status = Command::new("/bin/sh")
        .args(["-c", &format!("exec {editor} \"$1\""), "edit"])
        .arg(file.path())
        .status()
        .with_context(|| format!("starting the editor {editor:?}: set EDITOR"))?;
    if !status.success() {
        bail!("the editor {editor:?} ended with {status}: nothing was changed");
    }
    let after = std::fs::read_to_string(file.path()).context("reading what was edited")?;
    Ok((file, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_error_stands_above_the_text() {
        let once = with_error(&anyhow::anyhow!("too\nsmall"), "# vm web\nspec: {}\n");
        assert_eq!(once, "# It was refused: too small\n# vm web\nspec: {}\n");
        let twice = with_error(&anyhow::anyhow!("too large"), &once);
        assert_eq!(twice, "# It was refused: too large\n# vm web\nspec: {}\n");
    }
}
