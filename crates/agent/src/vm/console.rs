//! The guest's console, always read, kept in a file of bounded size, and shown to whoever is at it.
//!
//! **Owns:** the only reader of the console's socket, the rotation of its log, and the queues of those who are at the
//! console. A console that is connected and not read stalls the guest; so reading never waits for anything but the disk's
//! cache, goes on when writing fails, and drops what somebody at the console does not take in time.
//!
//! **Does not know:** what the guest writes, who is at the console and how.
//!
//! **Start here:** [`serve`], then [`Consoles::find`] and [`Hub::attach`].

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use model::VmId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

/// The size at which a log is put aside.
const MAX_BYTES: u64 = 1 << 20;
/// How many logs there are, the present one included.
const FILES: usize = 3;
/// How much is read at once.
const CHUNK_BYTES: usize = 16 << 10;
/// How many chunks wait for somebody at the console, before they are dropped.
const MAX_WAITING: usize = 256;
/// How many inputs wait for the guest.
const MAX_TYPED: usize = 16;
/// How many may be at a console.
const MAX_ATTACHED: usize = 16;
/// What is kept in memory of what the guest wrote last.
const RECENT_BYTES: usize = 64 << 10;

/// The consoles of the VMs that have a QEMU here.
#[derive(Debug, Clone, Default)]
pub struct Consoles(Arc<Mutex<BTreeMap<VmId, Weak<Hub>>>>);

impl Consoles {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, Weak<Hub>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The console of a VM.
    pub fn find(&self, vm: VmId) -> Option<Arc<Hub>> {
        self.lock().get(&vm)?.upgrade()
    }

    fn publish(&self, vm: VmId, hub: &Arc<Hub>) {
        let mut all = self.lock();
        all.retain(|_, hub| hub.strong_count() > 0);
        all.insert(vm, Arc::downgrade(hub));
    }
}

/// One console. It ends with its QEMU.
#[derive(Debug)]
pub struct Hub {
    inner: Mutex<Inner>,
    typed: mpsc::Sender<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Inner {
    recent: VecDeque<u8>,
    attached: Vec<Attached>,
    /// QEMU has closed it.
    is_closed: bool,
}

#[derive(Debug)]
struct Attached {
    who: String,
    shown: mpsc::Sender<Shown>,
    /// Bytes that were dropped and not told of yet.
    lost: u64,
}

/// What somebody at a console is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// What the guest wrote.
    Bytes(Bytes),
    /// So many bytes were dropped, because they were not taken in time.
    Lost(u64),
    /// Somebody else is at the console now.
    Joined(String),
}

/// A place at a console.
#[derive(Debug)]
pub struct Attachment {
    /// Who is at it already.
    pub others: Vec<String>,
    /// What the guest wrote lately.
    pub recent: Bytes,
    /// What it writes from now on; ends with the console.
    pub shown: mpsc::Receiver<Shown>,
    /// What is typed.
    pub typed: mpsc::Sender<Vec<u8>>,
}

impl Hub {
    fn new() -> (Arc<Self>, mpsc::Receiver<Vec<u8>>) {
        let (typed, input) = mpsc::channel(MAX_TYPED);
        let hub = Self {
            inner: Mutex::default(),
            typed,
        };
        (Arc::new(hub), input)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, and tells the others; `None` if there is no room, or the console has ended.
    pub fn attach(&self, who: &str) -> Option<Attachment> {
        let mut inner = self.lock();
        inner.attached.retain(|one| !one.shown.is_closed());
        if inner.is_closed || inner.attached.len() >= MAX_ATTACHED {
            return None;
        }
        for other in &inner.attached {
            // Whoever is that far behind does not miss this.
            let _ = other.shown.try_send(Shown::Joined(who.to_owned()));
        }
        let others = inner.attached.iter().map(|one| one.who.clone()).collect();
        let (sender, shown) = mpsc::channel(MAX_WAITING);
        inner.attached.push(Attached {
            who: who.to_owned(),
            shown: sender,
            lost: 0,
        });
        let recent: Vec<u8> = inner.recent.iter().copied().collect();
        Some(Attachment {
            others,
            recent: recent.into(),
            shown,
            typed: self.typed.clone(),
        })
    }

    fn show(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        let excess = (inner.recent.len() + bytes.len()).saturating_sub(RECENT_BYTES);
        let excess = excess.min(inner.recent.len());
        inner.recent.drain(..excess);
        inner.recent.extend(bytes);
        let chunk = Bytes::copy_from_slice(bytes);
        inner.attached.retain_mut(|one| one.show(&chunk));
    }

    /// Those who are at it see its end.
    fn close(&self) {
        let mut inner = self.lock();
        inner.is_closed = true;
        inner.attached.clear();
    }
}

impl Attached {
    /// Never waits. Whether anybody is there still.
    fn show(&mut self, chunk: &Bytes) -> bool {
        if self.lost > 0 && self.shown.try_send(Shown::Lost(self.lost)).is_ok() {
            self.lost = 0;
        }
        let sent = match self.lost {
            0 => self.shown.try_send(Shown::Bytes(chunk.clone())),
            _ => Err(mpsc::error::TrySendError::Full(Shown::Lost(self.lost))),
        };
        match sent {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.lost += chunk.len() as u64;
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}

/// Reads until QEMU closes the console, and writes what is typed.
pub async fn serve(vm: VmId, console: UnixStream, log: PathBuf, consoles: Consoles) {
    let (hub, input) = Hub::new();
    let _closed = CloseOnDrop(Arc::clone(&hub));
    consoles.publish(vm, &hub);
    let (reader, writer) = console.into_split();
    tokio::select! {
        () = drain(reader, Log::open(log), &hub) => {}
        () = write_typed(writer, input) => {}
    }
}

/// The console also ends when its task does.
struct CloseOnDrop(Arc<Hub>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

async fn drain(mut console: OwnedReadHalf, mut log: Log, hub: &Hub) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match console.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                log.write(&buffer[..read]);
                hub.show(&buffer[..read]);
            }
        }
    }
}

/// A guest that does not read its console keeps this waiting, and nothing else.
async fn write_typed(mut console: OwnedWriteHalf, mut input: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = input.recv().await {
        if let Err(error) = console.write_all(&bytes).await {
            tracing::debug!(%error, "what was typed is lost");
        }
    }
}

/// The last part of a console's log, from the beginning of a line; empty if there is no log.
pub fn tail(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    for path in [aged(path, 1), path.to_owned()] {
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(max_bytes)))?;
        // It may be written to meanwhile.
        file.take(max_bytes).read_to_end(&mut whole)?;
    }
    let excess = whole
        .len()
        .saturating_sub(usize::try_from(max_bytes).unwrap_or(usize::MAX));
    let line = whole[excess..].iter().position(|byte| *byte == b'\n');
    let cut = if excess == 0 {
        0
    } else {
        excess + line.map_or(0, |end| end + 1)
    };
    Ok(whole.split_off(cut))
}

struct Log {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    is_failing: bool,
}

impl Log {
    fn open(path: PathBuf) -> Self {
        let mut log = Self {
            path,
            file: None,
            bytes: 0,
            is_failing: false,
        };
        let opened = log.append();
        log.note(opened);
        log
    }

    fn append(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) {
        let written = self.try_write(bytes);
        self.note(written);
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes >= MAX_BYTES {
            self.rotate()?;
        }
        if self.file.is_none() {
            self.append()?;
        }
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
            self.bytes += bytes.len() as u64;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        self.bytes = 0;
        for age in (1..FILES).rev() {
            let younger = aged(&self.path, age - 1);
            if younger.exists() {
                std::fs::rename(younger, aged(&self.path, age))?;
            }
        }
        Ok(())
    }

    /// Says once that the log is not written.
    fn note(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.is_failing = false,
            Err(error) if !self.is_failing => {
                tracing::warn!(path = %self.path.display(), %error, "what the guest writes on its console is lost");
                self.is_failing = true;
                self.file = None;
            }
            Err(_) => self.file = None,
        }
    }
}

/// `console.log`, `console.log.1`, `console.log.2`.
fn aged(path: &Path, age: usize) -> PathBuf {
    match age {
        0 => path.to_owned(),
        age => {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{age}"));
            name.into()
        }
    }
}

/// All logs of a console.
pub fn logs(path: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    (0..FILES).map(|age| aged(path, age))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attach(hub: &Hub, who: &str) -> Attachment {
        hub.attach(who).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_a_guest_writes_is_shown_or_counted_and_memory_is_bounded(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..100),
            read_every in 1usize..50,
        ) {
            let (hub, _input) = Hub::new();
            let mut place = attach(&hub, "ann");
            let (mut told, mut all) = (0, Vec::new());
            let mut read = |place: &mut Attachment| {
                while let Ok(shown) = place.shown.try_recv() {
                    told += match shown {
                        Shown::Bytes(bytes) => bytes.len() as u64,
                        Shown::Lost(bytes) => bytes,
                        Shown::Joined(_) => 0,
                    };
                }
            };
            for (n, chunk) in chunks.iter().enumerate() {
                hub.show(chunk);
                all.extend_from_slice(chunk);
                if n % read_every == 0 {
                    read(&mut place);
                }
            }
            read(&mut place);
            // What is lost is told of with the next thing that can be shown.
            hub.show(b"!");
            all.push(b'!');
            read(&mut place);
            prop_assert_eq!(told, all.len() as u64);
            let recent: Vec<u8> = hub.lock().recent.iter().copied().collect();
            prop_assert_eq!(&recent[..], &all[all.len().saturating_sub(RECENT_BYTES)..]);
        }
    }

    #[tokio::test]
    async fn everybody_sees_what_the_guest_writes_and_anybody_may_type() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        let (guest, console) = UnixStream::pair().unwrap();
        let (vm, consoles) = (VmId(uuid::Uuid::nil()), Consoles::default());
        let task = tokio::spawn(serve(vm, console, log.clone(), consoles.clone()));
        let (mut reader, mut writer) = guest.into_split();
        let hub = loop {
            match consoles.find(vm) {
                Some(hub) => break hub,
                None => tokio::task::yield_now().await,
            }
        };
        let mut one = attach(&hub, "ann");
        writer.write_all(b"login: ").await.unwrap();
        assert_eq!(one.shown.recv().await, Some(Shown::Bytes("login: ".into())));
        let two = attach(&hub, "ben");
        assert_eq!(
            (two.others, &two.recent[..]),
            (vec!["ann".to_owned()], &b"login: "[..])
        );
        assert_eq!(one.shown.recv().await, Some(Shown::Joined("ben".to_owned())));
        two.typed.send(b"root".to_vec()).await.unwrap();
        let mut typed = [0; 4];
        reader.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"root");
        drop((reader, writer));
        task.await.unwrap();
        assert_eq!(one.shown.recv().await, None, "the console has ended");
        assert!(hub.attach("late").is_none());
        assert_eq!(tail(&log, 100).unwrap(), b"login: ");
    }

    #[tokio::test]
    async fn who_does_not_read_loses_bytes_and_is_told_how_many() {
        let (hub, _input) = Hub::new();
        let mut slow = attach(&hub, "slow");
        let mut quick = attach(&hub, "quick");
        assert_eq!(slow.shown.recv().await, Some(Shown::Joined("quick".to_owned())));
        for _ in 0..MAX_WAITING + 3 {
            hub.show(b"abc");
            assert_eq!(quick.shown.recv().await, Some(Shown::Bytes("abc".into())));
        }
        for _ in 0..MAX_WAITING {
            assert_eq!(slow.shown.recv().await, Some(Shown::Bytes("abc".into())));
        }
        hub.show(b"def");
        assert_eq!(slow.shown.recv().await, Some(Shown::Lost(9)));
        assert_eq!(slow.shown.recv().await, Some(Shown::Bytes("def".into())));
    }

    #[test]
    fn a_tail_begins_with_a_line_and_goes_over_two_logs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        assert_eq!(tail(&path, 10).unwrap(), b"");
        std::fs::write(aged(&path, 1), "one\ntwo\n").unwrap();
        std::fs::write(&path, "three\n").unwrap();
        assert_eq!(tail(&path, 100).unwrap(), b"one\ntwo\nthree\n");
        assert_eq!(tail(&path, 12).unwrap(), b"two\nthree\n");
        assert_eq!(tail(&path, 8).unwrap(), b"three\n");
    }

    #[test]
    fn three_logs_of_bounded_size_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut log = Log::open(path.clone());
        for n in 0..(5 * MAX_BYTES / 1024) {
            log.write(&[u8::try_from(n % 251).unwrap(); 1024]);
        }
        let sizes: Vec<u64> = logs(&path)
            .map(|path| std::fs::metadata(path).unwrap().len())
            .collect();
        assert_eq!(sizes, [MAX_BYTES; FILES]);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), FILES);
    }

    #[test]
    fn a_log_that_cannot_be_written_stops_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gone").join("console.log");
        let mut log = Log::open(path.clone());
        log.write(b"lost");
        std::fs::create_dir(directory.path().join("gone")).unwrap();
        log.write(b"kept");
        assert_eq!(std::fs::read(path).unwrap(), b"kept");
    }
}
