//! Warming a template: a VM of it is booted once, and its memory is kept for others.

use std::process::ExitCode;

use api::Create;
use api::client::ObjectOf;
use api::kinds::{Template, Vm, VmSpec};
use model::lifecycle::Phase;

use super::wait::{Goal, Verdict, because, until};
use super::{Context, output};
use crate::cli::WarmArgs;

/// A template's memory is kept.
struct Kept;

impl Goal<Vm> for Kept {
    fn judge(&self, vm: &ObjectOf<Vm>) -> Verdict {
        match vm.status.phase {
            Phase::Stopped => Verdict::Reached,
            Phase::Failed => Verdict::Impossible(because("it is Failed", vm.status.reason.as_ref())),
            Phase::Epilog | Phase::Done => Verdict::Impossible("it is being deleted".to_owned()),
            _ => Verdict::NotYet,
        }
    }

    fn word(&self) -> String {
        "warm".to_owned()
    }
}

pub(super) async fn warm(context: &Context, args: WarmArgs) -> anyhow::Result<ExitCode> {
    let template = context.client.get::<Template>(&args.name).await?.name;
    let (vms, _) = context.client.list::<Vm>().await?;
    let forms: Vec<ObjectOf<Vm>> = vms
        .into_iter()
        .filter(|vm| vm.spec.warms.as_deref() == Some(&template))
        .collect();
    let name = next_name(&template, &forms);
    let present = forms.into_iter().rev().find(is_of_use);
    let vm = match present {
        Some(vm) => vm,
        None => {
            let body = Create {
                name: Some(name),
                labels: std::collections::BTreeMap::new(),
                spec: VmSpec {
                    warms: Some(template),
                    datastore: args.datastore,
                    ..VmSpec::default()
                },
            };
            context.client.create::<Vm>(&body, None, false).await?
        }
    };
    if !args.wait.wait {
        return output::one::<Vm>(context, &vm);
    }
    let ended = until::<Vm, _>(context, vec![vm], &Kept).await;
    output::several::<Vm>(context, &ended.objects.iter().collect::<Vec<_>>())?;
    Ok(ended.code_after(ExitCode::SUCCESS))
}

/// Whether VMs can start from it, or will be able to.
fn is_of_use(vm: &ObjectOf<Vm>) -> bool {
    let is_stale = vm
        .status
        .reason
        .as_ref()
        .is_some_and(|reason| reason.code == "warm-form-stale");
    vm.deleted_at.is_none() && vm.status.phase != Phase::Failed && !is_stale
}

/// What no other is called.
fn next_name(template: &str, forms: &[ObjectOf<Vm>]) -> String {
    let name = |number: usize| format!("{template}-warm-{number}");
    let is_free = |number: &usize| forms.iter().all(|vm| vm.name != name(*number));
    name((1..).find(is_free).unwrap_or(1))
}
