//! Effects of copies of a root disk, for other VMs and for images.
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
use std::time::Duration;

use driver::types::{Failure, Outcome};
use model::Incarnation;
use model::copy::{CopyShape, CopyTo};
use model::document::Disk;
use qemu::command_line::Cache;
use qemu::qmp::copies::{Base, DiskCopyState};
use rustix::fs::OFlags;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::exec::{Vm, qmp_failure, storage_failure};
use super::live::Live;
use super::terminal;
use crate::config::volume_dir;
use crate::firmware;
use crate::storage::{self, Storage, StorageError};

/// How long an effect waits for work that goes on without it: meanwhile nothing else is done for the VM.
const PATIENCE: Duration = Duration::from_secs(2);
/// How much is copied between two looks at whether it is still wanted.
const CHUNK_BYTES: u64 = 16 << 20;
/// What a copy's name ends with until it is whole, and how one begins that becomes an image.
const PART: &str = ".part";
const IMAGE: &str = "image-";

/// What goes on for copies, by what each is for.
pub(super) type Copying = Mutex<BTreeMap<CopyTo, Work>>;

/// Something that takes long.
pub(super) struct Work {
    task: JoinHandle<Result<(), StorageError>>,
    over: CancellationToken,
}

/// A copy that is to be made.
#[derive(Clone)]
struct Order {
    to: CopyTo,
    shape: CopyShape,
    /// Who makes it.
    incarnation: Incarnation,
    /// The disk that is copied.
    disk: Disk,
    source: PathBuf,
    files: Files,
}

impl Vm {
    fn order(&self, to: CopyTo) -> Result<Order, Failure> {
        let document = self.desired()?;
        let disk = document.machine.disk;
        let shape = document.copies.get(&to).copied().unwrap_or_default();
        Ok(Order {
            to,
            incarnation: self.id.incarnation,
            shape,
            source: storage::disk_path(self.id.vm, &disk),
            files: self.files(to, &disk, shape.whole),
            disk,
        })
    }

    /// Where a copy comes to be. What becomes an image is only passed on from here, and is this incarnation's.
    fn files(&self, to: CopyTo, disk: &Disk, is_whole: bool) -> Files {
        let copied = storage::copied(disk, is_whole);
        let whole = match to {
            CopyTo::Vm(vm) => storage::disk_path(vm, &copied),
            // It has no other place than its own, and gets none.
            CopyTo::Itself { .. } => storage::disk_path(self.id.vm, &copied),
            CopyTo::Image(image) => {
                let name = format!("{IMAGE}{image}-{}.qcow2", self.id.incarnation);
                volume_dir(Path::new(&disk.datastore), self.id.vm).join(name)
            }
        };
        Files::of(whole)
    }

    /// Has the QEMU that is there copy the disk as it is now. Asked again when it has, it makes the copy durable.
    pub(super) async fn copy(&self, to: CopyTo) -> Result<Outcome, Failure> {
        if to.is_itself() {
            return self.flatten(to).await;
        }
        let order = self.order(to)?;
        let live = self.live().await?;
        let copies = live.qmp.query_copies().await.map_err(qmp_failure)?;
        match copies.into_iter().find(|copy| copy.to == to) {
            // Whoever made it has not come to tell.
            None if to.vm().is_some() && order.files.whole.exists() => {
                Ok(Outcome::Copied { is_frozen: false })
            }
            None => self.begin_copy(&live, &order).await,
            Some(copy) if copy.state == DiskCopyState::Done => {
                live.qmp.take_copy_target(to).await.map_err(qmp_failure)?;
                let storage = self.host.storage.clone();
                let is_frozen = copy.is_frozen;
                self.work(to, is_frozen, async move |over| {
                    order.keep(&storage, &over).await?;
                    order.pass_on(&storage, is_frozen, &over).await
                })
                .await
            }
            Some(_) => Ok(Outcome::Ok),
        }
    }

    async fn begin_copy(&self, live: &Live, order: &Order) -> Result<Outcome, Failure> {
        let Order { to, disk, files, .. } = order;
        live.note_copy();
        self.copy_variables(order)?;
        storage::remove(&files.part).map_err(storage_failure)?;
        let is_whole = order.shape.whole;
        let made = self.host.storage.empty_copy(&files.part, disk, is_whole).await;
        made.map_err(storage_failure)?;
        let (file, cache) = files.open_part(disk).map_err(storage_failure)?;
        let qmp = &live.qmp;
        let base = match &disk.image {
            Some(_) if !is_whole => Base::Image,
            _ => Base::Nothing,
        };
        let given = qmp.give_copy_target(*to, file, base, cache).await;
        given.map_err(qmp_failure)?;
        let frozen = live.freeze().await;
        let begun = qmp.start_copy(*to, base, frozen.is_some()).await;
        if let Some(frozen) = frozen {
            frozen.thaw().await;
        }
        begun.map_err(qmp_failure)?;
        Ok(Outcome::Ok)
    }

    /// Makes the copy's directory, with what the source's firmware keeps in it if it is for a VM.
    fn copy_variables(&self, order: &Order) -> Result<(), Failure> {
        storage::make_private(&order.files.directory).map_err(storage_failure)?;
        let Some(to) = order.to.vm() else { return Ok(()) };
        let from = firmware::path(self.id.vm, &order.disk);
        let copied = storage::copied(&order.disk, order.shape.whole);
        firmware::copy_variables(&from, to, &copied).map_err(storage_failure)
    }

    /// Copies the disk's file, which no QEMU has open.
    pub(super) async fn copy_at_rest(&self, to: CopyTo) -> Result<Outcome, Failure> {
        if to.is_itself() {
            return self.flatten_at_rest(to).await;
        }
        let order = self.order(to)?;
        self.copy_variables(&order)?;
        let storage = self.host.storage.clone();
        self.work(to, false, async move |over| {
            order.fill(&storage, &over).await?;
            order.pass_on(&storage, false, &over).await
        })
        .await
    }

    /// Ends what goes on for a copy, and deletes what is not whole of it.
    pub(super) async fn drop_copy(&self, to: CopyTo) -> Result<(), Failure> {
        let mut all = self.copying.lock().await;
        if let Some(work) = all.get_mut(&to) {
            work.over.cancel();
            let _ = (&mut work.task).await;
            all.remove(&to);
        }
        if let Ok(live) = self.live().await {
            live.qmp.drop_copy(to).await.map_err(qmp_failure)?;
        }
        if to.is_itself() {
            return Ok(());
        }
        // Of which kind it was is known only as long as it is wanted.
        let disk = self.desired()?.machine.disk;
        let both = [true, false].map(|is_whole| self.files(to, &disk, is_whole));
        for files in &both {
            storage::remove(&files.part).map_err(storage_failure)?;
        }
        let is_made = both.iter().any(|files| files.whole.exists());
        match to.vm() {
            Some(to) if !is_made => {
                for is_whole in [true, false] {
                    let variables = firmware::path(to, &storage::copied(&disk, is_whole));
                    storage::remove(&variables).map_err(storage_failure)?;
                }
            }
            Some(_) => {}
            None => storage::remove(&both[0].whole).map_err(storage_failure)?,
        }
        // Goes only if nothing is in it.
        let _ = fs::remove_dir(&both[0].directory);
        Ok(())
    }

    /// Ends what this incarnation did for its own disk, and deletes what it made for images: nobody goes on with it.
    pub(super) async fn end_copies(&self) -> Result<(), Failure> {
        let mut all = self.copying.lock().await;
        for (_, work) in all.iter_mut().filter(|(to, _)| to.vm().is_none()) {
            work.over.cancel();
            let _ = (&mut work.task).await;
        }
        all.retain(|to, _| to.vm().is_some());
        let Ok(document) = self.desired() else {
            return Ok(());
        };
        let directory = volume_dir(Path::new(&document.machine.disk.datastore), self.id.vm);
        let end = format!("-{}.qcow2", self.id.incarnation);
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            let is_own = name.strip_suffix(PART).unwrap_or(name).ends_with(&end);
            if is_own && name.starts_with(IMAGE) {
                storage::remove(&entry.path()).map_err(storage_failure)?;
            }
        }
        Ok(())
    }

    /// Whether something goes on for a copy.
    pub(super) async fn is_at_work(&self, to: CopyTo) -> bool {
        self.copying.lock().await.contains_key(&to)
    }

    /// Whether the work for a copy, begun now or before, has ended well; it may go on.
    pub(super) async fn work<F>(
        &self,
        to: CopyTo,
        is_frozen: bool,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> Result<Outcome, Failure>
    where
        F: Future<Output = Result<(), StorageError>> + Send + 'static,
    {
        let mut all = self.copying.lock().await;
        let begun = all.entry(to).or_insert_with(|| {
            let over = CancellationToken::new();
            Work {
                task: tokio::spawn(work(over.clone())),
                over,
            }
        });
        let Ok(ended) = timeout(PATIENCE, &mut begun.task).await else {
            return Ok(Outcome::Ok);
        };
        all.remove(&to);
        let ended = ended.map_err(|error| terminal("copy-failed", &error))?;
        ended
            .map(|()| Outcome::Copied { is_frozen })
            .map_err(storage_failure)
    }
}

fn interrupted(to: CopyTo) -> StorageError {
    storage::file("go on with the copy for", Path::new(&to.to_string()))(io::ErrorKind::Interrupted.into())
}

impl Order {
    /// A copy of a file that nobody writes, whole and durable.
    async fn fill(&self, storage: &Storage, over: &CancellationToken) -> Result<(), StorageError> {
        if !self.files.whole.exists() {
            storage::make_private(&self.files.directory)?;
            // A part that somebody may still write is another file from now on.
            storage::remove(&self.files.part)?;
            if self.shape.whole {
                let flattened = storage.flatten(&self.source, &self.disk, &self.files.part);
                until_over(self.to, over, flattened).await?;
            } else {
                let (files, source, over) = (self.files.clone(), self.source.clone(), over.clone());
                blocking(self.to, move || files.fill(&source, &over)).await?;
            }
        }
        self.keep(storage, over).await
    }

    /// What is copied gets its size, and its name.
    async fn keep(&self, storage: &Storage, over: &CancellationToken) -> Result<(), StorageError> {
        if let Some(bytes) = self.shape.bytes.filter(|_| !self.files.whole.exists()) {
            storage.grow(&self.files.part, bytes).await?;
        }
        let (files, over) = (self.files.clone(), over.clone());
        blocking(self.to, move || files.keep(&over)).await
    }

    /// What becomes an image goes to the server.
    async fn pass_on(
        &self,
        storage: &Storage,
        is_frozen: bool,
        over: &CancellationToken,
    ) -> Result<(), StorageError> {
        let CopyTo::Image(image) = self.to else {
            return Ok(());
        };
        let sent = storage.send_image(image, self.incarnation, &self.files.whole, is_frozen);
        until_over(self.to, over, sent).await
    }
}

/// What is dropped when it is not wanted any more.
async fn until_over(
    to: CopyTo,
    over: &CancellationToken,
    work: impl Future<Output = Result<(), StorageError>>,
) -> Result<(), StorageError> {
    let ended = over.run_until_cancelled(work).await;
    ended.unwrap_or_else(|| Err(interrupted(to)))
}

/// What is not cancelled, but ends soon when it is seen to be.
async fn blocking(
    to: CopyTo,
    work: impl FnOnce() -> Result<(), StorageError> + Send + 'static,
) -> Result<(), StorageError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|_| Err(interrupted(to)))
}

/// Where a copy comes to be.
#[derive(Clone)]
struct Files {
    directory: PathBuf,
    part: PathBuf,
    whole: PathBuf,
}

impl Files {
    fn of(whole: PathBuf) -> Self {
        let mut part = whole.clone().into_os_string();
        part.push(PART);
        Self {
            directory: whole.parent().map(Path::to_owned).unwrap_or_default(),
            part: part.into(),
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

    /// A file's own content.
    fn fill(&self, source: &Path, over: &CancellationToken) -> Result<(), StorageError> {
        let from = fs::File::open(source).map_err(storage::file("open", source))?;
        let mut private = fs::OpenOptions::new();
        let part = private.write(true).create_new(true).mode(0o600).open(&self.part);
        let copied = part.and_then(|part| copy_sparse(from, part, over));
        copied.map_err(storage::file("copy the disk to", &self.part))
    }

    /// The part becomes the whole.
    fn keep(&self, over: &CancellationToken) -> Result<(), StorageError> {
        if !self.whole.exists() {
            let part = fs::File::open(&self.part).map_err(storage::file("open", &self.part))?;
            part.sync_all().map_err(storage::file("sync", &self.part))?;
            if over.is_cancelled() {
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
fn copy_sparse(mut from: fs::File, mut to: fs::File, over: &CancellationToken) -> io::Result<()> {
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
            if over.is_cancelled() {
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
        let files = Files::of(directory.join("clone/root.qcow2"));
        fs::create_dir(&files.directory).unwrap();
        files
    }

    fn made(files: &Files, source: &Path, over: &CancellationToken) -> Result<(), StorageError> {
        files.fill(source, over)?;
        files.keep(over)
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
        let over = CancellationToken::new();
        made(&files, &source, &over).unwrap();
        assert!(fs::read(&files.whole).unwrap() == content, "it is another");
        assert!(fs::metadata(&files.whole).unwrap().blocks() * 512 < 8 << 20);
        assert!(!files.part.exists());
        // A repeat takes nothing away.
        files.keep(&over).unwrap();
        assert!(files.whole.exists());
    }

    #[test]
    fn what_is_not_wanted_any_more_gets_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::write(&source, vec![1; 1 << 20]).unwrap();
        let files = files(directory.path());
        let over = CancellationToken::new();
        over.cancel();
        assert!(made(&files, &source, &over).is_err());
        storage::remove(&files.part).unwrap();
        fs::write(&files.part, "whole").unwrap();
        assert!(files.keep(&over).is_err());
        assert!(!files.whole.exists());
    }
}
