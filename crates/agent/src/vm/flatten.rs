//! Effects that make the root disk whole: beside a guest by its QEMU, at rest by `qemu-img`.
//!
//! **Owns:** that a disk counts as whole when its header names nothing any more, that is durable, and it has the name that it
//! will be looked for under.
//!
//! **Does not know:** whether that is wanted.
//!
//! The disk's file stays the same one, and is valid all the time: broken off at any point it is an overlay with more of its own.
//! So there is nothing to be cleaned up, and nothing to be remembered.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use driver::types::{Failure, Outcome};
use model::Reason;
use model::copy::CopyTo;
use model::document::Disk;
use qemu::command_line::ImageFormat;
use qemu::qmp::copies::DiskCopyState;

use super::exec::{Vm, qmp_failure, storage_failure};
use crate::firmware;
use crate::storage::{self, Storage, StorageError};

impl Vm {
    /// Has the QEMU that is there make its disk whole. Asked again when it has, it makes that durable.
    pub(super) async fn flatten(&self, to: CopyTo) -> Result<Outcome, Failure> {
        let disk = self.desired()?.machine.disk;
        let live = self.live().await?;
        let copies = live.qmp.query_copies().await.map_err(qmp_failure)?;
        match copies.into_iter().find(|copy| copy.to == to) {
            None => {
                check_room(&self.host.storage, self.id.vm, &disk).await?;
                live.note_copy();
                live.qmp.start_stream(to).await.map_err(qmp_failure)?;
                Ok(Outcome::Ok)
            }
            Some(copy) if copy.state == DiskCopyState::Done => {
                self.keep_whole(disk).await?;
                // Until it is dismissed the job holds what lay under the disk. Begun again, it would end at once.
                live.qmp.drop_copy(to).await.map_err(qmp_failure)?;
                Ok(Outcome::Copied { is_frozen: false })
            }
            Some(_) => Ok(Outcome::Ok),
        }
    }

    /// Makes the disk whole that no QEMU has open.
    pub(super) async fn flatten_at_rest(&self, to: CopyTo) -> Result<Outcome, Failure> {
        let disk = self.desired()?.machine.disk;
        if !self.is_at_work(to).await {
            check_room(&self.host.storage, self.id.vm, &disk).await?;
        }
        let (storage, vm) = (self.host.storage.clone(), self.id.vm);
        self.work(to, false, async move |over| {
            let path = storage::disk_path(vm, &disk);
            let detached = over.run_until_cancelled(storage.detach(&path, &disk)).await;
            detached.unwrap_or_else(|| {
                Err(storage::file("go on with", &path)(
                    io::ErrorKind::Interrupted.into(),
                ))
            })?;
            blocking(move || keep(vm, &disk)).await
        })
        .await
    }

    async fn keep_whole(&self, disk: Disk) -> Result<(), Failure> {
        let vm = self.id.vm;
        blocking(move || keep(vm, &disk)).await.map_err(storage_failure)
    }
}

async fn blocking(
    work: impl FnOnce() -> Result<(), StorageError> + Send + 'static,
) -> Result<(), StorageError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|error| {
        Err(storage::file("keep", Path::new("the disk"))(io::Error::other(
            error,
        )))
    })
}

/// What is whole is durable. One that lay over a warm VM's disk also has the name of one that does not, and so have the variables
/// beside it: from now on it is that.
fn keep(vm: model::VmId, disk: &Disk) -> Result<(), StorageError> {
    let whole = storage::copied(disk, true);
    let variables = firmware::path(vm, disk);
    if variables.exists() {
        keep_as(&variables, &firmware::path(vm, &whole))?;
    }
    keep_as(&storage::disk_path(vm, disk), &storage::disk_path(vm, &whole))
}

/// A file is durable, and has this name too.
fn keep_as(path: &Path, name: &Path) -> Result<(), StorageError> {
    let file = fs::File::open(path).map_err(storage::file("open", path))?;
    file.sync_all().map_err(storage::file("sync", path))?;
    if name == path {
        return Ok(());
    }
    match fs::hard_link(path, name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_same(path, name) => {}
        other => other.map_err(storage::file("name", name))?,
    }
    let directory = name.parent().unwrap_or(Path::new("."));
    let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(storage::file("sync", directory))
}

fn is_same(one: &Path, other: &Path) -> bool {
    let inode = |path: &Path| fs::metadata(path).map(|at| (at.dev(), at.ino())).ok();
    inode(one).is_some() && inode(one) == inode(other)
}

/// Refuses what can be seen not to fit: on a full datastore no guest could write any more.
async fn check_room(storage: &Storage, vm: model::VmId, disk: &Disk) -> Result<(), Failure> {
    let path = storage::disk_path(vm, disk);
    let bases = storage.under(disk).await.map_err(storage_failure)?;
    let held = |path: &Path| fs::metadata(path).map_or(0, |at| at.blocks() * 512);
    let under: u64 = bases.iter().map(|(base, _): &(_, ImageFormat)| held(base)).sum();
    let needed = under.saturating_sub(held(&path));
    let directory = Path::new(&disk.datastore);
    let room = rustix::fs::statvfs(directory);
    let room = room.map_err(|error| storage_failure(storage::file("look at", directory)(error.into())))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if needed <= free {
        return Ok(());
    }
    let mib = |bytes: u64| bytes >> 20;
    let message = format!(
        "its disk needs {} MiB more to be whole, and the datastore {} has {} MiB left: make room there, then \
         `sterna vm flatten` again",
        mib(needed),
        disk.datastore,
        mib(free)
    );
    Err(Failure {
        reason: Reason::new("disk-full", message),
        is_retryable: false,
    })
}

#[cfg(test)]
mod tests {
    use model::VmId;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_whole_disk_is_found_under_the_name_of_one_that_is_over_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let vm = VmId(Uuid::from_u128(7));
        let disk = Disk {
            datastore: directory.path().to_str().unwrap().to_owned(),
            coherent: true,
            image: None,
            bytes: 1 << 20,
            layer: Some(VmId(Uuid::from_u128(8))),
        };
        let whole = Disk {
            layer: None,
            ..disk.clone()
        };
        let (path, name) = (storage::disk_path(vm, &disk), storage::disk_path(vm, &whole));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "disk").unwrap();
        let variables = firmware::path(vm, &disk);
        fs::write(&variables, "variables").unwrap();
        keep(vm, &disk).unwrap();
        assert!(is_same(&path, &name));
        assert!(is_same(&variables, &firmware::path(vm, &whole)));
        // A repeat changes nothing, also one under the new name.
        keep(vm, &disk).unwrap();
        keep(vm, &whole).unwrap();
        // What is another disk is never taken for it.
        fs::remove_file(&name).unwrap();
        fs::write(&name, "another").unwrap();
        assert!(keep(vm, &disk).is_err());
        assert_eq!(fs::read_to_string(&name).unwrap(), "another");
    }
}
