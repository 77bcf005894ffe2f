//! What has come of an import so far, on disk, so that a server that starts again goes on.
//!
//! **Owns:** the files of one import, and whether they may be gone on with.
//!
//! **Does not know:** where the content comes from.
//!
//! **Start here:** [`Partial::held`].
//!
//! What was written is in the page cache, so it is whole after the server was killed, and may not be after the machine was.
//! So files of an earlier boot, or of one that cannot be told, are gone on with only if a digest will tell.

use std::fs;
use std::path::{Path, PathBuf};

use model::ImageId;
use serde::{Deserialize, Serialize};

/// How the files' names begin.
const PREFIX: &str = "partial-";
/// What has come, and what it is of: the files that outlive a server.
const SENT: &str = "sent";
const NOTE: &str = "json";

/// What a source said of its content when that began to come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    /// By what it is known to be the same later.
    pub(super) validator: Option<String>,
    /// Its size.
    pub(super) bytes_total: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    url: String,
    boot: Option<String>,
    begun: Begun,
}

/// The files of one import.
#[derive(Debug, Clone)]
pub(super) struct Partial {
    base: PathBuf,
    url: String,
}

impl Partial {
    /// Of this image's content from this source.
    pub(super) fn of(images: &Path, image: ImageId, url: &str) -> Self {
        Self {
            base: images.join(format!("{PREFIX}{image}")),
            url: url.to_owned(),
        }
    }

    /// Where the content goes.
    pub(super) fn sent(&self) -> PathBuf {
        self.base.with_extension(SENT)
    }

    /// What there is of the content, if it can be gone on with. Removes it if not. `has_digest`: what it becomes is checked.
    pub(super) fn held(&self, has_digest: bool) -> Option<(Begun, u64)> {
        let held = self.read(has_digest);
        if held.is_none() {
            self.remove();
        }
        held
    }

    fn read(&self, has_digest: bool) -> Option<(Begun, u64)> {
        let note = fs::read(self.base.with_extension(NOTE)).ok()?;
        let note: Note = serde_json::from_slice(&note).ok()?;
        let bytes = self.sent().metadata().ok()?.len();
        let is_in_bounds = note.begun.bytes_total.is_none_or(|total| bytes <= total);
        let is_whole = has_digest || note.boot.is_some() && note.boot == boot();
        let is_of_it = note.url == self.url && note.begun.validator.is_some() && is_whole;
        (is_of_it && is_in_bounds && bytes > 0).then_some((note.begun, bytes))
    }

    /// Notes what is about to come. Without the note nothing is gone on with, so that it may fail.
    pub(super) fn begin(&self, begun: &Begun) {
        let note = Note {
            url: self.url.clone(),
            boot: boot(),
            begun: begun.clone(),
        };
        let written = serde_json::to_vec(&note).map(|note| fs::write(self.base.with_extension(NOTE), note));
        if let Ok(Err(error)) = written {
            tracing::debug!(%error, "an import cannot be noted: it would begin again after a restart");
        }
    }

    /// Leaves nothing behind.
    pub(super) fn remove(&self) {
        for extension in [NOTE, SENT] {
            let _ = fs::remove_file(self.base.with_extension(extension));
        }
    }
}

/// The package's server cannot see it.
fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}

/// Removes what a server left behind that ended: all but what an import goes on with.
pub(super) fn sweep(images: &Path, goes_on: impl Fn(ImageId) -> bool) {
    let Ok(entries) = fs::read_dir(images) else {
        return;
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path
            .file_stem()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let Some(image) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let is_kept = path.extension().is_some_and(|it| it == SENT || it == NOTE);
        if !is_kept || !image.parse().is_ok_and(|image| goes_on(ImageId(image))) {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_be_of_the_same_content_is_gone_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let image = ImageId(uuid::Uuid::from_u128(7));
        let partial = Partial::of(directory.path(), image, "http://a/b");
        let begun = Begun {
            validator: Some("\"v1\"".to_owned()),
            bytes_total: Some(10),
        };
        let hold = |begun: &Begun, bytes: usize| {
            partial.begin(begun);
            fs::write(partial.sent(), vec![1; bytes]).unwrap();
        };
        hold(&begun, 4);
        assert_eq!(partial.held(false), Some((begun.clone(), 4)));
        let other = Partial::of(directory.path(), image, "http://a/c");
        assert_eq!(other.held(false), None);
        assert_eq!(partial.held(false), None, "it was removed");
        hold(&begun, 11);
        assert_eq!(partial.held(false), None);
        hold(&Begun::default(), 4);
        assert_eq!(partial.held(false), None);
        hold(&begun, 4);
        let note = directory.path().join(format!("partial-{image}.json"));
        let boot = boot().unwrap();
        let earlier = fs::read_to_string(&note).unwrap().replace(boot.trim(), "earlier");
        fs::write(&note, earlier).unwrap();
        assert_eq!(partial.held(true), Some((begun, 4)));
        assert_eq!(partial.held(false), None);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_left_behind_goes_and_what_goes_on_stays() {
        let directory = tempfile::tempdir().unwrap();
        let id = uuid::Uuid::from_u128(7);
        for name in ["sent", "json", "unpacked"] {
            fs::write(directory.path().join(format!("partial-{id}.{name}")), "x").unwrap();
        }
        fs::write(directory.path().join("partial-nothing.sent"), "x").unwrap();
        fs::write(directory.path().join("a".repeat(64)), "x").unwrap();
        let left = || fs::read_dir(directory.path()).unwrap().count();
        sweep(directory.path(), |image| image == ImageId(id));
        assert_eq!(left(), 3);
        sweep(directory.path(), |_| false);
        assert_eq!(left(), 1);
    }
}
