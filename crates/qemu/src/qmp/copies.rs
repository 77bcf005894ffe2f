//! Copies of a running guest's root disk: what it was at one instant, while the guest goes on.
//!
//! *Owns:* the names of jobs and nodes, by which a copy is known again, also after its agent's restart. *Does not know:* where
//! copies go and whether they are wanted. *Start here:* [`Qmp::give_copy_target`], then [`Qmp::start_copy`].
//!
//! QEMU copies what is above the image (`sync=top`), or all that the guest sees (`sync=full`), and before the guest overwrites something it copies that first. An
//! ended job stays until it is dropped.
//!
//! The disk itself is made whole by a job of the same kind of name, which fetches what it has from what is under it.

use std::fs::File;
use std::time::Duration;

use model::copy::CopyTo;
use model::report::CopyProgress;
use model::{ImageId, VmId};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::cdrom::FileSet;
use super::{Qmp, QmpError};
use crate::command_line::{Cache, cache};

/// The disk that is copied, and the image under it.
const SOURCE: &str = "disk0";
const SOURCE_BASE: &str = "disk0-base";
/// What jobs and nodes of copies begin with.
const PREFIX: &str = "copy-";
/// What marks a job whose copy is one of frozen file systems, and one that is not.
const FROZEN: &str = "frozen";
const RUNNING: &str = "running";
/// What QEMU keeps with a copy's open file begins with it.
const OPAQUE: &str = "copy:";
/// How long a cancelled job may take to end.
const END_DEADLINE: Duration = Duration::from_secs(10);
const END_PAUSE: Duration = Duration::from_millis(20);

/// A copy as QEMU has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCopy {
    /// What it is for.
    pub to: CopyTo,
    /// Whether the guest's file systems were frozen when it was begun.
    pub is_frozen: bool,
    /// How far it is.
    pub state: DiskCopyState,
    /// How much is done, and of how much, in bytes of the disk.
    pub progress: CopyProgress,
}

/// What a copy is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The image that its source is over too.
    Image,
    /// It has all by itself.
    Nothing,
}

/// How far a copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskCopyState {
    /// Under way.
    Copies,
    /// All is copied.
    Done,
    /// It failed or was cancelled, in QEMU's words.
    Failed(String),
}

/// A job, as `query-jobs` has it.
#[derive(Debug, Deserialize)]
struct Job {
    id: String,
    status: String,
    #[serde(default)]
    error: Option<String>,
    #[serde(default, rename = "current-progress")]
    done_bytes: u64,
    #[serde(default, rename = "total-progress")]
    total_bytes: u64,
}

impl Job {
    fn copy(self) -> Option<DiskCopy> {
        let (to, mode) = self.id.strip_prefix(PREFIX)?.rsplit_once('-')?;
        let state = match (self.status.as_str(), self.error) {
            ("concluded", None) => DiskCopyState::Done,
            ("concluded", Some(error)) => DiskCopyState::Failed(error),
            _ => DiskCopyState::Copies,
        };
        Some(DiskCopy {
            to: to.parse().ok()?,
            is_frozen: mode == FROZEN,
            state,
            progress: CopyProgress {
                done_bytes: self.done_bytes,
                total_bytes: self.total_bytes,
            },
        })
    }
}

fn job(to: CopyTo, is_frozen: bool) -> String {
    let mode = if is_frozen { FROZEN } else { RUNNING };
    format!("{PREFIX}{to}-{mode}")
}

/// Nodes' names are short: the random end of the id is enough.
fn node(to: CopyTo) -> String {
    let (CopyTo::Vm(VmId(id)) | CopyTo::Image(ImageId(id))) = to else {
        return format!("{PREFIX}{to}");
    };
    format!("{PREFIX}{}", &id.simple().to_string()[8..])
}

impl Qmp {
    /// The copies under way, and those that have ended and were not dropped.
    pub async fn query_copies(&self) -> Result<Vec<DiskCopy>, QmpError> {
        let jobs: Vec<Job> = self.query("query-jobs").await?;
        Ok(jobs.into_iter().filter_map(Job::copy).collect())
    }

    /// Gives QEMU the empty file that a copy goes to, open for reading and writing. `base`: what it is over.
    pub async fn give_copy_target(
        &self,
        to: CopyTo,
        file: File,
        base: Base,
        mode: Cache,
    ) -> Result<(), QmpError> {
        self.take_copy_target(to).await?;
        let arguments = json!({"opaque": format!("{OPAQUE}{to}")});
        let given = self.execute_with_file("add-fd", arguments, file.into()).await?;
        let set = given.get("fdset-id").and_then(Value::as_u64).unwrap_or_default();
        let target = json!({
            "driver": "qcow2",
            "node-name": node(to),
            "discard": "unmap",
            "cache": cache(mode),
            "file": {
                "driver": "file",
                "filename": format!("/dev/fdset/{set}"),
                "locking": "on",
                "discard": "unmap",
                "cache": cache(mode),
            },
            "backing": match base {
                Base::Image => json!(SOURCE_BASE),
                Base::Nothing => Value::Null,
            },
        });
        self.act("blockdev-add", target).await
    }

    /// Begins to copy what the disk is now into its target: what is above what the target is over.
    pub async fn start_copy(&self, to: CopyTo, base: Base, is_frozen: bool) -> Result<(), QmpError> {
        let arguments = json!({
            "job-id": job(to, is_frozen),
            "device": SOURCE,
            "target": node(to),
            "sync": match base {
                Base::Image => "top",
                Base::Nothing => "full",
            },
            "auto-dismiss": false,
        });
        self.act("blockdev-backup", arguments).await
    }

    /// Begins to make the disk whole: afterwards it is over nothing, and its header says so. Of one that is whole already this ends
    /// at once.
    pub async fn start_stream(&self, to: CopyTo) -> Result<(), QmpError> {
        let arguments = json!({
            "job-id": job(to, false),
            "device": SOURCE,
            "auto-dismiss": false,
        });
        self.act("block-stream", arguments).await
    }

    /// Has QEMU write out and close the target of a copy, if it has one that no job is writing.
    pub async fn take_copy_target(&self, to: CopyTo) -> Result<(), QmpError> {
        let name = node(to);
        match self.act("blockdev-del", json!({"node-name": name})).await {
            Err(QmpError::Command { desc, .. }) if desc.contains("find node") => {}
            other => other?,
        }
        let sets: Vec<FileSet> = self.query("query-fdsets").await?;
        let opaque = format!("{OPAQUE}{to}");
        for set in sets.iter().filter(|set| set.opaque() == Some(opaque.as_str())) {
            self.act("remove-fd", json!({"fdset-id": set.fdset_id})).await?;
        }
        Ok(())
    }

    /// Ends a copy, whatever it is at, and forgets it: afterwards nothing of it is open.
    pub async fn drop_copy(&self, to: CopyTo) -> Result<(), QmpError> {
        let begun = Instant::now();
        let mut is_cancelled = false;
        while let Some(copy) = self.query_copies().await?.into_iter().find(|copy| copy.to == to) {
            let id = job(to, copy.is_frozen);
            if copy.state != DiskCopyState::Copies {
                self.act("job-dismiss", json!({"id": id})).await?;
            } else if !is_cancelled {
                self.act("job-cancel", json!({"id": id})).await?;
                is_cancelled = true;
            } else if begun.elapsed() > END_DEADLINE {
                return Err(QmpError::Protocol {
                    command: "job-cancel".to_owned(),
                    detail: format!("the job {id} has not ended"),
                });
            } else {
                sleep(END_PAUSE).await;
            }
        }
        self.take_copy_target(to).await
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_job_tells_whose_disk_it_copies_and_how() {
        let id = Uuid::from_u128(0x0190_b2a4_0000_7000_8000_0000_0000_0001);
        let [to, image] = [CopyTo::Vm(id.into()), CopyTo::Image(id.into())];
        for (is_frozen, status, error, state) in [
            (true, "running", None, DiskCopyState::Copies),
            (false, "aborting", None, DiskCopyState::Copies),
            (true, "concluded", None, DiskCopyState::Done),
            (
                false,
                "concluded",
                Some("no space"),
                DiskCopyState::Failed("no space".to_owned()),
            ),
        ] {
            let found = Job {
                id: job(to, is_frozen),
                status: status.to_owned(),
                error: error.map(str::to_owned),
                done_bytes: 5,
                total_bytes: 9,
            };
            let progress = CopyProgress {
                done_bytes: 5,
                total_bytes: 9,
            };
            let copy = DiskCopy {
                to,
                is_frozen,
                state,
                progress,
            };
            assert_eq!(found.copy(), Some(copy));
        }
        let of_image = Job {
            id: job(image, true),
            status: "running".to_owned(),
            error: None,
            done_bytes: 0,
            total_bytes: 0,
        };
        assert_eq!(of_image.copy().map(|copy| copy.to), Some(image));
        let itself = CopyTo::Itself { request: 3 };
        let of_itself = Job {
            id: job(itself, false),
            status: "running".to_owned(),
            error: None,
            done_bytes: 0,
            total_bytes: 0,
        };
        assert_eq!(of_itself.copy().map(|copy| copy.to), Some(itself));
        let other = Job {
            id: "stream0".to_owned(),
            status: "running".to_owned(),
            error: None,
            done_bytes: 0,
            total_bytes: 0,
        };
        assert_eq!(other.copy(), None);
        assert!(node(to).len() <= 31, "QEMU takes no longer names");
    }
}
