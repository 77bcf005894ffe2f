//! Owns: what an error of SQLite means for a caller of the store.
//! Does not know: which operation met it; that comes by argument.
//! Start here: [`translate`].

use std::path::Path;

use rusqlite::ErrorCode;
use store::StoreError;

/// The store's word for an error of SQLite.
pub(crate) fn translate(attempt: &'static str, path: &Path, error: &rusqlite::Error) -> StoreError {
    let object = path.display().to_string();
    let detail = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full { attempt, object },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Damaged { object, detail },
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::SystemIoFailure
            | ErrorCode::OutOfMemory,
        ) => StoreError::Unavailable {
            attempt,
            detail: format!("{object}: {detail}"),
            retryable: true,
        },
        Some(_) => StoreError::Unavailable {
            attempt,
            detail: format!("{object}: {detail}"),
            retryable: false,
        },
        // Not SQLite's: a row is not what this program writes.
        None => StoreError::Damaged { object, detail },
    }
}

/// An error of the file system on the store's files.
pub(crate) fn translate_io(attempt: &'static str, path: &Path, error: &std::io::Error) -> StoreError {
    let object = path.display().to_string();
    match error.kind() {
        std::io::ErrorKind::StorageFull => StoreError::Full { attempt, object },
        _ => StoreError::Unavailable {
            attempt,
            detail: format!("{object}: {error}"),
            retryable: false,
        },
    }
}
