//! Making a template, or a template's next version, of a VM.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use api::Create;
use api::client::ObjectOf;
use api::kinds::{BuildSpec, NicSpec, Operation, Template, Vm, VmSpec};
use model::operation::{Action, OperationPhase};

use super::guest::{self, Over};
use super::wait::until;
use super::{Context, output};
use crate::cli::{BuildArgs, RefreshArgs};

/// A new template, of a VM.
pub(super) async fn create(
    context: &Context,
    name: String,
    dry_run: bool,
    args: BuildArgs,
) -> anyhow::Result<ExitCode> {
    let asked = BuildSpec {
        template: name,
        from_vm: args.from_vm,
        refresh: false,
        script: args.script.as_deref().map(script).transpose()?,
    };
    build(context, asked, args.build_networks, dry_run, args.wait).await
}

/// The next version of one that is there.
pub(super) async fn refresh(context: &Context, args: RefreshArgs) -> anyhow::Result<ExitCode> {
    let asked = BuildSpec {
        template: context.client.get::<Template>(&args.name).await?.name,
        from_vm: args.from_vm,
        refresh: true,
        script: args.script.as_deref().map(script).transpose()?,
    };
    build(context, asked, args.networks, args.dry_run, args.wait.wait).await
}

async fn build(
    context: &Context,
    asked: BuildSpec,
    networks: Vec<String>,
    dry_run: bool,
    wait: bool,
) -> anyhow::Result<ExitCode> {
    let template = asked.template.clone();
    let (vms, _) = context.client.list::<Vm>().await?;
    let present = vms
        .iter()
        .find(|vm| vm.deleted_at.is_none() && vm.spec.builds.as_ref() == Some(&asked));
    let vm = match present {
        Some(vm) => vm.clone(),
        None => {
            let body = Create {
                name: Some(next_name(&template, &vms)),
                labels: BTreeMap::new(),
                spec: spec(asked, networks),
            };
            context.client.create::<Vm>(&body, None, dry_run).await?
        }
    };
    if dry_run || !wait {
        return output::one::<Vm>(context, &vm);
    }
    let operation = operation(context, &vm).await?;
    context.note(&format!(
        "{}: template {template} is made of VM {}",
        operation.name, vm.name
    ));
    let ended = until::<Operation, _>(context, vec![operation], &Over).await;
    let [operation] = ended.objects.as_slice() else {
        return Ok(ExitCode::FAILURE);
    };
    if !ended.all_reached {
        return Ok(ExitCode::FAILURE);
    }
    if operation.status.phase != OperationPhase::Done {
        return guest::tell(context, operation);
    }
    let template = context.client.get::<Template>(&template).await?;
    output::one::<Template>(context, &template)?;
    Ok(ExitCode::SUCCESS)
}

fn spec(asked: BuildSpec, networks: Vec<String>) -> VmSpec {
    let nic = |network| NicSpec {
        network,
        ..NicSpec::default()
    };
    VmSpec {
        nics: Some(networks.into_iter().map(nic).collect()),
        builds: Some(asked),
        ..VmSpec::default()
    }
}

/// What tells how far it is. It outlives the VM.
async fn operation(context: &Context, vm: &ObjectOf<Vm>) -> anyhow::Result<ObjectOf<Operation>> {
    if let Some(name) = &vm.status.operation {
        return Ok(context.client.get::<Operation>(name).await?);
    }
    let (all, _) = context.client.list::<Operation>().await?;
    let of_it = all
        .into_iter()
        .filter(|one| one.spec.action == Action::Build && one.spec.object == vm.name);
    of_it.max_by_key(|one| one.created_at).with_context(|| {
        format!(
            "no operation tells of VM {}: look at `sterna template get`",
            vm.name
        )
    })
}

/// What no other is called.
fn next_name(template: &str, vms: &[ObjectOf<Vm>]) -> String {
    let name = |number: usize| format!("{template}-build-{number}");
    let is_free = |number: &usize| vms.iter().all(|vm| vm.name != name(*number));
    name((1..).find(is_free).unwrap_or(1))
}

fn script(path: &Path) -> anyhow::Result<String> {
    let bytes = guest::content(path)?;
    let Ok(text) = String::from_utf8(bytes) else {
        bail!("{} is no text: a script is UTF-8", path.display());
    };
    ensure!(!text.is_empty(), "{} is empty: give a script", path.display());
    Ok(text)
}
