//! Content on its way in: unpacked, written, recognised, and converted to what QEMU runs from.
//!
//! **Owns:** the temporary files, and what is told of content that cannot be taken.
//!
//! **Does not know:** whose image it becomes.
//!
//! **Start here:** [`take`].

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::Problem;
use axum::body::Body;
use formats::compression::{self, Compression};
use formats::disk::{self, Format, Refusal, recognise};
use futures_util::TryStreamExt;
use model::image::{ImageContent, ImageFormat};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::io::{InspectReader, StreamReader};

use super::confined;
use super::sink::{self, PIECE_BYTES, Sink, Unwritten, Written};
use crate::auth::hex;

/// The most that is taken.
const CONTENT_MAX_BYTES: u64 = 1 << 40;
/// How many of them wait to be written.
const PIECES_WAITING: usize = 4;
/// How long a sender may be silent.
const SILENCE_DEADLINE: Duration = Duration::from_secs(60);

/// Files that go when this does.
#[derive(Debug)]
pub(super) struct Temporary(pub(super) PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Content that can be kept, and the file that it is in.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) content: ImageContent,
    pub(super) file: Temporary,
}

/// Writes the content to a file at `path`, or beside it, and says what it is.
pub(super) async fn take(path: PathBuf, body: Body, expected: Option<&str>) -> Result<Taken, Problem> {
    let file = Temporary(path);
    let (written, packed_sha256) = receive(&file.0, body).await?;
    let sent_sha256 = packed_sha256.unwrap_or_else(|| written.sha256.clone());
    let disk = recognise(written.sample()).map_err(|why| not_an_image(&why))?;
    check_digest(&sent_sha256, expected)?;
    if has_a_check(disk.format) {
        confined::check(opened(&file.0)?, disk.format).await?;
    }
    let virtual_bytes = disk.virtual_bytes.unwrap_or_default();
    let (format, written, file, virtual_bytes) = match disk.format {
        Format::Raw => (ImageFormat::Raw, written, file, virtual_bytes),
        Format::Qcow2 => (ImageFormat::Qcow2, written, file, virtual_bytes),
        format => {
            let (written, file, bytes) = converted(&file.0, format, &written).await?;
            (ImageFormat::Qcow2, written, file, bytes)
        }
    };
    let content = ImageContent {
        format,
        file_bytes: written.bytes,
        virtual_bytes,
        source_sha256: (sent_sha256 != written.sha256).then_some(sent_sha256),
        sha256: written.sha256,
    };
    Ok(Taken { content, file })
}

/// Whether there is something that its tables can be checked by; [`recognise`] does it for the others.
const fn has_a_check(format: Format) -> bool {
    !matches!(format, Format::Raw | Format::Vhd)
}

/// Opens a file for a program without rights, which opens it once more by its descriptor.
fn opened(path: &Path) -> Result<File, Problem> {
    let opened = confined::open_to_holders(path).and_then(|()| File::open(path));
    opened.map_err(|error| disk_problem("reading", &error))
}

/// Writes all of it to a file, unpacked. The digest is that of what was sent, if it was packed.
async fn receive(path: &Path, body: Body) -> Result<(Written, Option<String>), Problem> {
    let mut sent = 0_u64;
    let chunks = body.into_data_stream().map_err(io::Error::other);
    let chunks = chunks.and_then(|chunk| {
        sent = sent.saturating_add(chunk.len() as u64);
        let is_too_much = sent > CONTENT_MAX_BYTES;
        let refused: io::Error = io::ErrorKind::FileTooLarge.into();
        std::future::ready(if is_too_much { Err(refused) } else { Ok(chunk) })
    });
    let mut source = StreamReader::new(chunks);
    let mut head = Vec::new();
    let first = (&mut source).take(compression::HEAD_BYTES as u64);
    read(first, &mut head, compression::HEAD_BYTES).await?;
    let compression = Compression::of(&head);
    let whole = head.as_slice().chain(source);
    let Some(compression) = compression else {
        return Ok((write(path, whole).await?, None));
    };
    let mut digest = Sha256::new();
    let counted = InspectReader::new(whole, |bytes| digest.update(bytes));
    let written = unpacked(path, counted, compression).await?;
    Ok((written, Some(hex(&digest.finalize()))))
}

/// Fills `piece` up to `bytes`, or to the end.
async fn read(mut source: impl AsyncRead + Unpin, piece: &mut Vec<u8>, bytes: usize) -> Result<(), Problem> {
    while piece.len() < bytes {
        let room = (bytes - piece.len()) as u64;
        let mut bounded = (&mut source).take(room);
        let read = timeout(SILENCE_DEADLINE, bounded.read_buf(piece)).await;
        match read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return Err(upload_problem(&error)),
        }
    }
    Ok(())
}

/// Writes while more is read.
async fn write(path: &Path, mut source: impl AsyncRead + Unpin) -> Result<Written, Problem> {
    let mut sink = Sink::create(path).map_err(|error| disk_problem("keeping", &error))?;
    let (give, mut pieces) = mpsc::channel::<Vec<u8>>(PIECES_WAITING);
    let writes = spawn_blocking(move || {
        while let Some(piece) = pieces.blocking_recv() {
            sink.write(&piece)?;
        }
        Ok(sink)
    });
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        read(&mut source, &mut piece, PIECE_BYTES).await?;
        // Nobody takes it any more if writing failed.
        if piece.is_empty() || give.send(piece).await.is_err() {
            break;
        }
    }
    drop(give);
    let sink = joined(writes).await?;
    joined(spawn_blocking(move || sink.finish())).await
}

async fn joined<T>(task: tokio::task::JoinHandle<Result<T, Unwritten>>) -> Result<T, Problem> {
    let ended = task.await;
    let ended = ended.unwrap_or_else(|error| Err(Unwritten::File(io::Error::other(error))));
    ended.map_err(|why| match why {
        Unwritten::File(error) => disk_problem("writing", &error),
        Unwritten::TooMuch(bytes) => {
            let detail = format!(
                "the content is not an image that can be used: it is larger than {bytes} bytes, which is more than the \
                 disk that it declares; send a whole one"
            );
            Problem::invalid("not-an-image", detail)
        }
    })
}

/// Writes what an unpacker makes of it.
async fn unpacked(
    path: &Path,
    source: impl AsyncRead + Unpin,
    compression: Compression,
) -> Result<Written, Problem> {
    let mut child = confined::unpack(compression).await?;
    let (into, out) = (child.stdin.take(), child.stdout.take());
    let (Some(into), Some(out)) = (into, out) else {
        return Err(disk_problem("unpacking", &io::ErrorKind::BrokenPipe.into()));
    };
    let ((), written) = tokio::try_join!(feed(source, into), write(path, out))?;
    confined::unpacked(child, compression).await?;
    Ok(written)
}

async fn feed(
    mut source: impl AsyncRead + Unpin,
    mut into: tokio::process::ChildStdin,
) -> Result<(), Problem> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    loop {
        piece.clear();
        read(&mut source, &mut piece, PIECE_BYTES).await?;
        // It ends early at what it cannot unpack, and says so.
        if piece.is_empty() || into.write_all(&piece).await.is_err() {
            return Ok(());
        }
    }
}

/// The image as qcow2, in a file of its own.
async fn converted(
    path: &Path,
    format: Format,
    source: &Written,
) -> Result<(Written, Temporary, u64), Problem> {
    let reading = |error: io::Error| disk_problem("reading", &error);
    let to = Temporary(path.with_extension("converted"));
    let mut options = File::options();
    let out = options.read(true).write(true).create_new(true).open(&to.0);
    let out = out.map_err(|error| disk_problem("keeping", &error))?;
    confined::open_to_holders(&to.0).map_err(reading)?;
    let again = out.try_clone().map_err(reading)?;
    let limit = disk::bytes_max(source.sample().head);
    confined::convert(opened(path)?, format, out, limit).await?;
    let written = joined(spawn_blocking(move || sink::read(again))).await?;
    let disk = recognise(written.sample()).map_err(|why| not_an_image(&why))?;
    Ok((written, to, disk.virtual_bytes.unwrap_or_default()))
}

fn check_digest(found: &str, expected: Option<&str>) -> Result<(), Problem> {
    match expected {
        Some(expected) if expected != found => {
            let detail =
                format!("the content's SHA-256 is {found}, expected was {expected}: send the right file");
            Err(Problem::invalid("digest-differs", detail))
        }
        _ => Ok(()),
    }
}

fn not_an_image(why: &Refusal) -> Problem {
    let detail = format!(
        "the content is not an image that can be used: {why}; give a qcow2, raw, VMDK, VHD, VHDX or VDI disk image, \
         which may be compressed with gzip, xz or zstd"
    );
    Problem::invalid("not-an-image", detail)
}

fn upload_problem(error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::FileTooLarge => Problem::new(413, "too-large", "an image's content is at most 1 TiB"),
        io::ErrorKind::TimedOut => {
            let detail = format!("nothing came for {} s: send it again", SILENCE_DEADLINE.as_secs());
            Problem::new(400, "upload-broken", detail)
        }
        _ => Problem::new(
            400,
            "upload-broken",
            format!("the content ended early ({error}): send it again"),
        ),
    }
}

/// The server's disk, or a part of it, is in the way.
pub(super) fn disk_problem(attempt: &str, error: &io::Error) -> Problem {
    let full = error.kind() == io::ErrorKind::StorageFull;
    let (status, code) = if full {
        (503, "image-store-full")
    } else {
        (500, "image-not-kept")
    };
    Problem::new(
        status,
        code,
        format!("{attempt} the image's content: {error}; send it again"),
    )
}
