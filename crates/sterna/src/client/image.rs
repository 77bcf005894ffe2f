//! What only images have: their content, sent from a file. A repeat with the same file does nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use api::Create;
use api::client::{ClientError, ObjectOf};
use api::kinds::{Image, ImageSpec, ImageState};
use futures_util::{Stream, stream};
use indicatif::{ProgressBar, ProgressStyle};
use model::digest::hex;
use sha2::{Digest, Sha256};

use super::{Context, output};
use crate::cli::ImportArgs;

/// How much is read at once.
const CHUNK_BYTES: usize = 512 * 1024;

/// Creates the image if it is missing, and sends its content if it has none.
pub(super) async fn import(context: &Context, args: ImportArgs) -> anyhow::Result<ExitCode> {
    let file = File::open(&args.file).with_context(|| format!("opening {}", args.file.display()))?;
    let metadata = file
        .metadata()
        .with_context(|| format!("looking at {}", args.file.display()))?;
    if !metadata.is_file() {
        bail!("{} is not a file: give a disk image", args.file.display());
    }
    let image = present(context, &args).await?;
    if image.status.state == ImageState::Ready {
        return repeated(context, &args.file, &image);
    }
    let sent = send(context, &image.name, file, metadata.len()).await;
    let image = match sent {
        // Somebody else was faster: it is fine if they sent the same.
        Err(error) if error.code() == Some("image-has-content") => {
            let image = context.client.get::<Image>(&args.name).await?;
            return repeated(context, &args.file, &image);
        }
        sent => sent?,
    };
    output::one::<Image>(context, &image)
}

/// The image, made if it is not there.
async fn present(context: &Context, args: &ImportArgs) -> Result<ObjectOf<Image>, ClientError> {
    let client = &context.client;
    match client.get::<Image>(&args.name).await {
        Err(error) if error.code() == Some("not-found") => {}
        found => return found,
    }
    let labels: BTreeMap<String, String> = args.labels.iter().cloned().collect();
    let body = Create {
        name: Some(args.name.clone()),
        labels,
        spec: ImageSpec::default(),
    };
    match client.create::<Image>(&body, None, false).await {
        Err(error) if error.code() == Some("name-taken") => client.get::<Image>(&args.name).await,
        created => created,
    }
}

/// The image has its content: all is well if it is the file's.
fn repeated(context: &Context, path: &Path, image: &ObjectOf<Image>) -> anyhow::Result<ExitCode> {
    let here = digest(context, path)?;
    let status = &image.status;
    let has = [&status.sha256, &status.source_sha256];
    if has.into_iter().any(|digest| digest.as_deref() == Some(&here)) {
        context.note(&format!("Image {} has this content already.", image.name));
        return output::one::<Image>(context, image);
    }
    let there = image.status.sha256.as_deref().unwrap_or("unknown");
    let name = &image.name;
    bail!(
        "image {name} has another content (SHA-256 {there}, the file's is {here}), and an image's content never changes: \
         import the file under another name, or `sterna image delete {name}` first"
    )
}

fn digest(context: &Context, path: &Path) -> anyhow::Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let bar = bar(context, file.metadata()?.len(), "comparing");
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file
            .read(&mut chunk)
            .with_context(|| format!("reading {}", path.display()))?;
        let Some(part) = chunk.get(..read).filter(|part| !part.is_empty()) else {
            break;
        };
        digest.update(part);
        bar.inc(read as u64);
    }
    bar.finish_and_clear();
    Ok(hex(&digest.finalize()))
}

async fn send(context: &Context, name: &str, file: File, bytes: u64) -> Result<ObjectOf<Image>, ClientError> {
    let bar = bar(context, bytes, "sending");
    let sent = context
        .client
        .upload(name, bytes, chunks(file, bar.clone()))
        .await;
    bar.finish_and_clear();
    sent
}

/// The file's content as the connection takes it. Local reads are short, and nothing else runs on this thread.
fn chunks(file: File, bar: ProgressBar) -> impl Stream<Item = std::io::Result<Vec<u8>>> + Send + 'static {
    stream::try_unfold((file, bar), |(mut file, bar)| async move {
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = file.read(&mut chunk)?;
        chunk.truncate(read);
        bar.inc(read as u64);
        Ok((read > 0).then_some((chunk, (file, bar))))
    })
}

pub(super) fn bar(context: &Context, bytes: u64, what: &'static str) -> ProgressBar {
    let bar = context.progress.add(ProgressBar::new(bytes));
    let style = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta}";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
