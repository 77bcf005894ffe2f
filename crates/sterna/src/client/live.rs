//! A table that stays on the terminal and is drawn again when something changes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use api::client::{Choice, ObjectOf};
use api::query::{Filter, Order, Shape};
use api::{Change, ChangeType, Resource};
use console::Term;
use serde_json::Value;
use uuid::Uuid;

use super::output::{self, Printer};
use super::{Context, kinds};
use crate::cli::Output;

/// How soon a change is seen, and how often the table is drawn at most.
const TICK: Duration = Duration::from_millis(200);
/// Every so many ticks it is drawn anyway, since ages change by themselves.
const AGEING_TICKS: u32 = 5;

/// Shows the list and keeps it up to date. Where nobody looks at a terminal, changes are printed as they come.
pub(super) async fn live<R: Resource>(
    context: &Context,
    choice: Choice,
    labels: Vec<(String, String)>,
) -> anyhow::Result<ExitCode> {
    let term = Term::buffered_stdout();
    if context.output != Output::Table || !term.features().is_attended() {
        let unsorted = Choice { sort: None, ..choice };
        return kinds::follow::<R>(context, Printer::changes::<R>(context), None, &unsorted).await;
    }
    let (objects, revision) = context.client.list_of::<R>(&choice).await?;
    let shown = Shown::new::<R>(&choice, labels)?;
    let screen = RefCell::new(Screen::<R>::new(term, objects, shown));
    // All changes are followed: one by which an object is no longer meant takes it off the list.
    let all = Choice::default();
    let following = kinds::each_change::<R>(context, Some(revision), &all, |change| {
        screen.borrow_mut().take(change);
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

/// Which objects are drawn, and in which order.
#[derive(Default)]
struct Shown {
    labels: Vec<(String, String)>,
    filter: Filter,
    order: Order,
}

impl Shown {
    fn new<R: Resource>(choice: &Choice, labels: Vec<(String, String)>) -> anyhow::Result<Self> {
        let (shape, text) = (Shape::of::<R>(), Option::as_deref);
        let filter = text(&choice.filter)
            .map(|text| Filter::parse(text, shape))
            .transpose()?;
        let order = text(&choice.sort)
            .map(|text| Order::parse(text, shape))
            .transpose()?;
        Ok(Self {
            labels,
            filter: filter.unwrap_or_default(),
            order: order.unwrap_or_default(),
        })
    }

    fn takes<R: Resource>(&self, object: &ObjectOf<R>) -> bool {
        let mut labels = self.labels.iter();
        labels.all(|(key, value)| object.labels.get(key) == Some(value))
            && (self.filter.is_empty() || self.filter.holds(&value::<R>(object)))
    }

    fn sort<R: Resource>(&self, objects: &mut [&ObjectOf<R>]) {
        if self.order.is_empty() {
            return objects.sort_by_cached_key(|object| kinds::by_name::<R>(object));
        }
        let place = |object: &ObjectOf<R>| self.order.place(&value::<R>(object));
        objects.sort_by(|a, b| self.order.compare(&place(a), &place(b)));
    }
}

fn value<R: Resource>(object: &ObjectOf<R>) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

/// The objects, and what of them is drawn.
struct Screen<R: Resource> {
    term: Term,
    shown: Shown,
    objects: BTreeMap<Uuid, ObjectOf<R>>,
    drawn_lines: usize,
    size: (u16, u16),
    ticks_since_drawn: u32,
    is_stale: bool,
}

impl<R: Resource> Screen<R> {
    fn new(term: Term, objects: Vec<ObjectOf<R>>, shown: Shown) -> Self {
        Self {
            shown,
            size: term.size(),
            term,
            objects: objects.into_iter().map(|object| (object.id, object)).collect(),
            drawn_lines: 0,
            ticks_since_drawn: 0,
            is_stale: true,
        }
    }

    fn take(&mut self, change: Change<ObjectOf<R>>) {
        self.is_stale = true;
        let object = change.object;
        if change.change_type != ChangeType::Deleted && self.shown.takes::<R>(&object) {
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
        let mut objects: Vec<&ObjectOf<R>> = self.objects.values().collect();
        self.shown.sort::<R>(&mut objects);
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
    fn what_is_no_longer_meant_leaves_the_list() {
        use api::kinds::Network;
        let change = |kind: &str, labels: serde_json::Value| -> Change<ObjectOf<Network>> {
            serde_json::from_value(serde_json::json!({
                "type": if kind == "moved" { "modified" } else { kind }, "revision": 7, "object": {
                "kind": "network", "id": "01890000-0000-7000-8000-000000000001", "name": "front", "project": null,
                "owner": "admin", "labels": labels, "revision": 7, "created_at": "2026-01-01T00:00:00Z",
                "updated_at": "2026-01-01T00:00:00Z", "deleted_at": null,
                "spec": { "cidr": "10.1.0.0/24", "vni": if kind == "moved" { 1 } else { 2000 } }, "status": {},
            } }))
            .unwrap()
        };
        let labels = [("app".to_owned(), "web".to_owned())];
        let choice = Choice {
            filter: Some("spec.vni>1000".to_owned()),
            ..Choice::default()
        };
        let shown = Shown::new::<Network>(&choice, labels.to_vec()).unwrap();
        let mut screen = Screen::<Network>::new(Term::buffered_stdout(), Vec::new(), shown);
        for (kind, carried, there) in [
            ("added", serde_json::json!({ "app": "db" }), 0),
            ("added", serde_json::json!({ "app": "web", "x": "y" }), 1),
            ("modified", serde_json::json!({}), 0),
            ("modified", serde_json::json!({ "app": "web" }), 1),
            ("moved", serde_json::json!({ "app": "web" }), 0),
            ("modified", serde_json::json!({ "app": "web" }), 1),
            ("deleted", serde_json::json!({ "app": "web" }), 0),
        ] {
            screen.take(change(kind, carried));
            assert_eq!(screen.objects.len(), there, "{kind}");
        }
    }
}
