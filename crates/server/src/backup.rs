//! A backup of the store, taken while it is used, and sent with its digest.

use std::path::{Path, PathBuf};

use api::Problem;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use sha2::{Digest, Sha256};
use store::{Revision, Store};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::answer::{Refused, store_problem};
use crate::auth::User;
use crate::routes::App;

/// What the files of backups that are being taken begin with.
const PREFIX: &str = "backup-";
const CHUNK_BYTES: usize = 256 * 1024;

/// Takes a backup and sends it. One at a time: each takes as much room on the server's disk as the store.
pub async fn backup(State(app): State<App>, user: User) -> Result<Response, Refused> {
    user.must_be_admin("take a backup, which has everybody's data in it")?;
    let _alone = app.backup.try_lock().map_err(|_| {
        let detail = "another backup is being taken: try again when it is done";
        Problem::conflict("backup-under-way", detail)
    })?;
    let path = app.data_dir.join(format!("{PREFIX}{}", app.env.next_id()));
    let taken = take(app.store.as_ref(), &path).await;
    // From here on the open file is all there is of it, so that nothing of it stays whatever happens.
    let _ = tokio::fs::remove_file(&path).await;
    let Taken {
        file,
        revision,
        bytes,
        digest,
    } = taken?;
    tracing::info!(
        user = user.name,
        revision,
        bytes,
        "a backup of the store was taken"
    );
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, bytes.to_string()),
        (api::client::REPR_DIGEST, format!("sha-256=:{digest}:")),
        (api::client::REVISION, revision.to_string()),
    ];
    Ok((headers, Body::from_stream(chunks(file))).into_response())
}

/// Backups that a crash cut off.
pub async fn remove_unfinished(dir: &Path) {
    crate::run::remove_beginning_with(dir, PREFIX).await;
}

struct Taken {
    file: File,
    revision: Revision,
    bytes: u64,
    digest: String,
}

async fn take(store: &dyn Store, path: &PathBuf) -> Result<Taken, Problem> {
    let taken = store.backup(path).await.map_err(|error| store_problem(&error))?;
    let unreadable = |error: std::io::Error| {
        let detail = format!("reading the backup that was taken: {error}; try again");
        Problem::new(500, "backup-failed", detail)
    };
    let mut file = File::open(path).await.map_err(unreadable)?;
    let digest = digest(&mut file).await.map_err(unreadable)?;
    file.rewind().await.map_err(unreadable)?;
    Ok(Taken {
        file,
        revision: taken.revision,
        bytes: taken.size_bytes,
        digest,
    })
}

async fn digest(file: &mut File) -> std::io::Result<String> {
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk).await?;
        let Some(part) = chunk.get(..read).filter(|part| !part.is_empty()) else {
            return Ok(STANDARD.encode(digest.finalize()));
        };
        digest.update(part);
    }
}

/// A file's content, from where it stands.
pub fn chunks(file: File) -> impl stream::Stream<Item = std::io::Result<Vec<u8>>> {
    stream::try_unfold(file, |mut file| async move {
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = file.read(&mut chunk).await?;
        chunk.truncate(read);
        Ok((read > 0).then_some((chunk, file)))
    })
}
