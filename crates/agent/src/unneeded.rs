//! Images' files in datastores that no image has any more, and when they go.
//!
//! **Owns:** that none goes while a disk is over it, or before it was of no use for twice as long as such files are kept.
//!
//! **Does not know:** which images there are: a server says it.
//!
//! A file that no image has the content of for a time is first *put aside*: renamed, so that no disk can be made over it. When it
//! has been there for as long once more, it is removed. Before either step no disk in the datastore may name it in its header. All
//! disks over a file are beside it, whichever host made them, so hosts that share a datastore need not agree on anything:
//!
//! - A disk that is made right between the look at the headers and the renaming is found at the next look, and the file gets
//!   its name back. Its QEMU may not have found it until then: whoever prepares a VM gives it its name back too ([`back`]).
//! - What is put aside has a name that nothing else ever has. It is removed under that name, and only if it had that name
//!   before the headers were looked at. So a disk that was not seen there was made before, or the file was given its
//!   own name back, and then there is nothing to be removed under the other.
//!
//! A QEMU, or a copy to somewhere else, that has the file open has it in any case. Should a file be missing after all, it is
//! fetched anew when its VM is prepared. What is remembered is in this process only: an agent that was just started waits anew.
//!
//! **Start here:** [`collect_all`], [`Collector::look_at`].

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::agent::Contents;
use tokio::time::{Instant, sleep, timeout};

use crate::chance;
use crate::config::{image_dir, volumes_dir};
use crate::link;
use crate::storage::remove_stale;

/// The most time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// The least.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(200);
/// How often is looked while a file is kept.
const LOOKS: u32 = 4;
/// How long a server may take to say what is needed.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// What the name of a file that was put aside ends with.
const ASIDE: &str = "unneeded";
/// A qcow2 file begins with it.
const QCOW2: [u8; 4] = *b"QFI\xfb";
/// Up to where its header says what the file is over.
const HEADER_BYTES: u64 = 20;
const NAME_BYTES_MAX: usize = 1023;

/// Collects what is of no use, for as long as it is let.
pub(crate) async fn collect_all(client: reqwest::Client, server: String, kept_for: Duration) {
    let mut collector = Collector::new(kept_for);
    loop {
        sleep((kept_for / LOOKS).clamp(LOOK_EVERY_MIN, LOOK_EVERY)).await;
        let Some(contents) = ask(&client, &server).await else {
            // What was of no use may be needed by now.
            collector.since.clear();
            continue;
        };
        let looked = tokio::task::spawn_blocking(move || {
            for datastore in &contents.datastores {
                remove_stale(&image_dir(Path::new(datastore)));
                if let Err(error) = collector.look_at(Path::new(datastore), &contents.sha256, Instant::now())
                {
                    tracing::warn!(%error, datastore, "images that nobody needs were not looked for; that is done again");
                }
            }
            collector
        });
        collector = looked.await.unwrap_or_else(|_| Collector::new(kept_for));
    }
}

/// `None`: it is not known now.
async fn ask(client: &reqwest::Client, server: &str) -> Option<Contents> {
    let answer = async {
        let answer = client.get(format!("{server}/agent/v1/images")).send().await?;
        answer.error_for_status()?.json::<Option<Contents>>().await
    };
    match timeout(ANSWER_DEADLINE, answer).await {
        Ok(Ok(contents)) => contents,
        Ok(Err(error)) => {
            tracing::debug!(error = link::chain(&error), "which images there are is not known");
            None
        }
        Err(_) => None,
    }
}

/// Gives an image's file its name back if it was put aside.
pub(crate) fn back(path: &Path) {
    let Some(directory) = path.parent().filter(|_| !path.exists()) else {
        return;
    };
    let found = Found::in_directory(directory).unwrap_or_default();
    let aside = found
        .into_iter()
        .find(|one| one.original == path && one.is_aside());
    if let Some(aside) = aside {
        aside.take(Step::GiveBack);
    }
}

/// What one agent remembers of files that no image has the content of: since when it has seen them so.
#[derive(Debug)]
struct Collector {
    kept_for: Duration,
    since: BTreeMap<PathBuf, Instant>,
}

/// What is done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Keep,
    PutAside,
    GiveBack,
    Remove,
}

/// The rule. `is_named`: by a disk in the datastore. `is_due`: no image had it for as long as such files are kept.
fn step(is_aside: bool, is_needed: bool, is_named: bool, is_due: bool) -> Step {
    match (is_aside, is_needed || is_named) {
        (true, true) => Step::GiveBack,
        (false, true) => Step::Keep,
        (true, false) if is_due => Step::Remove,
        (false, false) if is_due => Step::PutAside,
        (_, false) => Step::Keep,
    }
}

impl Collector {
    fn new(kept_for: Duration) -> Self {
        Self {
            kept_for,
            since: BTreeMap::new(),
        }
    }

    /// Takes the next step for each image's file of a datastore.
    fn look_at(&mut self, datastore: &Path, needed: &BTreeSet<String>, now: Instant) -> io::Result<()> {
        // In this order: see above.
        let found = Found::in_directory(&image_dir(datastore))?;
        let is_idle = |one: &Found| !one.is_aside() && needed.contains(&one.sha256);
        let named = if found.iter().all(is_idle) {
            BTreeSet::new()
        } else {
            named_by_disks(datastore)?
        };
        for one in found {
            let is_needed = needed.contains(&one.sha256);
            let is_named = one.original.file_name().is_some_and(|name| named.contains(name));
            if is_needed || is_named {
                self.since.remove(&one.path);
            } else {
                self.since.entry(one.path.clone()).or_insert(now);
            }
            let since = self.since.get(&one.path);
            let is_due = since.is_some_and(|since| now.saturating_duration_since(*since) >= self.kept_for);
            one.take(step(one.is_aside(), is_needed, is_named, is_due));
        }
        // Other hosts have taken steps too.
        self.since
            .retain(|path, _| !path.starts_with(datastore) || path.exists());
        Ok(())
    }
}

/// An image's file in a datastore.
#[derive(Debug)]
struct Found {
    sha256: String,
    path: PathBuf,
    /// Its path if it is not put aside.
    original: PathBuf,
}

impl Found {
    fn in_directory(directory: &Path) -> io::Result<Vec<Self>> {
        let entries = list(directory)?;
        Ok(entries
            .iter()
            .filter_map(|entry| Self::of(entry.path()))
            .collect())
    }

    /// `SHA256.FORMAT`, or `SHA256.FORMAT.UNIQUE.unneeded`. All others are somebody else's.
    fn of(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let mut parts = name.split('.');
        let (sha256, format) = (parts.next()?, parts.next()?);
        let rest = (parts.next(), parts.next(), parts.next());
        let is_ours = matches!(rest, (None, ..) | (Some(_), Some(ASIDE), None));
        let is_image = is_ours && model::limits::is_sha256(sha256) && matches!(format, "qcow2" | "raw");
        let original = path.with_file_name(format!("{sha256}.{format}"));
        is_image.then(|| Self {
            sha256: sha256.to_owned(),
            original,
            path: path.clone(),
        })
    }

    fn is_aside(&self) -> bool {
        self.path != self.original
    }

    /// Every step may be taken by several hosts at once: the second finds nothing to do.
    fn take(&self, step: Step) {
        let (done, what) = match step {
            Step::Keep => return,
            Step::PutAside => {
                let aside = format!("{}.{ASIDE}", chance::unique());
                let mut name = OsString::from(&self.original);
                name.push(".");
                name.push(aside);
                (
                    fs::rename(&self.path, PathBuf::from(name)),
                    "put aside: no image has it",
                )
            }
            Step::GiveBack => (
                fs::rename(&self.path, &self.original),
                "taken back: it is needed again",
            ),
            Step::Remove => (fs::remove_file(&self.path), "removed: no image has it"),
        };
        let path = self.path.display();
        match done {
            Ok(()) => tracing::info!(%path, "an image's file was {what}"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%path, %error, "an image's file was not {what}"),
        }
    }
}

/// What is in a directory; one that is not there has nothing.
fn list(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The names, without directories, of all files that disks in a datastore are over, also unfinished ones and those of VMs that this
/// host knows nothing of. What cannot be looked at may be over anything: that is an error.
fn named_by_disks(datastore: &Path) -> io::Result<BTreeSet<OsString>> {
    let mut named = BTreeSet::new();
    // Not there, it may be mounted apart: then it is not known what is in it.
    for volume in fs::read_dir(volumes_dir(datastore))? {
        let volume = volume?;
        if !volume.file_type()?.is_dir() {
            continue;
        }
        for file in list(&volume.path())? {
            if file.file_type()?.is_file() {
                named.extend(named_by(&file.path())?);
            }
        }
    }
    Ok(named)
}

/// What the file is over by its header.
fn named_by(path: &Path) -> io::Result<Option<OsString>> {
    let mut file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut head = Vec::new();
    file.by_ref().take(HEADER_BYTES).read_to_end(&mut head)?;
    let part = |from: usize, to: usize| head.get(from..to);
    let (Some(magic), Some(at), Some(bytes)) = (part(0, 4), part(8, 16), part(16, 20)) else {
        return Ok(None);
    };
    let at = u64::from_be_bytes(at.try_into().unwrap_or_default());
    let bytes = u32::from_be_bytes(bytes.try_into().unwrap_or_default()) as usize;
    if magic != QCOW2 || at == 0 || bytes == 0 {
        return Ok(None);
    }
    if bytes > NAME_BYTES_MAX {
        let message = format!("{} is no qcow2 file: what it is over has no name", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut name = vec![0; bytes];
    file.read_exact_at(&mut name, at)?;
    let name = String::from_utf8_lossy(&name).into_owned();
    Ok(Path::new(&name).file_name().map(OsString::from))
}

#[cfg(test)]
mod tests {
    use qemu::command_line::ImageFormat;
    use qemu::image::QemuImg;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    struct Store {
        directory: tempfile::TempDir,
        needed: BTreeSet<String>,
        begun: Instant,
    }

    impl Store {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir_all(image_dir(directory.path())).unwrap();
            fs::create_dir_all(volumes_dir(directory.path())).unwrap();
            Self {
                directory,
                needed: BTreeSet::new(),
                begun: Instant::now(),
            }
        }

        fn path(&self, digit: &str) -> PathBuf {
            image_dir(self.directory.path()).join(format!("{}.qcow2", digit.repeat(64)))
        }

        fn disk(&self) -> PathBuf {
            let volume = volumes_dir(self.directory.path()).join("vm");
            fs::create_dir_all(&volume).unwrap();
            volume.join("root.qcow2")
        }

        fn look(&self, collector: &mut Collector, after: Duration) {
            let at = self.begun + after;
            collector
                .look_at(self.directory.path(), &self.needed, at)
                .unwrap();
        }

        /// How many there are under their own names, and put aside.
        fn count(&self) -> (usize, usize) {
            let found = Found::in_directory(&image_dir(self.directory.path())).unwrap();
            let aside = found.iter().filter(|one| one.is_aside()).count();
            (found.len() - aside, aside)
        }
    }

    #[test]
    fn nothing_that_is_needed_or_named_goes_and_nothing_goes_early() {
        for case in 0..16_u8 {
            let [is_aside, is_needed, is_named, is_due] = [1, 2, 4, 8].map(|bit| case & bit != 0);
            let step = step(is_aside, is_needed, is_named, is_due);
            let is_wanted = is_needed || is_named;
            assert_eq!(step == Step::GiveBack, is_aside && is_wanted, "{case}");
            assert_eq!(
                step == Step::PutAside,
                !is_aside && !is_wanted && is_due,
                "{case}"
            );
            assert_eq!(step == Step::Remove, is_aside && !is_wanted && is_due, "{case}");
        }
    }

    #[test]
    fn what_nobody_needs_is_put_aside_after_a_day_and_goes_after_another() {
        let store = Store::new();
        fs::write(store.path("a"), "content").unwrap();
        let strange = image_dir(store.directory.path()).join("a.part");
        fs::write(&strange, "on its way").unwrap();
        let mut collector = Collector::new(DAY);
        for part in 0..4 {
            store.look(&mut collector, DAY * part / 4);
            assert_eq!(store.count(), (1, 0));
        }
        store.look(&mut collector, DAY);
        assert_eq!(store.count(), (0, 1));
        // Another agent that has just begun to look does nothing.
        store.look(&mut Collector::new(DAY), DAY * 3);
        for part in 5..9 {
            store.look(&mut collector, DAY * part / 4);
            assert_eq!(store.count(), (0, 1));
        }
        store.look(&mut collector, DAY * 9 / 4);
        assert_eq!(store.count(), (0, 0));
        assert!(strange.exists());
    }

    #[test]
    fn what_is_needed_again_comes_back_and_its_time_begins_anew() {
        let mut store = Store::new();
        let path = store.path("b");
        fs::write(&path, "content").unwrap();
        let mut collector = Collector::new(DAY);
        store.look(&mut collector, Duration::ZERO);
        store.look(&mut collector, DAY);
        assert_eq!(store.count(), (0, 1));
        back(&path);
        assert_eq!(store.count(), (1, 0));
        store.look(&mut collector, DAY);
        store.look(&mut collector, DAY * 2);
        assert_eq!(store.count(), (0, 1));
        store.needed.insert("b".repeat(64));
        store.look(&mut collector, DAY * 4);
        assert_eq!(store.count(), (1, 0));
        store.needed.clear();
        store.look(&mut collector, DAY * 5);
        assert_eq!(store.count(), (1, 0));
        // Also if it had not gone that far.
        store.needed.insert("b".repeat(64));
        store.look(&mut collector, DAY * 11 / 2);
        store.needed.clear();
        store.look(&mut collector, DAY * 6);
        assert_eq!(store.count(), (1, 0));
    }

    /// The orders that two hosts may take steps in: one of them has looked at the headers already.
    #[test]
    fn a_file_that_came_back_is_not_removed_by_who_saw_it_aside() {
        let store = Store::new();
        let path = store.path("c");
        fs::write(&path, "content").unwrap();
        let seen = |store: &Store| {
            let mut found = Found::in_directory(&image_dir(store.directory.path())).unwrap();
            found.remove(0)
        };
        seen(&store).take(Step::PutAside);
        let early = seen(&store);
        back(&path);
        early.take(Step::Remove);
        assert!(path.exists());
        // Nor if a third one has put it aside again meanwhile.
        seen(&store).take(Step::PutAside);
        early.take(Step::Remove);
        early.take(Step::GiveBack);
        assert_eq!(store.count(), (0, 1));
    }

    #[tokio::test]
    async fn what_a_disk_is_over_stays_whatever_a_server_says() {
        let store = Store::new();
        let (path, disk) = (store.path("d"), store.disk());
        let tool = QemuImg::default();
        tool.create_empty(&path, 1 << 20).await.unwrap();
        let overlay = tool.create_overlay(&disk, &path, ImageFormat::Qcow2, None);
        overlay.await.unwrap();
        fs::write(disk.with_file_name("nvram.fd"), "no disk").unwrap();
        let mut collector = Collector::new(DAY);
        for day in 0..4 {
            store.look(&mut collector, DAY * day);
            assert_eq!(store.count(), (1, 0));
        }
        // It was made after the look at the headers, and before the renaming.
        let mut found = Found::in_directory(&image_dir(store.directory.path())).unwrap();
        found.remove(0).take(Step::PutAside);
        store.look(&mut collector, DAY * 4);
        assert_eq!(store.count(), (1, 0));
        // A disk that is whole is over nothing.
        let bases = [(path.clone(), ImageFormat::Qcow2)];
        tool.detach(&disk, &bases).await.unwrap();
        store.look(&mut collector, DAY * 5);
        store.look(&mut collector, DAY * 6);
        assert_eq!(store.count(), (0, 1));
    }

    #[test]
    fn what_cannot_be_looked_at_may_be_over_anything() {
        let store = Store::new();
        fs::write(store.path("e"), "content").unwrap();
        // Its header says where a name stands, and that is after its end.
        let header = [
            &QCOW2[..],
            &[0, 0, 0, 3],
            &[0, 0, 0, 0, 9, 9, 9, 9],
            &[0, 0, 0, 9],
        ];
        fs::write(store.disk(), header.concat()).unwrap();
        let mut collector = Collector::new(Duration::ZERO);
        let looked = collector.look_at(store.directory.path(), &store.needed, store.begun);
        assert!(looked.is_err());
        assert_eq!(store.count(), (1, 0));
    }
}
