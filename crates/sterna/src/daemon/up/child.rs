//! A child that is started again when it ends, under a second, as a machine's supervisor would do.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::daemon::READY;

/// The pause before a child is started again: short, since guests may be waiting for it; longer if it ends at once.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A child that lived this long did not end at once.
const LIVED: Duration = Duration::from_secs(5);

/// How long a child that is asked to end may take, before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// How this program is started as another daemon.
pub(crate) struct Command {
    program: PathBuf,
    arguments: Vec<OsString>,
    input: Option<OwnedFd>,
}

impl Command {
    /// This program with these words, as a daemon that does not outlive this process.
    pub(crate) fn new<const N: usize>(words: [&str; N]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = Self {
            program,
            arguments: words.into_iter().map(OsString::from).collect(),
            input: None,
        };
        command.option("--parent", std::process::id().to_string());
        Ok(command)
    }

    /// Adds an option with its value.
    pub(crate) fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.arguments.push(name.into());
        self.arguments.push(value.into());
    }

    /// Hands an open descriptor over as standard input.
    pub(crate) fn hand_over(&mut self, input: OwnedFd) {
        self.input = Some(input);
    }

    fn spawn(&self, log: &Path) -> anyhow::Result<Child> {
        let log = open_log(log)?;
        let input = match &self.input {
            Some(input) => Stdio::from(input.try_clone()?),
            None => Stdio::null(),
        };
        let mut command = tokio::process::Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(log);
        // Ctrl-C reaches this process only, which then ends its children in order.
        command.process_group(0).kill_on_drop(true);
        command
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))
    }
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.with_context(|| format!("opening {}", path.display()))
}

/// A child that is kept running. Dropping it kills the child.
pub(crate) struct Supervised {
    task: tokio::task::JoinHandle<()>,
    ready: watch::Receiver<bool>,
    end: Option<oneshot::Sender<()>>,
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Supervised {
    /// Starts it.
    pub(crate) fn start(name: &str, log: PathBuf, command: Command) -> anyhow::Result<Self> {
        let first = command.spawn(&log)?;
        let (sender, ready) = watch::channel(false);
        let (end, asked_to_end) = oneshot::channel();
        let name = name.to_owned();
        let task = tokio::spawn(async move {
            let mut child = first;
            tokio::select! {
                () = keep_running(&name, &log, &command, &mut child, sender) => {}
                _ = asked_to_end => stop(&name, &mut child).await,
            }
        });
        Ok(Self {
            task,
            ready,
            end: Some(end),
        })
    }

    /// Ends the child in order: what it is doing to a VM this instant is done.
    pub(crate) async fn end(mut self) {
        drop(self.end.take());
        let _ = (&mut self.task).await;
    }

    /// Completes when the child has said that it is ready.
    pub(crate) async fn ready(&self) {
        let mut ready = self.ready.clone();
        let _ = ready.wait_for(|is_ready| *is_ready).await;
    }
}

/// Asks a child to end; kills it when that is of no use.
async fn stop(name: &str, child: &mut Child) {
    let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) else {
        return;
    };
    let _ = rustix::process::kill_process(pid, Signal::TERM);
    if timeout(END_PATIENCE, child.wait()).await.is_err() {
        eprintln!("{name} does not end and is killed");
        let _ = child.kill().await;
    }
}

async fn keep_running(
    name: &str,
    log: &Path,
    command: &Command,
    child: &mut Child,
    ready: watch::Sender<bool>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = tokio::time::Instant::now();
        let ended = live(child, &ready).await;
        eprintln!(
            "{name} ended ({ended}) and is started again: see {}",
            log.display()
        );
        pause = if started.elapsed() >= LIVED {
            FIRST_PAUSE
        } else {
            (pause * 2).min(LONGEST_PAUSE)
        };
        loop {
            tokio::time::sleep(pause).await;
            match command.spawn(log) {
                Ok(started) => {
                    *child = started;
                    break;
                }
                Err(error) => eprintln!("{name} cannot be started: {error:#}"),
            }
        }
    }
}

/// Reads what the child says until it ends.
async fn live(child: &mut Child, ready: &watch::Sender<bool>) -> String {
    if let Some(output) = child.stdout.take() {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line == READY {
                ready.send_replace(true);
            }
        }
    }
    match child.wait().await {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}
