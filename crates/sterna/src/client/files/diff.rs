//! What would change, line by line, for people.

use api::document::{Checked, Outcome, Wanted};
use console::Style;
use similar::{ChangeTag, TextDiff};

/// How many unchanged lines are shown around a change.
const AROUND: usize = 2;

/// The lines of an object: what happens to it, then what changes.
pub(super) fn lines(name: &str, checked: &Checked) -> Vec<String> {
    let (word, style) = match checked.outcome {
        Outcome::Unchanged => ("unchanged", Style::new().dim()),
        Outcome::Created => ("create", Style::new().green()),
        Outcome::Changed => ("change", Style::new().yellow()),
        Outcome::Refused => ("refused", Style::new().red()),
    };
    let head = format!("{name}  {}", style.apply_to(word));
    let changes = match (&checked.before, &checked.after) {
        (Some(before), Some(after)) => changes(before, after),
        _ => Vec::new(),
    };
    std::iter::once(head).chain(changes).collect()
}

fn changes(before: &Wanted, after: &Wanted) -> Vec<String> {
    let text = |wanted: &Wanted| yaml_serde::to_string(wanted).unwrap_or_default();
    let (before, after) = (text(before), text(after));
    let diff = TextDiff::from_lines(&before, &after);
    let groups = diff.grouped_ops(AROUND);
    let changes = groups.iter().flatten().flat_map(|op| diff.iter_changes(op));
    let line = |change: similar::Change<&str>| {
        let (sign, style) = match change.tag() {
            ChangeTag::Delete => ('-', Style::new().red()),
            ChangeTag::Insert => ('+', Style::new().green()),
            ChangeTag::Equal => (' ', Style::new()),
        };
        let text = format!("  {sign} {}", change.value().trim_end());
        style.apply_to(text).to_string()
    };
    changes.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_change_is_shown_with_what_stands_around_it() {
        let wanted = |memory: u32| -> Wanted {
            let spec =
                json!({ "image": "tiny", "memory_mib": memory, "power": "running", "vcpus": 1, "x": 1 });
            serde_json::from_value(json!({ "labels": {}, "spec": spec })).unwrap()
        };
        let checked = Checked {
            outcome: Outcome::Changed,
            revision: Some(7),
            before: Some(wanted(64)),
            after: Some(wanted(128)),
            problem: None,
        };
        insta::assert_snapshot!(lines("vm/web", &checked).join("\n"), @r"
        vm/web  change
            spec:
              image: tiny
          -   memory_mib: 64
          +   memory_mib: 128
              power: running
              vcpus: 1
        ");
    }
}
