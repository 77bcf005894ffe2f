//! Where the time of a VM's start goes: the server's part before the host's.

use model::report::{RunStatus, StartStep, StepTime};
use model::vm::{Open, Start};
use model::{Timestamp, VmId};
use planner::View;
use planner::operation::start_asked_at;

/// The steps of the start, from the request on. How long the host took to hear of it is not known: clocks differ.
pub(super) fn steps(view: &View, id: VmId, open: Option<&Open>, run: Option<&RunStatus>) -> Vec<StepTime> {
    let asked_for = open.filter(|open| !matches!(open.start, Start::Stream));
    let placement = asked_for.and_then(|open| {
        let asked_at = start_asked_at(view, id, open.granted_at)?;
        Some(StepTime {
            step: StartStep::Placement,
            begun_ms: 0,
            took_ms: ms_between(asked_at, open.granted_at),
        })
    });
    let before_ms = placement.map_or(0, |placement| placement.took_ms);
    let on_host = run.map(|run| run.steps.iter()).into_iter().flatten();
    let on_host = on_host.map(|step| StepTime {
        begun_ms: step.begun_ms.saturating_add(before_ms),
        ..*step
    });
    placement.into_iter().chain(on_host).collect()
}

fn ms_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}
