//! Content on its way in: written, unpacked, recognised, and converted to what QEMU runs from.
//!
//! **Owns:** the files that it is in meanwhile, and what is told of content that cannot be taken.
//!
//! **Does not know:** where it comes from, and whose image it becomes.
//!
//! **Start here:** [`take`].

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use api::Problem;
use bytes::{Bytes, BytesMut};
use formats::compression::Compression;
use formats::disk::{self, Format, Refusal, recognise};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStream, TryStreamExt};
use model::digest::hex;
use model::image::{ImageContent, ImageFormat};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::ChildStdin;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_util::io::ReaderStream;

use super::confined;
use super::sink::{self, PIECE_BYTES, Sink, Unwritten, Written};

/// The most that is taken.
pub(super) const CONTENT_MAX_BYTES: u64 = 1 << 40;
/// How many pieces wait to be written.
const PIECES_WAITING: usize = 4;
/// What is asked for when content is damaged.
pub(super) const A_WHOLE_ONE: &str = "give a whole one";
const A_KNOWN_ONE: &str = "give a qcow2, raw, VMDK, VHD, VHDX or VDI disk image or an ISO 9660 medium, which may be \
                           compressed with gzip, xz or zstd";

/// Files that go when this does.
#[derive(Debug)]
pub(super) struct Temporary(pub(super) PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A file for what comes. Whoever made it removes it.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    /// Other files are made beside it, with other extensions.
    pub(super) path: &'a Path,
    /// What of it is there already; the source begins behind that.
    pub(super) held: Option<Held>,
}

/// What a file has of content whose rest comes.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// How much.
    pub(super) bytes: u64,
    /// Its digest, if that is known otherwise.
    pub(super) sha256: Option<String>,
}

/// Content that can be kept.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) content: ImageContent,
    made: Option<Temporary>,
}

impl Taken {
    /// The file that it is in, which is the one that it came into unless it had to be made into another.
    pub(super) fn file<'a>(&'a self, incoming: &'a Path) -> &'a Path {
        self.made.as_ref().map_or(incoming, |made| &made.0)
    }
}

/// Content as it comes: the next bytes, or why there are no more.
pub(super) type Source<'a> = BoxStream<'a, Result<Bytes, Problem>>;

/// Writes the content to its file, or beside it, and says what it is.
pub(super) async fn take(
    incoming: Incoming<'_>,
    source: Source<'_>,
    expected: Option<&str>,
) -> Result<Taken, Problem> {
    let path = incoming.path;
    let sent = receive(incoming, source).await?;
    let (sent_sha256, written, made) = match sent.unpacked {
        Some((written, made)) => (sent.written.sha256, written, Some(made)),
        None => (sent.written.sha256.clone(), sent.written, None),
    };
    let disk = recognise(written.sample()).map_err(|why| unusable(&why, A_KNOWN_ONE))?;
    check_digest(&sent_sha256, expected)?;
    let path = made.as_ref().map_or(path, |made| &made.0);
    if has_a_check(disk.format) {
        confined::check(opened(path)?, disk.format).await?;
    }
    let virtual_bytes = disk.virtual_bytes.unwrap_or_default();
    let (format, written, made, virtual_bytes) = match disk.format {
        Format::Raw | Format::Iso => (ImageFormat::Raw, written, made, virtual_bytes),
        Format::Qcow2 => (ImageFormat::Qcow2, written, made, virtual_bytes),
        format => {
            let (written, made, bytes) = converted(path, format, &written).await?;
            (ImageFormat::Qcow2, written, Some(made), bytes)
        }
    };
    let content = ImageContent {
        format,
        file_bytes: written.bytes,
        virtual_bytes,
        source_sha256: (sent_sha256 != written.sha256).then_some(sent_sha256),
        sha256: written.sha256,
        is_medium: disk.format == Format::Iso,
    };
    Ok(Taken { content, made })
}

/// Whether there is something that its tables can be checked by; [`recognise`] does it for the others.
const fn has_a_check(format: Format) -> bool {
    !matches!(format, Format::Raw | Format::Vhd | Format::Iso)
}

/// Opens a file for a program without rights, which opens it once more by its descriptor.
fn opened(path: &Path) -> Result<File, Problem> {
    let opened = confined::open_to_holders(path).and_then(|()| File::open(path));
    opened.map_err(|error| disk_problem("reading", &error))
}

/// What came, and what became of it if it was packed.
struct Received {
    written: Written,
    unpacked: Option<(Written, Temporary)>,
}

/// Writes all of it to its file, and what is packed in it to another one.
async fn receive(incoming: Incoming<'_>, source: Source<'_>) -> Result<Received, Problem> {
    let path = incoming.path;
    let held_bytes = incoming.held.as_ref().map_or(0, |held| held.bytes);
    let mut pieces = pieces(bounded(again(incoming).await?.chain(source)));
    let first = pieces.try_next().await?.unwrap_or_default();
    let compression = Compression::of(&first);
    let all = stream::once(std::future::ready(Ok(first))).chain(pieces).boxed();
    let sink = match held_bytes {
        0 => Sink::create(path),
        held_bytes => Sink::go_on(path, held_bytes),
    };
    let sink = sink.map_err(|error| disk_problem("keeping", &error))?;
    match compression {
        None => Ok(Received {
            written: write(sink, all).await?,
            unpacked: None,
        }),
        Some(compression) => unpacked(path, sink, all, compression).await,
    }
}

/// What is there already.
async fn again(incoming: Incoming<'_>) -> Result<Source<'static>, Problem> {
    let Some(held) = incoming.held else {
        return Ok(stream::empty().boxed());
    };
    let reading = |error: io::Error| disk_problem("reading", &error);
    let file = tokio::fs::File::open(incoming.path).await.map_err(reading)?;
    let bytes = ReaderStream::with_capacity(file.take(held.bytes), PIECE_BYTES);
    let bytes = bytes.map_err(reading).boxed();
    Ok(match held.sha256 {
        Some(sha256) => same(bytes, sha256),
        None => bytes,
    })
}

/// These bytes, and a problem behind them if their digest is another.
fn same(bytes: Source<'static>, sha256: String) -> Source<'static> {
    let same = stream::try_unfold((bytes, Sha256::new()), move |(mut bytes, mut digest)| {
        let sha256 = sha256.clone();
        async move {
            if let Some(chunk) = bytes.try_next().await? {
                digest.update(&chunk);
                return Ok(Some((chunk, (bytes, digest))));
            }
            let is_same = hex(&digest.finalize()) == sha256;
            if is_same { Ok(None) } else { Err(differs()) }
        }
    });
    same.boxed()
}

fn differs() -> Problem {
    let detail = "what was sent of it before is another file's, and is gone now: send it from its begin";
    Problem::conflict("upload-differs", detail)
}

/// No more than may be taken.
fn bounded<'a>(source: impl TryStream<Ok = Bytes, Error = Problem> + Send + 'a) -> Source<'a> {
    let mut sent = 0_u64;
    let counted = source.and_then(move |chunk| {
        sent = sent.saturating_add(chunk.len() as u64);
        let is_too_much = sent > CONTENT_MAX_BYTES;
        std::future::ready(if is_too_much { Err(too_large()) } else { Ok(chunk) })
    });
    counted.into_stream().boxed()
}

/// The same in pieces of one size, so that zeroes are found in whole blocks.
fn pieces(source: Source<'_>) -> Source<'_> {
    let pieces = stream::try_unfold(source.fuse(), |mut source| async move {
        let mut piece = BytesMut::new();
        while piece.len() < PIECE_BYTES {
            match source.try_next().await? {
                Some(chunk) => piece.extend_from_slice(&chunk),
                None => break,
            }
        }
        let is_end = piece.is_empty();
        Ok((!is_end).then(|| (piece.freeze(), source)))
    });
    pieces.fuse().boxed()
}

/// Writes while more is read.
async fn write(mut sink: Sink, mut pieces: Source<'_>) -> Result<Written, Problem> {
    let (give, mut given) = mpsc::channel::<Bytes>(PIECES_WAITING);
    let writes = spawn_blocking(move || {
        while let Some(piece) = given.blocking_recv() {
            sink.write(&piece)?;
        }
        Ok(sink)
    });
    let all = async {
        while let Some(piece) = pieces.try_next().await? {
            // Nobody takes it any more if writing failed.
            if give.send(piece).await.is_err() {
                break;
            }
        }
        Ok::<(), Problem>(())
    };
    let all = all.await;
    drop(give);
    // Also where no more comes: what has come is written then, and nobody writes any more.
    let sink = joined(writes).await;
    all?;
    let sink = sink?;
    joined(spawn_blocking(move || sink.finish())).await
}

async fn joined<T>(task: tokio::task::JoinHandle<Result<T, Unwritten>>) -> Result<T, Problem> {
    let ended = task.await;
    let ended = ended.unwrap_or_else(|error| Err(Unwritten::File(io::Error::other(error))));
    ended.map_err(|why| match why {
        Unwritten::File(error) => disk_problem("writing", &error),
        Unwritten::TooMuch(bytes) => {
            let why =
                format!("it is larger than {bytes} bytes, which is more than the disk that it declares");
            unusable(&why, A_WHOLE_ONE)
        }
    })
}

/// Writes what comes, and beside it what an unpacker makes of it.
async fn unpacked(
    path: &Path,
    sink: Sink,
    pieces: Source<'_>,
    compression: Compression,
) -> Result<Received, Problem> {
    let made = Temporary(path.with_extension("unpacked"));
    let inner = Sink::create(&made.0).map_err(|error| disk_problem("keeping", &error))?;
    let mut child = confined::unpack(compression).await?;
    let (Some(into), Some(out)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(disk_problem("unpacking", &io::ErrorKind::BrokenPipe.into()));
    };
    let out = ReaderStream::with_capacity(out, PIECE_BYTES);
    let out = out.map_err(|error| disk_problem("unpacking", &error)).boxed();
    let outer = write(sink, fed(pieces, into));
    let (written, inner) = tokio::try_join!(outer, write(inner, self::pieces(out)))?;
    confined::unpacked(child, compression).await?;
    Ok(Received {
        written,
        unpacked: Some((inner, made)),
    })
}

/// The same pieces, each of which was given to an unpacker. It ends early at what it cannot unpack, and says so.
fn fed(pieces: Source<'_>, into: ChildStdin) -> Source<'_> {
    let fed = stream::try_unfold((pieces, into), |(mut pieces, mut into)| async move {
        let Some(piece) = pieces.try_next().await? else {
            return Ok(None);
        };
        let taken = into.write_all(&piece).await;
        Ok(taken.is_ok().then_some((piece, (pieces, into))))
    });
    fed.boxed()
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
    let disk = recognise(written.sample()).map_err(|why: Refusal| unusable(&why, A_KNOWN_ONE))?;
    Ok((written, to, disk.virtual_bytes.unwrap_or_default()))
}

fn check_digest(found: &str, expected: Option<&str>) -> Result<(), Problem> {
    match expected {
        Some(expected) if expected != found => {
            let detail =
                format!("the content's SHA-256 is {found}, expected was {expected}: give the right file");
            Err(Problem::invalid("digest-differs", detail))
        }
        _ => Ok(()),
    }
}

/// The content is no image that may be kept.
pub(super) fn unusable(why: &dyn Display, remedy: &str) -> Problem {
    let detail = format!("the content is not an image that can be used: {why}; {remedy}");
    Problem::invalid("not-an-image", detail)
}

/// It is more than is taken.
pub(super) fn too_large() -> Problem {
    Problem::new(413, "too-large", "an image's content is at most 1 TiB")
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
        format!("{attempt} the image's content: {error}; try again"),
    )
}
