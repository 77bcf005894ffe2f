//! A copy of a host's disk, started beside it as another machine would be.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};

use super::World;
use crate::process::Frozen;

/// Another start of a machine than this one, as the kernel names them.
const OTHER_BOOT: &str = "8a7e3c52-5f6b-4c1d-9e21-0d4b6a8f7c31\n";
/// Runs a program (`$2` and what follows) which sees the first argument as the name of this start of the machine.
const REBOOTED: &str = "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && shift && exec \"$@\"";

/// The agent of a copied host. Dropped, it is killed.
#[derive(Debug)]
pub struct Copied {
    child: Child,
    directory: PathBuf,
    log: PathBuf,
}

impl World {
    /// Copies a host's directory beside it and starts an agent there, which finds that its machine was started anew. Only
    /// root may say what a program finds.
    pub fn copy_host(&self, host: &str) -> anyhow::Result<Copied> {
        let directory = self.host(&format!("{host}-copy"));
        // Nothing is written while it is copied.
        let frozen = Frozen::stop(self.agent_pid(host)?)?;
        let mut copy = Command::new("cp");
        copy.arg("--archive").args([&self.host(host), &directory]);
        let copied = copy.status().context("starting cp")?;
        ensure!(copied.success(), "copying a host's directory: {copied}");
        drop(frozen);
        let boot_id = self.root().join("boot_id");
        fs::write(&boot_id, OTHER_BOOT)?;
        let log = self.root().join("copy.log");
        let mut command = Command::new("setpriv");
        command
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "sh",
                "-c",
                REBOOTED,
                "sh",
            ])
            .arg(boot_id)
            .args(self.words_of_copy(host, &directory)?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .process_group(0);
        Ok(Copied {
            child: command.spawn().context("starting the agent of a copy")?,
            directory,
            log,
        })
    }

    /// What the copy's agent is started with: the same but for its directory, and who started it.
    fn words_of_copy(&self, host: &str, directory: &Path) -> anyhow::Result<Vec<String>> {
        let mut words = self.agent(host)?.command_line;
        let parent = words.iter().position(|word| word == "--parent");
        let parent = parent.context("an agent was not told its parent")?;
        words.drain(parent..parent + 2);
        let told = words.iter().position(|word| word == "--data-dir");
        let told = told.context("an agent was not told its directory")?;
        words[told + 1] = directory.to_string_lossy().into_owned();
        Ok(words)
    }
}

impl Copied {
    /// What its agent has written into its log.
    pub fn log(&self) -> anyhow::Result<String> {
        fs::read_to_string(&self.log).context("reading the log of a copy")
    }

    /// Whether its agent runs still.
    pub fn runs(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// The directory that its agent works in.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Ends its agent.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        fs::remove_dir_all(&self.directory).context("removing a copy")
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
