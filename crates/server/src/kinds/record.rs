//! Operations and events: written by the system, read by people.

use api::Problem;
use api::kinds::{Event, EventSpec, NoStatus, Operation, OperationSpec, OperationStatus};
use model::event::What;
use model::user_data::NOT_SHOWN;
use model::{Kind, Object};
use planner::view::At;
use planner::{Plan, View};
use uuid::Uuid;

use super::{Served, name_of};
use crate::service::Context;
use crate::shared::Heard;

/// Nobody writes these by hand.
fn read_only(kind: Kind) -> Problem {
    Problem::new(
        405,
        "read-only",
        format!("a {kind} is written by the system: it can only be read"),
    )
}

impl Served for Operation {
    type Stored = model::operation::OperationSpec;

    fn stored(view: &View, id: Uuid) -> Option<&At<Object<Self::Stored>>> {
        view.operations.get(&id)?.object.as_ref()
    }

    fn spec(view: &View, stored: &Self::Stored) -> OperationSpec {
        let object = if stored.object_name.is_empty() {
            name_of(view, stored.object_kind, stored.object)
        } else {
            stored.object_name.clone()
        };
        OperationSpec {
            action: stored.action,
            object_kind: stored.object_kind,
            object,
            request_id: stored.request_id.clone(),
            steps: stored
                .apply
                .as_ref()
                .map(|apply| apply.steps.clone())
                .unwrap_or_default(),
        }
    }

    /// What a guest printed.
    fn hide_in_status(status: &mut OperationStatus) {
        if let Some(applied) = status
            .applied
            .as_mut()
            .filter(|applied| !applied.output.is_empty())
        {
            applied.output = NOT_SHOWN.to_owned();
        }
    }

    fn status(_: &Heard, view: &View, id: Uuid) -> Option<OperationStatus> {
        let status = planner::operation::status(view.operations.get(&id)?);
        Some(OperationStatus {
            phase: status.phase,
            attempt: status.attempt,
            deadline: status.deadline,
            ended_at: status.ended_at,
            reason: status.reason,
            applied: status.applied,
        })
    }

    fn create(_: &Context<'_>, _: &str, _: OperationSpec, _: &mut Plan) -> Result<Self::Stored, Problem> {
        Err(read_only(Kind::Operation))
    }

    fn change(_: &Context<'_>, _: &Object<Self::Stored>, _: OperationSpec) -> Result<Self::Stored, Problem> {
        Err(read_only(Kind::Operation))
    }
}

impl Served for Event {
    type Stored = model::event::EventSpec;

    fn stored(view: &View, id: Uuid) -> Option<&At<Object<Self::Stored>>> {
        view.events.get(&id).map(AsRef::as_ref)
    }

    fn spec(_: &View, stored: &Self::Stored) -> EventSpec {
        let lifecycle = match &stored.what {
            What::Lifecycle(lifecycle) => Some(lifecycle.clone()),
            _ => None,
        };
        EventSpec {
            object_kind: stored.object_kind,
            object: stored.object.to_string(),
            object_name: stored.object_name.clone(),
            at: stored.at,
            summary: summary(&stored.what),
            lifecycle,
            reason: stored.reason.clone(),
        }
    }

    fn status(_: &Heard, _: &View, _: Uuid) -> Option<NoStatus> {
        Some(NoStatus {})
    }

    fn create(_: &Context<'_>, _: &str, _: EventSpec, _: &mut Plan) -> Result<Self::Stored, Problem> {
        Err(read_only(Kind::Event))
    }

    fn change(_: &Context<'_>, _: &Object<Self::Stored>, _: EventSpec) -> Result<Self::Stored, Problem> {
        Err(read_only(Kind::Event))
    }
}

fn summary(what: &What) -> String {
    match what {
        What::Lifecycle(life) => match life.from {
            Some(from) => format!("{from} → {}", life.to),
            None => format!("created: {}", life.to),
        },
        What::Migration { phase } => format!("{phase:?}"),
        What::HostContact { silent: true } => "silent".to_owned(),
        What::HostContact { silent: false } => "heard again".to_owned(),
        What::WarmForm {
            has_failed: false, ..
        } => "a warm form is made".to_owned(),
        What::WarmForm { failures, .. } => format!("making a warm form failed {failures} times in a row"),
        What::MemoryReservation { exceeded: true } => "takes more memory than is reserved".to_owned(),
        What::MemoryReservation { exceeded: false } => "takes no more memory than is reserved".to_owned(),
    }
}
