//! Content for images that goes to the server.
//!
//! **Owns:** that a file is sent until the server has all of it, also if that is killed and comes back.
//!
//! **Does not know:** where the file comes from, and whether somebody still wants it.
//!
//! **Start here:** [`Storage::send_image`].

use std::io::{Read, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::Problem;
use api::kinds::UploadStatus;
use model::digest::hex;
use model::{ImageId, Incarnation};
use reqwest::{Body, Response, header};
use sha2::{Digest, Sha256};
use tokio::io::AsyncSeekExt;
use tokio::time::{sleep, timeout};
use tokio_util::io::ReaderStream;

use super::{SILENCE_DEADLINE, Storage, StorageError, file};

/// How soon is tried again what the server did not hear.
const AGAIN: Duration = Duration::from_secs(2);
const CHUNK_BYTES: usize = 256 * 1024;
/// The codes of answers after which the same may go well. Of the last two, the order for it may not have come there yet.
const PASSING: [&str; 5] = [
    "upload-broken",
    "upload-overtaken",
    "upload-differs",
    "not-found",
    "not-copied-here",
];

/// How one attempt ended.
enum Sent {
    Taken,
    Again(String),
    Refused(String),
}

impl Storage {
    /// Has the server take a file as an image's content. It goes on where it stopped, until the server has it or refuses.
    /// The server takes it from the incarnation only that is told to make it.
    pub async fn send_image(
        &self,
        image: ImageId,
        incarnation: Incarnation,
        path: &Path,
        is_frozen: bool,
    ) -> Result<(), StorageError> {
        let url = format!("{}/agent/v1/copies/{image}/{incarnation}", self.server);
        loop {
            match self.send_once(&url, path, is_frozen).await? {
                Sent::Taken => return Ok(()),
                Sent::Refused(why) => return Err(StorageError::Send { image, why }),
                Sent::Again(why) => {
                    tracing::info!(%image, why, "the server has not taken an image's content; it is tried again");
                    sleep(AGAIN).await;
                }
            }
        }
    }

    async fn send_once(&self, url: &str, path: &Path, is_frozen: bool) -> Result<Sent, StorageError> {
        let asked = timeout(SILENCE_DEADLINE, self.client.get(url).send()).await;
        let Ok(Ok(answer)) = asked else {
            return Ok(Sent::Again("it cannot be reached".to_owned()));
        };
        let held = match judge(answer).await {
            Ok(answer) => answer.json::<UploadStatus>().await.map_or(0, |held| held.bytes),
            Err(sent) => return Ok(sent),
        };
        let bytes = path.metadata().map_err(file("look at", path))?.len();
        let held = held.min(bytes);
        let mut query = vec![("frozen", is_frozen.to_string())];
        if held > 0 {
            query.push(("from", held.to_string()));
            query.push(("held_sha256", digest(path.to_owned(), held).await?));
        }
        let mut content = tokio::fs::File::open(path).await.map_err(file("open", path))?;
        let sought = content.seek(SeekFrom::Start(held)).await;
        sought.map_err(file("read", path))?;
        let content = ReaderStream::with_capacity(content, CHUNK_BYTES);
        let put = self.client.put(url).query(&query);
        let put = put.header(header::CONTENT_LENGTH, bytes.saturating_sub(held));
        match put.body(Body::wrap_stream(content)).send().await {
            Ok(answer) => Ok(judge(answer).await.map_or_else(|sent| sent, |_| Sent::Taken)),
            Err(error) => Ok(Sent::Again(crate::link::chain(&error))),
        }
    }
}

/// What an answer that is no success leads to.
async fn judge(answer: Response) -> Result<Response, Sent> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status();
    let Ok(problem) = answer.json::<Problem>().await else {
        return Err(Sent::Again(format!("it answered {status}")));
    };
    Err(match problem.code.as_str() {
        "image-has-content" => Sent::Taken,
        code if PASSING.contains(&code) => Sent::Again(problem.detail),
        _ => Sent::Refused(problem.detail),
    })
}

/// The SHA-256 of the first so many bytes.
async fn digest(path: PathBuf, bytes: u64) -> Result<String, StorageError> {
    let all = move || {
        let reading = || file("read", &path);
        let mut content = std::fs::File::open(&path).map_err(reading())?.take(bytes);
        let mut digest = Sha256::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = content.read(&mut chunk).map_err(reading())?;
            match chunk.get(..read).filter(|chunk| !chunk.is_empty()) {
                Some(chunk) => digest.update(chunk),
                None => return Ok(hex(&digest.finalize())),
            }
        }
    };
    let read = tokio::task::spawn_blocking(all).await;
    read.unwrap_or_else(|error| {
        Err(file("read", Path::new("the content"))(std::io::Error::other(
            error,
        )))
    })
}
