//! Disk images by `qemu-img`.
//!
//! *Owns:* its command lines, its JSON, and the bounds on both. *Does not know:* datastores, digests, or whether a VM uses an
//! image. *Start here:* [`QemuImg`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::command_line::ImageFormat;
use crate::command_output::{self, first_lines};

const INFO_BYTES_MAX: usize = 1024 * 1024;
/// The bound on what goes through a whole disk.
const FLATTEN_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// The `qemu-img` program and how long it may take.
#[derive(Clone, Debug)]
pub struct QemuImg {
    /// The program, by path or by name.
    pub program: PathBuf,
    /// The bound on each call.
    pub deadline: Duration,
}

impl Default for QemuImg {
    fn default() -> Self {
        Self {
            program: PathBuf::from("qemu-img"),
            deadline: Duration::from_secs(30),
        }
    }
}

/// Why `qemu-img` did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The path is not one that can be handed to QEMU.
    #[error(
        "{action} {}: the path must be absolute, in UTF-8 and without control characters",
        path.display()
    )]
    Path {
        /// What was attempted.
        action: &'static str,
        /// The path in question.
        path: PathBuf,
    },
    /// The program could not be run to its end.
    #[error("{action} {}: qemu-img failed: {cause}; {remedy}", path.display())]
    Run {
        /// What was attempted.
        action: &'static str,
        /// The image.
        path: PathBuf,
        /// What went wrong.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The program refused.
    #[error("{action} {}: qemu-img refused: {stderr}; {remedy}", path.display())]
    Refused {
        /// What was attempted.
        action: &'static str,
        /// The image.
        path: PathBuf,
        /// The first lines of its standard error.
        stderr: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Its answer was not what it should be.
    #[error("{action} {}: the answer of qemu-img cannot be read", path.display())]
    Answer {
        /// What was attempted.
        action: &'static str,
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// What `qemu-img info` says of an image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ImageInfo {
    /// The format: as told, or as found.
    pub format: String,
    /// The size that a guest sees.
    #[serde(rename = "virtual-size")]
    pub virtual_size_bytes: u64,
    /// What it occupies.
    #[serde(rename = "actual-size")]
    pub actual_size_bytes: u64,
    /// The image under it, as written in its header.
    #[serde(default, rename = "backing-filename")]
    pub backing_path: Option<String>,
    /// The format of the image under it, as written in its header.
    #[serde(default, rename = "backing-filename-format")]
    pub backing_format: Option<String>,
    /// What only this format has.
    #[serde(default, rename = "format-specific")]
    specific: Specific,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Specific {
    #[serde(default)]
    data: SpecificData,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct SpecificData {
    #[serde(default, rename = "data-file")]
    data_file: Option<String>,
    #[serde(default)]
    extents: Vec<serde_json::Value>,
}

impl ImageInfo {
    /// Whether using the image opens other files that its header names. An image from outside that does is an attempt to
    /// read this machine's files, and must be refused.
    pub fn names_other_files(&self) -> bool {
        let extents = self.specific.data.extents.len();
        self.backing_path.is_some() || self.specific.data.data_file.is_some() || extents > 1
    }
}

impl ImageError {
    /// Whether there was no room for it.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Refused { stderr, .. } if stderr.contains("No space left on device"))
    }
}

impl QemuImg {
    /// Makes a qcow2 overlay at `path` over `base`. It has the base's size, or `size_bytes`. An existing file is overwritten.
    pub async fn create_overlay(
        &self,
        path: &Path,
        base: &Path,
        base_format: ImageFormat,
        size_bytes: Option<u64>,
    ) -> Result<(), ImageError> {
        let action = "creating the overlay";
        let mut command = Command::new(&self.program);
        command
            .args(["create", "-q", "-f", "qcow2", "-F", base_format.name()])
            .args(["-b", text(action, base)?, text(action, path)?]);
        command.args(size_bytes.map(|size_bytes| size_bytes.to_string()));
        let remedy = "check that the base image is there and readable, and that the datastore has room";
        self.run(action, path, remedy, command).await.map(drop)
    }

    /// Makes an empty qcow2 image of `size_bytes` at `path`. An existing file is overwritten.
    pub async fn create_empty(&self, path: &Path, size_bytes: u64) -> Result<(), ImageError> {
        let action = "creating the image";
        let mut command = Command::new(&self.program);
        command
            .args(["create", "-q", "-f", "qcow2", text(action, path)?])
            .arg(size_bytes.to_string());
        let remedy = "check that its directory is there and that the datastore has room";
        self.run(action, path, remedy, command).await.map(drop)
    }

    /// Makes the qcow2 image at `path`, which nobody may have open, one of `bytes`. What it is over stays as it is.
    pub async fn grow(&self, path: &Path, bytes: u64) -> Result<(), ImageError> {
        let action = "growing the disk";
        let image = node(ImageFormat::Qcow2, text(action, path)?, &Value::Null);
        let mut command = Command::new(&self.program);
        command.args(["resize", "-q", &format!("json:{image}"), &bytes.to_string()]);
        let remedy = "check that the file is there and that the datastore has room";
        self.run(action, path, remedy, command).await.map(drop)
    }

    /// All that a guest sees of the qcow2 image at `path`, over `bases`, the nearest first, as one qcow2 image at `to`, which nobody may
    /// have open. What stands in `path`'s own header of other files is not believed.
    pub async fn flatten(
        &self,
        path: &Path,
        bases: &[(PathBuf, ImageFormat)],
        to: &Path,
    ) -> Result<(), ImageError> {
        let action = "copying the content of the disk to";
        let source = chain(action, path, bases)?;
        let mut command = Command::new(&self.program);
        command
            .args(["convert", "-q", "-O", "qcow2"])
            .args([&format!("json:{source}"), text(action, to)?]);
        let remedy =
            "check that the disk and its image are there and readable, and that the datastore has room";
        let slow = Self {
            deadline: FLATTEN_DEADLINE,
            ..self.clone()
        };
        slow.run(action, to, remedy, command).await.map(drop)
    }

    /// Makes the qcow2 image at `path`, which nobody else may have open, over nothing: what its guest sees of `bases`, the
    /// nearest first, is written into it, then its header names them no more. Broken off at any time it is as good over `bases` as
    /// before, and the next attempt goes on from there.
    pub async fn detach(&self, path: &Path, bases: &[(PathBuf, ImageFormat)]) -> Result<(), ImageError> {
        let action = "making the disk whole";
        let source = chain(action, path, bases)?;
        // It goes with who started it: nobody else would know of it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
        command.args(["rebase", "-q", "-b", "", &format!("json:{source}")]);
        let remedy = "check that the disk and what is under it are there and readable, and that the datastore has room";
        let slow = Self {
            deadline: FLATTEN_DEADLINE,
            ..self.clone()
        };
        slow.run(action, path, remedy, command).await.map(drop)
    }

    /// What the image is. Works beside a QEMU that uses it. Without a format QEMU guesses, which is right for an import
    /// only: see [`ImageInfo::names_other_files`].
    pub async fn info(&self, path: &Path, format: Option<ImageFormat>) -> Result<ImageInfo, ImageError> {
        let action = "inspecting the image";
        let mut command = Command::new(&self.program);
        command.args(["info", "--output=json", "--force-share"]);
        if let Some(format) = format {
            command.args(["-f", format.name()]);
        }
        command.arg(text(action, path)?);
        let remedy = "check that the file is there, is readable and is a disk image";
        let stdout = self.run(action, path, remedy, command).await?;
        serde_json::from_slice(&stdout).map_err(|source| ImageError::Answer {
            action,
            path: path.to_owned(),
            source,
        })
    }

    async fn run(
        &self,
        action: &'static str,
        path: &Path,
        remedy: &'static str,
        mut command: Command,
    ) -> Result<Vec<u8>, ImageError> {
        let ran = command_output::run(&mut command, self.deadline, INFO_BYTES_MAX).await;
        let output = ran.map_err(|error| ImageError::Run {
            action,
            path: path.to_owned(),
            cause: error.to_string(),
            remedy: "check that qemu-utils is installed and that the datastore answers",
        })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(ImageError::Refused {
            action,
            path: path.to_owned(),
            stderr: first_lines(&output.stderr),
            remedy,
        })
    }
}

/// An image as QEMU opens it, each part of which is named: nothing is looked up in its header.
fn node(format: ImageFormat, path: &str, backing: &Value) -> Value {
    let file = json!({"driver": "file", "filename": path});
    match format {
        ImageFormat::Raw => json!({"driver": "raw", "file": file}),
        ImageFormat::Qcow2 => json!({"driver": "qcow2", "file": file, "backing": backing}),
    }
}

/// A qcow2 image over others, the nearest first.
fn chain(action: &'static str, path: &Path, bases: &[(PathBuf, ImageFormat)]) -> Result<Value, ImageError> {
    let mut under = Value::Null;
    for (base, format) in bases.iter().rev() {
        under = node(*format, text(action, base)?, &under);
    }
    Ok(node(ImageFormat::Qcow2, text(action, path)?, &under))
}

/// An absolute path is neither taken for an option nor for a protocol (`nbd:…`, `json:…`).
fn text<'a>(action: &'static str, path: &'a Path) -> Result<&'a str, ImageError> {
    let usable = path
        .to_str()
        .filter(|text| path.is_absolute() && !text.contains(char::is_control));
    usable.ok_or_else(|| ImageError::Path {
        action,
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_overlay_names_its_base_and_takes_its_size() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("base, with:odd name.qcow2");
        let overlay = directory.path().join("overlay.qcow2");
        let larger = directory.path().join("larger.qcow2");
        let qemu_img = QemuImg::default();
        qemu_img.create_empty(&base, 8 << 20).await.unwrap();
        let format = ImageFormat::Qcow2;
        qemu_img
            .create_overlay(&overlay, &base, format, None)
            .await
            .unwrap();
        qemu_img
            .create_overlay(&larger, &base, format, Some(32 << 20))
            .await
            .unwrap();
        let info = qemu_img.info(&overlay, Some(format)).await.unwrap();
        assert_eq!(info.format, "qcow2");
        assert_eq!(info.virtual_size_bytes, 8 << 20);
        assert_eq!(info.backing_path.as_deref(), base.to_str());
        assert_eq!(info.backing_format.as_deref(), Some("qcow2"));
        assert!(info.names_other_files());
        assert!(info.actual_size_bytes > 0);
        let info = qemu_img.info(&larger, None).await.unwrap();
        assert_eq!(info.virtual_size_bytes, 32 << 20);
        let info = qemu_img.info(&base, None).await.unwrap();
        assert!(!info.names_other_files());
    }

    /// Fills a part of an image with a byte.
    fn fill(path: &Path, what: &str) {
        let mut command = std::process::Command::new("qemu-io");
        let ran = command
            .args(["-f", "qcow2", "-c", what])
            .arg(path)
            .output()
            .unwrap();
        assert!(ran.status.success(), "{ran:?}");
    }

    #[tokio::test]
    async fn a_disk_that_is_made_whole_is_the_same_at_every_moment() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let [base, layer, disk, before] = ["base", "layer", "disk", "before"].map(path);
        let qemu_img = QemuImg::default();
        let format = ImageFormat::Qcow2;
        qemu_img.create_empty(&base, 256 << 20).await.unwrap();
        fill(&base, "write -P 7 0 128M");
        qemu_img
            .create_overlay(&layer, &base, format, None)
            .await
            .unwrap();
        fill(&layer, "write -P 3 30M 3M");
        let larger = Some(300 << 20);
        qemu_img
            .create_overlay(&disk, &layer, format, larger)
            .await
            .unwrap();
        fill(&disk, "write -P 9 10M 1M");
        fill(&disk, "write -z -u 50M 10M");
        let bases = [(layer, format), (base, format)];
        qemu_img.flatten(&disk, &bases, &before).await.unwrap();
        let is_the_same = async |over: &[(PathBuf, ImageFormat)]| {
            let now = path("now");
            qemu_img.flatten(&disk, over, &now).await.unwrap();
            let mut compare = std::process::Command::new("qemu-img");
            compare.args(["compare", "-q"]).args([&before, &now]);
            assert!(compare.status().unwrap().success());
        };
        for ms in [15, 40, 120] {
            let attempt = qemu_img.detach(&disk, &bases);
            let _ = tokio::time::timeout(Duration::from_millis(ms), attempt).await;
            // It is reaped in its own time, and holds the file's lock until then.
            tokio::time::sleep(Duration::from_millis(300)).await;
            is_the_same(&bases).await;
        }
        qemu_img.detach(&disk, &bases).await.unwrap();
        let info = qemu_img.info(&disk, Some(format)).await.unwrap();
        assert!(!info.names_other_files(), "{info:?}");
        // Whoever does not know that it is whole yet, and opens it as before, sees the same.
        is_the_same(&[]).await;
        is_the_same(&bases).await;
        qemu_img.detach(&disk, &bases).await.unwrap();
        is_the_same(&[]).await;
    }

    #[tokio::test]
    async fn a_refusal_names_the_path_the_attempt_and_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing.qcow2");
        let path = directory.path().join("new.qcow2");
        let qemu_img = QemuImg::default();
        let created = qemu_img
            .create_overlay(&path, &missing, ImageFormat::Qcow2, None)
            .await;
        let message = created.unwrap_err().to_string();
        assert!(message.contains("creating the overlay"), "{message}");
        assert!(message.contains("new.qcow2"), "{message}");
        assert!(message.contains("No such file"), "{message}");
        assert!(message.contains("check that the base image"), "{message}");
        let relative = qemu_img.info(Path::new("-h"), None).await;
        assert!(matches!(relative, Err(ImageError::Path { .. })));
    }
}
