//! A child that is started again when it ends, under a second, as a machine's supervisor would do.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::watch;

use crate::daemon::READY;

/// The pause before a child is started again: short, since guests may be waiting for it; longer if it ends at once.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A child that lived this long did not end at once.
const LIVED: Duration = Duration::from_secs(5);

/// How this program is started as another daemon.
pub(crate) struct Command {
    program: PathBuf,
    arguments: Vec<OsString>,
    input: Option<OwnedFd>,
}

impl Command {
    /// This program with these words.
    pub(crate) fn new<const N: usize>(words: [&str; N]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        Ok(Self {
            program,
            arguments: words.into_iter().map(OsString::from).collect(),
            input: None,
        })
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

/// A child that is kept running. Dropping it ends the child.
pub(crate) struct Supervised {
    task: tokio::task::JoinHandle<()>,
    ready: watch::Receiver<bool>,
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
        let task = tokio::spawn(keep_running(name.to_owned(), log, command, first, sender));
        Ok(Self { task, ready })
    }

    /// Completes when the child has said that it is ready.
    pub(crate) async fn ready(&self) {
        let mut ready = self.ready.clone();
        let _ = ready.wait_for(|is_ready| *is_ready).await;
    }
}

async fn keep_running(
    name: String,
    log: PathBuf,
    command: Command,
    first: Child,
    ready: watch::Sender<bool>,
) {
    let mut child = first;
    let mut pause = FIRST_PAUSE;
    loop {
        let started = tokio::time::Instant::now();
        let ended = live(&mut child, &ready).await;
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
            match command.spawn(&log) {
                Ok(started) => {
                    child = started;
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
