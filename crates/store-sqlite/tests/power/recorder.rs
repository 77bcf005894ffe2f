//! Owns: a VFS of SQLite that notes what goes to the files of one directory: writes, truncations, syncs, deletions.
//! Does not know: what a loss of power leaves of them; `disk.rs` does.
//! Start here: [`install`].
//!
//! It is SQLite's own VFS, five of whose functions are replaced by ones that note and then call the original. They hold
//! the record's lock meanwhile, so that the order in it is the order in which things happened.

#![expect(unsafe_code, reason = "a VFS is a table of C functions")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rusqlite::ffi::{
    SQLITE_OK, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs, sqlite3_vfs_find,
    sqlite3_vfs_register,
};

use super::disk::Event;

/// What has happened since [`install`].
#[derive(Default)]
struct Record {
    dir: PathBuf,
    events: Vec<Event>,
    /// By the address of SQLite's file, its name in the directory.
    open: BTreeMap<usize, String>,
}

static RECORD: Mutex<Record> = Mutex::new(Record {
    dir: PathBuf::new(),
    events: Vec::new(),
    open: BTreeMap::new(),
});

/// SQLite's own functions.
struct Own {
    vfs: sqlite3_vfs,
    files: OnceLock<sqlite3_io_methods>,
}

// SAFETY: SQLite's VFS of Unix is never changed and may be used by several threads; of its pointers only functions are used.
unsafe impl Send for Own {}
// SAFETY: as above.
unsafe impl Sync for Own {}

static OWN: OnceLock<Own> = OnceLock::new();

fn record() -> MutexGuard<'static, Record> {
    RECORD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on notes what this process does to the databases of a directory.
pub(crate) fn install(dir: &Path) {
    record().dir = dir.to_owned();
    // SAFETY: the default VFS is there as long as the process, and so is the leaked copy.
    unsafe {
        let own = *sqlite3_vfs_find(std::ptr::null());
        let files = OnceLock::new();
        assert!(OWN.set(Own { vfs: own, files }).is_ok(), "one record a process");
        let ours = sqlite3_vfs {
            pNext: std::ptr::null_mut(),
            zName: c"recorded".as_ptr(),
            xOpen: Some(open),
            xDelete: Some(delete),
            ..own
        };
        assert_eq!(sqlite3_vfs_register(Box::leak(Box::new(ours)), 1), SQLITE_OK);
    }
}

/// Notes that a writer was answered.
pub(crate) fn answered(writer: usize, number: u64) {
    record().events.push(Event::Answered { writer, number });
}

/// All that happened so far.
pub(crate) fn take() -> Vec<Event> {
    std::mem::take(&mut record().events)
}

impl Record {
    /// The name of a path, if it is in the directory.
    fn name(&self, path: *const c_char) -> Option<String> {
        if path.is_null() {
            return None;
        }
        // SAFETY: SQLite's names end with a NUL, and live as long as the call.
        let path = Path::new(unsafe { CStr::from_ptr(path) }.to_str().ok()?);
        let inside = path.parent() == Some(&self.dir);
        inside
            .then(|| path.file_name()?.to_str().map(str::to_owned))
            .flatten()
    }

    fn note(&mut self, file: *mut sqlite3_file, event: impl FnOnce(String) -> Event) {
        let name = self.open[&file.addr()].clone();
        self.events.push(event(name));
    }
}

fn own() -> &'static Own {
    OWN.get().expect("it was installed")
}

fn own_files() -> &'static sqlite3_io_methods {
    own().files.get().expect("a file was opened")
}

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    path: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let mut record = record();
    // SAFETY: SQLite's own arguments are handed on.
    let code = unsafe { own().vfs.xOpen.expect("it opens")(vfs, path, file, flags, out_flags) };
    let Some(name) = record.name(path).filter(|_| code == SQLITE_OK) else {
        return code;
    };
    record.open.insert(file.addr(), name);
    // SAFETY: an open file has methods, which outlive it; so do the leaked ones, which are those but for three.
    unsafe {
        let methods = *(*file).pMethods;
        own().files.get_or_init(|| methods);
        (*file).pMethods = Box::leak(Box::new(sqlite3_io_methods {
            xWrite: Some(write),
            xTruncate: Some(truncate),
            xSync: Some(sync),
            ..methods
        }));
    }
    code
}

unsafe extern "C" fn delete(vfs: *mut sqlite3_vfs, path: *const c_char, sync_dir: c_int) -> c_int {
    let mut record = record();
    if let Some(file) = record.name(path) {
        let synced = sync_dir != 0;
        record.events.push(Event::Delete { file, synced });
    }
    // SAFETY: SQLite's own arguments are handed on.
    unsafe { own().vfs.xDelete.expect("it deletes")(vfs, path, sync_dir) }
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    bytes: *const c_void,
    count: c_int,
    at: sqlite3_int64,
) -> c_int {
    let mut record = record();
    // SAFETY: SQLite gives so many bytes.
    let written = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), count.unsigned_abs() as usize) };
    record.note(file, |file| Event::Write {
        file,
        at: usize::try_from(at).unwrap(),
        bytes: written.to_owned(),
    });
    // SAFETY: SQLite's own arguments are handed on.
    unsafe { own_files().xWrite.expect("it writes")(file, bytes, count, at) }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, len: sqlite3_int64) -> c_int {
    let mut record = record();
    record.note(file, |file| Event::Truncate {
        file,
        len: usize::try_from(len).unwrap(),
    });
    // SAFETY: SQLite's own arguments are handed on.
    unsafe { own_files().xTruncate.expect("it truncates")(file, len) }
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    let mut record = record();
    // SAFETY: SQLite's own arguments are handed on.
    let code = unsafe { own_files().xSync.expect("it syncs")(file, flags) };
    if code == SQLITE_OK {
        record.note(file, |file| Event::Sync { file });
    }
    code
}
