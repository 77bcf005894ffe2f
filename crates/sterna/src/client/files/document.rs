//! Documents as they stand in files: YAML, several in a file with `---` between them, each with the line that it begins at.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use api::Resource;
use api::document::Document;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::of_kind;

/// What files' names end in.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// As it was given.
    pub(super) file: String,
    /// From 1.
    pub(super) line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A document and where it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Placed {
    pub(super) place: Place,
    pub(super) document: Document,
}

impl Placed {
    /// As in `vm/web`.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.document.kind, self.document.name)
    }
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) place: Place,
    pub(super) why: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.why)
    }
}

/// What the paths stand for: the files, the files in the directories, standard input; name and text of each.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("reading standard input")?;
            texts.push(("standard input".to_owned(), text));
            continue;
        }
        for file in files(path)? {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(&file).with_context(|| format!("reading {name}"))?;
            texts.push((name, text));
        }
    }
    Ok(texts)
}

fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let shown = || format!("reading {}", path.display());
    if !std::fs::metadata(path).with_context(shown)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries: Result<Vec<_>, _> = std::fs::read_dir(path).with_context(shown)?.collect();
    let paths = entries.with_context(shown)?.into_iter().map(|entry| entry.path());
    let is_document = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        path.is_file() && ending.is_some_and(|ending| ENDINGS.contains(&ending))
    };
    let mut found: Vec<PathBuf> = paths.filter(is_document).collect();
    if found.is_empty() {
        bail!("{} has no files that end in .yaml, .yml or .json", path.display());
    }
    found.sort();
    Ok(found)
}

/// The documents in a text, and what is wrong with those that cannot be read.
pub(super) fn parse(file: &str, text: &str) -> Vec<Result<Placed, Wrong>> {
    let chunks = chunks(text).into_iter();
    let one = |(line, chunk): (usize, String)| {
        let place = |line| Place {
            file: file.to_owned(),
            line,
        };
        match one(&chunk) {
            Ok(document) => Ok(Placed {
                place: place(line),
                document,
            }),
            Err(error) => {
                let at = error
                    .location()
                    .map_or(line, |location| location.line().max(line));
                // The place stands before the sentence already.
                let why = error.to_string();
                let why = why.split(" at line ").next().unwrap_or_default().to_owned();
                Err(Wrong {
                    place: place(at),
                    why,
                })
            }
        }
    };
    chunks.map(one).collect()
}

/// The text between `---`, with the number of its first line that says something. Empty lines stand for the text before,
/// so that the places in the parser's errors are the file's.
fn chunks(text: &str) -> Vec<(usize, String)> {
    let mut chunks = Vec::new();
    let (mut first, mut chunk) = (None, String::new());
    for (index, line) in text.lines().enumerate() {
        if line == "---" || line == "..." || line.starts_with("--- ") {
            chunks.extend(first.take().map(|first| (first, std::mem::take(&mut chunk))));
            chunk = "\n".repeat(index + 1);
            continue;
        }
        let says_something = !line.trim().is_empty() && !line.trim_start().starts_with('#');
        if says_something {
            first = first.or(Some(index + 1));
        }
        chunk.push_str(line);
        chunk.push('\n');
    }
    chunks.extend(first.map(|first| (first, chunk)));
    chunks
}

/// An object as `sterna export` or `get -o yaml` writes it. What only the system writes is passed over.
#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a document with kind, name and spec, as `sterna export` writes them"
)]
struct Whole {
    kind: model::Kind,
    name: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    spec: Value,
    #[serde(default, rename = "id")]
    _id: Option<IgnoredAny>,
    #[serde(default, rename = "project")]
    _project: Option<IgnoredAny>,
    #[serde(default, rename = "owner")]
    _owner: Option<IgnoredAny>,
    #[serde(default, rename = "revision")]
    _revision: Option<IgnoredAny>,
    #[serde(default, rename = "created_at")]
    _created_at: Option<IgnoredAny>,
    #[serde(default, rename = "updated_at")]
    _updated_at: Option<IgnoredAny>,
    #[serde(default, rename = "deleted_at")]
    _deleted_at: Option<IgnoredAny>,
    #[serde(default, rename = "status")]
    _status: Option<IgnoredAny>,
}

/// The part whose shape depends on the kind.
#[derive(Deserialize)]
struct Specified<S> {
    #[serde(rename = "spec")]
    _spec: S,
}

fn one(chunk: &str) -> Result<Document, yaml_serde::Error> {
    let whole: Whole = yaml_serde::from_str(chunk)?;
    of_kind!(whole.kind, check_spec(chunk))?;
    Ok(Document {
        kind: whole.kind,
        name: whole.name,
        labels: whole.labels,
        spec: whole.spec,
    })
}

/// Finds what does not fit the kind's spec where its place is still known.
fn check_spec<R: Resource>(chunk: &str) -> Result<(), yaml_serde::Error> {
    yaml_serde::from_str::<Specified<R::Spec>>(chunk).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# the cloud\n---\nkind: network\nname: front\nspec:\n  cidr: 10.1.0.0/24\n---\n\nkind: vm\n\
                        name: web\nlabels: { app: web }\nspec:\n  template: small\n  memori_mib: 7\n--- # nothing\n";

    #[test]
    fn each_document_knows_its_line_and_each_error_its_own() {
        let found = parse("cloud.yaml", TEXT);
        let shown: Vec<String> = found
            .iter()
            .map(|found| match found {
                Ok(placed) => format!("{} {}", placed.place, placed.name()),
                Err(wrong) => wrong.to_string().chars().take(50).collect(),
            })
            .collect();
        assert_eq!(
            shown,
            [
                "cloud.yaml:3 network/front",
                "cloud.yaml:14: spec: unknown field `memori_mib`, e"
            ]
        );
    }

    #[test]
    fn what_get_prints_can_be_applied() {
        let text = "kind: vm\nid: x\nname: web\nproject: default\nowner: admin\nlabels: {}\nrevision: 7\n\
                    created_at: x\nupdated_at: x\ndeleted_at: null\nspec:\n  template: small\nstatus: {phase: Off}\n";
        assert_eq!(parse("-", text)[0].as_ref().unwrap().name(), "vm/web");
        let wrong = parse("-", "kind: vm\nname: web\nspecs: {}\n");
        assert!(
            wrong[0]
                .as_ref()
                .unwrap_err()
                .why
                .contains("unknown field `specs`")
        );
        let wrong = parse("-", "kind: vmm\nname: web\nspec: {}\n");
        assert_eq!(wrong[0].as_ref().unwrap_err().place.line, 1);
        let wrong = parse("-", "just words\n");
        let why = &wrong[0].as_ref().unwrap_err().why;
        assert!(
            why.contains("expected a document with kind, name and spec"),
            "{why}"
        );
    }
}
