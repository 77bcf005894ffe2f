//! Making VMs that are copies of another.

use std::process::ExitCode;

use anyhow::ensure;
use api::Create;
use api::client::ObjectOf;
use api::kinds::{Vm, VmSpec};
use model::vm::Consistency;

use super::vm::{create_all, finish, first_power, names, placement};
use super::wait::until;
use super::{Context, output, template};
use crate::cli::{CloneArgs, WaitState};

pub(super) async fn clone(context: &Context, args: CloneArgs) -> anyhow::Result<ExitCode> {
    let goal = args.wait.goal(match (args.hold, args.off) {
        (true, _) => WaitState::Hold,
        (_, true) => WaitState::Off,
        _ => WaitState::Running,
    });
    let (source, dry_run) = (args.source.clone(), args.dry_run);
    let is_counted = args.count.is_some();
    let bodies = bodies(args)?;
    let (vms, code) = create_all(context, bodies, is_counted, dry_run).await;
    let Some(vms) = vms else { return Ok(code) };
    let Some(goal) = goal else {
        return finish(context, vms, None, code).await;
    };
    let ended = until::<Vm, _>(context, vms, &goal).await;
    for vm in &ended.objects {
        if let Some(note) = note(vm, &source) {
            context.note(&note);
        }
    }
    output::several::<Vm>(context, &ended.objects.iter().collect::<Vec<_>>())?;
    Ok(ended.code_after(code))
}

/// What is in its disk, in a sentence.
pub(super) fn note(vm: &ObjectOf<Vm>, source: &str) -> Option<String> {
    let copied = vm.status.copied.as_ref()?;
    let how = match copied.consistency {
        Consistency::Off => "as its guest left it when it was switched off",
        Consistency::Frozen => "with its guest's file systems frozen for that instant",
        Consistency::CrashConsistent => {
            "as after a power failure, since its guest was not or could not be asked to freeze its file systems"
        }
    };
    Some(format!("{}'s disk is a copy of {source}'s, {how}", vm.name))
}

fn bodies(args: CloneArgs) -> anyhow::Result<Vec<Create<VmSpec>>> {
    let names = names(args.names, args.count)?;
    ensure!(
        args.hostname.is_none() || names.len() == 1,
        "--hostname is for one VM, and these are {}: leave it out, and each has its own name",
        names.len()
    );
    let spec = VmSpec {
        clone_of: Some(args.source),
        clone_full: args.full.then_some(true),
        disk_bytes: args.disk,
        vcpus: args.vcpus,
        memory_mib: args.memory,
        nics: (!args.nics.is_empty()).then_some(args.nics),
        guest: template::guest(&args.guest, args.hostname)?,
        placement: placement(args.host, args.host_labels, args.rules),
        power: first_power(args.hold, args.off),
        ..VmSpec::default()
    };
    let body = |name: String| Create {
        name: Some(name),
        labels: args.labels.iter().cloned().collect(),
        spec: spec.clone(),
    };
    Ok(names.into_iter().map(body).collect())
}
