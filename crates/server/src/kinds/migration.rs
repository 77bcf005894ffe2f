//! Migrations: asked for by creating one, stopped by setting `cancel`.

use api::Problem;
use api::kinds::{Migration, MigrationSpec, MigrationStatus};
use model::lifecycle::Phase;
use model::migration::MigrationPhase;
use model::{HostId, Kind, MigrationId, Object, Reason, Timestamp, VmId};
use planner::view::At;
use planner::{Plan, View};
use uuid::Uuid;

use super::action::leads_on;
use super::{Served, find, host_name, name_of};
use crate::service::Context;
use crate::shared::Heard;

impl Served for Migration {
    type Stored = model::migration::MigrationSpec;

    fn stored(view: &View, id: Uuid) -> Option<&At<Object<Self::Stored>>> {
        view.migrations.get(&MigrationId(id))?.object.as_ref()
    }

    fn spec(view: &View, stored: &Self::Stored) -> MigrationSpec {
        MigrationSpec {
            vm: name_of(view, Kind::Vm, stored.vm.0),
            to: stored.to.map(|host| host_name(view, host)),
            cancel: stored.cancel,
        }
    }

    fn status(heard: &Heard, view: &View, id: Uuid) -> Option<MigrationStatus> {
        let migration = view.migrations.get(&MigrationId(id))?;
        let vm_id = migration.object.as_ref()?.value.spec.vm;
        let intent = migration.intent.as_ref().map(|at| &at.value);
        let route = intent.and_then(|intent| intent.route.as_ref());
        let vm = view.vms.get(&vm_id);
        let mut phase = migration.phase();
        let switching = route
            .zip(vm)
            .is_some_and(|(route, vm)| planner::document::is_switching_over(vm, route));
        if phase == MigrationPhase::Transferring && switching {
            phase = MigrationPhase::SwitchingOver;
        }
        let moves = !phase.is_final();
        Some(MigrationStatus {
            phase,
            reason: intent
                .and_then(|intent| intent.reason.clone())
                .or_else(|| waits_for_copies(migration, vm?)),
            method: intent.map(|intent| intent.method),
            source: route.map(|route| host_name(view, route.source)),
            target: route.map(|route| host_name(view, route.target)),
            from_incarnation: route.map(|route| route.from),
            to_incarnation: route.map(|route| route.to),
            predicted: intent.and_then(|intent| intent.predicted),
            measured: intent.and_then(|intent| intent.measured),
            progress: route
                .filter(|_| moves)
                .and_then(|route| heard.progress(route.source, vm_id)),
        })
    }

    fn name(context: &Context<'_>, given: Option<&str>, spec: &MigrationSpec) -> Result<String, Problem> {
        let vm = VmId(find(context, Kind::Vm, &spec.vm)?);
        Ok(given.map_or_else(|| planner::migration::name(context.view, vm), str::to_owned))
    }

    fn create(
        context: &Context<'_>,
        _: &str,
        spec: MigrationSpec,
        plan: &mut Plan,
    ) -> Result<Self::Stored, Problem> {
        let vm = VmId(find(context, Kind::Vm, &spec.vm)?);
        let to = spec
            .to
            .as_deref()
            .map(|name| find(context, Kind::Host, name).map(HostId))
            .transpose()?;
        let name = name_of(context.view, Kind::Vm, vm.0);
        if let Some((id, _)) = context.view.active_migrations(vm).next() {
            let other = name_of(context.view, Kind::Migration, id.0);
            let detail = format!(
                "VM {name} is being migrated already, by {other}: wait for it, or `sterna migration cancel {other}`"
            );
            return Err(Problem::conflict("already-migrating", detail));
        }
        let (phase, _) = context
            .view
            .phase(vm)
            .unwrap_or((Phase::Unknown, model::lifecycle::Availability::Inactive));
        if !matches!(phase, Phase::Running | Phase::Paused) {
            let detail = format!(
                "VM {name} is {phase}: only a running or paused VM is migrated live{}",
                instead(context.view, vm, phase)
            );
            return Err(Problem::conflict("not-running", detail));
        }
        let held = context.view.vms.get(&vm);
        let host = held
            .and_then(|vm| vm.intent.as_ref())
            .and_then(|at| at.value.host);
        if to.is_some() && to == host {
            let detail = format!(
                "VM {name} is on that host already: name another, or `sterna vm migrate {name}` finds one"
            );
            return Err(Problem::conflict("is-there-already", detail));
        }
        if let Some(at) = held.and_then(|vm| vm.object.as_ref()) {
            super::warm::check_ordinary(context.view, at)?;
        }
        // Two requests at once must not both be accepted.
        if let Some(at) = held.and_then(|vm| vm.object.as_ref()) {
            plan.rely(model::key::object(Kind::Vm, vm.0), at.revision);
        }
        Ok(model::migration::MigrationSpec {
            vm,
            to,
            cancel: false,
            drain: None,
            request_id: context.user.request.clone(),
        })
    }

    fn change(
        context: &Context<'_>,
        old: &Object<Self::Stored>,
        spec: MigrationSpec,
    ) -> Result<Self::Stored, Problem> {
        let shown = Self::spec(context.view, &old.spec);
        if (MigrationSpec {
            cancel: shown.cancel,
            ..spec.clone()
        }) != shown
        {
            return Err(super::immutable(Kind::Migration, "the VM and the host"));
        }
        if old.spec.cancel && !spec.cancel {
            let detail = "a cancelled migration does not go on: create another one";
            return Err(Problem::conflict("cancelled", detail));
        }
        let phase = context
            .view
            .migrations
            .get(&MigrationId(old.meta.id))
            .map(planner::view::Migration::phase);
        if spec.cancel && !old.spec.cancel && phase.is_some_and(MigrationPhase::is_final) {
            let detail = format!("migration {} is over: there is nothing to cancel", old.meta.name);
            return Err(Problem::conflict("is-over", detail));
        }
        Ok(model::migration::MigrationSpec {
            cancel: spec.cancel,
            ..old.spec.clone()
        })
    }

    fn next_step(view: &View, id: Uuid, now: Timestamp) -> Option<Plan> {
        planner::migration::plan(view, MigrationId(id), now).plan
    }

    fn delete(
        context: &Context<'_>,
        at: &At<Object<Self::Stored>>,
        plan: &mut Plan,
    ) -> Result<Uuid, Problem> {
        let id = MigrationId(at.value.meta.id);
        let migration = context.view.migrations.get(&id);
        let intent = migration.and_then(|migration| migration.intent.as_ref());
        if !intent.is_some_and(|at| at.value.phase.is_final()) {
            let name = &at.value.meta.name;
            let detail = format!(
                "migration {name} is under way: `sterna migration cancel {name}`, or wait for its end"
            );
            return Err(Problem::conflict("under-way", detail));
        }
        super::remove_at_once::<Self>(context, at, plan)?;
        plan.remove(
            model::key::migration_intent(id),
            intent.map_or(0, |at| at.revision),
        );
        Ok(id.0)
    }
}

/// What a migration waits for that nothing was decided for yet.
fn waits_for_copies(migration: &planner::view::Migration, vm: &planner::view::Vm) -> Option<Reason> {
    let open = vm.intent.as_ref()?.value.open.as_ref()?;
    let waits = migration.intent.is_none() && !open.copies.is_empty();
    waits.then(|| {
        Reason::new(
            "disk-being-copied",
            "the VM's disk is being copied: it moves when the copies under way are made",
        )
    })
}

/// What brings a VM that does not run to another host, or else what leads on from its phase.
fn instead(view: &View, vm: VmId, phase: Phase) -> String {
    let name = name_of(view, Kind::Vm, vm.0);
    match phase {
        Phase::Suspended => format!(": `sterna vm resume {name}` first, its state is on its host's disk"),
        Phase::Stopped => format!(": it holds no host, and `sterna vm resume {name}` finds it one"),
        Phase::Off => format!(": it holds no host, and `sterna vm start {name}` finds it one"),
        _ => format!("; {}", leads_on(view, vm, phase)),
    }
}
