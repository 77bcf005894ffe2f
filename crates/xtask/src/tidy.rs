//! The house rules, checked.
//!
//! Each rule is a pure function from a file's path and text, or from what cargo says of the dependency graph, to
//! findings; only this module touches the disk. Every rule has a file in `fixtures/` that breaks it and a test that the
//! break is found.
//!
//! | module | rules |
//! |---|---|
//! | [`text`] | white space, leftover marks, lengths of files, docs at the top, no doc tests, lints inherited |
//! | [`functions`] | lengths of functions |
//! | [`purity`] | what the code of pure crates may name |
//! | [`graph`] | which crate may depend on which; what pure crates may reach |

mod functions;
mod graph;
mod purity;
mod text;
mod tokens;

use std::fmt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};

/// The crates that decide and do nothing else: no clock, no randomness, no input or output.
const PURE_CRATES: [&str; 5] = ["driver", "formats", "model", "planner", "scheduler"];

/// Folders that are not looked into, besides hidden ones that are not in [`HIDDEN_FOLDERS`]. The last one breaks the
/// rules on purpose.
const SKIPPED_FOLDERS: [&str; 4] = ["target", "node_modules", "ui/dist", "crates/xtask/fixtures"];

/// Hidden folders that are the project's.
const HIDDEN_FOLDERS: [&str; 4] = [".cargo", ".ci", ".config", ".github"];

/// The platform whose dependencies are looked at.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// Relative to the repository, with slashes.
    path: String,
    /// From 1.
    line: usize,
    /// What is wrong and what to do about it.
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            message: message.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// A text file of the repository.
#[derive(Debug)]
struct File {
    /// Relative to the repository, with slashes.
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether it is only compiled for tests, as its place tells.
    fn is_test(&self) -> bool {
        let mut folders = self.path.split('/');
        let name = folders.next_back().unwrap_or_default();
        name == "tests.rs"
            || name.ends_with("_tests.rs")
            || folders.any(|folder| matches!(folder, "tests" | "fixtures" | "benches"))
    }
}

/// Checks the whole tree and prints what was found.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()?;
    let files = read_tree(&root)?;
    let mut findings: Vec<Finding> = files.iter().flat_map(check_file).collect();
    findings.extend(graph::check(&cargo_metadata(&root)?, &files)?);
    findings.sort();
    findings.dedup();
    for finding in &findings {
        println!("{finding}");
    }
    println!("tidy: {}", summary(&files, findings.len()));
    Ok(if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Every rule that looks at one file.
fn check_file(file: &File) -> Vec<Finding> {
    let mut findings = text::check(file);
    if file.is_rust() {
        match tokens::parse(&file.text) {
            Ok(tokens) => {
                findings.extend(functions::check(&file.path, &tokens));
                findings.extend(purity::check(file, &tokens));
            }
            Err(line) => findings.push(Finding::new(&file.path, line, "is not Rust: make it compile")),
        }
    }
    findings
}

fn summary(files: &[File], findings: usize) -> String {
    let sources = files.iter().filter(|file| file.is_rust());
    let mut lengths: Vec<usize> = sources
        .filter_map(|file| tokens::parse(&file.text).ok())
        .flat_map(|tokens| functions::all(&tokens))
        .map(|function| function.lines)
        .collect();
    lengths.sort_unstable();
    let median = lengths.get(lengths.len() / 2).copied().unwrap_or_default();
    let longest = lengths.last().copied().unwrap_or_default();
    format!(
        "{findings} findings in {} files; {} functions, the median {median} lines, the longest {longest}",
        files.len(),
        lengths.len()
    )
}

/// The text files under `root`, ordered by path.
fn read_tree(root: &Path) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in root
            .join(&folder)
            .read_dir()
            .with_context(|| format!("list {folder}"))?
        {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let path = if folder.is_empty() {
                name.clone()
            } else {
                format!("{folder}/{name}")
            };
            let kind = entry.file_type()?;
            if kind.is_dir() && is_ours(&path, &name) {
                folders.push(path);
            } else if kind.is_file() && text::is_text(&path) {
                let text =
                    std::fs::read_to_string(entry.path()).with_context(|| format!("read {path} as text"))?;
                files.push(File { path, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Whether to look into a folder.
fn is_ours(path: &str, name: &str) -> bool {
    let hidden = name.starts_with('.') && !HIDDEN_FOLDERS.contains(&name);
    !hidden
        && !SKIPPED_FOLDERS
            .iter()
            .any(|skipped| *skipped == path || *skipped == name)
}

/// What cargo says of the workspace and of all that it resolves to.
fn cargo_metadata(root: &Path) -> anyhow::Result<String> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version=1", "--filter-platform", PLATFORM])
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).context("read the output of cargo metadata")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_file_and_line() {
        assert_eq!(
            Finding::new("docs/a.md", 3, "has a tab").to_string(),
            "docs/a.md:3: has a tab"
        );
    }

    #[test]
    fn tests_are_told_by_their_place() {
        let is_test = |path: &str| {
            File {
                path: path.to_owned(),
                text: String::new(),
            }
            .is_test()
        };
        assert!(is_test("crates/model/tests/golden.rs"));
        assert!(is_test("crates/model/src/vm/tests.rs"));
        assert!(is_test("crates/model/src/vm_tests.rs"));
        assert!(!is_test("crates/model/src/tests_of_time.rs"));
    }

    #[test]
    fn build_output_and_foreign_folders_are_not_looked_into() {
        assert!(is_ours(".ci", ".ci"));
        assert!(is_ours("crates/model", "model"));
        for path in [
            ".git",
            "target",
            "crates/xtask/fixtures",
            "ui/dist",
            "ui/node_modules",
            "guest/target",
        ] {
            assert!(!is_ours(path, path.rsplit('/').next().unwrap()), "{path}");
        }
    }

    #[test]
    fn what_is_not_rust_is_found() {
        let file = File {
            path: "crates/api/src/x.rs".to_owned(),
            text: include_str!("../fixtures/not-rust.rs").to_owned(),
        };
        assert_eq!(
            check_file(&file),
            [Finding::new(&file.path, 4, "is not Rust: make it compile")]
        );
    }
}
