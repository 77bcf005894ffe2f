//! Templates that are made of VMs: of one that runs and goes on, and of a template's newest version; what a guest was is forgotten,
//! and where a step fails nothing is left.

use std::time::Duration;

use anyhow::{Context, ensure};
use api::Create;
use api::client::ObjectOf;
use api::kinds::{BuildSpec, Image, Operation, OperationStatus, Template, Vm, VmSpec};
use model::lifecycle::Phase;
use model::operation::{Action, OperationPhase};
use testkit::clocks::SERVER;
use testkit::vms::{self, BOOT_PATIENCE, VmObject};
use testkit::wait::{self, Verdict};
use testkit::world::World;

use super::disks::is_empty;

/// What a guest is before it is a template's.
const GOLDEN: &str = "echo 0123456789abcdef0123456789abcdef >/etc/machine-id; echo golden >/data/was; echo x >/var/log/old 2>/dev/null\nsync";
const WHO: &str = "echo \"id:$(cat /etc/machine-id)\"; cat /data/was /data/built /data/patched; ls -d /var/lib/sterna-build* 2>/dev/null; :\n";

#[tokio::test]
async fn templates_are_made_of_vms() -> anyhow::Result<()> {
    let world = World::up(1).await?;
    world.make_template(192).await?;
    world.create_vm("golden", vms::spec(Some("h1"), "")).await?;
    let golden = world.until_ready("golden").await?;
    world.does("golden", GOLDEN).await?;
    let of_golden = BuildSpec {
        template: "web".to_owned(),
        from_vm: Some("golden".to_owned()),
        refresh: false,
        script: Some("echo built >/data/built".to_owned()),
    };
    let vm = build(&world, "web-build-1", of_golden.clone()).await?;
    let again = build(&world, "web-build-2", of_golden.clone()).await;
    ensure!(
        code(again).as_deref() == Some("under-way"),
        "two are made at once"
    );
    // Killed while its guest is prepared.
    let is_up = |vm: &VmObject| Verdict::from(vm.status.ready);
    wait::until::<Vm>(world.client(), &vm.name, "up", BOOT_PATIENCE, is_up).await?;
    world.kill_agent("h1").await?;
    let done = ended(&world, &vm.name, 2 * BOOT_PATIENCE).await?;
    ensure!(done.status.phase == OperationPhase::Done, "{:?}", done.status);
    let now = world.get_vm("golden").await?;
    ensure!(
        now.status.incarnation == golden.status.incarnation,
        "{:?}",
        now.status
    );
    let again = build(&world, "web-build-2", of_golden).await;
    ensure!(
        code(again).as_deref() == Some("template-exists"),
        "it is made twice"
    );
    world.delete_vm("golden").await?;

    is_refreshed(&world).await?;

    let spec = VmSpec {
        template: Some("web".to_owned()),
        ..VmSpec::default()
    };
    world.create_vm("front", spec).await?;
    world.until_ready("front").await?;
    let said = world.does("front", WHO).await?;
    ensure!(said == "id:\ngolden\nbuilt\npatched\n", "{said:?}");
    world.delete_vm("front").await?;
    world.down().await
}

/// By a script that ends well: the next version is made, and nothing else is left.
async fn is_refreshed(world: &World) -> anyhow::Result<()> {
    let vm = build(
        world,
        "web-build-3",
        refreshes("web", "echo patched >/data/patched"),
    )
    .await?;
    let done = ended(world, &vm.name, 2 * BOOT_PATIENCE).await?;
    ensure!(done.status.phase == OperationPhase::Done, "{:?}", done.status);
    world.until_gone::<Vm>(&vm.name).await?;
    is_empty(world)?;
    let template = world.client().get::<Template>("web").await?;
    let from = template.status.built_from.context("what it was built from")?;
    ensure!(
        (template.status.version, from.version, from.script) == (2, Some(1), true),
        "{from:?}"
    );
    let (images, _) = world.client().list::<Image>().await?;
    ensure!(images.len() == 3, "{images:?}");
    Ok(())
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn a_script_that_fails_leaves_nothing() -> anyhow::Result<()> {
    let world = World::up(1).await?;
    world.make_template(192).await?;
    let vm = build(&world, "tiny-build-1", refreshes(vms::TINY, "echo oops; exit 3")).await?;
    let failed = failed(&world, &vm.name, 2 * BOOT_PATIENCE).await?;
    let reason = failed.reason.context("why")?;
    let applied = failed.applied.context("what was printed")?;
    ensure!(reason.code == "build-script-failed", "{reason:?}");
    ensure!(
        applied.exit_status == Some(3) && applied.output == "oops\n",
        "{applied:?}"
    );
    world.down().await
}

#[tokio::test]
#[ignore = "soak: what follows is the planner's, and a scenario of its own"]
async fn a_guest_without_an_agent_is_given_up_in_time_and_leaves_nothing() -> anyhow::Result<()> {
    let world = World::up_with(1, &[]).await?;
    // It stands still where another one would begin to boot.
    let mut disk = vec![0; 1 << 20];
    disk[..4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), disk)?;
    world.import(file.path()).await?;
    world.create_template(64).await?;
    let vm = build(&world, "tiny-build-1", refreshes(vms::TINY, "true")).await?;
    world.until_phase(&vm.name, Phase::Running).await?;
    // Longer than is waited for a guest's agent passes by the calendar; the next look sees it.
    world.set_clock(SERVER, 3600)?;
    world.kill_server().await?;
    let reason = failed(&world, &vm.name, BOOT_PATIENCE)
        .await?
        .reason
        .context("why")?;
    ensure!(
        reason.code == "build-late" && reason.message.contains("install qemu-guest-agent"),
        "{reason:?}"
    );
    world.down().await
}

/// What tells of a refresh that has failed, and nothing of it is left.
async fn failed(world: &World, vm: &str, within: Duration) -> anyhow::Result<OperationStatus> {
    let failed = ended(world, vm, within).await?;
    world.until_gone::<Vm>(vm).await?;
    is_empty(world)?;
    let template = world.client().get::<Template>(vms::TINY).await?;
    let (images, _) = world.client().list::<Image>().await?;
    ensure!(
        template.status.version == 1 && images.len() == 1,
        "{template:?} {images:?}"
    );
    Ok(failed.status)
}

fn refreshes(template: &str, script: &str) -> BuildSpec {
    BuildSpec {
        template: template.to_owned(),
        refresh: true,
        script: Some(script.to_owned()),
        ..BuildSpec::default()
    }
}

pub(crate) async fn build(
    world: &World,
    name: &str,
    asked: BuildSpec,
) -> Result<VmObject, api::client::ClientError> {
    let body = Create {
        name: Some(name.to_owned()),
        labels: std::collections::BTreeMap::new(),
        spec: VmSpec {
            builds: Some(asked),
            ..VmSpec::default()
        },
    };
    world.client().create::<Vm>(&body, None, false).await
}

fn code<T>(answer: Result<T, api::client::ClientError>) -> Option<String> {
    answer.err().and_then(|error| error.code().map(str::to_owned))
}

/// What tells of its build, when that has ended.
pub(crate) async fn ended(world: &World, vm: &str, within: Duration) -> anyhow::Result<ObjectOf<Operation>> {
    let (all, _) = world.client().list::<Operation>().await?;
    let of_it = all
        .into_iter()
        .find(|one| one.spec.action == Action::Build && one.spec.object == vm)
        .context("no operation tells of it")?;
    let has_ended = |one: &ObjectOf<Operation>| Verdict::from(one.status.ended_at.is_some());
    wait::until::<Operation>(world.client(), &of_it.name, "ended", within, has_ended).await
}
