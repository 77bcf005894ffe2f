//! The demonstration ends well, says so in a line that scripts read, and leaves nothing behind; also when it is interrupted.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use testkit::clean::Machine;
use testkit::process;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(240);
/// What the last line tells, in this order.
const FIGURES: [&str; 9] = [
    "boot_s",
    "migrate_total_ms",
    "downtime_ms",
    "bytes",
    "lost_pings",
    "seq_errors",
    "survived_kill",
    "resume_ms",
    "total_s",
];

fn demo(directory: &std::path::Path) -> anyhow::Result<Child> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    // By this directory all that belongs to this run is told from what other runs do.
    command
        .env("TMPDIR", directory)
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command.spawn().context("starting the demo")
}

async fn end(mut demo: Child) -> anyhow::Result<(Option<i32>, Vec<String>)> {
    let mut lines = BufReader::new(demo.stdout.take().context("the demo has no output")?).lines();
    let mut said = Vec::new();
    let ended = async {
        while let Some(line) = lines.next_line().await? {
            said.push(line);
        }
        demo.wait().await
    };
    let status = timeout(PATIENCE, ended).await.context("the demo did not end")??;
    Ok((status.code(), said))
}

fn leaves_nothing(directory: &std::path::Path, before: &Machine) -> anyhow::Result<()> {
    let left: Vec<_> = process::all()
        .into_iter()
        .filter(|process| process.concerns(directory))
        .collect();
    ensure!(left.is_empty(), "processes are left: {left:?}");
    ensure!(
        before.additions().is_empty(),
        "the machine is another one: {:?}",
        before.additions()
    );
    Ok(())
}

#[tokio::test]
async fn it_ends_well() -> anyhow::Result<()> {
    let (directory, before) = (tempfile::tempdir()?, Machine::look());
    let (code, said) = end(demo(directory.path())?).await?;
    let last = said.last().context("the demo said nothing")?;
    ensure!(
        code == Some(0) && last.starts_with("demo: ok "),
        "the demo ended with {code:?}: {said:#?}"
    );
    let value = |key: &str| {
        last.split(' ')
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    };
    for key in FIGURES {
        value(key)
            .filter(|value| !value.is_empty())
            .with_context(|| format!("no {key} in {last:?}"))?;
    }
    ensure!(
        value("seq_errors") == Some("0") && value("survived_kill") == Some("yes"),
        "not well: {last}"
    );
    leaves_nothing(directory.path(), &before)?;
    ensure!(
        directory.path().read_dir()?.next().is_none(),
        "files are left in {}",
        directory.path().display()
    );
    Ok(())
}

#[tokio::test]
async fn it_can_be_interrupted() -> anyhow::Result<()> {
    let (directory, before) = (tempfile::tempdir()?, Machine::look());
    let mut demo = demo(directory.path())?;
    let mut lines = BufReader::new(demo.stdout.take().context("the demo has no output")?).lines();
    timeout(PATIENCE, lines.next_line())
        .await??
        .context("the demo said nothing")?;
    let pid = demo.id().context("the demo has ended")?;
    let sent = Command::new("kill")
        .args(["-TERM", &pid.to_string()])
        .status()
        .await?;
    ensure!(sent.success(), "the demo cannot be interrupted");
    let mut last = String::new();
    while let Some(line) = timeout(PATIENCE, lines.next_line()).await?? {
        last = line;
    }
    let status = demo.wait().await?;
    ensure!(
        status.code() == Some(1) && last.starts_with("demo: failed"),
        "it ended with {status}: {last}"
    );
    leaves_nothing(directory.path(), &before)
}
