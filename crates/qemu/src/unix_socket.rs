//! Connecting to a unix socket whose path may be longer than the kernel's 107 bytes.
//!
//! *Owns:* the detour over the directory's file descriptor. *Does not know:* what is spoken on the socket.
//! *Start here:* [`connect`].

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

/// The longest path that fits into `sockaddr_un` (108 bytes with its end).
const PATH_BYTES_MAX: usize = 107;

/// Connects to the socket at `path`; a long path is reached as `/proc/self/fd/N/NAME`.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() <= PATH_BYTES_MAX {
        return UnixStream::connect(path).await;
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = File::open(directory)?;
    let mut short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    short.push(name);
    UnixStream::connect(short).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_longer_than_the_kernel_allows_is_reached() {
        let root = tempfile::tempdir().unwrap();
        let long = root.path().join("d".repeat(120));
        std::fs::create_dir(&long).unwrap();
        let directory = File::open(&long).unwrap();
        let bound = format!("/proc/self/fd/{}/s.sock", directory.as_raw_fd());
        let _listener = tokio::net::UnixListener::bind(bound).unwrap();
        connect(&long.join("s.sock")).await.unwrap();
    }
}
