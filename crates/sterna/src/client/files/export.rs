//! Writing what there is as documents that can be applied, here or elsewhere.

use std::collections::BTreeMap;
use std::process::ExitCode;

use api::Resource;
use api::client::Choice;
use serde::Serialize;
use serde_json::{Value, json};

use super::of_kind;
use crate::cli::{DESCRIBED, ExportArgs, Output};
use crate::client::select::choice;
use crate::client::{Context, output};

/// A document as it is written; its keys stand in this order.
#[derive(Serialize)]
struct Written {
    kind: model::Kind,
    name: String,
    labels: BTreeMap<String, String>,
    spec: Value,
}

pub(in crate::client) async fn export(context: &Context, args: ExportArgs) -> anyhow::Result<ExitCode> {
    let is_asked = |kind: &model::Kind| match &args.kinds[..] {
        // Hosts join by themselves: a file makes none.
        [] => *kind != model::Kind::Host,
        kinds => kinds.contains(kind),
    };
    let choice = choice(&args.which);
    let mut all = Vec::new();
    for kind in DESCRIBED.into_iter().filter(is_asked) {
        all.extend(of_kind!(kind, written(context, &choice).await)?);
    }
    match context.output {
        Output::Table | Output::Yaml => {
            for document in &all {
                let text = yaml_serde::to_string(document)?;
                output::lines(["---".to_owned(), text.trim_end().to_owned()])?;
            }
        }
        Output::Name => output::lines(all.iter().map(|it| format!("{}/{}", it.kind, it.name)))?,
        form => output::value(form, &json!({ "items": all }))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether an object is there in every cloud: the default profiles are.
fn is_given<R: Resource>(object: &api::client::ObjectOf<R>) -> bool {
    let status = serde_json::to_value(&object.status).unwrap_or_default();
    R::KIND == model::Kind::Profile && status["is_default"] == true
}

/// The documents of a kind. What is being deleted, and what is there in every cloud, is left out.
async fn written<R: Resource>(context: &Context, choice: &Choice) -> anyhow::Result<Vec<Written>> {
    let (objects, _) = context.client.list_of::<R>(choice).await?;
    let present = objects
        .into_iter()
        .filter(|object| object.deleted_at.is_none() && !is_given::<R>(object));
    let one = |object: api::client::ObjectOf<R>| {
        let mut spec = serde_json::to_value(&object.spec)?;
        if R::KIND == model::Kind::Image {
            // The content stands for itself, wherever it comes from.
            let status = serde_json::to_value(&object.status)?;
            spec["expected_sha256"] = status["sha256"].clone();
            if let Some(spec) = spec.as_object_mut() {
                spec.remove("from_vm");
            }
        }
        Ok(Written {
            kind: R::KIND,
            name: object.name,
            labels: object.labels,
            spec,
        })
    };
    present.map(one).collect()
}
