//! The way out: the server of `up` is in a network of its own, and takes images from outside of it. So a process that is
//! started before that network is entered connects for it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::Context;

use super::Dir;
use crate::daemon::args::OutletArgs;
use crate::daemon::end_with;

/// The process, which ends with this.
pub(crate) struct OutletProcess(Child);

impl Drop for OutletProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where it is asked.
pub(crate) fn path(dir: &Dir) -> PathBuf {
    dir.server().join("outlet.sock")
}

/// Starts it in the network that this process is in now.
pub(crate) fn start(dir: &Dir) -> anyhow::Result<OutletProcess> {
    let path = path(dir);
    let listener =
        server::outlet::listen(&path).with_context(|| format!("listening on {}", path.display()))?;
    let log = File::options().create(true).append(true).open(dir.log("outlet"));
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.args(["outlet", "--parent", &std::process::id().to_string()]);
    command
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null());
    command.stderr(log.context("opening the log of the way out")?);
    // Ctrl-C is for `up`, which ends it.
    command.process_group(0);
    Ok(OutletProcess(command.spawn().context("starting the way out")?))
}

/// Connects for whoever asks on the socket that standard input is.
pub(crate) fn outlet(args: &OutletArgs) -> anyhow::Result<ExitCode> {
    end_with(args.parent)?;
    let listener = UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    server::outlet::serve(&listener).context("connecting for the server")?;
    Ok(ExitCode::SUCCESS)
}
