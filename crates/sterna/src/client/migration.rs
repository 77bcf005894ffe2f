//! What only migrations have: asking for one, stopping one, and its progress.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use api::Create;
use api::client::ObjectOf;
use api::kinds::{Migration, MigrationSpec, Vm};
use futures_util::StreamExt;
use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};
use model::migration::Progress;
use serde_json::json;

use super::wait::{Ended, MigrationGoal, until};
use super::{Context, output, select};
use crate::cli::{MigrateArgs, Selection};
use crate::units;

/// How soon after a progress stream ended it is asked for again.
const AGAIN: Duration = Duration::from_millis(200);

/// Asks for a migration of each VM.
pub(super) async fn migrate(context: &Context, args: MigrateArgs) -> anyhow::Result<ExitCode> {
    let ask = async |vm: &str| {
        let spec = MigrationSpec {
            vm: vm.to_owned(),
            to: args.to.clone(),
            cancel: false,
        };
        let body = Create {
            name: None,
            labels: BTreeMap::new(),
            spec,
        };
        context
            .client
            .create::<Migration>(&body, None, args.dry_run)
            .await
    };
    let (migrations, code) = select::act::<Vm, _>(context, &args.which, ask).await?;
    finish(
        context,
        migrations,
        args.wait.wait.then_some(MigrationGoal::Done),
        code,
    )
    .await
}

/// Asks each migration to stop.
pub(super) async fn cancel(context: &Context, which: &Selection, waits: bool) -> anyhow::Result<ExitCode> {
    let patch = json!({ "spec": { "cancel": true } });
    let ask = async |id: &str| context.client.patch::<Migration>(id, &patch, None).await;
    let (migrations, code) = select::act::<Migration, _>(context, which, ask).await?;
    finish(context, migrations, waits.then_some(MigrationGoal::Aborted), code).await
}

async fn finish(
    context: &Context,
    migrations: Vec<ObjectOf<Migration>>,
    goal: Option<MigrationGoal>,
    code: ExitCode,
) -> anyhow::Result<ExitCode> {
    let (migrations, code) = match goal {
        None => (migrations, code),
        Some(goal) => {
            let ended = watched(context, migrations, goal).await;
            let code = ended.code_after(code);
            (ended.objects, code)
        }
    };
    output::several::<Migration>(context, &migrations.iter().collect::<Vec<_>>())?;
    Ok(code)
}

/// Waits, and on a terminal shows a live line for each.
async fn watched(
    context: &Context,
    migrations: Vec<ObjectOf<Migration>>,
    goal: MigrationGoal,
) -> Ended<Migration> {
    let names: Vec<String> = migrations
        .iter()
        .map(|migration| migration.name.clone())
        .collect();
    let end = until::<Migration, _>(context, migrations, &goal);
    if context.progress.is_hidden() {
        return end.await;
    }
    let lines = async {
        join_all(names.iter().map(|name| live_line(context, name))).await;
        std::future::pending::<Infallible>().await
    };
    let ended = tokio::select! {
        ended = end => ended,
        never = lines => match never {},
    };
    // Without this the last state of the lines would stay on the screen.
    let _ = context.progress.clear();
    ended
}

/// Shows a migration's progress until its stream ends for good.
async fn live_line(context: &Context, name: &str) {
    let bar = context.progress.add(ProgressBar::new_spinner());
    let style = ProgressStyle::with_template("{prefix}  {spinner} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.set_prefix(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    let path = format!("/v1/migrations/{name}/progress");
    while let Ok(mut samples) = context.client.stream::<Progress>(&path).await {
        while let Some(Ok(sample)) = samples.next().await {
            bar.set_message(line(&sample));
        }
        tokio::time::sleep(AGAIN).await;
    }
    bar.finish_and_clear();
}

fn line(sample: &Progress) -> String {
    format!(
        "round {}  remaining {}  dirty {} pages/s  {}/s",
        sample.round,
        units::size(sample.remaining_bytes),
        sample.dirty_pages_per_s,
        units::size(sample.bytes_per_s)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_live_line_says_how_far_it_is() {
        let sample = Progress {
            round: 3,
            remaining_bytes: 12 << 20,
            total_bytes: 256 << 20,
            sent_bytes: 300 << 20,
            dirty_pages_per_s: 800,
            bytes_per_s: 310 << 20,
        };
        assert_eq!(
            line(&sample),
            "round 3  remaining 12 MiB  dirty 800 pages/s  310 MiB/s"
        );
    }
}
