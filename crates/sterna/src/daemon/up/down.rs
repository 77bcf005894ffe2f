//! `sterna down`: ends what `sterna up` left running in a directory, and whoever works there still.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::time::timeout;

use super::lock::{Lock, ask_holder_to_end};
use super::{Dir, UP_LOCK, leftovers};
use crate::daemon::args::DownArgs;
use crate::daemon::runtime;

/// How long a `sterna up` may take to end.
const UP_PATIENCE: Duration = Duration::from_secs(60);

/// Takes a world down. The directory stays, with its VMs' disks: the next `up` finds them switched off.
pub(crate) fn down(args: DownArgs) -> anyhow::Result<ExitCode> {
    let path = &args.data_dir;
    ensure!(
        path.join(UP_LOCK).exists(),
        "no `sterna up` was ever started in {}: name its directory with --data-dir",
        path.display()
    );
    let dir = Dir(std::fs::canonicalize(path).with_context(|| format!("looking at {}", path.display()))?);
    runtime(1)?.block_on(async {
        let _lock = match Lock::take(&dir)? {
            Some(lock) => lock,
            None => end_up(&dir).await?,
        };
        let guests = leftovers::guests(&dir.hosts());
        leftovers::end(&guests).await?;
        let _ = std::fs::remove_file(dir.env());
        println!(
            "nothing runs in {} any more; {} VMs were ended",
            dir.0.display(),
            guests.len()
        );
        Ok(ExitCode::SUCCESS)
    })
}

/// Ends the `up` that runs, which may keep its guests.
async fn end_up(dir: &Dir) -> anyhow::Result<Lock> {
    let process = ask_holder_to_end(dir)?;
    let ended = timeout(UP_PATIENCE, process.gone()).await;
    ended.with_context(|| {
        format!(
            "`sterna up`, process {}, does not end: kill it, and try again",
            process.id().pid
        )
    })??;
    match Lock::take(dir)? {
        Some(lock) => Ok(lock),
        None => bail!("another `sterna up` was started in {} meanwhile", dir.0.display()),
    }
}
