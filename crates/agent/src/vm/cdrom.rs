//! Effects of the drive for media: another medium, another order of booting.
//!
//! **Owns:** that a running guest gets a medium only when it is whole on this host, and waits for nothing meanwhile.
//!
//! **Does not know:** what is in the drive and what should be: that is the driver's.
//!
//! **Start here:** [`Vm::change_medium`].

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use driver::types::Failure;
use model::Reason;
use model::document::{ImageFile, Machine};
use qemu::command_line::{Cdrom, Medium};
use qemu::qmp::QmpError;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::exec::{Vm, qmp_failure, storage_failure};
use super::{retryable, terminal};
use crate::storage::{self, StorageError};

/// How long a change waits for its medium before it is tried again: the guest is not looked at meanwhile.
const FETCH_PATIENCE: Duration = Duration::from_secs(2);

/// A medium on its way to this host.
pub(super) type Coming = Mutex<Option<JoinHandle<Result<PathBuf, StorageError>>>>;

/// The drive that a machine is started with.
pub(super) fn drive(machine: &Machine) -> Result<Option<Cdrom>, Failure> {
    let Some(cdrom) = &machine.cdrom else {
        return Ok(None);
    };
    let medium = |image: &ImageFile| {
        Ok(Medium {
            path: storage::image_path(Path::new(&machine.disk.datastore), image)?,
            sha256: image.sha256.clone(),
        })
    };
    let medium = cdrom.medium.as_ref().map(medium).transpose();
    Ok(Some(Cdrom {
        medium: medium.map_err(storage_failure)?,
    }))
}

impl Vm {
    pub(super) async fn change_medium(&self) -> Result<(), Failure> {
        let machine = self.desired()?.machine;
        let Some(cdrom) = &machine.cdrom else {
            return Ok(());
        };
        let changed = match &cdrom.medium {
            None => self.live().await?.qmp.eject_medium(cdrom.force).await,
            Some(image) => {
                let path = self.fetch_medium(&machine.disk.datastore, image).await?;
                let file = fs::File::open(path).map_err(|error| retryable("storage-failed", &error))?;
                let qmp = &self.live().await?.qmp;
                qmp.insert_medium(file, &image.sha256, cdrom.force).await
            }
        };
        changed.map_err(|error| change_failure(error, &machine.name))
    }

    /// Its file on this host, or word that it is on its way.
    async fn fetch_medium(&self, datastore: &str, image: &ImageFile) -> Result<PathBuf, Failure> {
        let path = storage::image_path(Path::new(datastore), image).map_err(storage_failure)?;
        if path.exists() {
            return Ok(path);
        }
        let mut coming = self.medium.lock().await;
        let fetch = coming.get_or_insert_with(|| {
            let (storage, datastore) = (self.host.storage.clone(), PathBuf::from(datastore));
            let image = image.clone();
            tokio::spawn(async move { storage.image(&datastore, &image).await })
        });
        let Ok(ended) = timeout(FETCH_PATIENCE, fetch).await else {
            return Err(Failure {
                reason: Reason::new("medium-coming", "its host fetches the medium for its drive"),
                is_retryable: true,
            });
        };
        *coming = None;
        let fetched = ended.map_err(|error| terminal("image-unavailable", &error))?;
        let fetched = fetched.map_err(storage_failure)?;
        if fetched == path {
            return Ok(path);
        }
        // Another one is wanted by now.
        Err(Failure {
            reason: Reason::new("medium-coming", "its host fetches another medium for its drive"),
            is_retryable: true,
        })
    }

    pub(super) async fn set_boot(&self) -> Result<(), Failure> {
        let boot = self.desired()?.machine.boot;
        self.live().await?.qmp.set_boot(&boot).await.map_err(qmp_failure)
    }
}

/// What QEMU says of a drive whose guest has locked it.
const LOCKED: &str = "is locked";

fn change_failure(error: QmpError, name: &str) -> Failure {
    match error {
        QmpError::Command { desc, .. } if desc.contains(LOCKED) => Failure {
            reason: Reason::new(
                "medium-held",
                format!(
                    "the guest holds the medium in its drive, and was asked for it: unmount it there, or take it with \
                     `sterna vm media {name} --eject --force`"
                ),
            ),
            is_retryable: true,
        },
        error => qmp_failure(error),
    }
}
