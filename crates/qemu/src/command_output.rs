//! Running a short command with an end in sight: bounded in time and in what it may print.
//!
//! *Owns:* the child while it runs, its end and its reaping. *Does not know:* what the command is for.
//! *Start here:* [`run`].

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long a killed child may take to be reaped.
const REAP_DEADLINE: Duration = Duration::from_secs(5);
const STDERR_BYTES_KEPT: usize = 16 * 1024;
const STDERR_LINES_SHOWN: usize = 5;

#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("it could not be started: {0}")]
    Start(io::Error),
    #[error("it did not end within {deadline_ms} ms and was killed{}", if *reaped { "" } else { ", but could not be reaped" })]
    Deadline { deadline_ms: u128, reaped: bool },
    #[error("it printed more than {bytes_max} bytes and was killed")]
    TooMuchOutput { bytes_max: usize },
    #[error("its output could not be read: {0}")]
    Io(io::Error),
}

/// Runs `command` without input to its end. At most `stdout_bytes_max` are accepted; of its standard error the beginning is
/// kept. Whatever happens, also when this future is dropped, the child is killed and reaped.
pub(crate) async fn run(
    command: &mut Command,
    deadline: Duration,
    stdout_bytes_max: usize,
) -> Result<Output, RunError> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(RunError::Start)?;
    let ended = timeout(deadline, collect(&mut child, stdout_bytes_max)).await;
    let error = match ended {
        Ok(Ok(output)) => return Ok(output),
        Ok(Err(error)) => error,
        Err(_) => RunError::Deadline {
            deadline_ms: deadline.as_millis(),
            reaped: true,
        },
    };
    // A child that has ended already cannot be killed, and need not be.
    let _ = child.start_kill();
    let is_reaped = timeout(REAP_DEADLINE, child.wait()).await.is_ok();
    match error {
        RunError::Deadline { deadline_ms, .. } => Err(RunError::Deadline {
            deadline_ms,
            reaped: is_reaped,
        }),
        other => Err(other),
    }
}

async fn collect(child: &mut Child, stdout_bytes_max: usize) -> Result<Output, RunError> {
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let (stdout, stderr) = tokio::try_join!(
        read_bounded(stdout, stdout_bytes_max),
        read_beginning(stderr, STDERR_BYTES_KEPT),
    )?;
    let status = child.wait().await.map_err(RunError::Io)?;
    Ok(Output {
        status,
        stdout,
        stderr,
    })
}

async fn read_bounded(stream: Option<impl AsyncRead + Unpin>, bytes_max: usize) -> Result<Vec<u8>, RunError> {
    let Some(stream) = stream else {
        return Ok(Vec::new());
    };
    let mut bytes = Vec::new();
    let mut limited = stream.take(bytes_max as u64 + 1);
    let read = limited.read_to_end(&mut bytes).await;
    read.map_err(RunError::Io)?;
    if bytes.len() > bytes_max {
        return Err(RunError::TooMuchOutput { bytes_max });
    }
    Ok(bytes)
}

async fn read_beginning(
    stream: Option<impl AsyncRead + Unpin>,
    bytes_kept: usize,
) -> Result<Vec<u8>, RunError> {
    let Some(mut stream) = stream else {
        return Ok(Vec::new());
    };
    let mut kept = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = stream.read(&mut chunk).await.map_err(RunError::Io)?;
        if read == 0 {
            return Ok(kept);
        }
        let room = bytes_kept.saturating_sub(kept.len()).min(read);
        kept.extend_from_slice(&chunk[..room]);
    }
}

/// The first lines of what a command printed on standard error, for an error message.
pub(crate) fn first_lines(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .take(STDERR_LINES_SHOWN)
        .collect();
    if lines.is_empty() {
        return "it printed no reason".to_owned();
    }
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn output_is_collected_and_standard_error_cut_without_blocking() {
        let mut command = shell("echo out; head -c 300000 /dev/zero | tr '\\0' e >&2; exit 3");
        let output = run(&mut command, Duration::from_secs(20), 100).await.unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(output.stdout, b"out\n");
        assert_eq!(output.stderr.len(), STDERR_BYTES_KEPT);
    }

    #[tokio::test]
    async fn a_flood_and_a_sleeper_are_ended() {
        let flood = run(&mut shell("exec yes"), Duration::from_secs(20), 1000).await;
        assert!(matches!(flood, Err(RunError::TooMuchOutput { .. })));
        let started = Instant::now();
        let sleeper = run(&mut shell("exec sleep 60"), Duration::from_millis(50), 1).await;
        assert!(matches!(sleeper, Err(RunError::Deadline { reaped: true, .. })));
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
