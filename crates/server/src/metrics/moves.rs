//! Migrations that have ended: how many, how long their guests stood still, what they took.

use std::collections::BTreeSet;

use controller::cache::Since;
use model::migration::{Figures, MigrationPhase};
use model::{Kind, MigrationId};
use planner::View;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::{DOWNTIMES_S, Label, MOVES_S, Maker};
use crate::routes::App;

/// The figures of migrations.
pub(super) struct Moves {
    finished: Family<Label, Counter>,
    downtimes: Histogram,
    durations: Histogram,
    sent: Counter,
}

impl Moves {
    pub(super) fn new(all: &mut Maker) -> Self {
        let finished: Family<Label, Counter> = all.make(
            Family::default(),
            "sterna_migrations_finished",
            "Migrations that have ended, by how",
        );
        for outcome in ["done", "aborted"] {
            drop(finished.get_or_create(&[("outcome", outcome.to_owned())]));
        }
        Self {
            finished,
            downtimes: all.make(
                Histogram::new(DOWNTIMES_S),
                "sterna_migration_downtime_seconds",
                "How long guests stood still for migrations that were done",
            ),
            durations: all.make(
                Histogram::new(MOVES_S),
                "sterna_migration_duration_seconds",
                "From the request to the commit of migrations that were done",
            ),
            sent: all.make(
                Counter::default(),
                "sterna_migration_sent_bytes",
                "What migrations that were done sent",
            ),
        }
    }

    fn note(&self, phase: MigrationPhase, measured: Option<Figures>) {
        let outcome = if phase == MigrationPhase::Done {
            "done"
        } else {
            "aborted"
        };
        self.finished
            .get_or_create(&[("outcome", outcome.to_owned())])
            .inc();
        let measured = measured.filter(|_| phase == MigrationPhase::Done);
        if let Some(figures) = measured {
            self.downtimes.observe(seconds(figures.downtime_ms));
            self.durations.observe(seconds(figures.total_ms));
            self.sent.inc_by(figures.bytes);
        }
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// Notes each migration that ends, until the task is dropped.
pub async fn follow(app: App) {
    let mut revisions = app.cache.subscribe();
    let mut seen = app.cache.revision();
    let mut over = over(&app.cache.view());
    loop {
        seen = look(&app, seen, &mut over);
        if revisions.changed().await.is_err() {
            return;
        }
    }
}

/// The migrations that have ended.
fn over(view: &View) -> BTreeSet<MigrationId> {
    let all = view.migrations.iter();
    all.filter(|(_, migration)| migration.phase().is_final())
        .map(|(id, _)| *id)
        .collect()
}

/// Notes what ended after a revision, and says up to which one that was.
fn look(app: &App, seen: u64, known: &mut BTreeSet<MigrationId>) -> u64 {
    let view = app.cache.view();
    let changes = match app.cache.since(seen) {
        Since::Changes(changes) => changes,
        // What ended in between is not counted: a figure less is better than one twice.
        Since::Compacted(_) => {
            *known = over(&view);
            return view.revision;
        }
    };
    for changed in changes.iter().filter(|changed| changed.kind == Kind::Migration) {
        let id = MigrationId(changed.id);
        let Some(migration) = view.migrations.get(&id) else {
            known.remove(&id);
            continue;
        };
        let phase = migration.phase();
        if phase.is_final() && known.insert(id) {
            let measured = migration.intent.as_ref().and_then(|at| at.value.measured);
            app.metrics.moves.note(phase, measured);
        }
    }
    view.revision
}
