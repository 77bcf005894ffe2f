//! Effects of suspending and resuming: the memory in a file.
//!
//! **Owns:** writing the file whole or not at all, and loading it.
//!
//! **Does not know:** whether a saved state may be used.
//!
//! **Start here:** [`Vm::save`], [`Vm::load_saved`].

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use driver::types::{Failure, Outcome};
use model::vm::SavedIn;
use model::{Incarnation, Reason};
use qemu::migration_settings::{file_capabilities, file_parameters};
use qemu::qmp::Qmp;
use qemu::qmp::migration::{MigrationChannel, MigrationInfo, MigrationStatus};
use tokio::time::timeout;

use super::exec::{Vm, qmp_failure, storage_failure};
use super::retryable;
use crate::{config, storage};

/// How long to wait for an event before QEMU is asked anyway.
const PATIENCE: Duration = Duration::from_millis(200);

impl Vm {
    /// Asked again, it goes on where an earlier attempt was.
    pub(super) async fn save(&self, saved_in: SavedIn) -> Result<Outcome, Failure> {
        let path = self.saved_state(self.id.incarnation, saved_in)?;
        if let Ok(metadata) = fs::metadata(&path) {
            return Ok(Outcome::Saved {
                bytes: metadata.len(),
            });
        }
        let temporary = path.with_extension("state.part");
        let qmp = self.live().await?.qmp.clone();
        let before = qmp.query_migrate().await.map_err(qmp_failure)?;
        if !is_ours(&before, &temporary) {
            // QEMU writes into the file that is there.
            storage::remove(&temporary).map_err(|error| retryable(error.code(), &error))?;
            qmp.stop().await.map_err(qmp_failure)?;
            settings(&qmp).await?;
            let to = MigrationChannel::File(temporary.to_string_lossy().into_owned());
            qmp.migrate(&to).await.map_err(qmp_failure)?;
        }
        let info = outcome(&qmp).await?;
        if info.status != MigrationStatus::Completed {
            // The guest goes on, and may need the room that this takes.
            if let Err(error) = storage::remove(&temporary) {
                tracing::warn!(%error, "a part of a saved state stays until the next one");
            }
            let what = "QEMU could not save the state (is there space for the guest's memory?)";
            return Err(failed("not-saved", what, info));
        }
        let bytes = storage::keep_saved_state(temporary, path).await;
        bytes
            .map(|bytes| Outcome::Saved { bytes })
            .map_err(|error| retryable(error.code(), &error))
    }

    /// Where the state that an incarnation saved is.
    fn saved_state(&self, incarnation: Incarnation, saved_in: SavedIn) -> Result<PathBuf, Failure> {
        match saved_in {
            SavedIn::Host => Ok(self.dir().saved_state(incarnation)),
            SavedIn::Datastore => {
                let disk = self.desired()?.machine.disk;
                Ok(config::saved_state(
                    Path::new(&disk.datastore),
                    self.id.vm,
                    incarnation,
                ))
            }
        }
    }

    pub(super) fn remove_saved(&self, incarnation: Incarnation, saved_in: SavedIn) -> Result<(), Failure> {
        let path = self.saved_state(incarnation, saved_in)?;
        storage::remove(&path).map_err(storage_failure)
    }

    pub(super) async fn load_saved(
        &self,
        incarnation: Incarnation,
        saved_in: SavedIn,
    ) -> Result<(), Failure> {
        let path = self.saved_state(incarnation, saved_in)?;
        let qmp = self.live().await?.qmp.clone();
        let before = qmp.query_migrate().await.map_err(qmp_failure)?;
        if before.status == MigrationStatus::None {
            fs::metadata(&path).map_err(|error| super::terminal("saved-state-missing", &error))?;
            settings(&qmp).await?;
            let from = MigrationChannel::File(path.to_string_lossy().into_owned());
            qmp.migrate_incoming(&from).await.map_err(qmp_failure)?;
        }
        let info = outcome(&qmp).await?;
        match info.status {
            MigrationStatus::Completed => Ok(()),
            _ => Err(Failure {
                is_retryable: false,
                ..failed(
                    "saved-state-unusable",
                    "QEMU could not load the saved state",
                    info,
                )
            }),
        }
    }
}

/// Whether the migration that QEMU speaks of writes this file: it is there only while one does, or after it did.
fn is_ours(info: &MigrationInfo, temporary: &Path) -> bool {
    let failed = matches!(
        info.status,
        MigrationStatus::None | MigrationStatus::Failed | MigrationStatus::Cancelled
    );
    !failed && temporary.exists()
}

async fn settings(qmp: &Qmp) -> Result<(), Failure> {
    qmp.migrate_set_capabilities(file_capabilities())
        .await
        .map_err(qmp_failure)?;
    qmp.migrate_set_parameters(file_parameters())
        .await
        .map_err(qmp_failure)
}

/// How the transfer ended.
async fn outcome(qmp: &Qmp) -> Result<MigrationInfo, Failure> {
    let mut events = qmp.events();
    loop {
        let info = qmp.query_migrate().await.map_err(qmp_failure)?;
        if info.status.is_final() {
            return Ok(info);
        }
        if let Ok(None) = timeout(PATIENCE, events.next()).await {
            tokio::time::sleep(PATIENCE).await;
        }
    }
}

fn failed(code: &str, what: &str, info: MigrationInfo) -> Failure {
    let why = info
        .error_desc
        .unwrap_or_else(|| format!("it says {:?}", info.status));
    Failure {
        reason: Reason::new(code, format!("{what}: {why}")),
        is_retryable: true,
    }
}
