//! A table that stays on the terminal and is drawn again when something changes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use api::client::ObjectOf;
use api::{Change, ChangeType, Resource};
use console::Term;
use uuid::Uuid;

use super::output::{self, Printer};
use super::select::selector;
use super::{Context, kinds};
use crate::cli::Output;

/// How soon a change is seen, and how often the table is drawn at most.
const TICK: Duration = Duration::from_millis(200);
/// Every so many ticks it is drawn anyway, since ages change by themselves.
const AGEING_TICKS: u32 = 5;

/// Shows the list and keeps it up to date. Where nobody looks at a terminal, changes are printed as they come.
pub(super) async fn live<R: Resource>(
    context: &Context,
    labels: &[(String, String)],
) -> anyhow::Result<ExitCode> {
    let wanted = selector(labels);
    let term = Term::buffered_stdout();
    if context.output != Output::Table || !term.features().is_attended() {
        return kinds::follow::<R>(context, Printer::changes::<R>(context), None, wanted.as_deref()).await;
    }
    let (objects, revision) = context.client.list_labelled::<R>(wanted.as_deref()).await?;
    let screen = RefCell::new(Screen::<R>::new(term, objects));
    // All changes are followed: one by which an object loses a label takes it off the list.
    let following = kinds::each_change::<R>(context, Some(revision), None, |change| {
        screen.borrow_mut().take(change, labels);
        Ok(())
    });
    let drawing = async {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            screen.borrow_mut().draw(context)?;
        }
    };
    tokio::select! {
        ended = following => ended,
        ended = drawing => ended,
    }
}

/// The objects, and what of them is drawn.
struct Screen<R: Resource> {
    term: Term,
    objects: BTreeMap<Uuid, ObjectOf<R>>,
    drawn_lines: usize,
    size: (u16, u16),
    ticks_since_drawn: u32,
    is_stale: bool,
}

impl<R: Resource> Screen<R> {
    fn new(term: Term, objects: Vec<ObjectOf<R>>) -> Self {
        Self {
            size: term.size(),
            term,
            objects: objects.into_iter().map(|object| (object.id, object)).collect(),
            drawn_lines: 0,
            ticks_since_drawn: 0,
            is_stale: true,
        }
    }

    fn take(&mut self, change: Change<ObjectOf<R>>, labels: &[(String, String)]) {
        self.is_stale = true;
        let object = change.object;
        let is_there = change.change_type != ChangeType::Deleted;
        if is_there
            && labels
                .iter()
                .all(|(key, value)| object.labels.get(key) == Some(value))
        {
            self.objects.insert(object.id, object);
        } else {
            self.objects.remove(&object.id);
        }
    }

    fn draw(&mut self, context: &Context) -> anyhow::Result<()> {
        self.ticks_since_drawn += 1;
        let size = self.term.size();
        let is_resized = size != self.size;
        if !self.is_stale && !is_resized && self.ticks_since_drawn < AGEING_TICKS {
            return Ok(());
        }
        (self.size, self.ticks_since_drawn, self.is_stale) = (size, 0, false);
        // Lines that were broken at another width cannot be counted.
        if is_resized {
            self.term.clear_screen()?;
        } else {
            self.term.clear_last_lines(self.drawn_lines)?;
        }
        let (rows, columns) = (usize::from(size.0), usize::from(size.1));
        let objects: Vec<&ObjectOf<R>> = self.objects.values().collect();
        let lines = shortened(
            output::table_of::<R>(context, &objects).lines(Some(columns)),
            rows,
        );
        for line in &lines {
            self.term.write_line(line)?;
        }
        self.drawn_lines = lines.len();
        Ok(self.term.flush()?)
    }
}

/// As many lines as fit above the cursor, and how many do not.
fn shortened(mut lines: Vec<String>, rows: usize) -> Vec<String> {
    let room = rows.saturating_sub(1).max(2);
    if lines.len() > room {
        let hidden = lines.len() - (room - 1);
        lines.truncate(room - 1);
        lines.push(format!("… and {hidden} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        let lines = |n: usize| (0..n).map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(shortened(lines(3), 4), ["0", "1", "2"]);
        assert_eq!(shortened(lines(5), 4), ["0", "1", "… and 3 more"]);
    }

    #[test]
    fn what_loses_the_label_leaves_the_list() {
        use api::kinds::Network;
        let change = |kind: &str, labels: serde_json::Value| -> Change<ObjectOf<Network>> {
            serde_json::from_value(serde_json::json!({ "type": kind, "revision": 7, "object": {
                "kind": "network", "id": "01890000-0000-7000-8000-000000000001", "name": "front", "project": null,
                "owner": "admin", "labels": labels, "revision": 7, "created_at": "2026-01-01T00:00:00Z",
                "updated_at": "2026-01-01T00:00:00Z", "deleted_at": null,
                "spec": { "cidr": "10.1.0.0/24" }, "status": {},
            } }))
            .unwrap()
        };
        let labels = [("app".to_owned(), "web".to_owned())];
        let mut screen = Screen::<Network>::new(Term::buffered_stdout(), Vec::new());
        for (kind, carried, there) in [
            ("added", serde_json::json!({ "app": "db" }), 0),
            ("added", serde_json::json!({ "app": "web", "x": "y" }), 1),
            ("modified", serde_json::json!({}), 0),
            ("modified", serde_json::json!({ "app": "web" }), 1),
            ("deleted", serde_json::json!({ "app": "web" }), 0),
        ] {
            screen.take(change(kind, carried), &labels);
            assert_eq!(screen.objects.len(), there, "{kind}");
        }
    }
}
