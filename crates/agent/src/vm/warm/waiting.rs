//! What waits in a guest, whose memory is kept, to be told who each copy of it is.
//!
//! A new process costs a guest that is emulated tens of milliseconds, and pages of its own. So one is started before the memory
//! is kept, which has read all that it needs by then and reads from a pipe, and the guest's agent has the pipe open. A copy is
//! told by one line. Where none could be started, or it is gone, scripts do the same.
//!
//! **Owns:** the start of that process, the line, and when it has done what the line says.
//!
//! **Does not know:** what is in the line.

use std::time::Duration;

use qemu::guest_agent::{ExecStatus, GuestAgent, GuestAgentError};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

const WAIT: &str = include_str!("wait.sh");
const PERL: &str = include_str!("wait.pl");
const PYTHON: &str = include_str!("wait.py");
pub(super) const KEYS: &str = include_str!("keys.sh");

const SHELL: &str = "/bin/sh";
const NAME: &str = "sterna-identity";
/// The pipe is there under this name, with the process's number, when it is read from.
const PIPE: &str = "/run/sterna-identity/told";
/// How long the process may take until it reads.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Between looks whether it does.
const START_PAUSE: Duration = Duration::from_millis(200);
/// Between looks whether it has done what it was told, at first: a quarter longer after each. Each look takes the guest some
/// time.
const FIRST_PAUSE: Duration = Duration::from_millis(60);
const PAUSE: Duration = Duration::from_millis(200);

/// A process that waits, by the guest agent's own numbers, which are in the memory that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    process: i64,
    pipe: i64,
}

impl Waiting {
    /// Starts it; it takes the place of one that an earlier agent may have started.
    pub async fn start(agent: &mut GuestAgent) -> Result<Self, String> {
        let deadline = Instant::now() + START_PATIENCE;
        let words = ["-c", WAIT, NAME, PERL, PYTHON, KEYS];
        let process = loop {
            match agent.exec(SHELL, &words).await {
                Ok(process) => break process,
                // One that was started all the same is ended by the next.
                Err(GuestAgentError::Timeout { .. }) if Instant::now() < deadline => {}
                Err(error) => return Err(error.to_string()),
            }
        };
        loop {
            match agent.file_open(&format!("{PIPE}-{process}"), "r+").await {
                Ok(pipe) => return Ok(Self { process, pipe }),
                Err(GuestAgentError::Command { .. } | GuestAgentError::Timeout { .. })
                    if Instant::now() < deadline => {}
                Err(error) => return Err(error.to_string()),
            }
            if let Ok(ExecStatus::Ended(output)) = agent.exec_status(process).await {
                return Err(output.complaint());
            }
            sleep(START_PAUSE).await;
        }
    }

    /// Tells it, and waits until it has ended. Told again by another agent, it takes the first line.
    pub async fn tell(self, agent: &mut GuestAgent, line: &str, deadline: Instant) -> Result<(), String> {
        loop {
            let told = match agent.file_write(self.pipe, line.as_bytes()).await {
                Ok(()) => agent.file_close(self.pipe).await,
                Err(error) => Err(error),
            };
            match told {
                Ok(()) => break,
                Err(GuestAgentError::Timeout { .. }) if Instant::now() < deadline => {}
                // It was told already.
                Err(GuestAgentError::Command { .. }) => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        let mut pause = FIRST_PAUSE;
        loop {
            sleep(pause).await;
            match agent.exec_status(self.process).await {
                Ok(ExecStatus::Ended(output)) if output.exit_code == Some(0) => return Ok(()),
                Ok(ExecStatus::Ended(output)) => return Err(output.complaint()),
                Ok(ExecStatus::Running) | Err(GuestAgentError::Timeout { .. })
                    if Instant::now() < deadline => {}
                Ok(ExecStatus::Running) => return Err("it did not end in time".to_owned()),
                Err(error) => return Err(error.to_string()),
            }
            pause = (pause * 5 / 4).min(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    const KINDS: [&str; 3] = ["rsa", "ecdsa", "ed25519"];
    /// The making of a key for RSA is left to chance.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn read(directory: &Path, kind: &str) -> Option<String> {
        fs::read_to_string(directory.join(format!("ssh_host_{kind}_key.pub"))).ok()
    }

    async fn renewed(kinds: &[&str]) {
        let directory = tempfile::tempdir().expect("directory");
        let directory = directory.path();
        for kind in kinds {
            let key = directory.join(format!("ssh_host_{kind}_key"));
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", kind, "-N", "", "-f"])
                .arg(key)
                .status();
            assert!(made.expect("ssh-keygen").success());
        }
        let before: Vec<_> = kinds.iter().map(|kind| read(directory, kind)).collect();
        let script = KEYS.replace("/etc/ssh", &directory.to_string_lossy());
        // No server of this machine is told anything.
        let script = script
            .replace("/run/sshd.pid", "/nowhere")
            .replace("systemctl", "false");
        let ran = Command::new(SHELL).args(["-c", &script]).status();
        assert!(ran.expect("the script").success());
        let deadline = Instant::now() + PATIENCE;
        for (kind, was) in kinds.iter().zip(before) {
            while read(directory, kind).is_none() && Instant::now() < deadline {
                sleep(Duration::from_millis(20)).await;
            }
            let is = read(directory, kind);
            assert!(is.is_some() && is != was, "{kind}: {is:?}");
        }
        let files = fs::read_dir(directory).expect("directory").count();
        assert_eq!(files, 2 * kinds.len(), "no key of another kind was made");
    }

    #[tokio::test]
    async fn host_keys_are_of_the_kinds_that_were_there() {
        renewed(&KINDS).await;
        renewed(&["ed25519"]).await;
        renewed(&["rsa"]).await;
        renewed(&[]).await;
    }
}
