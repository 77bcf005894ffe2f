//! What is done in guests that run, by the real guest agent in them: scripts, files, keys; and what becomes of it when
//! something fails in the midst.

use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use api::apply::{ApplyBody, Secret};
use api::client::ObjectOf;
use api::kinds::Operation;
use model::operation::{Action, OperationPhase};
use testkit::vms;
use testkit::wait::{self, Verdict};
use testkit::world::World;
use tokio::io::AsyncWriteExt;

const WEB: &str = "web";
/// How long an apply may take to end on a busy machine, what it waits for left out.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a script waits that is to be interrupted.
const LONG: &str = "echo begun >/dev/console; sleep 5; echo over >/dev/console\n";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIApplyApplyApplyApplyApplyApplyApplyApplyA ann";

#[tokio::test]
async fn something_is_done_in_a_guest() -> anyhow::Result<()> {
    let world = world().await?;
    a_script_ends_with_its_status(&world).await?;
    files_and_keys_are_set(&world).await?;
    a_mebibyte_comes_whole(&world).await?;
    what_takes_too_long_is_killed(&world).await?;
    two_are_done_one_after_the_other(&world).await?;
    what_the_guests_agent_does_not_allow_is_named(&world).await?;
    world.act(WEB, "pause").await?;
    let refused = runs(&world, "true\n").await?;
    ensure!(
        !refused.status.success() && said(&refused).contains("VM web is "),
        "{refused:?}"
    );
    world.down().await
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn what_is_lost_in_the_midst_says_so() -> anyhow::Result<()> {
    let world = world().await?;
    let mut console = world.console("h1", vms::id(&world.get_vm(WEB).await?));
    console.skip();
    let asked = asks(&world, LONG, 60).await?;
    console.until("begun", PATIENCE, is("begun")).await?;
    world.kill_agent("h1").await?;
    is_lost(&until_ended(&world, &asked).await?)?;
    // In the guest it goes on, and leaves nothing behind.
    console.until("over", PATIENCE, is("over")).await?;
    world.until_ready(WEB).await?;
    let seen = until_runs(&world, "ls -d /tmp/sterna-apply* | wc -l\n").await?;
    ensure!(
        printed(&seen) == "1\n",
        "there is more than the one that looks: {seen:?}"
    );
    let asked = asks(&world, LONG, 6).await?;
    console.until("begun", PATIENCE, is("begun")).await?;
    world.kill_server().await?;
    is_lost(&until_ended(&world, &asked).await?)?;
    let seen = until_runs(&world, "echo again\n").await?;
    ensure!(printed(&seen) == "again\n", "{seen:?}");
    world.down().await
}

/// It is there, and does not answer: not yet, and not any more.
#[tokio::test]
#[ignore = "long: make soak"]
async fn a_guest_whose_agent_is_silent_is_told_nothing() -> anyhow::Result<()> {
    let world = World::up(1).await?;
    world.make_template(192).await?;
    world.create_vm(WEB, vms::spec(None, "")).await?;
    let early = runs(&world, "true\n").await?;
    ensure!(
        said(&early).contains("VM web is") || said(&early).contains("has not answered"),
        "{early:?}"
    );
    world.until_ready(WEB).await?;
    let stop = "pid=$(pidof qemu-ga); (sleep 5; kill -STOP $pid) &\n";
    let ended = applies(&world, &["--script", "-", "--timeout", "20s"], stop).await?;
    ensure!(ended.status.success(), "{ended:?}");
    // One that is under way when it stops is lost at its end.
    let lost = applies(&world, &["--script", "-", "--timeout", "8s"], "sleep 7\n").await?;
    let is_known = ["apply-lost", "apply-late", "guest-agent-silent"]
        .iter()
        .any(|code| said(&lost).contains(code));
    ensure!(is_known && lost.status.code() == Some(1), "{lost:?}");
    let silent = applies(&world, &["--script", "-"], "true\n").await?;
    ensure!(said(&silent).contains("guest-agent-silent"), "{silent:?}");
    ensure!(said(&silent).contains("nothing was done"), "{silent:?}");
    world.down().await
}

async fn world() -> anyhow::Result<World> {
    let world = World::up(1).await?;
    world.make_template(192).await?;
    world.create_vm(WEB, vms::spec(None, "")).await?;
    world.until_ready(WEB).await?;
    Ok(world)
}

/// The command has the script's output and its status, and the operation has both.
async fn a_script_ends_with_its_status(world: &World) -> anyhow::Result<()> {
    let ended = runs(world, "#!/bin/sh\necho out; echo err >&2; exit 3\n").await?;
    ensure!(ended.status.code() == Some(3), "{ended:?}");
    ensure!(printed(&ended) == "out\nerr\n", "{ended:?}");
    ensure!(said(&ended).contains("script ended with status 3"), "{ended:?}");
    let (all, _) = world.client().list::<Operation>().await?;
    let operation = all.into_iter().rfind(|one| one.spec.action == Action::Apply);
    let operation = operation.context("it has a record")?;
    ensure!(operation.spec.steps == ["script"], "{operation:?}");
    let applied = operation.status.applied.clone().unwrap_or_default();
    let is_told =
        applied.exit_status == Some(3) && applied.output == "out\nerr\n" && applied.output_bytes == 8;
    ensure!(
        is_told && operation.status.phase == OperationPhase::Failed,
        "{operation:?}"
    );
    // What a script leaves running does not hold its end up; the last of much output is what is shown.
    let script = "sleep 100 & seq 1 2000\n";
    let ended = applies(world, &["--script", "-", "-o", "json"], script).await?;
    let shown: ObjectOf<Operation> = serde_json::from_slice(&ended.stdout)?;
    let applied = shown.status.applied.context("it has ended")?;
    ensure!(
        applied.output.ends_with("1999\n2000\n") && applied.output.len() == 2048,
        "{applied:?}"
    );
    ensure!(
        applied.output_bytes == 8893 && applied.exit_status == Some(0),
        "{applied:?}"
    );
    Ok(())
}

async fn files_and_keys_are_set(world: &World) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (binary, key) = (dir.path().join("binary"), dir.path().join("ann.pub"));
    std::fs::write(&binary, [0, 255, b'\n', 7])?;
    std::fs::write(&key, format!("# hers\n{KEY}\n"))?;
    let file = format!("/srv/new/set={}", binary.display());
    let key = key.display().to_string();
    let look = "stat -c '%a %u' /srv/new/set; od -An -tu1 /srv/new/set; cat /root/.ssh/authorized_keys; echo; ls /srv/new | wc -l\n";
    let words = [
        "--user",
        "root",
        "--ssh-key-file",
        &key,
        "--file",
        &file,
        "--mode",
        "0640",
        "--script",
        "-",
    ];
    let ended = applies(world, &words, look).await?;
    ensure!(ended.status.success(), "{ended:?}");
    ensure!(
        printed(&ended) == format!("640 0\n   0 255  10   7\n{KEY}\n1\n"),
        "{ended:?}"
    );
    // The first that fails ends it, and says what the guest said.
    let words = ["--user", "nobody-makes-this-one", "--script", "-"];
    let ended = applies(world, &words, "touch /srv/not-reached\n").await?;
    ensure!(
        ended.status.code() == Some(127) && printed(&ended).contains("adduser"),
        "{ended:?}"
    );
    let ended = runs(world, "ls /srv\n").await?;
    ensure!(printed(&ended) == "new\n", "{ended:?}");
    Ok(())
}

async fn a_mebibyte_comes_whole(world: &World) -> anyhow::Result<()> {
    let end = "\nwc -c <$0\n";
    let script = format!("#{}{end}", "x".repeat((1 << 20) - 1 - end.len()));
    let ended = runs(world, &script).await?;
    ensure!(printed(&ended) == "1048576\n", "{ended:?}");
    Ok(())
}

/// With what it has started.
async fn what_takes_too_long_is_killed(world: &World) -> anyhow::Result<()> {
    let words = ["--script", "-", "--timeout", "3s"];
    let ended = applies(world, &words, "echo first; sleep 77 & sleep 77\n").await?;
    ensure!(ended.status.code() == Some(1), "{ended:?}");
    ensure!(
        said(&ended).contains("apply-late") && printed(&ended) == "first\n",
        "{ended:?}"
    );
    let ended = runs(
        world,
        "ps | grep -c '[s]leep 77'; ls -d /tmp/sterna-apply* | wc -l\n",
    )
    .await?;
    ensure!(printed(&ended) == "0\n1\n", "{ended:?}");
    Ok(())
}

async fn two_are_done_one_after_the_other(world: &World) -> anyhow::Result<()> {
    let one = runs(world, "echo one >>/order; sleep 1; echo one >>/order\n");
    let other = runs(world, "echo other >>/order; sleep 1; echo other >>/order\n");
    let (one, other) = tokio::try_join!(one, other)?;
    ensure!(
        one.status.success() && other.status.success(),
        "{one:?} {other:?}"
    );
    let ended = runs(world, "uniq -c /order\n").await?;
    let printed = printed(&ended);
    ensure!(
        printed.lines().count() == 2 && printed.contains("2 one") && printed.contains("2 other"),
        "{ended:?}"
    );
    Ok(())
}

/// As Red Hat's systems have it. Keys are set all the same.
async fn what_the_guests_agent_does_not_allow_is_named(world: &World) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (settings, key) = (dir.path().join("qemu-ga.conf"), dir.path().join("ann.pub"));
    std::fs::write(&settings, "[general]\nblock-rpcs=guest-exec\n")?;
    std::fs::write(&key, KEY)?;
    let file = format!("/etc/qemu/qemu-ga.conf={}", settings.display());
    let restart = "pid=$(pidof qemu-ga); (sleep 1; kill $pid) &\n";
    let ended = applies(world, &["--file", &file, "--script", "-"], restart).await?;
    ensure!(ended.status.success(), "{ended:?}");
    let refused = until(world, "true\n", |ended| {
        said(ended).contains("guest-command-disabled")
    })
    .await?;
    ensure!(
        said(&refused).contains("block-rpcs") && refused.status.code() == Some(1),
        "{refused:?}"
    );
    let key = key.display().to_string();
    let ended = applies(world, &["--user", "root", "--ssh-key-file", &key], "").await?;
    ensure!(ended.status.success(), "{ended:?}");
    Ok(())
}

/// Runs a script by the command that people use.
async fn runs(world: &World, script: &str) -> anyhow::Result<Output> {
    applies(world, &["--script", "-"], script).await
}

async fn applies(world: &World, words: &[&str], input: &str) -> anyhow::Result<Output> {
    let words = [&["vm", "apply", WEB], words].concat();
    let mut command = world.command(&words)?;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("it has an input")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    Ok(child.wait_with_output().await?)
}

/// Runs it until it ends well: the agent, or the server, may have to come back first.
async fn until_runs(world: &World, script: &str) -> anyhow::Result<Output> {
    until(world, script, |ended| ended.status.success()).await
}

async fn until(world: &World, script: &str, is_it: impl Fn(&Output) -> bool) -> anyhow::Result<Output> {
    let again = async {
        loop {
            let ended = runs(world, script).await?;
            if is_it(&ended) {
                return Ok(ended);
            }
        }
    };
    tokio::time::timeout(PATIENCE, again)
        .await
        .context("it does not come to that")?
}

async fn asks(world: &World, script: &str, timeout_s: u64) -> anyhow::Result<ObjectOf<Operation>> {
    let body = ApplyBody {
        script: Some(Secret(script.to_owned())),
        timeout_s: Some(timeout_s),
        ..ApplyBody::default()
    };
    Ok(world.client().apply(WEB, &body, None).await?)
}

async fn until_ended(world: &World, asked: &ObjectOf<Operation>) -> anyhow::Result<ObjectOf<Operation>> {
    let has_ended = |one: &ObjectOf<Operation>| Verdict::from(one.status.ended_at.is_some());
    wait::until::<Operation>(world.client(), &asked.name, "ended", PATIENCE, has_ended).await
}

fn is_lost(operation: &ObjectOf<Operation>) -> anyhow::Result<()> {
    let reason = operation.status.reason.as_ref().context("it says why")?;
    let says = reason.code == "apply-lost" && reason.message.contains("apply again");
    ensure!(
        says && operation.status.phase == OperationPhase::Failed,
        "{operation:?}"
    );
    Ok(())
}

fn is(text: &'static str) -> impl FnMut(&str) -> Option<()> {
    move |line| line.contains(text).then_some(())
}

fn printed(ended: &Output) -> String {
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

fn said(ended: &Output) -> String {
    String::from_utf8_lossy(&ended.stderr).into_owned()
}
