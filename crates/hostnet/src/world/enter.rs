//! Owns: moving this process into a world or a host, before it has threads.
//! Does not know: what is there.
//! Start here: [`enter_world`].
//!
//! Root takes a new network namespace. Anybody else takes a new user namespace first and is root in it, over the networks
//! of that namespace and over nothing else; files that are written there belong to the user as ever, and the rights of
//! the user's groups (on `/dev/kvm`, for example) stay.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::NetError;
use crate::sys;

const WORLD: &str = "a world of its own";

/// Moves this process into a new, empty network namespace. Sockets that are open stay where they are. To be called before
/// there are threads, a tokio runtime included.
pub fn enter_world() -> Result<(), NetError> {
    // Root without the right to do so, in a container, is treated like anybody else.
    match unshare_as_root() {
        Err(Errno::PERM) => unshare_as_user(),
        other => other.map_err(|errno| NetError::errno("enter", WORLD, errno)),
    }
}

/// Like [`enter_world`], but in the user namespace of a process that an earlier world of the same user left behind, so
/// that [`super::World::adopt_host`] can take over the namespace of its host.
pub fn enter_world_beside(pid: u32) -> Result<(), NetError> {
    let theirs = format!("/proc/{pid}/ns/user");
    if !is_same(&theirs, "/proc/self/ns/user")? {
        move_into(Path::new(&theirs), LinkNameSpaceType::User)?;
    }
    sys::unshare_network().map_err(|errno| NetError::errno("enter", WORLD, errno))
}

/// Moves this process into a host's namespace, by the path that [`super::World::host_path`] gave. To be called before
/// there are threads, a tokio runtime included.
pub fn enter_host(namespace: &Path) -> Result<(), NetError> {
    move_into(namespace, LinkNameSpaceType::Network)
}

fn unshare_as_root() -> Result<(), Errno> {
    if !geteuid().is_root() {
        return Err(Errno::PERM);
    }
    sys::unshare_network()
}

fn unshare_as_user() -> Result<(), NetError> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    sys::unshare_user_and_network().map_err(|errno| NetError::errno("enter", WORLD, errno))?;
    let write = |path: &str, text: &str| {
        fs::write(path, text)
            .map_err(|error| NetError::new("become root of a new user namespace: write", path, error))
    };
    // A group map by an ordinary user is accepted only after this.
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", &format!("0 {gid} 1"))
}

fn is_same(one: &str, other: &str) -> Result<bool, NetError> {
    let inode = |path: &str| {
        let metadata = fs::metadata(path).map_err(|error| NetError::new("look at", path, error))?;
        Ok((metadata.dev(), metadata.ino()))
    };
    Ok(inode(one)? == inode(other)?)
}

fn move_into(path: &Path, kind: LinkNameSpaceType) -> Result<(), NetError> {
    let failed = |error| NetError::new("enter the namespace", path.display(), error);
    let file = File::open(path).map_err(failed)?;
    move_into_link_name_space(file.as_fd(), Some(kind)).map_err(|errno| failed(errno.into()))
}
