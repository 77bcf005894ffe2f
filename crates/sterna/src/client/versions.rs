//! The versions of templates, which are named as in `web@3`.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use api::template::TemplateVersion;
use model::build::BuiltFrom;
use serde_json::Value;

use super::output::Table;
use super::{Context, output};
use crate::cli::{DeleteArgs, Output};

pub(super) async fn list(context: &Context, name: &str) -> anyhow::Result<ExitCode> {
    let versions = context.client.template_versions(name).await?;
    match context.output {
        Output::Table => output::table(&table(&versions.items))?,
        Output::Name => {
            let names = versions
                .items
                .iter()
                .map(|it| format!("template/{name}@{}", it.version));
            output::lines(names)?;
        }
        form => output::value(form, &versions)?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn get(context: &Context, reference: &str) -> anyhow::Result<ExitCode> {
    let (name, number) = parsed(reference)?;
    let version = context.client.template_version(name, number).await?;
    match context.output {
        Output::Table => output::table(&table(&[version]))?,
        Output::Name => output::lines([format!("template/{reference}")])?,
        form => output::value(form, &version)?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn delete(context: &Context, args: DeleteArgs) -> anyhow::Result<ExitCode> {
    let which: anyhow::Result<Vec<_>> = args.which.names.iter().map(|it| parsed(it)).collect();
    let client = context.writer(args.dry_run);
    let ask = async |(name, number): (&str, u64)| {
        client.delete_template_version(name, number).await?;
        anyhow::Ok(format!("template/{name}@{number}"))
    };
    let (deleted, code) = context.each(which?, ask).await;
    let ended = if args.dry_run {
        "would be deleted"
    } else {
        "deleted"
    };
    match context.output {
        Output::Table => output::lines(deleted.iter().map(|name| format!("{name} {ended}")))?,
        Output::Name => output::lines(deleted)?,
        form => output::value(form, &Value::from(deleted))?,
    }
    Ok(code)
}

/// The template and the number in a reference such as `web@3`.
fn parsed(reference: &str) -> anyhow::Result<(&str, u64)> {
    let Some((name, number)) = reference.split_once('@') else {
        bail!(
            "{reference} names a whole template, and others here a version: delete them one after the other"
        );
    };
    let number = number.parse();
    let number =
        number.with_context(|| format!("{reference} names no version: give a number, as in {name}@1"))?;
    Ok((name, number))
}

fn table(versions: &[TemplateVersion]) -> Table {
    let mut table = Table::new([
        "VERSION", "MADE", "BY", "FROM", "IMAGE", "PROFILE", "VCPUS", "MEMORY", "VMS",
    ]);
    for version in versions {
        table.push(vec![
            version.version.to_string(),
            version.made_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            version.made_by.clone(),
            version.built_from.as_ref().map(from).unwrap_or_default(),
            version.spec.image.clone(),
            version.spec.profile.clone().unwrap_or_default(),
            version.vcpus.to_string(),
            format!("{} MiB", version.memory_mib),
            version.vms.to_string(),
        ]);
    }
    table
}

/// What a version was built from, in a few words.
fn from(built: &BuiltFrom) -> String {
    let base = match (&built.vm, built.version) {
        (Some(vm), _) => format!("vm {vm}"),
        (None, Some(version)) => format!("@{version}"),
        (None, None) => String::new(),
    };
    if built.script {
        format!("{base}, script")
    } else {
        base
    }
}
