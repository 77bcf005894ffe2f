//! The drive for media of a running guest: what is in it, and what is booted from.
//!
//! *Owns:* how a medium is known again: its digest is kept with its open file. *Does not know:* which medium should be in it.
//! *Start here:* [`Qmp::query_cdrom`].
//!
//! A change is one command of QEMU's, so there is no half of one to be found after a crash; files that were given and did
//! not get into the drive are taken back with the next change.

use std::fs::File;

use model::report::CdromState;
use model::vm::BootDevice;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Qmp, QmpError};
use crate::command_line::{CDROM, MEDIUM_PREFIX, Medium, NOT_BOOTED, boot_index};

/// Where the devices are that decide what is booted from.
const BOOTED: [(BootDevice, &str); 2] = [
    (BootDevice::Disk, "/machine/peripheral/disk0"),
    (BootDevice::Cdrom, "/machine/peripheral/cdrom"),
];

/// A drive, as `query-block` has it.
#[derive(Debug, Deserialize)]
struct Drive {
    #[serde(default)]
    qdev: Option<String>,
    #[serde(default)]
    tray_open: bool,
    #[serde(default)]
    inserted: Option<Inserted>,
}

#[derive(Debug, Deserialize)]
struct Inserted {
    file: String,
}

/// A set of open files.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct FileSet {
    pub(super) fdset_id: u32,
    fds: Vec<OpenFile>,
}

#[derive(Debug, Deserialize)]
struct OpenFile {
    #[serde(default)]
    opaque: Option<String>,
}

impl FileSet {
    /// The digest of the medium whose file it is.
    fn medium(&self) -> Option<&str> {
        self.opaque()?.strip_prefix(MEDIUM_PREFIX)
    }

    /// What was given with it.
    pub(super) fn opaque(&self) -> Option<&str> {
        self.fds.iter().find_map(|file| file.opaque.as_deref())
    }

    fn name(&self) -> String {
        name(self.fdset_id)
    }
}

fn name(set: u32) -> String {
    format!("/dev/fdset/{set}")
}

impl Qmp {
    /// How the drive is; `None` if there is none.
    pub async fn query_cdrom(&self) -> Result<Option<CdromState>, QmpError> {
        let Some(drive) = self.drive().await? else {
            return Ok(None);
        };
        let sets: Vec<FileSet> = self.query("query-fdsets").await?;
        let of_drive = |inserted: Inserted| {
            let set = sets.iter().find(|set| set.name() == inserted.file);
            // What is not ours is something else than any medium that may be wanted.
            set.and_then(FileSet::medium).unwrap_or("unknown").to_owned()
        };
        Ok(Some(CdromState {
            medium: drive.inserted.map(of_drive),
            is_open: drive.tray_open,
            boot: self.query_boot().await?,
        }))
    }

    async fn drive(&self) -> Result<Option<Drive>, QmpError> {
        let drives: Vec<Drive> = self.query("query-block").await?;
        let mut drives = drives.into_iter();
        Ok(drives.find(|drive| drive.qdev.as_deref() == Some(CDROM)))
    }

    /// Puts a medium in, open for reading only, in place of what is in the drive. A guest that holds that is asked for it, and
    /// the command refused, unless it is taken by force.
    pub async fn insert_medium(&self, file: File, sha256: &str, force: bool) -> Result<(), QmpError> {
        let arguments = json!({"opaque": Medium::opaque(sha256)});
        let given = self.execute_with_file("add-fd", arguments, file.into()).await?;
        let set = given.get("fdset-id").and_then(Value::as_u64).unwrap_or_default();
        let arguments = json!({
            "id": CDROM,
            "filename": format!("/dev/fdset/{set}"),
            "format": "raw",
            "read-only-mode": "read-only",
            "force": force,
        });
        let changed = self.act("blockdev-change-medium", arguments).await;
        self.drop_media().await;
        changed
    }

    /// Takes out what is in the drive and leaves its tray open; an empty one is opened. A guest that holds its medium is asked
    /// for it, and the command refused, unless it is taken by force.
    pub async fn eject_medium(&self, force: bool) -> Result<(), QmpError> {
        self.act("eject", json!({"id": CDROM, "force": force})).await?;
        self.drop_media().await;
        Ok(())
    }

    /// Has QEMU close the files of media that are not in the drive.
    async fn drop_media(&self) {
        let dropped = async {
            let inserted = self.drive().await?.and_then(|drive| drive.inserted);
            let sets: Vec<FileSet> = self.query("query-fdsets").await?;
            let is_used = |set: &FileSet| inserted.as_ref().is_some_and(|at| at.file == set.name());
            for set in sets.iter().filter(|set| set.medium().is_some() && !is_used(set)) {
                self.act("remove-fd", json!({"fdset-id": set.fdset_id})).await?;
            }
            Ok::<_, QmpError>(())
        };
        if let Err(error) = dropped.await {
            tracing::warn!(%error, "QEMU keeps the file of a medium that is not in its drive");
        }
    }

    /// What the guest boots from at its next reset.
    async fn query_boot(&self) -> Result<Vec<BootDevice>, QmpError> {
        let mut found = Vec::new();
        for (device, path) in BOOTED {
            let arguments = json!({"path": path, "property": "bootindex"});
            let index = self.execute("qom-get", arguments).await?.as_i64();
            found.extend(index.filter(|index| *index >= 0).map(|index| (index, device)));
        }
        found.sort_unstable();
        Ok(found.into_iter().map(|(_, device)| device).collect())
    }

    /// Has the guest boot from these from its next reset on.
    pub async fn set_boot(&self, boot: &[BootDevice]) -> Result<(), QmpError> {
        // No two devices may have the same number, not even for an instant.
        for (_, path) in BOOTED {
            self.set_boot_index(path, NOT_BOOTED).await?;
        }
        for (device, path) in BOOTED {
            self.set_boot_index(path, boot_index(boot, device)).await?;
        }
        Ok(())
    }

    async fn set_boot_index(&self, path: &str, index: i32) -> Result<(), QmpError> {
        let arguments = json!({"path": path, "property": "bootindex", "value": index});
        self.act("qom-set", arguments).await
    }
}
