//! What happened, in the order of its happening.

use std::process::ExitCode;

use api::client::Choice;
use api::kinds::Event;

use super::output::{self, Printer};
use super::{Context, kinds};
use crate::cli::Output;

/// Prints events; with `follow`, goes on with those to come.
pub(super) async fn events(context: &Context, follow: bool) -> anyhow::Result<ExitCode> {
    if follow && context.output != Output::Table {
        return kinds::follow::<Event>(
            context,
            Printer::added::<Event>(context),
            None,
            &Choice::default(),
        )
        .await;
    }
    let (mut events, revision) = context.client.list::<Event>().await?;
    events.sort_by_key(|event| (event.spec.at, event.id));
    if !follow {
        return output::list::<Event>(context, &events, revision);
    }
    let mut printer = Printer::added::<Event>(context);
    printer.rows::<Event>(context, &events)?;
    kinds::follow::<Event>(context, printer, Some(revision), &Choice::default()).await
}
