//! What only VMs have: creating several alike, and telling them what to do.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{bail, ensure};
use api::Create;
use api::client::{ClientError, ObjectOf};
use api::kinds::{ActionBody, CdromSpec, Operation, PlacementSpec, Vm, VmSpec};
use api::placement::{AffinitySpec, PeersSpec};
use model::placement::{BATCH_MAX, Batch, Strategy};
use model::vm::{BootDevice, Power};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::wait::{DiskWhole, DriveChanged, until};
use super::{Context, clone, console, explain, guest, migration, output, select, template, timing};
use crate::cli::{
    ActionArgs, Bootable, FlattenArgs, MediaArgs, ReadCommand, RebootArgs, Rebooted, RuleArgs, VmArgs,
    VmCommand, WaitState, WriteCommand,
};

pub(super) async fn run(context: &Context, command: VmCommand) -> anyhow::Result<ExitCode> {
    let gentle = ActionBody::default();
    match command {
        VmCommand::Create(args) => create(context, *args).await,
        VmCommand::Clone(args) => clone::clone(context, *args).await,
        VmCommand::Start(args) => act(context, args, "start", &gentle, WaitState::Running).await,
        VmCommand::Shutdown(args) => {
            let body = ActionBody { force: args.force };
            act(context, args.action, "shutdown", &body, WaitState::Off).await
        }
        VmCommand::Reboot(args) => reboot(context, args).await,
        VmCommand::Retry(args) => act(context, args, "retry", &gentle, WaitState::Running).await,
        VmCommand::Suspend(args) => act(context, args, "suspend", &gentle, WaitState::Suspended).await,
        VmCommand::Stop(args) => act(context, args, "stop", &gentle, WaitState::Stopped).await,
        VmCommand::Resume(args) => act(context, args, "resume", &gentle, WaitState::Running).await,
        VmCommand::Pause(args) => act(context, args, "pause", &gentle, WaitState::Paused).await,
        VmCommand::Hold(args) => act(context, args, "hold", &gentle, WaitState::Hold).await,
        VmCommand::Release(args) => act(context, args, "release", &gentle, WaitState::Running).await,
        VmCommand::Explain(which) => explain::explain(context, &which).await,
        VmCommand::Console(args) => console::console(context, &args).await,
        VmCommand::Apply(args) => guest::apply(context, *args).await,
        VmCommand::Media(args) => media(context, args).await,
        VmCommand::Flatten(args) => flatten(context, args).await,
        VmCommand::Migrate(args) => migration::migrate(context, args).await,
        VmCommand::Write(WriteCommand::Read(ReadCommand::Get(args))) if args.timing => {
            timing::timing(context, &args.which.name).await
        }
        VmCommand::Write(command) => super::kinds::write::<Vm>(context, command).await,
    }
}

async fn create(context: &Context, args: VmArgs) -> anyhow::Result<ExitCode> {
    let goal = args.wait.goal(match (args.hold, args.off) {
        (true, _) => WaitState::Hold,
        (_, true) => WaitState::Off,
        _ => WaitState::Running,
    });
    let dry_run = args.dry_run;
    let bodies = bodies(args)?;
    let is_batch = bodies.iter().any(|body| body.spec.placement.batch.is_some());
    let (vms, code) = create_all(context, bodies, is_batch, dry_run).await;
    let Some(vms) = vms else { return Ok(code) };
    finish(context, vms, goal, code).await
}

/// Creates several. None is left of those that are `together` if one could not be created.
pub(super) async fn create_all(
    context: &Context,
    bodies: Vec<Create<VmSpec>>,
    together: bool,
    dry_run: bool,
) -> (Option<Vec<ObjectOf<Vm>>>, ExitCode) {
    let unanswered = RefCell::<Vec<String>>::default();
    let ask = async |body: Create<VmSpec>| {
        let answer = context.client.create::<Vm>(&body, None, dry_run).await;
        if matches!(answer, Err(ClientError::Unreachable { .. })) {
            unanswered.borrow_mut().extend(body.name);
        }
        answer
    };
    let (vms, code) = context.each(bodies, ask).await;
    if code != ExitCode::SUCCESS && together && !dry_run {
        take_back(context, &vms, unanswered.into_inner()).await;
        return (None, code);
    }
    (Some(vms), code)
}

/// Deletes a part of what is placed together or not at all: it would wait for ever for the others. What may be there and
/// cannot be deleted is named.
async fn take_back(context: &Context, created: &[ObjectOf<Vm>], unanswered: Vec<String>) {
    let delete = async |name: &str| context.client.delete::<Vm>(name).await;
    let names = created.iter().map(|vm| vm.name.as_str());
    let (deleted, _) = context.each(names, delete).await;
    let deleted: Vec<&str> = deleted.iter().map(|vm| vm.name.as_str()).collect();
    if !deleted.is_empty() {
        eprintln!(
            "not all could be created, so these are deleted again: {}",
            deleted.join(", ")
        );
    }
    let created = created.iter().map(|vm| vm.name.clone());
    let left = created
        .chain(unanswered)
        .filter(|name| !deleted.contains(&name.as_str()));
    let left: Vec<String> = left.collect();
    if !left.is_empty() {
        eprintln!(
            "what there is of these waits for the others and has no place; when the server answers, delete it with \
             `sterna vm delete {}`, and create them anew",
            left.join(" ")
        );
    }
}

async fn act(
    context: &Context,
    args: ActionArgs,
    word: &str,
    body: &ActionBody,
    usual: WaitState,
) -> anyhow::Result<ExitCode> {
    let client = context.writer(args.dry_run);
    let ask = async |id: &str| client.action::<Vm, _>(id, word, body).await;
    let (vms, code) = select::act::<Vm, _>(context, &args.which, ask).await?;
    finish(context, vms, args.wait.goal(usual), code).await
}

async fn reboot(context: &Context, args: RebootArgs) -> anyhow::Result<ExitCode> {
    let body = ActionBody { force: args.force };
    let client = context.writer(args.dry_run);
    let ask = async |id: &str| client.action::<Vm, _>(id, "reboot", &body).await;
    let (vms, code) = select::act::<Vm, _>(context, &args.which, ask).await?;
    let Some(goal) = args.wait else {
        output::several::<Vm>(context, &vms.iter().collect::<Vec<_>>())?;
        return Ok(code);
    };
    let operations: Vec<String> = vms.iter().filter_map(|vm| vm.status.operation.clone()).collect();
    let ended = until::<Vm, _>(context, vms, &goal.unwrap_or(Rebooted::Done)).await;
    for name in operations {
        // How it went is on its operation. One that is not kept any more had nothing to say.
        if let Ok(operation) = context.client.get::<Operation>(&name).await
            && let Some(reason) = operation.status.reason
        {
            context.note(&format!(
                "{name} {:?}: {}",
                operation.status.phase, reason.message
            ));
        }
    }
    output::several::<Vm>(context, &ended.objects.iter().collect::<Vec<_>>())?;
    Ok(ended.code_after(code))
}

async fn flatten(context: &Context, args: FlattenArgs) -> anyhow::Result<ExitCode> {
    let body = ActionBody::default();
    let client = context.writer(args.dry_run);
    let ask = async |id: &str| client.action::<Vm, _>(id, "flatten", &body).await;
    let (vms, code) = select::act::<Vm, _>(context, &args.which, ask).await?;
    if !args.wait {
        output::several::<Vm>(context, &vms.iter().collect::<Vec<_>>())?;
        return Ok(code);
    }
    let ended = until::<Vm, _>(context, vms, &DiskWhole).await;
    output::several::<Vm>(context, &ended.objects.iter().collect::<Vec<_>>())?;
    Ok(ended.code_after(code))
}

async fn media(context: &Context, args: MediaArgs) -> anyhow::Result<ExitCode> {
    let patch = json!({ "spec": media_patch(&args) });
    let client = context.writer(args.dry_run);
    let ask = async |id: &str| client.patch::<Vm>(id, &patch, None).await;
    let (mut vms, mut code) = select::act::<Vm, _>(context, &args.which, ask).await?;
    if args.wait {
        let ended = until::<Vm, _>(context, vms, &DriveChanged).await;
        code = ended.code_after(code);
        vms = ended.objects;
    }
    output::several::<Vm>(context, &vms.iter().collect::<Vec<_>>())?;
    Ok(code)
}

/// What is asked for, and nothing else: `null` for the image empties the drive.
fn media_patch(args: &MediaArgs) -> Value {
    let mut spec = Map::new();
    if args.eject || args.insert.is_some() {
        spec.insert(
            "cdrom".to_owned(),
            json!({ "image": args.insert, "force": args.force }),
        );
    }
    if let Some(boot) = &args.boot {
        spec.insert("boot".to_owned(), json!(devices(boot)));
    }
    spec.into()
}

fn devices(boot: &[Bootable]) -> Vec<BootDevice> {
    boot.iter().copied().map(BootDevice::from).collect()
}

/// Waits if that was asked for, and prints.
pub(super) async fn finish(
    context: &Context,
    vms: Vec<ObjectOf<Vm>>,
    goal: Option<WaitState>,
    code: ExitCode,
) -> anyhow::Result<ExitCode> {
    let (vms, code) = match goal {
        None => (vms, code),
        Some(goal) => {
            let ended = until::<Vm, _>(context, vms, &goal).await;
            let code = ended.code_after(code);
            (ended.objects, code)
        }
    };
    output::several::<Vm>(context, &vms.iter().collect::<Vec<_>>())?;
    Ok(code)
}

/// One request for each VM.
fn bodies(args: VmArgs) -> anyhow::Result<Vec<Create<VmSpec>>> {
    let names = names(args.names, args.count)?;
    ensure!(
        args.hostname.is_none() || names.len() == 1,
        "--hostname is for one VM, and these are {}: leave it out, and each has its own name",
        names.len()
    );
    let spec = VmSpec {
        template: args.template,
        profile: args.profile,
        vcpus: args.vcpus,
        memory_mib: args.memory,
        image: args.image,
        disk_bytes: args.disk,
        datastore: args.datastore,
        nics: (args.no_network || !args.nics.is_empty()).then_some(args.nics),
        guest: template::guest(&args.guest, args.hostname)?,
        placement: placement(args.host, args.host_labels, args.rules),
        power: first_power(args.hold, args.off),
        cdrom: args.iso.map(|image| CdromSpec {
            image: Some(image),
            force: false,
        }),
        boot: args.boot.as_deref().map(devices),
        clone_of: None,
        firmware: args.firmware.map(Into::into),
        clone_full: None,
        start: args.start.map(Into::into),
        warms: None,
        builds: None,
    };
    let labels: BTreeMap<String, String> = args.labels.into_iter().collect();
    // A held VM is released by itself, so that it is placed by itself.
    let is_together = names.len() > 1 && !args.hold;
    let size = usize::try_from(BATCH_MAX).unwrap_or(1);
    let bodies = names.chunks(size).flat_map(|names| {
        let batch = is_together.then(|| new_batch(names.len()));
        let spec = VmSpec {
            placement: PlacementSpec {
                batch,
                ..spec.placement.clone()
            },
            ..spec.clone()
        };
        let labels = labels.clone();
        names.iter().map(move |name| Create {
            name: Some(name.clone()),
            labels: labels.clone(),
            spec: spec.clone(),
        })
    });
    Ok(bodies.collect())
}

/// What they are called.
pub(super) fn names(given: Vec<String>, count: Option<u32>) -> anyhow::Result<Vec<String>> {
    match (count, &given[..]) {
        (None, _) => Ok(given),
        (Some(count), [stem]) => Ok((1..=count).map(|n| format!("{stem}-{n}")).collect()),
        (Some(_), _) => bail!("--count makes NAME-1 to NAME-N from one name: give one, or leave --count out"),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a client chooses the id of what it asks for together"
)]
fn new_batch(size: usize) -> Batch {
    Batch {
        id: Uuid::now_v7(),
        size: u32::try_from(size).unwrap_or(BATCH_MAX),
    }
}

/// What a new VM shall be, unless it is to run.
pub(super) fn first_power(hold: bool, off: bool) -> Option<Power> {
    match (hold, off) {
        (true, _) => Some(Power::Hold),
        (_, true) => Some(Power::Prepared),
        _ => None,
    }
}

pub(super) fn placement(
    host: Option<String>,
    host_labels: Vec<(String, String)>,
    rules: RuleArgs,
) -> PlacementSpec {
    let all = |hard: Vec<PeersSpec>, soft: Vec<PeersSpec>| {
        let hard = hard.into_iter().map(|to| AffinitySpec { to, soft: false });
        let soft = soft.into_iter().map(|to| AffinitySpec { to, soft: true });
        hard.chain(soft).collect()
    };
    PlacementSpec {
        host,
        host_labels: host_labels.into_iter().collect(),
        affinity: all(rules.affinity, rules.prefer),
        anti_affinity: all(rules.anti_affinity, rules.avoid),
        strategy: if rules.pack {
            Strategy::Pack
        } else {
            Strategy::Spread
        },
        batch: None,
    }
}
