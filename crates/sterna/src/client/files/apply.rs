//! Making what files describe so: read all, ask the server about all, show what changes, then write in the order in which
//! kinds need each other.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::bail;
use api::client::ClientError;
use api::document::{CheckBody, Checked, Outcome, Wanted};
use api::{Create, Resource};
use serde::Serialize;

use super::document::{self, Placed, Wrong};
use super::{diff, of_kind};
use crate::cli::{ApplyArgs, DESCRIBED, Output};
use crate::client::{Context, output};

/// How many mistakes are shown; the rest follows when these are mended.
const SHOWN_MAX: usize = 20;

/// What became of a document, for programs.
#[derive(Serialize)]
struct Applied<'a> {
    kind: model::Kind,
    name: &'a str,
    outcome: Outcome,
    before: &'a Option<Wanted>,
    after: &'a Option<Wanted>,
}

/// All of them.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    items: Vec<Applied<'a>>,
}

pub(in crate::client) async fn apply(context: &Context, args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let placed = documents(&args)?;
    if placed.is_empty() {
        bail!("there is no document in what was given: nothing was applied");
    }
    let checked = check(context, &placed).await?;
    let all: Vec<(Placed, Checked)> = placed.into_iter().zip(checked).collect();
    if context.output == Output::Table {
        let shown = all
            .iter()
            .flat_map(|(placed, checked)| diff::lines(&placed.name(), checked));
        output::lines(shown)?;
    }
    if !args.dry_run {
        write(context, &all).await?;
    }
    report(context, &all, args.dry_run)?;
    Ok(ExitCode::SUCCESS)
}

/// The documents in the order in which they are written.
fn documents(args: &ApplyArgs) -> anyhow::Result<Vec<Placed>> {
    let (mut placed, mut wrong) = (Vec::<Placed>::new(), Vec::new());
    let mut seen = BTreeMap::new();
    for (file, text) in document::read(&args.files)? {
        for found in document::parse(&file, &text) {
            match found.and_then(|found| alone(&mut seen, found)) {
                Ok(found) => placed.push(found),
                Err(why) => wrong.push(why),
            }
        }
    }
    refuse(&wrong)?;
    let rank = |placed: &Placed| DESCRIBED.iter().position(|kind| *kind == placed.document.kind);
    placed.sort_by_key(|placed| rank(placed).unwrap_or(DESCRIBED.len()));
    Ok(placed)
}

/// The document, if no other one describes the same object.
fn alone(seen: &mut BTreeMap<String, document::Place>, placed: Placed) -> Result<Placed, Wrong> {
    match seen.insert(placed.name(), placed.place.clone()) {
        None => Ok(placed),
        Some(first) => Err(Wrong {
            why: format!(
                "{} is described at {first} already: leave one of them out",
                placed.name()
            ),
            place: placed.place,
        }),
    }
}

/// Ends everything if anything is wrong.
fn refuse(wrong: &[Wrong]) -> anyhow::Result<()> {
    if wrong.is_empty() {
        return Ok(());
    }
    for wrong in wrong.iter().take(SHOWN_MAX) {
        eprintln!("error: {wrong}");
    }
    bail!(
        "nothing was applied: mend what is said above first ({} in all)",
        wrong.len()
    )
}

/// What the server says of each; refuses if it refuses one.
async fn check(context: &Context, placed: &[Placed]) -> anyhow::Result<Vec<Checked>> {
    let documents = placed.iter().map(|placed| placed.document.clone()).collect();
    let checked = context.client.check(&CheckBody { documents }).await?.results;
    if checked.len() != placed.len() {
        bail!(
            "the server answered for {} of {} documents: are client and server of the same release?",
            checked.len(),
            placed.len()
        );
    }
    let wrong = placed.iter().zip(&checked).filter_map(|(placed, checked)| {
        let problem = checked.problem.as_ref()?;
        Some(Wrong {
            place: placed.place.clone(),
            why: format!("{}: {}", placed.name(), problem.detail),
        })
    });
    refuse(&wrong.collect::<Vec<_>>())?;
    Ok(checked)
}

/// Writes what differs, one after the other: each may need those before it.
async fn write(context: &Context, all: &[(Placed, Checked)]) -> anyhow::Result<()> {
    let differing: Vec<_> = all
        .iter()
        .filter(|(_, checked)| checked.outcome != Outcome::Unchanged)
        .collect();
    for (done, (placed, checked)) in differing.iter().enumerate() {
        let written = of_kind!(placed.document.kind, put(context, placed, checked).await);
        if let Err(error) = written {
            let total = differing.len();
            return Err(anyhow::Error::from(error).context(format!(
                "{}: {}: {done} of {total} were applied before; the same command goes on from there",
                placed.place,
                placed.name()
            )));
        }
    }
    Ok(())
}

async fn put<R: Resource>(context: &Context, placed: &Placed, checked: &Checked) -> Result<(), ClientError> {
    let document = &placed.document;
    // What is there is replaced by what was shown; what is not there is made of what was written.
    let (labels, spec) = match (&checked.before, &checked.after) {
        (Some(_), Some(after)) => (after.labels.clone(), after.spec.clone()),
        _ => (document.labels.clone().unwrap_or_default(), document.spec.clone()),
    };
    let spec = serde_json::from_value(spec).map_err(|error| ClientError::NotUnderstood(error.to_string()))?;
    let name = Some(document.name.clone());
    let body: Create<R::Spec> = Create { name, labels, spec };
    match checked.before {
        None => context.client.create::<R>(&body, None, false).await.map(drop),
        Some(_) => {
            let expected = checked.revision;
            context
                .client
                .replace::<R>(&document.name, &body, expected)
                .await
                .map(drop)
        }
    }
}

fn report(context: &Context, all: &[(Placed, Checked)], dry_run: bool) -> anyhow::Result<()> {
    let count = |outcome| {
        all.iter()
            .filter(|(_, checked)| checked.outcome == outcome)
            .count()
    };
    let (created, changed) = (count(Outcome::Created), count(Outcome::Changed));
    let unchanged = count(Outcome::Unchanged);
    match context.output {
        Output::Table if dry_run => output::lines([format!(
            "would create {created}, would change {changed}, unchanged {unchanged}; nothing was done"
        )]),
        Output::Table => output::lines([format!(
            "created {created}, changed {changed}, unchanged {unchanged}"
        )]),
        Output::Name => {
            let differing = all
                .iter()
                .filter(|(_, checked)| checked.outcome != Outcome::Unchanged);
            output::lines(differing.map(|(placed, _)| placed.name()))
        }
        form => {
            let items = all.iter().map(|(placed, checked)| Applied {
                kind: placed.document.kind,
                name: &placed.document.name,
                outcome: checked.outcome,
                before: &checked.before,
                after: &checked.after,
            });
            let items = items.collect();
            output::value(form, &Report { dry_run, items })
        }
    }
}
