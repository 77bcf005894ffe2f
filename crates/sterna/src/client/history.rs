//! Who changed what of an object, and when.

use std::process::ExitCode;

use api::Resource;
use api::history::{FieldChange, HistoryEntry};
use serde_json::Value;

use super::Context;
use super::output::{self, Table};
use crate::cli::{HistoryArgs, Output};

/// How much of a value is shown; `-o json` has all of it.
const VALUE_MAX_CHARS: usize = 60;

pub(super) async fn history<R: Resource>(context: &Context, args: HistoryArgs) -> anyhow::Result<ExitCode> {
    let history = context
        .client
        .history::<R>(&args.name, usize::from(args.limit), args.reports)
        .await?;
    match context.output {
        Output::Table => {
            output::table(&table(&history.items))?;
            if history.has_older {
                context.note(&format!("These are the last {}: --limit shows more.", args.limit));
            }
        }
        Output::Name => output::lines(history.items.into_iter().map(|entry| entry.actor))?,
        form => output::value(form, &history)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A row for each field; what the rows of a write share stands in its first.
fn table(entries: &[HistoryEntry]) -> Table {
    let mut table = Table::new(["AT", "WHO", "ACTION", "CHANGE"]);
    for entry in entries {
        let at = entry.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut head = [at, entry.actor.clone(), entry.action.clone()];
        for change in &entry.changes {
            let row = head.iter_mut().map(std::mem::take);
            table.push(row.chain([shown(change)]).collect());
        }
    }
    table
}

/// As in `spec.memory_mib: 64 → 128`.
fn shown(change: &FieldChange) -> String {
    let field = &change.field;
    let is_whole = |value: &Value| value.is_object();
    match (&change.before, &change.after) {
        (Value::Null, after) if is_whole(after) => format!("{field}: created"),
        (before, Value::Null) if is_whole(before) => format!("{field}: removed"),
        (before, after) => format!("{field}: {} → {}", value(before), value(after)),
    }
}

fn value(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    console::truncate_str(&text, VALUE_MAX_CHARS, "…").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_write_is_shown_once_with_a_row_for_each_field() {
        let entries: Vec<HistoryEntry> = serde_json::from_value(json!([
            { "at": "2026-01-01T00:00:00Z", "actor": "user:admin", "from": "10.0.0.1:4000", "action": "create vm web",
              "changes": [{ "field": "object", "before": null, "after": { "spec": {} } }] },
            { "at": "2026-01-02T00:00:00Z", "actor": "user:eve", "from": null, "action": "change vm web", "changes": [
                { "field": "meta.labels.app", "before": null, "after": "web" },
                { "field": "spec.memory_mib", "before": 64, "after": 128 },
            ] },
        ]))
        .unwrap();
        insta::assert_snapshot!(table(&entries).lines(None).join("\n"), @r"
        AT                    WHO         ACTION         CHANGE
        2026-01-01T00:00:00Z  user:admin  create vm web  object: created
        2026-01-02T00:00:00Z  user:eve    change vm web  meta.labels.app: - → web
                                                         spec.memory_mib: 64 → 128
        ");
    }
}
