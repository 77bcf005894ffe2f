//! Effects of copies of a root disk for other VMs.
//!
//! **Owns:** that a copy gets its name when it is whole and durable, and not before; that a guest's file systems are frozen for
//! no longer than it takes to begin one.
//!
//! **Does not know:** which copies are wanted.
//!
//! A disk's own content is never read here as an image's: whoever runs in its guest may have written its header.
//!
//! **Start here:** [`Vm::copy`], [`Vm::copy_at_rest`].

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use driver::types::{Failure, Outcome};
use model::VmId;
use model::document::Disk;
use qemu::command_line::Cache;
use qemu::qmp::copies::DiskCopyState;
use rustix::fs::OFlags;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::exec::{Vm, qmp_failure, storage_failure};
use super::live::Live;
use super::terminal;
use crate::config::volume_dir;
use crate::firmware;
use crate::storage::{self, StorageError};

/// How long an effect waits for work that goes on without it: meanwhile nothing else is done for the VM.
const PATIENCE: Duration = Duration::from_secs(2);
/// How much is copied between two looks at whether it is still wanted.
const CHUNK_BYTES: u64 = 16 << 20;

/// What goes on for copies, by the VM that each is for.
pub(super) type Copying = Mutex<BTreeMap<VmId, Work>>;

/// Something that takes long.
pub(super) struct Work {
    task: JoinHandle<Result<(), StorageError>>,
    is_over: Arc<AtomicBool>,
}

impl Vm {
    /// Has the QEMU that is there copy the disk as it is now. Asked again when it has, it makes the copy durable.
    pub(super) async fn copy(&self, to: VmId) -> Result<Outcome, Failure> {
        let disk = self.desired()?.machine.disk;
        let files = Files::of(to, &disk);
        let live = self.live().await?;
        let copies = live.qmp.query_copies().await.map_err(qmp_failure)?;
        match copies.into_iter().find(|copy| copy.to == to.0) {
            // Whoever made it has not come to tell.
            None if files.whole.exists() => Ok(Outcome::Copied { is_frozen: false }),
            None => self.begin_copy(&live, to, &disk, &files).await,
            Some(copy) if copy.state == DiskCopyState::Done => {
                live.qmp.take_copy_target(to.0).await.map_err(qmp_failure)?;
                let is_frozen = copy.is_frozen;
                let is_kept = self.work(to, move |is_over| files.keep(is_over)).await?;
                Ok(if is_kept {
                    Outcome::Copied { is_frozen }
                } else {
                    Outcome::Ok
                })
            }
            Some(_) => Ok(Outcome::Ok),
        }
    }

    async fn begin_copy(
        &self,
        live: &Live,
        to: VmId,
        disk: &Disk,
        files: &Files,
    ) -> Result<Outcome, Failure> {
        live.note_copy();
        storage::make_private(&files.directory).map_err(storage_failure)?;
        firmware::copy_variables(self.id.vm, to, disk).map_err(storage_failure)?;
        storage::remove(&files.part).map_err(storage_failure)?;
        let made = self.host.storage.empty_copy(&files.part, disk).await;
        made.map_err(storage_failure)?;
        let (file, cache) = files.open_part(disk).map_err(storage_failure)?;
        let qmp = &live.qmp;
        qmp.give_copy_target(to.0, file, disk.image.is_some(), cache)
            .await
            .map_err(qmp_failure)?;
        let frozen = live.freeze().await;
        let begun = qmp.start_copy(to.0, frozen.is_some()).await;
        if let Some(frozen) = frozen {
            frozen.thaw().await;
        }
        begun.map_err(qmp_failure)?;
        Ok(Outcome::Ok)
    }

    /// Copies the disk's file, which no QEMU has open.
    pub(super) async fn copy_at_rest(&self, to: VmId) -> Result<Outcome, Failure> {
        let disk = self.desired()?.machine.disk;
        let source = storage::disk_path(self.id.vm, &disk);
        let files = Files::of(to, &disk);
        storage::make_private(&files.directory).map_err(storage_failure)?;
        firmware::copy_variables(self.id.vm, to, &disk).map_err(storage_failure)?;
        let is_kept = self.work(to, move |is_over| files.fill(&source, is_over)).await?;
        Ok(if is_kept {
            Outcome::Copied { is_frozen: false }
        } else {
            Outcome::Ok
        })
    }

    /// Ends what goes on for a copy, and deletes what is not whole of it.
    pub(super) async fn drop_copy(&self, to: VmId) -> Result<(), Failure> {
        let mut all = self.copying.lock().await;
        if let Some(work) = all.get_mut(&to) {
            work.is_over.store(true, Ordering::Relaxed);
            let _ = (&mut work.task).await;
            all.remove(&to);
        }
        if let Ok(live) = self.live().await {
            live.qmp.drop_copy(to.0).await.map_err(qmp_failure)?;
        }
        let files = Files::of(to, &self.desired()?.machine.disk);
        storage::remove(&files.part).map_err(storage_failure)?;
        if !files.whole.exists() {
            let variables = firmware::path(to, &self.desired()?.machine.disk);
            storage::remove(&variables).map_err(storage_failure)?;
        }
        // Goes only if nothing is in it.
        let _ = fs::remove_dir(&files.directory);
        Ok(())
    }

    /// Whether the work for a copy, begun now or before, has ended well; it may go on.
    async fn work(
        &self,
        to: VmId,
        work: impl FnOnce(&AtomicBool) -> Result<(), StorageError> + Send + 'static,
    ) -> Result<bool, Failure> {
        let mut all = self.copying.lock().await;
        let begun = all.entry(to).or_insert_with(|| {
            let is_over = Arc::new(AtomicBool::new(false));
            let seen = Arc::clone(&is_over);
            Work {
                task: tokio::task::spawn_blocking(move || work(&seen)),
                is_over,
            }
        });
        let Ok(ended) = timeout(PATIENCE, &mut begun.task).await else {
            return Ok(false);
        };
        all.remove(&to);
        let ended = ended.map_err(|error| terminal("copy-failed", &error))?;
        ended.map(|()| true).map_err(storage_failure)
    }
}

/// Where a copy comes to be.
struct Files {
    directory: PathBuf,
    part: PathBuf,
    whole: PathBuf,
}

impl Files {
    fn of(to: VmId, disk: &Disk) -> Self {
        let whole = storage::disk_path(to, disk);
        Self {
            directory: volume_dir(Path::new(&disk.datastore), to),
            part: whole.with_extension("qcow2.part"),
            whole,
        }
    }

    /// As QEMU wants it: it takes a descriptor only if that is open in the way that it would open the file.
    fn open_part(&self, disk: &Disk) -> Result<(fs::File, Cache), StorageError> {
        let mut options = fs::File::options();
        options.read(true).write(true);
        let cache = if disk.coherent {
            Cache::HostPageCache
        } else {
            options.custom_flags(OFlags::DIRECT.bits().cast_signed());
            Cache::Direct
        };
        let part = options.open(&self.part);
        part.map(|file| (file, cache))
            .map_err(storage::file("open", &self.part))
    }

    /// A copy of a file that nobody writes, whole and durable.
    fn fill(&self, source: &Path, is_over: &AtomicBool) -> Result<(), StorageError> {
        if self.whole.exists() {
            return self.keep(is_over);
        }
        storage::make_private(&self.directory)?;
        // A part that somebody may still write is another file from now on.
        storage::remove(&self.part)?;
        let from = fs::File::open(source).map_err(storage::file("open", source))?;
        let mut private = fs::OpenOptions::new();
        let part = private.write(true).create_new(true).mode(0o600).open(&self.part);
        let copied = part.and_then(|part| copy_sparse(from, part, is_over));
        copied.map_err(storage::file("copy the disk to", &self.part))?;
        self.keep(is_over)
    }

    /// The part becomes the whole.
    fn keep(&self, is_over: &AtomicBool) -> Result<(), StorageError> {
        if !self.whole.exists() {
            let part = fs::File::open(&self.part).map_err(storage::file("open", &self.part))?;
            part.sync_all().map_err(storage::file("sync", &self.part))?;
            if is_over.load(Ordering::Relaxed) {
                return Err(storage::file("keep", &self.part)(
                    io::ErrorKind::Interrupted.into(),
                ));
            }
            // Unlike a renaming it never takes the place of a disk that is there.
            fs::hard_link(&self.part, &self.whole).map_err(storage::file("name", &self.whole))?;
        }
        storage::remove(&self.part)?;
        let synced = fs::File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(storage::file("sync", &self.directory))
    }
}

/// Shares the blocks where the file system can; else copies what is not a hole.
fn copy_sparse(mut from: fs::File, mut to: fs::File, is_over: &AtomicBool) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    let bytes = from.metadata()?.len();
    to.set_len(bytes)?;
    let mut at = 0;
    while let Some(begin) = seek(&from, rustix::fs::SeekFrom::Data(at))? {
        let end = seek(&from, rustix::fs::SeekFrom::Hole(begin))?.unwrap_or(bytes);
        at = begin;
        while at < end {
            if is_over.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            from.seek(io::SeekFrom::Start(at))?;
            to.seek(io::SeekFrom::Start(at))?;
            let copied = io::copy(&mut (&from).take(CHUNK_BYTES.min(end - at)), &mut to)?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at += copied;
        }
    }
    Ok(())
}

/// `None`: there is none behind that place.
fn seek(file: &fs::File, to: rustix::fs::SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(at) => Ok(Some(at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn files(directory: &Path) -> Files {
        Files {
            directory: directory.join("clone"),
            part: directory.join("clone/root.qcow2.part"),
            whole: directory.join("clone/root.qcow2"),
        }
    }

    #[test]
    fn a_copy_is_the_same_and_keeps_its_holes() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        let mut content = vec![0; 64 << 20];
        content[40 << 20..41 << 20].fill(7);
        content[5] = 1;
        let from = fs::File::create(&source).unwrap();
        from.set_len(content.len() as u64).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&from, &content[..4096], 0).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&from, &content[40 << 20..41 << 20], 40 << 20).unwrap();
        let files = files(directory.path());
        files.fill(&source, &AtomicBool::new(false)).unwrap();
        assert!(fs::read(&files.whole).unwrap() == content, "it is another");
        assert!(fs::metadata(&files.whole).unwrap().blocks() * 512 < 8 << 20);
        assert!(!files.part.exists());
        // A repeat takes nothing away.
        files.fill(&source, &AtomicBool::new(false)).unwrap();
        assert!(files.whole.exists());
    }

    #[test]
    fn what_is_not_wanted_any_more_gets_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::write(&source, vec![1; 1 << 20]).unwrap();
        let files = files(directory.path());
        assert!(files.fill(&source, &AtomicBool::new(true)).is_err());
        assert!(!files.whole.exists());
        fs::write(&files.part, "of one before").unwrap();
        files.fill(&source, &AtomicBool::new(false)).unwrap();
        assert_eq!(fs::read(&files.whole).unwrap(), vec![1; 1 << 20]);
    }
}
