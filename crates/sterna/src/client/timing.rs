//! `sterna vm get NAME --timing`: where the time of a VM's start went.

use std::process::ExitCode;

use api::client::ObjectOf;
use api::kinds::Vm;
use model::report::StepTime;

use super::{Context, output};
use crate::cli::Output;

/// Columns before the bars: the step, how long it took, and what is between them.
const BEFORE: usize = 24;
/// The chart's width where no terminal has one.
const WIDTH: usize = 80;
/// Bars need so much room to say anything.
const NARROWEST: usize = 10;

/// Shows the chart. Programs get the whole object, which has the figures.
pub(super) async fn timing(context: &Context, name: &str) -> anyhow::Result<ExitCode> {
    let vm = context.client.get::<Vm>(name).await?;
    if context.output != Output::Table {
        return output::one::<Vm>(context, &vm);
    }
    let width = output::terminal_width().unwrap_or(WIDTH);
    output::lines(chart(&vm, width))?;
    Ok(ExitCode::SUCCESS)
}

fn chart(vm: &ObjectOf<Vm>, width: usize) -> Vec<String> {
    let steps = &vm.status.steps;
    let total_ms = steps.iter().map(end_ms).max().unwrap_or(0);
    let Some(last) = steps.iter().max_by_key(|step| end_ms(step)) else {
        return vec![format!(
            "{} has no times of a start: it is {}, or its host's agent was started after it",
            vm.name, vm.status.phase
        )];
    };
    let title = format!(
        "{}: {total_ms} ms from the request to the end of `{}`",
        vm.name, last.step
    );
    let room = width.saturating_sub(BEFORE).max(NARROWEST);
    let rows = steps.iter().map(|step| row(step, total_ms, room));
    std::iter::once(title).chain(rows).collect()
}

const fn end_ms(step: &StepTime) -> u64 {
    step.begun_ms.saturating_add(step.took_ms)
}

/// A step that took any time has a bar, be it too long; one that took none has none.
fn row(step: &StepTime, total_ms: u64, room: usize) -> String {
    let column = |ms: u64| {
        let scaled = u128::from(ms) * room as u128 / u128::from(total_ms.max(1));
        usize::try_from(scaled).unwrap_or(room).min(room)
    };
    let from = column(step.begun_ms).min(room - 1);
    let length = match step.took_ms {
        0 => 0,
        _ => column(end_ms(step)).saturating_sub(from).max(1),
    };
    let bar = format!("{}{}", " ".repeat(from), "█".repeat(length));
    let name = step.step.to_string();
    format!("  {name:<10} {:>6} ms  {bar}", step.took_ms)
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use model::report::StartStep::{Agent, Boot, Disk, Network, Placement, Process};

    use super::*;

    fn rows(steps: &[StepTime]) -> Vec<String> {
        let total_ms = steps.iter().map(end_ms).max().unwrap_or(0);
        steps.iter().map(|step| row(step, total_ms, 20)).collect()
    }

    #[test]
    fn bars_begin_where_steps_begin_and_are_as_long() {
        let step = |step, begun_ms, took_ms| StepTime {
            step,
            begun_ms,
            took_ms,
        };
        let steps = [
            step(Placement, 0, 100),
            step(Disk, 100, 300),
            step(Network, 100, 0),
            step(Process, 400, 200),
            step(Boot, 600, 1),
            step(Agent, 601, 399),
        ];
        assert_eq!(
            rows(&steps),
            [
                "  placement     100 ms  ██",
                "  disk          300 ms    ██████",
                "  network         0 ms",
                "  process       200 ms          ████",
                "  boot            1 ms              █",
                "  agent         399 ms              ████████",
            ]
        );
        // A time beyond all reason stays in its line.
        let long = rows(&[step(Disk, u64::MAX, u64::MAX)]);
        assert!(long[0].ends_with("ms                     █"), "{long:?}");
    }
}
