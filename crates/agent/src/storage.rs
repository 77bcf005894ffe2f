//! Files of VMs: images, disks, seeds, saved states, and their removal.
//!
//! **Owns:** how each file comes into being whole or not at all, and how it goes.
//!
//! **Does not know:** which VM may run, who decided that a file goes.
//!
//! **Start here:** [`Storage::image`] and [`Storage::disk`]. Datastores may be shared between hosts: every file gets
//! a name of its own first and is renamed when it is whole, so that two hosts that do the same do no harm.

mod send;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use model::digest::hex;
use model::document::{Disk, ImageFile, Machine};
use model::image::ImageFormat;
use model::{HostId, ImageId, VmId};
use qemu::image::{ImageError, QemuImg};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::chance;
use crate::config::{image_dir, volume_dir};
use crate::unneeded;

/// How long a server may be silent in the midst of an image.
const SILENCE_DEADLINE: Duration = Duration::from_secs(30);
/// What is older than this was left by an agent that died.
const STALE_AGE: Duration = Duration::from_secs(24 * 3600);

/// What went wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The file system.
    #[error("cannot {what} {path}")]
    File {
        /// What was attempted.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The server.
    #[error("cannot fetch the image {sha256} from the server: {why}")]
    Fetch {
        /// Which image.
        sha256: String,
        /// Why not.
        why: String,
    },
    /// The server took no content.
    #[error("cannot give the content of image {image} to the server: {why}")]
    Send {
        /// Which image.
        image: ImageId,
        /// Why not.
        why: String,
    },
    /// What came is not what was asked for.
    #[error(
        "the image {sha256} arrived with the digest {found}: the server's copy is damaged, import the image again"
    )]
    Digest {
        /// What was asked for.
        sha256: String,
        /// What came.
        found: String,
    },
    /// The name of an image.
    #[error("{0:?} is no SHA-256 digest in lower-case hexadecimal")]
    Name(String),
    /// `qemu-img`.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl StorageError {
    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::File { source, .. } if source.kind() == io::ErrorKind::StorageFull => "disk-full",
            Self::File { .. } => "storage-failed",
            Self::Fetch { .. } => "image-unavailable",
            Self::Digest { .. } => "image-digest-mismatch",
            Self::Name(_) => "image-name-invalid",
            Self::Send { .. } => "image-not-taken",
            Self::Image(error) if error.is_full() => "disk-full",
            Self::Image(_) => "disk-not-made",
        }
    }

    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Digest { .. } | Self::Name(_) | Self::Send { .. })
    }
}

/// What became of an attempt at a file.
pub fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::File { what, path, source }
}

/// Access to files of VMs.
#[derive(Clone)]
pub struct Storage {
    client: reqwest::Client,
    server: String,
    host: HostId,
    tool: QemuImg,
    fetches: Arc<Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>>>,
}

impl Storage {
    /// Fetches images from this server, for this host.
    pub fn new(client: reqwest::Client, server: String, host: HostId) -> Self {
        Self {
            client,
            server,
            host,
            tool: QemuImg::default(),
            fetches: Arc::default(),
        }
    }

    /// The image's file in the datastore, fetched if it is not there.
    pub async fn image(&self, datastore: &Path, image: &ImageFile) -> Result<PathBuf, StorageError> {
        let path = image_path(datastore, image)?;
        if path.exists() {
            return Ok(path);
        }
        let turn = Arc::clone(self.fetches.lock().await.entry(path.clone()).or_default());
        let _turn = turn.lock().await;
        unneeded::back(&path);
        if !path.exists() {
            let directory = image_dir(datastore);
            fs::create_dir_all(&directory).map_err(file("make", &directory))?;
            remove_stale(&directory);
            remove_own(&directory, self.host, &image.sha256);
            self.fetch(&image.sha256, &path).await?;
        }
        Ok(path)
    }

    async fn fetch(&self, sha256: &str, path: &Path) -> Result<(), StorageError> {
        let temporary = path.with_extension(format!("{}-{}.part", self.host, chance::unique()));
        let fetched = self.fetch_to(sha256, &temporary).await;
        let kept = fetched.and_then(|()| fs::rename(&temporary, path).map_err(file("rename", &temporary)));
        if kept.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        kept
    }

    async fn fetch_to(&self, sha256: &str, temporary: &Path) -> Result<(), StorageError> {
        let failed = |why: String| StorageError::Fetch {
            sha256: sha256.to_owned(),
            why,
        };
        let late = || failed(format!("it was silent for {} s", SILENCE_DEADLINE.as_secs()));
        let describe = |error: reqwest::Error| failed(crate::link::chain(&error));
        let url = format!("{}/agent/v1/images/{sha256}", self.server);
        let answer = timeout(SILENCE_DEADLINE, self.client.get(url).send())
            .await
            .map_err(|_| late())?;
        let answer = answer
            .and_then(reqwest::Response::error_for_status)
            .map_err(describe)?;
        let mut output = tokio::fs::File::create(temporary)
            .await
            .map_err(file("make", temporary))?;
        let mut body = answer.bytes_stream();
        let mut digest = Sha256::new();
        let (mut bytes, mut position) = (0, 0);
        while let Some(chunk) = timeout(SILENCE_DEADLINE, body.next()).await.map_err(|_| late())? {
            let chunk = chunk.map_err(describe)?;
            digest.update(&chunk);
            let written = write_data(&mut output, &chunk, bytes, &mut position).await;
            written.map_err(file("write", temporary))?;
            bytes += chunk.len() as u64;
        }
        let ended = end_writing(&mut output, bytes).await;
        ended.map_err(file("write", temporary))?;
        let found = hex(&digest.finalize());
        if found != sha256 {
            return Err(StorageError::Digest {
                sha256: sha256.to_owned(),
                found,
            });
        }
        output.sync_all().await.map_err(file("sync", temporary))
    }

    /// All that a guest sees of a disk that no QEMU has open, as a file of its own.
    pub async fn flatten(&self, path: &Path, disk: &Disk, to: &Path) -> Result<(), StorageError> {
        let bases = self.under(disk).await?;
        Ok(self.tool.flatten(path, &bases, to).await?)
    }

    /// Makes a disk whole, where it is, that no QEMU has open.
    pub async fn detach(&self, path: &Path, disk: &Disk) -> Result<(), StorageError> {
        let bases = self.under(disk).await?;
        if bases.is_empty() {
            return Ok(());
        }
        Ok(self.tool.detach(path, &bases).await?)
    }

    /// What a disk is over, the nearest first.
    pub async fn under(
        &self,
        disk: &Disk,
    ) -> Result<Vec<(PathBuf, qemu::command_line::ImageFormat)>, StorageError> {
        let layer = layer_path(disk).map(|layer| (layer, qemu::command_line::ImageFormat::Qcow2));
        let image = match &disk.image {
            Some(image) => {
                let path = self.image(Path::new(&disk.datastore), image).await?;
                Some((path, qemu_format(image.format)))
            }
            None => None,
        };
        Ok(layer.into_iter().chain(image).collect())
    }

    /// Makes a disk larger that no QEMU has open.
    pub async fn grow(&self, path: &Path, bytes: u64) -> Result<(), StorageError> {
        Ok(self.tool.grow(path, bytes).await?)
    }

    /// What a copy of a disk goes to: an empty disk of its size, over what the disk is over unless all of it is copied.
    pub async fn empty_copy(&self, path: &Path, disk: &Disk, is_whole: bool) -> Result<(), StorageError> {
        if let Some(layer) = layer_path(disk).filter(|_| !is_whole) {
            return self.over_layer(path, &layer, disk).await;
        }
        let Some(image) = disk.image.as_ref().filter(|_| !is_whole) else {
            return Ok(self.tool.create_empty(path, disk.bytes).await?);
        };
        let base = image_path(Path::new(&disk.datastore), image)?;
        let format = qemu_format(image.format);
        let made = self.tool.create_overlay(path, &base, format, Some(disk.bytes));
        Ok(made.await?)
    }

    /// An empty overlay over a warm VM's disk.
    async fn over_layer(&self, path: &Path, layer: &Path, disk: &Disk) -> Result<(), StorageError> {
        let made = self.tool.create_overlay(
            path,
            layer,
            qemu::command_line::ImageFormat::Qcow2,
            Some(disk.bytes),
        );
        Ok(made.await?)
    }

    /// The root disk of a VM: an overlay over the image, or blank, made if it is not there.
    pub async fn disk(&self, vm: VmId, disk: &Disk) -> Result<PathBuf, StorageError> {
        let path = disk_path(vm, disk);
        if path.exists() {
            return Ok(path);
        }
        let datastore = Path::new(&disk.datastore);
        let directory = volume_dir(datastore, vm);
        make_private(&directory)?;
        let temporary = directory.join(format!("{}.part", chance::unique()));
        match (&disk.image, layer_path(disk)) {
            (_, Some(layer)) => self.over_layer(&temporary, &layer, disk).await?,
            (Some(image), None) => {
                let base = self.image(datastore, image).await?;
                let format = qemu_format(image.format);
                let made = self
                    .tool
                    .create_overlay(&temporary, &base, format, Some(disk.bytes));
                made.await?;
            }
            (None, None) => self.tool.create_empty(&temporary, disk.bytes).await?,
        }
        fs::rename(&temporary, &path).map_err(file("rename", &temporary))?;
        if let Some(image) = &disk.image {
            // Another host that did not see this disk yet may have put it aside.
            self.image(datastore, image).await?;
        }
        Ok(path)
    }
}

/// Writes what is not zero of a piece that begins at `at`, so that a sparse image stays one. `position` is the file's.
async fn write_data(
    output: &mut tokio::fs::File,
    piece: &[u8],
    at: u64,
    position: &mut u64,
) -> io::Result<()> {
    for (at, block) in formats::sparse::data(piece, at) {
        // A seek waits for what is being written.
        if at != *position {
            output.seek(io::SeekFrom::Start(at)).await?;
        }
        output.write_all(block).await?;
        *position = at + block.len() as u64;
    }
    Ok(())
}

/// The file has these bytes, and all that was written has gone well: what became of the last piece is said by a flush only.
async fn end_writing(output: &mut tokio::fs::File, bytes: u64) -> io::Result<()> {
    output.flush().await?;
    output.set_len(bytes).await
}

/// Makes a directory for guests' disks, in which others on the host, and on the storage, have no business.
pub fn make_private(directory: &Path) -> Result<(), StorageError> {
    let mut private = fs::DirBuilder::new();
    let made = private.recursive(true).mode(0o700).create(directory);
    made.map_err(file("make", directory))
}

/// Where the root disk of a VM is.
pub fn disk_path(vm: VmId, disk: &Disk) -> PathBuf {
    // One over a warm VM's disk is another file: if it comes to nothing, the VM begins with one that is not.
    let name = if disk.layer.is_some() {
        "root-warm.qcow2"
    } else {
        "root.qcow2"
    };
    volume_dir(Path::new(&disk.datastore), vm).join(name)
}

/// The disk that a copy of one is to the VM that has it. One of all that the guest sees is over no warm VM's.
pub fn copied(disk: &Disk, is_whole: bool) -> Disk {
    Disk {
        layer: disk.layer.filter(|_| !is_whole),
        ..disk.clone()
    }
}

/// Where the warm VM's disk is that lies under this one.
pub fn layer_path(disk: &Disk) -> Option<PathBuf> {
    let directory = volume_dir(Path::new(&disk.datastore), disk.layer?);
    Some(directory.join("root.qcow2"))
}

/// Where an image is in a datastore.
pub fn image_path(datastore: &Path, image: &ImageFile) -> Result<PathBuf, StorageError> {
    let sha256 = &image.sha256;
    if !model::limits::is_sha256(sha256) {
        return Err(StorageError::Name(sha256.clone()));
    }
    let extension = match image.format {
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Raw => "raw",
    };
    Ok(image_dir(datastore).join(format!("{sha256}.{extension}")))
}

/// QEMU's name of it.
pub fn qemu_format(format: ImageFormat) -> qemu::command_line::ImageFormat {
    match format {
        ImageFormat::Qcow2 => qemu::command_line::ImageFormat::Qcow2,
        ImageFormat::Raw => qemu::command_line::ImageFormat::Raw,
    }
}

/// Writes a file whole or not at all; it need not survive a power failure.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<(), StorageError> {
    let temporary = path.with_extension("new");
    // What guests are told stands in some of these files.
    let mut private = fs::OpenOptions::new();
    private.write(true).create(true).truncate(true).mode(0o600);
    let written = private
        .open(&temporary)
        .and_then(|mut file| file.write_all(content));
    written.map_err(file("write", &temporary))?;
    fs::rename(&temporary, path).map_err(file("rename", &temporary))
}

/// From which the store can be rebuilt.
#[derive(Debug, Serialize)]
pub struct Description<'a> {
    /// The layout of this file.
    pub schema: u32,
    /// The VM.
    pub vm: VmId,
    /// The incarnation that was prepared last.
    pub incarnation: model::Incarnation,
    /// The machine.
    pub machine: &'a Machine,
}

/// Deletes a file or a folder with all that is in it; it may be gone already.
pub fn remove(path: &Path) -> Result<(), StorageError> {
    let is_folder = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_folder {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(file("delete", path)),
    }
}

/// An empty file for a guest's memory, instead of what an earlier attempt left.
pub fn new_saved_state(path: &Path) -> Result<fs::File, StorageError> {
    remove(path)?;
    let mut private = fs::OpenOptions::new();
    private.write(true).create_new(true).mode(0o600);
    private.open(path).map_err(file("make", path))
}

/// Makes a saved state durable and gives it its name. Returns its size.
pub async fn keep_saved_state(temporary: PathBuf, path: PathBuf) -> Result<u64, StorageError> {
    let keep = move || {
        let saved = fs::File::open(&temporary).map_err(file("open", &temporary))?;
        saved.sync_all().map_err(file("sync", &temporary))?;
        let bytes = saved.metadata().map_err(file("look at", &temporary))?.len();
        fs::rename(&temporary, &path).map_err(file("rename", &temporary))?;
        let directory = path.parent().unwrap_or(Path::new("."));
        let synced = fs::File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(file("sync", directory))?;
        Ok(bytes)
    };
    tokio::task::spawn_blocking(keep).await.unwrap_or_else(|error| {
        let source = io::Error::other(error);
        Err(StorageError::File {
            what: "keep",
            path: PathBuf::from("the saved state"),
            source,
        })
    })
}

/// Removes what an agent of this host that was killed had of an image: whoever calls this is the only one who fetches it here.
fn remove_own(directory: &Path, host: HostId, sha256: &str) {
    let own = format!("{sha256}.{host}-");
    remove_parts(directory, |part| part.name.starts_with(&own));
}

/// Removes what hosts left that fetched something and never came back to it.
pub(crate) fn remove_stale(directory: &Path) {
    remove_parts(directory, |part| part.age.is_some_and(|age| age > STALE_AGE));
}

/// A file on its way.
struct Part {
    name: String,
    age: Option<Duration>,
}

fn remove_parts(directory: &Path, is_left: impl Fn(&Part) -> bool) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let written = entry.metadata().and_then(|metadata| metadata.modified());
        let part = Part {
            name: entry.file_name().to_string_lossy().into_owned(),
            age: written.ok().and_then(|time| time.elapsed().ok()),
        };
        if path.extension().is_some_and(|extension| extension == "part") && is_left(&part) {
            tracing::info!(path = %path.display(), "deleting what an interrupted fetch left");
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[tokio::test]
    async fn a_last_piece_that_was_not_written_is_told() {
        // A disk without room, which says so when the piece is written: after the write was taken.
        let full = tokio::fs::OpenOptions::new().write(true).open("/dev/full").await;
        let mut full = full.unwrap();
        let mut position = 0;
        let taken = write_data(&mut full, &[7; 4096], 0, &mut position).await;
        taken.unwrap();
        let ended = end_writing(&mut full, 4096).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn what_a_killed_agent_had_of_an_image_goes_and_what_others_fetch_stays() {
        let directory = tempfile::tempdir().unwrap();
        let [own, other] = [1, 2].map(|n| HostId(uuid::Uuid::from_u128(n)));
        let (sha256, another) = ("a".repeat(64), "b".repeat(64));
        let name = |sha256: &str, host: HostId| format!("{sha256}.{host}-{}.part", chance::unique());
        let left = [
            name(&sha256, own),
            name(&another, own),
            name(&sha256, other),
            format!("{sha256}.qcow2"),
        ];
        for name in &left {
            fs::write(directory.path().join(name), "x").unwrap();
        }
        let are_there = || left.each_ref().map(|name| directory.path().join(name).exists());
        remove_own(directory.path(), own, &sha256);
        assert_eq!(are_there(), [false, true, true, true]);
        remove_stale(directory.path());
        assert_eq!(are_there(), [false, true, true, true]);
        for name in &left[1..] {
            let file = fs::File::options().write(true).open(directory.path().join(name));
            file.unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        remove_stale(directory.path());
        assert_eq!(are_there(), [false, false, false, true]);
    }
}
