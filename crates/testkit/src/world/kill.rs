//! Killing what `sterna up` supervises, and the time until it is there again.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{sleep, timeout};

use super::{PAUSE, World};
use crate::process::{self, Frozen};

/// How long a supervised process that was killed may take to be back.
const AGAIN_PATIENCE: Duration = Duration::from_secs(60);

impl World {
    /// Kills the server and waits until another one has been started.
    pub async fn kill_server(&self) -> anyhow::Result<()> {
        kill_and_wait(|| self.server_pid()).await
    }

    /// Kills a host's agent and waits until another one has been started.
    pub async fn kill_agent(&self, host: &str) -> anyhow::Result<()> {
        kill_and_wait(|| self.agent_pid(host)).await
    }

    /// Waits until the server and the agents of these hosts are there, after some were killed.
    pub async fn until_all_are_there(&self, hosts: &[&str]) -> anyhow::Result<()> {
        until_again(|| {
            let agents: anyhow::Result<Vec<i32>> = hosts.iter().map(|host| self.agent_pid(host)).collect();
            agents.and_then(|_| self.server_pid())
        })
        .await
    }

    /// Kills the server, does something while there is none, and waits until another one has been started.
    pub async fn without_server(&self, work: impl AsyncFnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        // Who supervises it does nothing meanwhile.
        let supervisor = Frozen::stop(self.up_pid())?;
        process::kill(self.server_pid()?).await?;
        work().await?;
        drop(supervisor);
        until_again(|| self.server_pid()).await
    }
}

async fn kill_and_wait(pid: impl Fn() -> anyhow::Result<i32>) -> anyhow::Result<()> {
    process::kill(pid()?).await?;
    until_again(pid).await
}

async fn until_again(pid: impl Fn() -> anyhow::Result<i32>) -> anyhow::Result<()> {
    let again = async {
        while pid().is_err() {
            sleep(PAUSE).await;
        }
    };
    timeout(AGAIN_PATIENCE, again)
        .await
        .context("a killed process was not started again")
}
