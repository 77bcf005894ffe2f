//! Owns: network namespaces that live as long as a descriptor of theirs is open.
//! Does not know: what is in them.
//! Start here: [`HostNamespace::create`].

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::lost;
use crate::error::NetError;
use crate::sys;

/// A network namespace.
#[derive(Debug)]
pub struct HostNamespace {
    fd: OwnedFd,
}

impl HostNamespace {
    /// Makes an empty one. A thread makes it by moving there, and ends; the process stays where it is.
    pub async fn create() -> Result<Self, NetError> {
        let make = || {
            sys::unshare_network().map_err(|errno| NetError::errno("make", "a network namespace", errno))?;
            open("/proc/thread-self/ns/net")
        };
        in_thread(make).await?
    }

    /// The one that a process is in.
    pub fn of_process(pid: u32) -> Result<Self, NetError> {
        open(&format!("/proc/{pid}/ns/net"))
    }

    /// A file that stands for it while this object exists, for processes of the same user.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.raw_fd()))
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Runs a task in it, on a thread and a runtime of its own.
    pub async fn run<T, F>(&self, task: impl FnOnce() -> F + Send + 'static) -> Result<T, NetError>
    where
        F: Future<Output = T>,
        T: Send + 'static,
    {
        let failed = |error| NetError::new("enter", "a host's namespace", error);
        let fd = self.fd.try_clone().map_err(failed)?;
        let run = move || {
            move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|errno| failed(errno.into()))?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(failed)?;
            Ok(runtime.block_on(async { task().await }))
        };
        in_thread(run).await?
    }
}

fn open(path: &str) -> Result<HostNamespace, NetError> {
    let file = File::open(path).map_err(|error| NetError::new("open", path, error))?;
    Ok(HostNamespace { fd: file.into() })
}

/// Calls `act` on a thread that is used for nothing else.
async fn in_thread<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T, NetError> {
    let (answer, answered) = oneshot::channel();
    let act = move || {
        // Nobody waits any more if the asking task was dropped.
        answer.send(act()).ok();
    };
    std::thread::Builder::new()
        .name("namespace".to_owned())
        .spawn(act)
        .map_err(|error| NetError::new("start", "a thread for a namespace", error))?;
    answered.await.map_err(|_| lost())
}
