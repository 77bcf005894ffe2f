//! A `sterna up` that ends while its VMs run on, and what is left of it until the next one.

use std::fs;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{sleep, timeout};

use super::end::{Stage, left, show_failure};
use super::start::Start;
use super::{DOWN_PATIENCE, Keep, PAUSE, World};
use crate::clean::{self, Machine};
use crate::process::{self, Process};

impl World {
    /// Ends `sterna up` and waits until its server and its agents have ended too. Only VMs are left.
    pub async fn leave(self, how: Signal) -> anyhow::Result<Left> {
        let Self { mut up, .. } = self;
        let children: Vec<Process> = process::all()
            .into_iter()
            .filter(|one| one.parent == up.pid() && one.command_line.iter().any(|word| word == "--parent"))
            .collect();
        ensure!(!children.is_empty(), "sterna up has no server and no agents");
        let pid = Pid::from_raw(up.pid()).context("sterna up has no number")?;
        kill_process(pid, how).context("ending sterna up")?;
        let ended = async {
            loop {
                match up.child.try_wait()? {
                    Some(status) => return anyhow::Ok(status),
                    None => sleep(PAUSE).await,
                }
            }
        };
        let status = timeout(DOWN_PATIENCE, ended)
            .await
            .context("sterna up does not end")??;
        up.stage = Stage::Over;
        // From here on it is what is left that clears up after a failed test.
        let left = Left {
            start: Some(up.start.clone()),
            before: up.before.clone(),
        };
        ensure!(
            how == Signal::KILL || status.success(),
            "sterna up ended with {status}"
        );
        let gone = async {
            while children.iter().any(Process::is_there) {
                sleep(PAUSE).await;
            }
        };
        timeout(DOWN_PATIENCE, gone)
            .await
            .context("server and agents outlive sterna up")?;
        Ok(left)
    }
}

/// What is left of a world without its `sterna up`. Dropped, it belongs to a test that failed: it is taken down.
#[derive(Debug)]
pub struct Left {
    /// Absent: somebody else has it now.
    start: Option<Start>,
    before: Machine,
}

impl Left {
    /// Starts `sterna up` again in the same directory.
    pub async fn up(mut self, keep: Keep) -> anyhow::Result<World> {
        let start = self.start.take().context("nothing is left")?;
        World::start(Start { keep, ..start }, self.before.clone()).await
    }

    /// Takes down by `sterna down`, and fails if anything is left.
    pub fn down(mut self) -> anyhow::Result<()> {
        let start = self.start.take().context("nothing is left")?;
        let ended = start.sterna("down")?.output().context("starting sterna down")?;
        let left = left(&start.root, &[], &self.before);
        for process in clean::processes(&start.root, &[]) {
            process::kill_seen(&process);
        }
        fs::remove_dir_all(&start.root).with_context(|| format!("removing {}", start.root.display()))?;
        ensure!(
            ended.status.success(),
            "sterna down: {}",
            String::from_utf8_lossy(&ended.stderr)
        );
        ensure!(left.is_empty(), "after sterna down: {}", left.join("; "));
        Ok(())
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if let Some(start) = self.start.take() {
            let processes = clean::processes(&start.root, &[]);
            processes.iter().for_each(process::kill_seen);
            show_failure(&start.root, &[]);
        }
    }
}
