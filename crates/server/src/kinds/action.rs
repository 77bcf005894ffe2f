//! What may be asked of a VM in its phase, and what leads on from there.

use api::Problem;
use api::kinds::Vm;
use model::lifecycle::{Availability, Phase};
use model::vm::{Power, RebootRequest};
use model::{Kind, Object, VmId};
use planner::view::At;
use planner::{Plan, View};
use uuid::Uuid;

use super::{host_name, name_of, set};
use crate::service::Context;

/// Whole commands that lead on from where a VM is.
pub(super) fn next_commands(view: &View, id: VmId, phase: Phase) -> Vec<String> {
    let intent = view.vms.get(&id).and_then(|vm| vm.intent.as_ref());
    let host = || intent?.value.host.filter(|id| view.hosts.contains_key(id));
    let name = name_of(view, Kind::Vm, id.0);
    if view.unreadable_vms().contains(&id) {
        return vec!["sterna store check --data DIR".to_owned()];
    }
    let object = view.vms.get(&id).and_then(|vm| vm.object.as_ref());
    if object.is_some_and(|at| at.value.spec.warms.is_some() || at.value.spec.builds.is_some()) {
        return vec![format!("sterna vm delete {name}")];
    }
    let whole = |word: &&str| match *word {
        "migration cancel" => {
            let migration = name_of(view, Kind::Migration, intent?.value.migration?.0);
            Some(format!("sterna migration cancel {migration}"))
        }
        "host get" | "host confirm-dead" => Some(format!("sterna {word} {}", host_name(view, host()?))),
        word => Some(format!("sterna vm {word} {name}")),
    };
    let words = of_failed_copy(view, id).filter(|_| phase == Phase::Failed);
    let words = words.unwrap_or_else(|| phase.next_commands());
    words.iter().filter_map(whole).collect()
}

/// A copy without a disk: there is nothing to be started or ended, and of a source that is gone there will be none.
fn of_failed_copy(view: &View, id: VmId) -> Option<&'static [&'static str]> {
    let vm = view.vms.get(&id)?;
    let source = vm.object.as_ref()?.value.spec.clone_of?;
    if vm.intent.as_ref().is_some_and(|at| at.value.copied.is_some()) {
        return None;
    }
    let source = view.meta(Kind::Vm, source.0);
    let is_there = source.is_some_and(|meta| meta.deleted_at.is_none());
    Some(if is_there {
        &["retry", "explain", "delete"]
    } else {
        &["delete"]
    })
}

/// The same, as the end of a refusal's sentence.
pub(crate) fn leads_on(view: &View, id: VmId, phase: Phase) -> String {
    let commands = next_commands(view, id, phase);
    if commands.is_empty() {
        return "nothing leads on from there".to_owned();
    }
    format!("what leads on from there: `{}`", commands.join("`, `"))
}

/// What a user may ask of a VM. A repeat is answered with the VM as it is; a contradiction is refused.
pub fn action(
    context: &Context<'_>,
    at: &At<Object<model::vm::VmSpec>>,
    action: &str,
    force: bool,
    plan: &mut Plan,
) -> Result<Uuid, Problem> {
    let meta = &at.value.meta;
    let (phase, _) = context
        .view
        .phase(VmId(meta.id))
        .unwrap_or((Phase::Unknown, Availability::Inactive));
    let refuse = |why: &str| {
        let next = leads_on(context.view, VmId(meta.id), phase);
        let detail = format!("VM {} is {phase}: {why}; {next}", meta.name);
        Err(Problem::conflict("wrong-phase", detail))
    };
    if meta.deleted_at.is_some() {
        return refuse("it is being deleted");
    }
    super::warm::check_ordinary(context.view, at)?;
    if action == "flatten" {
        return super::flatten::ask(context, at, plan);
    }
    let spec = &at.value.spec;
    let (power, reboot) = match wanted_power(action, force, phase, spec.power) {
        Wanted::Power(power) => (power, spec.reboot),
        Wanted::Reboot => {
            let request = spec.reboot.map_or(0, |asked| asked.request).saturating_add(1);
            (spec.power, Some(RebootRequest { request, force }))
        }
        Wanted::AsItIs => return Ok(meta.id),
        Wanted::Refuse(why) => return refuse(why),
        Wanted::Unknown => {
            let detail = format!("VMs have no action {action:?}");
            return Err(Problem::new(404, "no-such-action", detail));
        }
    };
    let is_reboot = reboot != spec.reboot;
    let repeats = spec.power == power
        && spec.force == force
        && !is_reboot
        && matches!(phase, Phase::Shutdown | Phase::Hold);
    if repeats {
        return Ok(meta.id);
    }
    plan.action = format!("{action} vm {}", meta.name);
    let next = if is_reboot {
        model::vm::VmSpec {
            reboot,
            ..spec.clone()
        }
    } else {
        model::vm::VmSpec {
            power,
            force,
            power_request: spec.power_request.saturating_add(1),
            ..spec.clone()
        }
    };
    Ok(set::<Vm>(context, at, next, plan))
}

/// What an action means in a phase.
enum Wanted {
    Power(Power),
    /// The guest is rebooted where it is.
    Reboot,
    /// A repeat: nothing is to be done.
    AsItIs,
    Refuse(&'static str),
    Unknown,
}

fn wanted_power(action: &str, force: bool, phase: Phase, present: Power) -> Wanted {
    match (action, phase) {
        ("start", Phase::Pending | Phase::Prolog) if !matches!(present, Power::Running | Power::Paused) => {
            Wanted::Power(Power::Running)
        }
        ("start", Phase::Off | Phase::Failed | Phase::Suspended | Phase::Stopped | Phase::Shutdown) => {
            Wanted::Power(Power::Running)
        }
        ("start", Phase::Hold) => Wanted::Refuse("release it first"),
        ("start", Phase::Paused) => Wanted::Refuse("resume it"),
        ("start", _) => Wanted::AsItIs,
        ("resume", Phase::Paused | Phase::Suspended | Phase::Stopped) => Wanted::Power(Power::Running),
        ("resume", Phase::Running | Phase::Migrating) if present == Power::Running => Wanted::AsItIs,
        ("resume", _) => Wanted::Refuse("only a paused, suspended or stopped VM is resumed"),
        ("pause", Phase::Running) => Wanted::Power(Power::Paused),
        ("pause", Phase::Paused) => Wanted::AsItIs,
        ("pause", _) => Wanted::Refuse("only a running VM is paused"),
        ("suspend", Phase::Running | Phase::Paused) => Wanted::Power(Power::Suspended),
        ("suspend", Phase::Suspended) => Wanted::AsItIs,
        ("suspend", _) => Wanted::Refuse("only a running or paused VM is suspended"),
        ("reboot", Phase::Running) => Wanted::Reboot,
        ("reboot", _) => Wanted::Refuse("only a running VM is rebooted"),
        ("retry", Phase::Failed) => match present {
            Power::Running | Power::Paused | Power::Prepared => Wanted::Power(present),
            Power::Suspended | Power::Stopped => {
                Wanted::Refuse("its guest ended before its state was saved: start it")
            }
            Power::Off | Power::Hold => {
                Wanted::Refuse("it shall be off: start it, or give it up with `shutdown`")
            }
        },
        // It is tried again by itself whenever something changes.
        ("retry", Phase::Pending) => Wanted::AsItIs,
        ("retry", _) => Wanted::Refuse("nothing of it has failed"),
        ("stop", Phase::Running | Phase::Paused) => Wanted::Power(Power::Stopped),
        ("stop", Phase::Stopped) => Wanted::AsItIs,
        ("stop", _) => Wanted::Refuse("only a running or paused VM is stopped"),
        ("shutdown", Phase::Off | Phase::Hold) => Wanted::AsItIs,
        ("shutdown", Phase::Suspended | Phase::Stopped) if !force => {
            Wanted::Refuse("it does not run: resume it first, or give its saved state up with `--force`")
        }
        ("shutdown", _) => Wanted::Power(Power::Off),
        ("hold", Phase::Pending | Phase::Off | Phase::Hold) => Wanted::Power(Power::Hold),
        ("hold", _) => Wanted::Refuse("only a VM that is not placed yet is held"),
        ("release", Phase::Hold) => Wanted::Power(Power::Running),
        ("release", _) => Wanted::Refuse("only a held VM is released"),
        _ => Wanted::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use api::kinds::{Migration, MigrationSpec};
    use model::host::{HostContact, HostSpec};
    use model::migration::{Method, MigrationIntent, MigrationPhase};
    use model::report::{RunState, RunStatus};
    use model::token::Role;
    use model::vm::{Ended, Goal, Open, Outcome, Start, VmIntent, VmSpec};
    use model::{HostId, Incarnation, MigrationId, Timestamp, key, record, samples};
    use planner::view::Change;

    use super::super::Served;
    use super::*;
    use crate::auth::User;
    use crate::shared::Heard;

    const WORDS: [&str; 10] = [
        "start", "resume", "pause", "suspend", "reboot", "retry", "stop", "shutdown", "hold", "release",
    ];
    const NOW: Timestamp = Timestamp::UNIX_EPOCH;
    const VM: VmId = VmId(Uuid::from_u128(1));
    const HOST: HostId = HostId(Uuid::from_u128(2));
    const MIGRATION: MigrationId = MigrationId(Uuid::from_u128(3));

    fn put<T: record::Stored>(view: &mut View, key: &str, value: &T) {
        let value = record::encode(value);
        let change = Change {
            key,
            value: Some(&value),
            revision: view.revision + 1,
        };
        view.apply(change);
    }

    fn running(state: RunState) -> RunStatus {
        RunStatus {
            ran: true,
            ..samples::run_status(Incarnation(1), HOST, state)
        }
    }

    fn on_host(spec: &VmSpec) -> VmIntent {
        let open = Open {
            incarnation: Incarnation(1),
            granted_at: NOW,
            goal: Goal::Run { paused: false },
            start: Start::Disk,
            memory_mib: spec.memory_mib,
            vcpus: spec.vcpus,
            resume: false,
            reboot: None,
            copies: Default::default(),
        };
        VmIntent {
            answered_request: spec.power_request,
            host: Some(HOST),
            open: Some(open),
            ..VmIntent::default()
        }
    }

    fn after(spec: &VmSpec, outcome: Outcome) -> VmIntent {
        let ended = Ended {
            incarnation: Incarnation(1),
            at: NOW,
            outcome,
            reason: None,
        };
        VmIntent {
            answered_request: spec.power_request,
            ended: Some(ended),
            ..VmIntent::default()
        }
    }

    /// Makes `web` be in a phase, as far as the power that its user wants allows.
    fn bring(view: &mut View, phase: Phase, power: Power) {
        let spec = samples::vm_spec(Uuid::nil().into(), Uuid::nil().into());
        let mut vm = samples::object(Kind::Vm, VM.0, "web", NOW, VmSpec { power, ..spec });
        let spec = &mut vm.spec;
        let mut intent = None;
        let mut run = None;
        match phase {
            Phase::Pending => spec.power = Power::Running,
            Phase::Hold => spec.power = Power::Hold,
            Phase::Done => vm.meta.deleted_at = Some(NOW),
            Phase::Epilog => {
                vm.meta.deleted_at = Some(NOW);
                intent = Some(VmIntent {
                    has_volumes: true,
                    ..VmIntent::default()
                });
            }
            Phase::Suspended => intent = Some(after(spec, Outcome::Suspended)),
            Phase::Stopped => intent = Some(after(spec, Outcome::Stopped)),
            Phase::Off => intent = Some(after(spec, Outcome::Off)),
            Phase::Failed => intent = Some(after(spec, Outcome::Failed)),
            Phase::Prolog | Phase::Unknown => intent = Some(on_host(spec)),
            Phase::Boot => run = Some(RunState::Booting),
            Phase::Running | Phase::Migrating => run = Some(RunState::Running),
            Phase::Paused => run = Some(RunState::Paused),
            Phase::Shutdown => run = Some(RunState::Stopping),
        }
        if let Some(state) = run {
            intent = Some(on_host(spec));
            put(view, &key::vm_run(VM, Incarnation(1)), &running(state));
        }
        if phase == Phase::Migrating {
            intent = intent.map(|intent| VmIntent {
                migration: Some(MIGRATION),
                ..intent
            });
            migrate(view);
        }
        let host = samples::object(Kind::Host, HOST.0, "h1", NOW, HostSpec::default());
        put(view, &key::object(Kind::Host, HOST.0), &host);
        let contact = HostContact {
            silent_since: (phase == Phase::Unknown).then_some(NOW),
            ..HostContact::default()
        };
        put(view, &key::host_contact(HOST), &contact);
        put(view, &key::object(Kind::Vm, VM.0), &vm);
        if let Some(intent) = intent {
            put(view, &key::vm_intent(VM), &intent);
        }
    }

    fn migrate(view: &mut View) {
        let spec = model::migration::MigrationSpec {
            vm: VM,
            to: None,
            cancel: false,
            drain: None,
            request_id: None,
        };
        let object = samples::object(Kind::Migration, MIGRATION.0, "web-m2", NOW, spec);
        let intent = MigrationIntent {
            phase: MigrationPhase::Transferring,
            entered_at: NOW,
            deadline: None,
            method: Method::PreCopy,
            route: None,
            predicted: None,
            measured: None,
            reason: None,
        };
        put(view, &key::object(Kind::Migration, MIGRATION.0), &object);
        put(view, &key::migration_intent(MIGRATION), &intent);
    }

    /// The refusals of everything that can be asked of the VM.
    fn refusals(view: &View) -> Vec<Problem> {
        let user = User {
            name: "ann".to_owned(),
            role: Role::Operator,
            digest: String::new(),
            from: None,
            request: None,
        };
        let context = Context {
            view,
            now: NOW,
            new_id: Uuid::from_u128(4),
            user: &user,
            attempt: 0,
        };
        let mut plan = Plan::new("ask".to_owned());
        let at = view.vms[&VM].object.as_ref().unwrap();
        let mut found: Vec<_> = WORDS
            .into_iter()
            .flat_map(|word| [(word, false), (word, true)])
            .filter_map(|(word, force)| action(&context, at, word, force, &mut plan).err())
            .collect();
        let spec = MigrationSpec {
            vm: "web".to_owned(),
            to: None,
            cancel: false,
        };
        found.extend(Migration::create(&context, "web-m2", spec, &mut plan).err());
        found
    }

    #[test]
    fn every_refusal_names_what_leads_on_from_the_phase() {
        let powers = [
            Power::Running,
            Power::Paused,
            Power::Suspended,
            Power::Stopped,
            Power::Prepared,
            Power::Off,
        ];
        for (phase, power) in Phase::ALL
            .into_iter()
            .flat_map(|phase| powers.map(|power| (phase, power)))
        {
            let mut view = View::default();
            bring(&mut view, phase, power);
            let shown = Vm::status(&Heard::default(), &view, VM.0).unwrap();
            assert_eq!(shown.phase, phase);
            let commands = shown.next_commands;
            assert_eq!(
                commands.len(),
                phase.next_commands().len(),
                "{phase}: {commands:?}"
            );
            let refusals = refusals(&view);
            assert!(!refusals.is_empty(), "{phase} refuses nothing");
            for refusal in refusals {
                let named = commands
                    .iter()
                    .any(|command| refusal.detail.contains(&format!("`{command}`")));
                assert!(named || phase == Phase::Done, "{phase}: {}", refusal.detail);
            }
        }
    }
}
