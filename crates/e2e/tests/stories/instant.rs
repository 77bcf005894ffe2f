//! VMs that start from their template's kept memory: each is somebody of its own before anybody hears of it, what they share
//! stays as it is whatever they do, and whoever is killed meanwhile, each runs in the end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use api::client::ObjectOf;
use api::kinds::{ActionBody, PlacementSpec, Template, Vm, VmSpec};
use api::template::{WarmState, Warmth};
use model::lifecycle::Phase;
use model::migration::MigrationPhase;
use model::report::StartStep;
use model::vm::StartChoice;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use testkit::vms::{self, BOOT_PATIENCE, PATIENCE, TINY, VmObject};
use testkit::wait::{self, Verdict};
use testkit::world::World;

const WARM: &str = "tiny-warm-1";
/// Shorter than anything that looks from time to time would take.
const AT_ONCE: Duration = Duration::from_secs(15);
/// Who it is, and what it draws at random.
const WHO: &str = "hostname; cat /sys/class/net/eth0/address; date +%s; od -An -v -tx1 -N48 /dev/urandom | tr -d ' \\n'; echo\n\
    ip -o -4 address show dev eth0 | awk '{ print $4 }'; ls -d /run/sterna-identity 2>/dev/null; ps | grep '[p]robe identity'; :\n";
/// Changes memory and disk, far more than the machine had.
const WORK: &str = "dd if=/dev/urandom of=/dev/shm/noise bs=1M count=40 2>/dev/null || dd if=/dev/urandom of=/tmp/noise bs=1M count=8\n\
    dd if=/dev/urandom of=/data/noise bs=1M count=4 2>/dev/null; sync; cat /data/noise | md5sum\n";

#[tokio::test]
async fn vms_start_from_their_templates_memory() -> anyhow::Result<()> {
    let world = World::up(2).await?;
    world.make_template(192).await?;
    let refused = create(&world, "early", "h1", StartChoice::AtOnce).await;
    ensure!(
        refused.is_err_and(|error| format!("{error:#}").contains("is not warm")),
        "it is not warm yet"
    );
    let memory = warm(&world).await?;
    let before = sha256(&memory)?;

    // At once, on one host and on another whose agent is killed meanwhile.
    for (name, host) in [("one", "h1"), ("two", "h1"), ("three", "h2")] {
        create(&world, name, host, StartChoice::AtOnce).await?;
    }
    world.kill_agent("h2").await?;
    let mut all = Vec::new();
    for name in ["one", "two", "three"] {
        all.push(world.until_ready(name).await?);
    }
    for vm in &all[..2] {
        ensure!(
            vm.status.layer.as_deref() == Some(WARM) && vm.status.booted_instead.is_none(),
            "{:?}",
            vm.status
        );
    }
    are_others(&world, &all).await?;
    // They were told by a line to what waited in them; where that is not found, scripts do it.
    ensure!(!scripts_were_needed(&world)?, "nothing waited in the copies");
    forget_what_waits(&memory)?;
    create(&world, "five", "h1", StartChoice::AtOnce).await?;
    let five = world.until_ready("five").await?;
    ensure!(five.status.layer.as_deref() == Some(WARM), "{:?}", five.status);
    ensure!(
        scripts_were_needed(&world)?,
        "it was told by one that is not there"
    );
    all.push(five);
    are_others(&world, &all).await?;
    is_kept_from_people(&world).await?;

    // One is killed in the midst: it is booted instead, or had started.
    create(&world, "four", "h1", StartChoice::Auto).await?;
    let is_given_identity =
        |vm: &VmObject| Verdict::from(vm.status.steps.iter().any(|took| took.step == StartStep::Boot));
    let killed = world
        .until_vm("four", "being given its identity", is_given_identity)
        .await?;
    kill_qemu(&world, &killed).await?;
    changes_and_is_kept_warm(&world).await?;
    what_they_do_stays_theirs(&world).await?;
    ensure!(sha256(&memory)? == before, "the kept memory was written");

    is_warm_again(&world).await?;
    let left: Vec<_> = std::fs::read_dir(world.volumes())?.collect::<Result<_, _>>()?;
    ensure!(left.is_empty(), "{left:?}");
    world.down().await
}

/// Kept warm from now on, the template has what was made by hand; when it changes another form is made by itself.
async fn changes_and_is_kept_warm(world: &World) -> anyhow::Result<()> {
    let warmth = change(world, json!({"keep_warm": {}})).await?;
    let is_as_before = warmth.as_ref().is_some_and(|warm| {
        warm.state == WarmState::Ready
            && warm.form.as_deref() == Some(WARM)
            && warm.host.as_deref() == Some("h1")
    });
    ensure!(is_as_before, "{warmth:?}");
    change(world, json!({"memory_mib": 208})).await.map(drop)
}

/// By another form; the one before goes at once with the last VM that needs it, and the other with its template.
async fn is_warm_again(world: &World) -> anyhow::Result<()> {
    let is_ready = |template: &ObjectOf<Template>| {
        let warm = template.status.warm.as_ref();
        Verdict::from(warm.is_some_and(|warm| {
            warm.state == WarmState::Ready
                && warm.form.as_deref() == Some("tiny-warm-2")
                && warm.failures == 0
        }))
    };
    wait::until::<Template>(world.client(), TINY, "warm again", BOOT_PATIENCE, is_ready).await?;
    let before = world.client().get::<Vm>(WARM).await?;
    ensure!(before.deleted_at.is_none(), "its memory was taken from under VMs");
    for name in ["one", "two", "three", "four", "five"] {
        world.delete_vm(name).await?;
    }
    wait::until_gone::<Vm>(world.client(), WARM, AT_ONCE).await?;
    world.client().delete::<Template>(TINY).await?;
    wait::until_gone::<Vm>(world.client(), "tiny-warm-2", AT_ONCE).await
}

async fn change(world: &World, spec: serde_json::Value) -> anyhow::Result<Option<Warmth>> {
    let changed = world
        .client()
        .patch::<Template>(TINY, &json!({ "spec": spec }), None)
        .await?;
    Ok(changed.status.warm)
}

/// Through work, a reset and a move, and while one is killed in the midst of its start.
async fn what_they_do_stays_theirs(world: &World) -> anyhow::Result<()> {
    for name in ["one", "two"] {
        world.does(name, WORK).await?;
    }
    world
        .client()
        .action::<Vm, _>("one", "reboot", &ActionBody { force: true })
        .await?;
    let moved = world.migrate("two", "h2").await?;
    let ended = world.until_migration_ended(&moved.name).await?;
    ensure!(ended.status.phase == MigrationPhase::Done, "{:?}", ended.status);
    world.until_ready("two").await?;
    ensure!(
        world.does("two", WHO).await?.starts_with("two\n"),
        "it is another one after its move"
    );
    let is_back = |vm: &VmObject| Verdict::from(vm.status.ready && vm.status.phase == Phase::Running);
    world.until_vm("one", "back", is_back).await?;
    ensure!(
        world.does("one", WHO).await?.starts_with("one\n"),
        "it is another one after its reset"
    );
    let four = world
        .until_vm("four", "ready", |vm| Verdict::from(vm.status.ready))
        .await?;
    ensure!(
        four.status.layer.is_some() || four.status.booted_instead.is_some(),
        "{:?}",
        four.status
    );
    Ok(())
}

/// Makes the template warm, with its host's agent killed while it settles; its memory's file.
async fn warm(world: &World) -> anyhow::Result<PathBuf> {
    let spec = VmSpec {
        warms: Some(TINY.to_owned()),
        placement: on("h1"),
        ..VmSpec::default()
    };
    let vm = world.create_vm(WARM, spec).await?;
    let is_up = |vm: &VmObject| Verdict::from(vm.status.ready);
    wait::until::<Vm>(world.client(), WARM, "up", BOOT_PATIENCE, is_up).await?;
    world.kill_agent("h1").await?;
    let kept = world.until_phase(WARM, Phase::Stopped).await?;
    ensure!(kept.status.host.is_none(), "{:?}", kept.status);
    let directory = world.volumes().join(vm.id.to_string());
    let files = std::fs::read_dir(&directory)?
        .filter_map(Result::ok)
        .map(|entry| entry.path());
    let mut memory = files.filter(|path| path.extension().is_some_and(|extension| extension == "ram"));
    memory.next().context("its memory is not there")
}

/// Whether h1's agent says so. The other's was killed, maybe just when it had heard that all was done.
fn scripts_were_needed(world: &World) -> anyhow::Result<bool> {
    let log = std::fs::read_to_string(world.directory().join("log/h1.log"))?;
    Ok(log.contains("scripts shall"))
}

/// Another process is named in the warm form than the one that waits there.
fn forget_what_waits(memory: &Path) -> anyhow::Result<()> {
    let form = memory.with_file_name("warm-1.json");
    let mut told: serde_json::Value = serde_json::from_slice(&std::fs::read(&form)?)?;
    let waiting = told
        .get_mut("waiting")
        .filter(|waiting| waiting.is_object())
        .context("nothing waits in the copies")?;
    *waiting = serde_json::json!({"process": 99_999, "pipe": 99_999});
    Ok(std::fs::write(&form, serde_json::to_vec(&told)?)?)
}

/// No two have a name, an address, or a random number in common, and each knows what time it is.
async fn are_others(world: &World, vms: &[VmObject]) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    for vm in vms {
        let said = world.does(&vm.name, WHO).await?;
        let words: Vec<&str> = said.lines().collect();
        let [name, mac, seconds, random, address] = words[..] else {
            anyhow::bail!("{said:?}");
        };
        let nic = vm.spec.nics.as_ref().and_then(|nics| nics.first());
        ensure!(name == vm.name, "{} is called {name}", vm.name);
        ensure!(
            nic.and_then(|nic| nic.mac.as_deref()) == Some(mac),
            "{}: {said:?}",
            vm.name
        );
        ensure!(
            address.starts_with(&format!("{}/", vms::address(vm)?)),
            "{}: {said:?}",
            vm.name
        );
        let off = seconds.parse::<i64>()?.abs_diff(now_s()?);
        ensure!(off < 30, "{} is off by {off} s", vm.name);
        for word in [mac, random, address] {
            ensure!(seen.insert(word.to_owned()), "two have {word}");
        }
    }
    Ok(())
}

async fn is_kept_from_people(world: &World) -> anyhow::Result<()> {
    for action in ["start", "resume", "shutdown"] {
        let refused = world.act(WARM, action).await;
        ensure!(refused.is_err(), "a warm form is told to {action}");
    }
    let refused = world.client().delete::<Vm>(WARM).await;
    ensure!(
        refused.is_err_and(|error| error.to_string().contains("delete those first")),
        "a warm form is deleted under others"
    );
    Ok(())
}

async fn kill_qemu(world: &World, vm: &VmObject) -> anyhow::Result<()> {
    let id = vms::id(vm);
    let is_there = || !world.living(id).is_empty();
    wait::until_it_holds("its QEMU is there", PATIENCE, is_there).await?;
    for (_, _, pid) in world.living(id) {
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    Ok(())
}

async fn create(world: &World, name: &str, host: &str, start: StartChoice) -> anyhow::Result<VmObject> {
    let spec = VmSpec {
        start: Some(start),
        placement: on(host),
        ..vms::spec(None, "")
    };
    world.create_vm(name, spec).await
}

fn on(host: &str) -> PlacementSpec {
    PlacementSpec {
        host: Some(host.to_owned()),
        ..PlacementSpec::default()
    }
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let ran = Command::new("sha256sum").arg(path).output()?;
    ensure!(ran.status.success(), "{ran:?}");
    Ok(String::from_utf8(ran.stdout)?)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a guest's clock is held against the real one"
)]
fn now_s() -> anyhow::Result<i64> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(i64::try_from(since.as_secs())?)
}
