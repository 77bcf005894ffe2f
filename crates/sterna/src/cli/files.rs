//! Objects in files: applying what they describe, and writing what there is.

use std::path::PathBuf;

use clap::Args;

use super::kinds::ListArgs;

/// Which files.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sterna apply -f cloud.yaml --dry-run\n  sterna export | sterna apply -f -\n\n\
    A document has kind, name, labels and spec, as `sterna export` writes them. All are checked before the first is \
    written. What a document of an object leaves out stays as it is; nothing is deleted."
)]
pub(crate) struct ApplyArgs {
    /// A file, a directory with .yaml, .yml and .json files, or - for standard input; may be given several times
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Show what would change, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What to write.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sterna export > cloud.yaml\n  sterna export template vm -l app=web\n\n\
    Images are written with their digests and without their content: import that first where they are applied."
)]
pub(crate) struct ExportArgs {
    /// Kinds: datastore, network, image, profile, template, vm, host; all but host if left out
    #[arg(value_name = "KIND", value_parser = kind)]
    pub(crate) kinds: Vec<model::Kind>,
    /// Which ones of them.
    #[command(flatten)]
    pub(crate) which: ListArgs,
}

/// The kinds that files describe, in the order in which they need each other.
pub(crate) const DESCRIBED: [model::Kind; 7] = [
    model::Kind::Datastore,
    model::Kind::Host,
    model::Kind::Network,
    model::Kind::Image,
    model::Kind::Profile,
    model::Kind::Template,
    model::Kind::Vm,
];

fn kind(text: &str) -> Result<model::Kind, String> {
    let names = |kind: &model::Kind| kind.name() == text || kind.plural() == text;
    DESCRIBED.into_iter().find(names).ok_or_else(|| {
        let all: Vec<&str> = DESCRIBED.iter().map(|kind| kind.name()).collect();
        format!("give one of {}", all.join(", "))
    })
}
