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
/// Between looks whether it has done what it was told, at first: an eighth longer after each. Each look takes an emulated guest
/// some 4 ms, and what it is told 150 to 200.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
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
            pause = (pause * 9 / 8).min(PAUSE);
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

    /// A server whose keys are made anew.
    struct Server {
        /// Where they are in a guest.
        keys_in: &'static str,
        key: fn(&str) -> String,
        /// What makes one, before its kind and its file.
        maker: &'static [&'static str],
    }

    const OPENSSH: Server = Server {
        keys_in: "/etc/ssh",
        key: |kind| format!("ssh_host_{kind}_key"),
        maker: &["ssh-keygen", "-q", "-N", ""],
    };
    const DROPBEAR: Server = Server {
        keys_in: "/etc/dropbear",
        key: |kind| format!("dropbear_{kind}_host_key"),
        maker: &["dropbearkey"],
    };

    impl Server {
        fn read(&self, directory: &Path, kind: &str) -> Option<Vec<u8>> {
            let key = fs::read(directory.join((self.key)(kind))).ok();
            key.filter(|key| !key.is_empty())
        }

        fn make(&self, directory: &Path, kind: &str) {
            let made = Command::new(self.maker[0])
                .args(&self.maker[1..])
                .args(["-t", kind, "-f"])
                .arg(directory.join((self.key)(kind)))
                .output();
            assert!(made.expect("a maker of keys").status.success());
        }
    }

    async fn renewed(server: &Server, kinds: &[&str]) {
        let directory = tempfile::tempdir().expect("directory");
        let directory = directory.path();
        for kind in kinds {
            server.make(directory, kind);
        }
        let before: Vec<_> = kinds.iter().map(|kind| server.read(directory, kind)).collect();
        let script = KEYS.replace(server.keys_in, &directory.to_string_lossy());
        // No server of this machine is told anything, nor has it keys that are looked at.
        let script = script
            .replace("/etc/", "/nowhere/")
            .replace("/run/", "/nowhere/")
            .replace("systemctl", "false");
        let ran = Command::new(SHELL).args(["-c", &script]).status();
        assert!(ran.expect("the script").success());
        let deadline = Instant::now() + PATIENCE;
        for (kind, was) in kinds.iter().zip(before) {
            while server.read(directory, kind).is_none() && Instant::now() < deadline {
                sleep(Duration::from_millis(20)).await;
            }
            let is = server.read(directory, kind);
            assert!(is.is_some() && is != was, "{kind} in {}", server.keys_in);
        }
        let files = fs::read_dir(directory).expect("directory");
        let names = files.map(|file| file.expect("file").file_name().to_string_lossy().into_owned());
        let keys = names.filter(|name| !name.ends_with(".pub")).count();
        assert_eq!(
            keys,
            kinds.len(),
            "a key of another kind was made in {}",
            server.keys_in
        );
    }

    #[tokio::test]
    async fn host_keys_are_of_the_kinds_that_were_there() {
        for kinds in [&KINDS[..], &["ed25519"], &["rsa"], &[]] {
            renewed(&OPENSSH, kinds).await;
        }
        // That for RSA is made behind them as OpenSSH's is, and takes dropbear up to a minute.
        for kinds in [&["ecdsa", "ed25519"][..], &["ed25519"]] {
            renewed(&DROPBEAR, kinds).await;
        }
    }
}
