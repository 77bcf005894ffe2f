//! Who works in a directory: at most one `sterna up`, or one `sterna down`.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use qemu::spawn::{ProcessId, QemuProcess};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};

use super::{Dir, UP_LOCK};

/// A directory that nobody else works in, for as long as this exists.
pub(crate) struct Lock {
    _held: File,
}

impl Lock {
    /// Takes it; `None` if somebody else has it.
    pub(crate) fn take(dir: &Dir) -> anyhow::Result<Option<Self>> {
        let path = path(dir);
        // What its holder wrote is left there until it is ours.
        let opened = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let mut held = opened.with_context(|| format!("opening {}", path.display()))?;
        match rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            taken => taken.with_context(|| format!("locking {}", path.display()))?,
        }
        let own = ProcessId::of(std::process::id().cast_signed())?;
        let written = held
            .set_len(0)
            .and_then(|()| held.write_all(&serde_json::to_vec(&own)?));
        written.with_context(|| format!("writing {}", path.display()))?;
        Ok(Some(Self { _held: held }))
    }
}

/// Asks whoever has the directory to end, as Ctrl-C does; the process, to be waited for.
pub(crate) fn ask_holder_to_end(dir: &Dir) -> anyhow::Result<QemuProcess> {
    let path = path(dir);
    let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let id: ProcessId = serde_json::from_slice(&text)
        .with_context(|| format!("{} does not say who works there: try again", path.display()))?;
    let process = QemuProcess::reopen(id).context("finding the `sterna up` that runs there")?;
    if let Some(pid) = Pid::from_raw(process.id().pid) {
        rustix::process::kill_process(pid, Signal::TERM).context("ending the `sterna up` that runs there")?;
    }
    Ok(process)
}

fn path(dir: &Dir) -> PathBuf {
    dir.0.join(UP_LOCK)
}
