//! Effects of suspending and resuming: the memory in a file.
//!
//! **Owns:** writing the file whole or not at all, and loading it.
//!
//! **Does not know:** whether a saved state may be used.
//!
//! **Start here:** [`Vm::save`], [`Vm::load_saved`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use driver::types::{Failure, Outcome};
use model::vm::SavedIn;
use model::{Incarnation, Reason};
use qemu::migration_settings::{file_capabilities, file_parameters};
use qemu::qmp::Qmp;
use qemu::qmp::commands::RunState;
use qemu::qmp::migration::{MigrationChannel, MigrationInfo, MigrationStatus};
use serde_json::Value;
use tokio::time::timeout;

use super::exec::{Vm, qmp_failure, storage_failure};
use super::retryable;
use crate::{config, storage};

/// How long to wait for an event before QEMU is asked anyway.
const PATIENCE: Duration = Duration::from_millis(200);

impl Vm {
    /// Asked again, it goes on where an earlier attempt was. What was saved before the guest went on is another state than
    /// the guest's, with other memory than its disk now needs: it goes, and the guest is saved anew.
    pub(super) async fn save(&self, saved_in: SavedIn) -> Result<Outcome, Failure> {
        let path = self.saved_state(self.id.incarnation, saved_in)?;
        let bytes = self.save_to(&path, file_capabilities()).await?;
        Ok(Outcome::Saved { bytes })
    }

    /// The same to a file, with these capabilities; gives its size.
    pub(super) async fn save_to(&self, path: &Path, capabilities: Value) -> Result<u64, Failure> {
        let temporary = path.with_extension("state.part");
        let qmp = self.live().await?.qmp.clone();
        let before = qmp.query_migrate().await.map_err(qmp_failure)?;
        let run = qmp.query_status().await.map_err(qmp_failure)?.status;
        let stands_still = matches!(run, RunState::FinishMigrate | RunState::PostMigrate);
        if !stands_still {
            storage::remove(path).map_err(storage_failure)?;
        } else if let Ok(metadata) = fs::metadata(path) {
            return Ok(metadata.len());
        }
        if !is_ours(&before, stands_still, &temporary) {
            qmp.stop().await.map_err(qmp_failure)?;
            settings(&qmp, capabilities).await?;
            let file = storage::new_saved_state(&temporary).map_err(storage_failure)?;
            qmp.hand_over_state(file).await.map_err(qmp_failure)?;
            qmp.migrate(&MigrationChannel::State).await.map_err(qmp_failure)?;
        }
        let info = outcome(&qmp).await?;
        qmp.drop_state().await;
        if info.status != MigrationStatus::Completed {
            // The guest goes on, and may need the room that this takes.
            if let Err(error) = storage::remove(&temporary) {
                tracing::warn!(%error, "a part of a saved state stays until the next one");
            }
            let what = "QEMU could not save the state (is there space for the guest's memory?)";
            return Err(failed("not-saved", what, info));
        }
        let bytes = storage::keep_saved_state(temporary, path.to_owned()).await;
        bytes.map_err(|error| retryable(error.code(), &error))
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
        self.load_from(&path, file_capabilities()).await
    }

    /// The same from a file, with these capabilities.
    pub(super) async fn load_from(&self, path: &Path, capabilities: Value) -> Result<(), Failure> {
        let qmp = self.live().await?.qmp.clone();
        let before = qmp.query_migrate().await.map_err(qmp_failure)?;
        if before.status == MigrationStatus::None {
            let file = fs::File::open(path).map_err(|error| saved_state_failure(&error))?;
            settings(&qmp, capabilities).await?;
            qmp.hand_over_state(file).await.map_err(qmp_failure)?;
            let from = MigrationChannel::State;
            qmp.migrate_incoming(&from).await.map_err(qmp_failure)?;
        }
        let info = outcome(&qmp).await?;
        qmp.drop_state().await;
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

fn saved_state_failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound => super::terminal("saved-state-missing", error),
        _ => retryable("storage-failed", error),
    }
}

/// Whether the migration that QEMU speaks of writes this file: it is there only from just before one does. One that has
/// completed and left it empty is the one by which the guest came here; one that completed has not left the guest as it is
/// unless that stands still.
fn is_ours(info: &MigrationInfo, stands_still: bool, temporary: &Path) -> bool {
    let bytes = fs::metadata(temporary).map(|metadata| metadata.len());
    match info.status {
        MigrationStatus::None | MigrationStatus::Failed | MigrationStatus::Cancelled => false,
        MigrationStatus::Completed => stands_still && bytes.is_ok_and(|bytes| bytes > 0),
        _ => bytes.is_ok(),
    }
}

async fn settings(qmp: &Qmp, capabilities: Value) -> Result<(), Failure> {
    qmp.migrate_set_capabilities(capabilities)
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
