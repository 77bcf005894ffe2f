//! What only images have: their content, sent from a file or taken by the server. A repeat with the same does nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use api::Create;
use api::client::{ClientError, ObjectOf, Uploaded};
use api::kinds::{Image, ImageSource, ImageSpec, ImageState};
use api::object_store::{Credentials, ObjectStore, StoredObject};
use futures_util::{Stream, StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use model::digest::hex;
use model::image::ImportProgress;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::config::check_private;
use super::wait::{Imported, until_at};
use super::{Context, output};
use crate::cli::{CaptureArgs, ImportArgs};

/// How much is read at once.
const CHUNK_BYTES: usize = 512 * 1024;
/// More than credentials ever take.
const CREDENTIALS_MAX_BYTES: u64 = 64 << 10;
/// How long an import is waited for if nobody says: longer than a server tries.
const PATIENCE: Duration = Duration::from_secs(25 * 3600);
/// How soon after a progress stream ended it is asked for again.
const AGAIN: Duration = Duration::from_millis(200);

/// Creates the image if it is missing, and sees to its content if it has none.
pub(super) async fn import(context: &Context, args: ImportArgs) -> anyhow::Result<ExitCode> {
    match (&args.file, args.url.as_ref().or(args.path.as_ref())) {
        (Some(file), _) => from_file(context, &args, file).await,
        (None, Some(url)) => from_url(context, &args, url).await,
        (None, None) => bail!("give --file, --url or --path"),
    }
}

async fn from_file(context: &Context, args: &ImportArgs, path: &Path) -> anyhow::Result<ExitCode> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let metadata = file
        .metadata()
        .with_context(|| format!("looking at {}", path.display()))?;
    if !metadata.is_file() {
        bail!("{} is not a file: give a disk image", path.display());
    }
    let image = present(context, args).await?;
    if image.status.state == ImageState::Ready {
        return repeated(context, path, &image);
    }
    let image = match send(context, &image.name, file, metadata.len()).await {
        // Somebody else was faster: it is fine if they sent the same.
        Err(error) if code(&error) == Some("image-has-content") => {
            let image = context.client.get::<Image>(&args.name).await?;
            return repeated(context, path, &image);
        }
        sent => sent?,
    };
    output::one::<Image>(context, &image)
}

fn code(error: &anyhow::Error) -> Option<&str> {
    error.downcast_ref::<ClientError>()?.code()
}

/// The image, made if it is not there.
async fn present(context: &Context, args: &ImportArgs) -> Result<ObjectOf<Image>, ClientError> {
    match context.client.get::<Image>(&args.name).await {
        Err(error) if error.code() == Some("not-found") => {}
        found => return found,
    }
    match create(context, &args.name, &args.labels, ImageSpec::default()).await {
        Err(error) if error.code() == Some("name-taken") => context.client.get::<Image>(&args.name).await,
        created => created,
    }
}

async fn create(
    context: &Context,
    name: &str,
    labels: &[(String, String)],
    spec: ImageSpec,
) -> Result<ObjectOf<Image>, ClientError> {
    let labels: BTreeMap<String, String> = labels.iter().cloned().collect();
    let body = Create {
        name: Some(name.to_owned()),
        labels,
        spec,
    };
    context.client.create::<Image>(&body, None, false).await
}

/// The image, whose content comes by itself: made if it is not there, begun again if it has failed.
async fn begun(
    context: &Context,
    name: &str,
    labels: &[(String, String)],
    spec: ImageSpec,
) -> Result<ObjectOf<Image>, ClientError> {
    match create(context, name, labels, spec.clone()).await {
        Err(error) if error.code() == Some("name-taken") => {
            context.client.action::<Image, _>(name, "import", &spec).await
        }
        created => created,
    }
}

/// Has a host copy a VM's disk.
pub(super) async fn capture(context: &Context, args: CaptureArgs) -> anyhow::Result<ExitCode> {
    let spec = ImageSpec {
        from_vm: Some(args.from_vm),
        ..ImageSpec::default()
    };
    let image = begun(context, &args.name, &args.labels, spec).await?;
    if !args.wait {
        return output::one::<Image>(context, &image);
    }
    wait(context, image).await
}

/// Has the server take the content, also for an image that is there and has none, and waits for it.
async fn from_url(context: &Context, args: &ImportArgs, url: &str) -> anyhow::Result<ExitCode> {
    let list = args.sha256sums.clone();
    let is_object = url.starts_with("s3://");
    if is_object && matches!(list, Some(None)) {
        bail!(
            "a list in an object store is not read: give --sha256, or --sha256sums=URL of one that anybody may read"
        );
    }
    let list = list
        .map(|list| list.map_or_else(|| beside(url), Ok))
        .transpose()?;
    let spec = ImageSpec {
        expected_sha256: args.sha256.clone(),
        source: Some(ImageSource {
            url: url.to_owned(),
            sha256sums_url: list,
            s3: signed(args, url)?,
        }),
        from_vm: None,
    };
    let image = begun(context, &args.name, &args.labels, spec).await?;
    if args.no_wait {
        return output::one::<Image>(context, &image);
    }
    wait(context, image).await
}

/// Waits until it is ready, and shows how far it is.
async fn wait(context: &Context, image: ObjectOf<Image>) -> anyhow::Result<ExitCode> {
    let name = image.name.clone();
    let deadline = context
        .timeout
        .map_or(Instant::now() + PATIENCE, |_| context.deadline());
    let end = until_at::<Image, _>(context, vec![image], &Imported, deadline);
    let ended = tokio::select! {
        ended = end => ended,
        never = follow(context, &name) => match never {},
    };
    let _ = context.progress.clear();
    for image in &ended.objects {
        output::one::<Image>(context, image)?;
    }
    Ok(ended.code_after(ExitCode::SUCCESS))
}

/// The object store of an `s3://` URL, with what lets the server read the object.
fn signed(args: &ImportArgs, url: &str) -> anyhow::Result<Option<ObjectStore>> {
    let Some(endpoint) = args.endpoint.clone() else {
        if url.starts_with("s3://") {
            bail!("the object store is missing: give --endpoint, as in https://s3.eu-west-1.amazonaws.com");
        }
        return Ok(None);
    };
    let mut store = ObjectStore {
        endpoint,
        region: args.region.clone(),
        path_style: args.path_style,
        signature: None,
    };
    let object = StoredObject::at(url, &store).map_err(|why| anyhow!("{url}: {why}"))?;
    let credentials = credentials(args.credentials.as_deref())?;
    store.signature = Some(object.signature(&credentials, &super::now()));
    Ok(Some(store))
}

/// Who is known to the object store. It is never said what stands where they are missing.
fn credentials(file: Option<&Path>) -> anyhow::Result<Credentials> {
    let Some(file) = file else {
        return Credentials::from_env().context(
            "there are no credentials for the object store: give --credentials FILE, or set AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY; what anybody may read is imported by its https:// URL",
        );
    };
    let text = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin().take(CREDENTIALS_MAX_BYTES))
            .context("reading standard input")?
    } else {
        check_private(file, "credentials")?;
        std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?
    };
    credentials_in(&text).with_context(|| {
        format!(
            "{} has no credentials: it has lines `aws_access_key_id = …` and `aws_secret_access_key = …`, and may have \
             `aws_session_token = …`, in its section [default] or outside of any",
            file.display()
        )
    })
}

/// Those of the default profile.
fn credentials_in(text: &str) -> Option<Credentials> {
    let mut found = BTreeMap::new();
    let mut is_default = true;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            is_default = section.trim_end_matches(']').trim() == "default";
        } else if let Some((name, value)) = line.split_once('=').filter(|_| is_default) {
            found.insert(name.trim().to_ascii_lowercase(), value.trim());
        }
    }
    let given = |name: &str| found.get(name).filter(|value| !value.is_empty()).copied();
    let (key, secret) = (given("aws_access_key_id")?, given("aws_secret_access_key")?);
    Some(match given("aws_session_token") {
        Some(token) => Credentials::new_with_token(key, secret, token),
        None => Credentials::new(key, secret),
    })
}

/// The list of digests that publishers lay beside their files.
fn beside(url: &str) -> anyhow::Result<String> {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let directory = path.rsplit_once('/').map(|(directory, _)| directory);
    let directory = directory.filter(|directory| !directory.ends_with('/'));
    let directory =
        directory.with_context(|| format!("there is nothing beside {url}: give --sha256sums=URL"))?;
    Ok(format!("{directory}/SHA256SUMS"))
}

/// Shows how far the server is.
async fn follow(context: &Context, name: &str) -> Infallible {
    if context.progress.is_hidden() {
        return std::future::pending().await;
    }
    let bar = bar(context, 0, "importing");
    let path = format!("/v1/images/{name}/progress");
    loop {
        if let Ok(mut samples) = context.client.stream::<ImportProgress>(&path).await {
            while let Some(Ok(sample)) = samples.next().await {
                bar.set_length(sample.bytes_total.unwrap_or(sample.bytes_done));
                bar.set_position(sample.bytes_done);
                bar.set_message(sample.trouble.unwrap_or_else(|| "importing".to_owned()));
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The image has its content: all is well if it is the file's.
fn repeated(context: &Context, path: &Path, image: &ObjectOf<Image>) -> anyhow::Result<ExitCode> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let here = digest(context, &file, file.metadata()?.len())?;
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

/// Of the first so many bytes.
fn digest(context: &Context, file: &File, bytes: u64) -> anyhow::Result<String> {
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(0))?;
    let mut file = file.take(bytes);
    let bar = bar(context, bytes, "comparing");
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk).context("reading the file")?;
        let Some(part) = chunk.get(..read).filter(|part| !part.is_empty()) else {
            break;
        };
        digest.update(part);
        bar.inc(read as u64);
    }
    bar.finish_and_clear();
    Ok(hex(&digest.finalize()))
}

/// Sends the file, or what of it was not sent before. Once more from its begin if that was of another file.
async fn send(context: &Context, name: &str, file: File, bytes: u64) -> anyhow::Result<ObjectOf<Image>> {
    let before = sent_before(context, name, &file, bytes).await?;
    let sent = send_behind(
        context,
        name,
        behind(&file, before.as_ref())?,
        bytes,
        before.as_ref(),
    )
    .await;
    match sent {
        Err(error) if before.is_some() && differs(context, name, &error).await => {
            context.note("What was sent before is of another file: this one is sent from its begin.");
            Ok(send_behind(context, name, behind(&file, None)?, bytes, None).await?)
        }
        sent => Ok(sent?),
    }
}

/// Whether what was sent before was another file's. Who still sends when that is found may not hear it, but the image says so.
async fn differs(context: &Context, name: &str, error: &ClientError) -> bool {
    const DIFFERS: &str = "upload-differs";
    if matches!(error, ClientError::Problem(_)) {
        return error.code() == Some(DIFFERS);
    }
    let image = context.client.get::<Image>(name).await;
    image.is_ok_and(|image| image.status.reason.is_some_and(|reason| reason.code == DIFFERS))
}

/// The file, from where it goes on.
fn behind(file: &File, before: Option<&Uploaded>) -> std::io::Result<File> {
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(before.map_or(0, |sent| sent.bytes)))?;
    Ok(file)
}

async fn send_behind(
    context: &Context,
    name: &str,
    file: File,
    bytes: u64,
    before: Option<&Uploaded>,
) -> Result<ObjectOf<Image>, ClientError> {
    let from = before.map_or(0, |sent| sent.bytes);
    let bar = bar(context, bytes, "sending");
    bar.set_position(from);
    bar.reset_eta();
    let rest = bytes.saturating_sub(from);
    let content = chunks(file, bar.clone());
    let sent = context.client.upload(name, before, rest, content).await;
    bar.finish_and_clear();
    sent
}

/// What the server has of the file, or of another one: the digest will tell.
async fn sent_before(
    context: &Context,
    name: &str,
    file: &File,
    bytes: u64,
) -> anyhow::Result<Option<Uploaded>> {
    let held = context.client.uploaded(name).await?.bytes.min(bytes);
    if held == 0 {
        return Ok(None);
    }
    let sha256 = digest(context, file, held)?;
    let percent = held.saturating_mul(100) / bytes.max(1);
    context.note(&format!("Going on at {percent} %, where it stopped."));
    Ok(Some(Uploaded { bytes: held, sha256 }))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_as_aws_tools_write_them() {
        let found = |text: &str| {
            credentials_in(text).map(|it| {
                (
                    it.key().to_owned(),
                    it.secret().to_owned(),
                    it.token().map(str::to_owned),
                )
            })
        };
        let of = |key: &str, token: Option<&str>| {
            Some((key.to_owned(), "s/=+".to_owned(), token.map(str::to_owned)))
        };
        let two = "# c\n[other]\naws_access_key_id = B\naws_secret_access_key = x\n\
                   [default]\nAWS_ACCESS_KEY_ID=A\naws_secret_access_key = s/=+\nregion = here\n";
        assert_eq!(found(two), of("A", None));
        let bare = "aws_access_key_id=A\naws_secret_access_key=s/=+\naws_session_token=t\n";
        assert_eq!(found(bare), of("A", Some("t")));
        for none in [
            "",
            "[default]\naws_access_key_id = A\n",
            "[b]\naws_access_key_id=A\naws_secret_access_key=s\n",
        ] {
            assert_eq!(found(none), None, "{none}");
        }
    }

    #[test]
    fn the_list_of_digests_is_beside_the_file() {
        assert_eq!(
            beside("https://a/b/c.qcow2?d=/e").unwrap(),
            "https://a/b/SHA256SUMS"
        );
        assert_eq!(beside("https://a/c").unwrap(), "https://a/SHA256SUMS");
        assert!(beside("https://a").is_err() && beside("a").is_err());
    }
}
