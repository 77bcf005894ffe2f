//! A file in a datastore that the server sees too.
//!
//! **Owns:** from a datastore's directory to a file beneath it, and to no other.
//!
//! **Does not know:** who else sees the directory.
//!
//! **Start here:** [`Place::open`]. The path is resolved beneath the directory by the kernel, so that neither `..` nor a
//! link leads out, whoever changes it meanwhile.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use futures_util::{StreamExt, TryStreamExt};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use tokio::io::AsyncReadExt;
use tokio::task::spawn_blocking;
use tokio_util::io::ReaderStream;

use super::download::{Broken, Opened};
use super::partial::Begun;
use super::reach::final_problem;

/// How much is read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// A file beneath a directory.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The datastore's.
    pub(super) directory: PathBuf,
    /// The file's, in it.
    pub(super) path: String,
}

impl Place {
    /// Opens it at a byte.
    pub(super) async fn open(&self, from: u64, before: Option<&Begun>) -> Result<Opened, Broken> {
        let place = self.clone();
        let opened = spawn_blocking(move || place.opened(from)).await;
        let (file, begun) = opened.unwrap_or_else(|error| Err(Broken::Passing(error.to_string())))?;
        if from > 0 && before != Some(&begun) {
            return Err(Broken::Changed("it has become another file".to_owned()));
        }
        let rest = begun.bytes_total.unwrap_or_default().saturating_sub(from);
        let bytes = ReaderStream::with_capacity(tokio::fs::File::from_std(file).take(rest), CHUNK_BYTES);
        Ok(Opened {
            begun,
            bytes: bytes.map_err(|error| error.to_string()).boxed(),
        })
    }

    fn opened(&self, from: u64) -> Result<(File, Begun), Broken> {
        let directory = openat(
            CWD,
            &self.directory,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let directory = directory.map_err(|error| {
            final_problem(&format!(
                "the server does not see the datastore's directory {} ({error}): mount it there too, or send the file with --file",
                self.directory.display()
            ))
        })?;
        // What is no file may not make its opener wait.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file =
            openat2(directory, self.path.as_str(), flags, Mode::empty(), beneath).map_err(not_opened)?;
        let mut file = File::from(file);
        let metadata = file.metadata().map_err(|error| passing(&error))?;
        if !metadata.is_file() {
            return Err(final_problem("it is not a file"));
        }
        file.seek(SeekFrom::Start(from))
            .map_err(|error| passing(&error))?;
        let (inode, changed, part) = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
        let begun = Begun {
            validator: Some(format!("{inode} {changed}.{part:09}")),
            bytes_total: Some(metadata.len()),
        };
        Ok((file, begun))
    }
}

fn not_opened(error: Errno) -> Broken {
    match error {
        Errno::XDEV | Errno::LOOP => final_problem("its path leads out of the datastore"),
        Errno::AGAIN | Errno::IO | Errno::STALE | Errno::TIMEDOUT => passing(&error.into()),
        error => final_problem(&format!("it cannot be opened: {error}")),
    }
}

fn passing(error: &io::Error) -> Broken {
    Broken::Passing(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    async fn read(place: &Place, from: u64, before: Option<&Begun>) -> Result<(Begun, Vec<u8>), Broken> {
        let opened = place.open(from, before).await?;
        let bytes: Vec<_> = opened.bytes.try_collect().await.unwrap();
        Ok((opened.begun, bytes.concat()))
    }

    #[tokio::test]
    async fn a_file_is_read_from_any_byte_on_while_it_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("in")).unwrap();
        fs::write(directory.path().join("in/disk"), "0123456789").unwrap();
        symlink("in/disk", directory.path().join("inner")).unwrap();
        let place = |path: &str| Place {
            directory: directory.path().to_owned(),
            path: path.to_owned(),
        };
        let (begun, all) = read(&place("in/disk"), 0, None).await.unwrap();
        assert_eq!(
            (all.as_slice(), begun.bytes_total),
            (b"0123456789".as_slice(), Some(10))
        );
        let (_, rest) = read(&place("inner"), 7, Some(&begun)).await.unwrap();
        assert_eq!(rest, b"789");
        fs::write(directory.path().join("in/disk"), "01234567890").unwrap();
        let changed = read(&place("in/disk"), 7, Some(&begun)).await;
        assert!(matches!(changed, Err(Broken::Changed(_))), "{changed:?}");
    }

    #[tokio::test]
    async fn nothing_leads_out_of_the_directory_and_what_is_no_file_is_refused() {
        let outer = tempfile::tempdir().unwrap();
        fs::write(outer.path().join("secret"), "x").unwrap();
        let directory = outer.path().join("store");
        fs::create_dir_all(directory.join("in")).unwrap();
        symlink("../secret", directory.join("link")).unwrap();
        symlink(outer.path(), directory.join("up")).unwrap();
        rustix::fs::mknodat(
            CWD,
            directory.join("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        for (path, why) in [
            ("link", "leads out"),
            ("up/secret", "leads out"),
            ("../secret", "leads out"),
            ("/etc/passwd", "leads out"),
            ("in", "not a file"),
            ("fifo", "not a file"),
            ("missing", "cannot be opened"),
            ("", "cannot be opened"),
        ] {
            let place = Place {
                directory: directory.clone(),
                path: path.to_owned(),
            };
            match place.open(0, None).await {
                Err(Broken::Final(problem)) => {
                    assert!(problem.detail.contains(why), "{path}: {}", problem.detail)
                }
                other => panic!("{path}: {other:?}"),
            }
        }
        let missing = Place {
            directory: outer.path().join("nowhere"),
            path: "disk".to_owned(),
        };
        assert!(
            matches!(missing.open(0, None).await, Err(Broken::Final(problem)) if problem.detail.contains("does not see"))
        );
    }
}
