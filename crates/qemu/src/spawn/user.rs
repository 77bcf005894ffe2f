//! The user as whom a QEMU runs.
//!
//! *Owns:* what makes a child another user, and the time in which that user may write in the VM's directory. *Does not know:*
//! which user a VM gets. *Start here:* [`User`].
//!
//! QEMU makes its sockets in its working directory, before its guest runs or a stream is taken. Until then the directory is
//! open to everybody, which is QEMU alone: the host's directory above is closed to all but its owner, and a working directory
//! needs no right to the way there. From then on it may only be searched, so that a guest that has taken over its QEMU finds
//! nothing to put in the agent's way.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::thread::{CapabilitySet, configure_capability_in_ambient_set};

const OPEN: u32 = 0o777;
const SEARCHED: u32 = 0o711;
const RIGHTS_TO_CHANGE: [CapabilitySet; 2] = [CapabilitySet::SETUID, CapabilitySet::SETGID];

/// A user for QEMU, with no rights and in no other group than its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Its number, and its group's.
    pub id: u32,
}

/// Whether this process can start `program` as that user; if not, why.
pub fn try_user(program: &Path, user: User) -> Result<(), String> {
    let mut command = Command::new("setsid");
    command.args(becoming(Some(user))).arg(program).arg("--version");
    command.env_clear().env("PATH", super::PATH);
    command.current_dir("/").stdin(Stdio::null());
    let output = with_right_to_change(Some(user), || command.output());
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().next().unwrap_or("it ended at once").to_owned())
}

/// The words before a program that make it run as that user.
pub(super) fn becoming(user: Option<User>) -> Vec<String> {
    let Some(User { id }) = user else {
        return Vec::new();
    };
    let words = format!("setpriv --reuid {id} --regid {id} --clear-groups --inh-caps -all --no-new-privs --");
    words.split(' ').map(str::to_owned).collect()
}

/// A starter that is not root passes on its right to change users, and nothing else; setpriv(1) gives it up. Rights belong
/// to a thread, so nothing that another one starts has them.
pub(super) fn with_right_to_change<T>(
    user: Option<User>,
    start: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    if user.is_none() || rustix::process::geteuid().is_root() {
        return start();
    }
    let pass_on = |enable| {
        let mut rights = RIGHTS_TO_CHANGE.into_iter();
        rights.try_for_each(|right| configure_capability_in_ambient_set(right, enable))
    };
    let started = pass_on(true).map_err(io::Error::from).and_then(|()| start());
    pass_on(false)?;
    started
}

/// Lets QEMU make its sockets.
pub(super) fn open_directory(directory: &Path, user: Option<User>) -> io::Result<()> {
    match user {
        Some(_) => fs::set_permissions(directory, Permissions::from_mode(OPEN)),
        None => Ok(()),
    }
}

/// It has made its sockets.
pub(super) fn close_directory(directory: &Path) -> io::Result<()> {
    let mode = fs::metadata(directory)?.permissions().mode() & 0o777;
    match mode {
        OPEN => fs::set_permissions(directory, Permissions::from_mode(SEARCHED)),
        _ => Ok(()),
    }
}
