//! Rules over a file's text alone: white space, leftover marks, lengths, docs at the top and without tests, lints that are
//! inherited.

use super::{File, Finding};

/// What the names of text files end with; a name without a dot counts whole.
const TEXT_FILES: [&str; 15] = [
    ".css", ".html", ".json", ".md", ".rs", ".sh", ".toml", ".ts", ".tsx", ".txt", ".yaml", ".yml",
    "LICENSE", "Makefile", ".ci/run",
];

/// Of these, those that people write line by line: tabs and trailing blanks are noise in them.
const WRITTEN_FILES: [&str; 8] = [".css", ".html", ".md", ".rs", ".sh", ".ts", ".tsx", ".ci/run"];

/// Lines of a source file: what is longer has more than one subject.
const MAX_SOURCE_LINES: usize = 800;

/// Lines of the page that everybody reads first.
const MAX_ARCHITECTURE_LINES: usize = 300;

/// Lines up to which a test or an example needs no words at its top.
const MAX_TRIVIAL_LINES: usize = 10;

/// What every crate's documentation has to say.
const CRATE_DOC_WORDS: [&str; 3] = ["owns", "does not know", "start"];

/// Crates whose manifests say that they have no tests of their own (`test = false`).
const WITHOUT_UNIT_TESTS: [&str; 2] = ["crates/planner/src/", "crates/sim/src/"];

/// Marks of work left undone, in halves, so that this file has none itself.
const MARKS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Whether a file is text that these rules are for.
pub(super) fn is_text(path: &str) -> bool {
    TEXT_FILES.iter().any(|end| path.ends_with(end))
}

/// All findings of this module in one file.
pub(super) fn check(file: &File) -> Vec<Finding> {
    [
        white_space,
        last_line,
        marks,
        length,
        module_docs,
        crate_docs,
        doc_tests,
        unrun_tests,
        inherited_lints,
    ]
    .into_iter()
    .flat_map(|rule| rule(file))
    .collect()
}

fn white_space(file: &File) -> Vec<Finding> {
    if !WRITTEN_FILES.iter().any(|end| file.path.ends_with(end)) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (index, line) in file.text.split('\n').enumerate() {
        if line.contains('\t') {
            findings.push(Finding::new(&file.path, index + 1, "has a tab: use spaces"));
        }
        if line.ends_with(char::is_whitespace) {
            findings.push(Finding::new(
                &file.path,
                index + 1,
                "ends in white space: remove it",
            ));
        }
    }
    findings
}

fn last_line(file: &File) -> Vec<Finding> {
    let line = file.text.lines().count();
    match file.text.as_str() {
        text if !text.is_empty() && !text.ends_with('\n') => {
            vec![Finding::new(
                &file.path,
                line,
                "does not end with a newline: add one",
            )]
        }
        text if text.ends_with("\n\n") => vec![Finding::new(
            &file.path,
            line,
            "ends with an empty line: remove it",
        )],
        _ => Vec::new(),
    }
}

fn marks(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        if let Some(mark) = words.find(|word| MARKS.contains(word)) {
            let message = format!("has a {mark}: do it, or open an issue and remove it");
            findings.push(Finding::new(&file.path, index + 1, message));
        }
    }
    findings
}

fn length(file: &File) -> Vec<Finding> {
    let (max, remedy) = match file.path.as_str() {
        "ARCHITECTURE.md" => (MAX_ARCHITECTURE_LINES, "move what newcomers need later to docs/"),
        path if [".rs", ".sh", ".ts", ".tsx"]
            .iter()
            .any(|end| path.ends_with(end)) =>
        {
            (MAX_SOURCE_LINES, "split it by subject")
        }
        _ => return Vec::new(),
    };
    let lines = file.text.lines().count();
    if lines <= max {
        return Vec::new();
    }
    vec![Finding::new(
        &file.path,
        max + 1,
        format!("has {lines} lines, more than {max}: {remedy}"),
    )]
}

fn module_docs(file: &File) -> Vec<Finding> {
    let is_trivial = file.is_test() && file.text.lines().count() <= MAX_TRIVIAL_LINES;
    let has_docs = file
        .text
        .lines()
        .next()
        .is_some_and(|line| line.starts_with("//! "));
    if !file.is_rust() || is_trivial || has_docs {
        return Vec::new();
    }
    vec![Finding::new(
        &file.path,
        1,
        "does not begin with module docs: begin with `//! ` and what the module owns",
    )]
}

fn crate_docs(file: &File) -> Vec<Finding> {
    if !file.path.ends_with("/src/lib.rs") {
        return Vec::new();
    }
    let docs: Vec<&str> = file
        .text
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .collect();
    let docs = docs.join(" ").to_lowercase();
    let missing: Vec<&str> = CRATE_DOC_WORDS
        .into_iter()
        .filter(|word| !docs.contains(word))
        .collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let message = format!(
        "the crate's docs lack \"{}\": say so in a paragraph that begins with it",
        missing.join("\", \"")
    );
    vec![Finding::new(&file.path, 1, message)]
}

/// What begins a block in docs that would be compiled as a test. Nobody runs those: tests are where tests are.
fn doc_tests(file: &File) -> Vec<Finding> {
    if !file.is_rust() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut is_inside = false;
    for (index, line) in file.text.lines().enumerate() {
        let line = line.trim_start();
        let docs = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        let Some(language) = docs.and_then(|docs| docs.trim().strip_prefix("```")) else {
            continue;
        };
        if !is_inside && language != "text" {
            let message = "begins a block that is not `text`: doc tests are not run, write a test";
            findings.push(Finding::new(&file.path, index + 1, message));
        }
        is_inside = !is_inside;
    }
    findings
}

fn unrun_tests(file: &File) -> Vec<Finding> {
    if !WITHOUT_UNIT_TESTS
        .iter()
        .any(|crates| file.path.starts_with(crates))
    {
        return Vec::new();
    }
    let lines = file.text.lines().enumerate();
    let tests = lines.filter(|(_, line)| line.trim() == "#[cfg(test)]");
    let message = "has tests that nobody runs: put them into the crate's `tests`";
    tests
        .map(|(index, _)| Finding::new(&file.path, index + 1, message))
        .collect()
}

fn inherited_lints(file: &File) -> Vec<Finding> {
    if !file.path.ends_with("/Cargo.toml") {
        return Vec::new();
    }
    let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
    let in_section = |line: &&str| !line.starts_with('[');
    let section = lines.iter().position(|line| *line == "[lints]");
    let inherits = section.is_some_and(|at| {
        lines[at + 1..]
            .iter()
            .take_while(|line| in_section(line))
            .any(|line| *line == "workspace = true")
    });
    if inherits {
        return Vec::new();
    }
    vec![Finding::new(
        &file.path,
        section.map_or(1, |at| at + 1),
        "does not inherit the lints: add `[lints]` with `workspace = true`",
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    /// The lines and messages (up to their remedy) that are found in a text.
    fn found(path: &str, text: &str) -> Vec<(usize, String)> {
        let findings = check(&file(path, text)).into_iter();
        findings
            .map(|finding| {
                (
                    finding.line,
                    finding.message.split(':').next().unwrap().to_owned(),
                )
            })
            .collect()
    }

    #[test]
    fn tabs_and_trailing_blanks_are_found() {
        let text = include_str!("../../fixtures/white-space.md");
        assert_eq!(
            found("docs/a.md", text),
            [(3, "has a tab".into()), (5, "ends in white space".into())]
        );
        assert_eq!(found("Makefile", text), []);
    }

    #[test]
    fn a_missing_last_newline_is_found() {
        let text = include_str!("../../fixtures/no-newline.toml");
        assert_eq!(found("a.toml", text), [(2, "does not end with a newline".into())]);
        assert_eq!(
            found("a.toml", "a = 1\n\n"),
            [(2, "ends with an empty line".into())]
        );
    }

    #[test]
    fn marks_are_found_as_whole_words() {
        let text = include_str!("../../fixtures/mark.sh");
        let expected: Vec<_> = [2, 3, 4]
            .into_iter()
            .zip(MARKS)
            .map(|(line, mark)| (line, format!("has a {mark}")))
            .collect();
        assert_eq!(found("scripts/a.sh", text), expected);
    }

    #[test]
    fn long_files_are_found() {
        let text = "//! One line.\n".repeat(MAX_SOURCE_LINES);
        assert_eq!(found("crates/api/src/a.rs", &text), []);
        let text = text + "// And one more.\n";
        assert_eq!(
            found("crates/api/src/a.rs", &text),
            [(801, "has 801 lines, more than 800".into())]
        );
        assert_eq!(
            found("ARCHITECTURE.md", &text),
            [(301, "has 801 lines, more than 300".into())]
        );
        assert_eq!(found("CHANGELOG.md", &text), []);
    }

    #[test]
    fn missing_module_docs_are_found() {
        let text = include_str!("../../fixtures/no-docs.rs");
        let expected = [(1, "does not begin with module docs".into())];
        assert_eq!(found("crates/api/src/a.rs", text), expected);
        assert_eq!(found("crates/api/tests/a.rs", text), []);
        assert_eq!(found("crates/api/tests/a.rs", &"fn f() {}\n".repeat(11)).len(), 1);
    }

    #[test]
    fn crate_docs_that_leave_something_out_are_found() {
        let text = include_str!("../../fixtures/crate-docs.rs");
        assert_eq!(
            found("crates/api/src/lib.rs", text),
            [(1, "the crate's docs lack \"does not know\"".into())]
        );
        assert_eq!(found("crates/api/src/other.rs", text), []);
    }

    #[test]
    fn doc_tests_are_found() {
        let text = include_str!("../../fixtures/doc-test.rs");
        assert_eq!(
            found("crates/api/src/a.rs", text),
            [(7, "begins a block that is not `text`".into())]
        );
    }

    #[test]
    fn tests_that_are_not_run_are_found() {
        let text = "//! Docs.\n\n#[cfg(test)]\nmod tests {}\n";
        assert_eq!(
            found("crates/sim/src/a.rs", text),
            [(3, "has tests that nobody runs".into())]
        );
        assert_eq!(found("crates/api/src/a.rs", text), []);
    }

    #[test]
    fn a_crate_with_lints_of_its_own_is_found() {
        let text = include_str!("../../fixtures/own-lints.toml");
        assert_eq!(
            found("crates/api/Cargo.toml", text),
            [(4, "does not inherit the lints".into())]
        );
        assert_eq!(found("crates/api/Cargo.toml", "[lints]\nworkspace = true\n"), []);
        assert_eq!(
            found("crates/api/Cargo.toml", "[package]\n"),
            [(1, "does not inherit the lints".into())]
        );
        assert_eq!(found("Cargo.toml", "[workspace]\n"), []);
    }
}
