//! Images' content: taken from people once, checked, kept under its digest, given to agents.

use std::path::{Path as FilePath, PathBuf};

use api::Problem;
use api::kinds::Image;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use model::image::{ImageContent, ImageFormat, ImageStatus};
use model::{ImageId, Kind, Reason, key};
use planner::Plan;
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::answer::{Path, Refused, commit_problem};
use crate::auth::{Agent, PROJECT, User, hex};
use crate::kinds::{Served, render};
use crate::routes::App;

/// The most that is taken.
const CONTENT_MAX_BYTES: u64 = 1 << 40;
/// How much of a file is looked at to tell its format.
const HEADER_BYTES: usize = 512;

/// Where a content is kept.
pub fn path(dir: &FilePath, sha256: &str) -> PathBuf {
    dir.join(sha256)
}

/// Takes an image's content.
pub async fn upload(
    State(app): State<App>,
    user: User,
    Path(name): Path<String>,
    body: Body,
) -> Result<Response, Refused> {
    let id = app.cache.view().find(Kind::Image, Some(PROJECT), &name);
    let id = id.ok_or_else(|| Problem::not_found(Kind::Image, &name))?;
    let expected = {
        let view = app.cache.view();
        let image = view.images.get(&id);
        if image
            .and_then(|image| image.status.as_ref())
            .is_some_and(|at| at.value.content.is_some())
        {
            let detail = format!("image {name} has its content, which never changes: create another image");
            return Err(Problem::conflict("image-has-content", detail).into());
        }
        Image::stored(&view, id).and_then(|at| at.value.spec.expected_sha256.clone())
    };
    let temporary = app.images.join(format!("incoming-{}", app.env.next_id()));
    let taken = take(&temporary, body)
        .await
        .and_then(|content| checked(content, expected.as_deref()));
    let taken = match taken {
        Ok(content) => keep(&app, &temporary, content).await,
        refused => refused,
    };
    let _ = tokio::fs::remove_file(&temporary).await;
    let status = match &taken {
        Ok(content) => ImageStatus {
            content: Some(content.clone()),
            failure: None,
        },
        Err(problem) => ImageStatus {
            content: None,
            failure: Some(Reason::new(&problem.code, problem.detail.clone())),
        },
    };
    store_status(&app, &user, id, &name, &status).await?;
    taken?;
    let view = app.cache.view();
    let object =
        render::<Image>(&app.heard, &view, id).ok_or_else(|| Problem::not_found(Kind::Image, &name))?;
    Ok(axum::Json(object).into_response())
}

async fn store_status(
    app: &App,
    user: &User,
    id: Uuid,
    name: &str,
    status: &ImageStatus,
) -> Result<(), Problem> {
    let mut plan = Plan::new(format!("import image {name}"));
    {
        let view = app.cache.view();
        let image = view.images.get(&id);
        plan.rely(
            key::object(Kind::Image, id),
            Image::stored(&view, id).map_or(0, |at| at.revision),
        );
        let revision = image
            .and_then(|image| image.status.as_ref())
            .map_or(0, |at| at.revision);
        plan.replace(key::image_status(ImageId(id)), revision, status);
    }
    let actor = user.actor();
    let revision = controller::commit::commit(app.writer(&actor), plan)
        .await
        .map_err(commit_problem)?;
    app.cache.reach(revision, std::time::Duration::from_secs(5)).await;
    Ok(())
}

fn disk_problem(attempt: &str, error: &std::io::Error) -> Problem {
    let full = error.kind() == std::io::ErrorKind::StorageFull;
    let code = if full {
        "image-store-full"
    } else {
        "image-not-kept"
    };
    Problem::new(
        if full { 503 } else { 500 },
        code,
        format!("{attempt} the image's content: {error}; send it again"),
    )
}

/// Writes the content to a file and says what it is.
async fn take(path: &FilePath, body: Body) -> Result<ImageContent, Problem> {
    let mut file = File::create_new(path)
        .await
        .map_err(|error| disk_problem("keeping", &error))?;
    let mut digest = Sha256::new();
    let mut header: Vec<u8> = Vec::new();
    let mut bytes: u64 = 0;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            Problem::new(
                400,
                "upload-broken",
                format!("the content ended early ({error}): send it again"),
            )
        })?;
        bytes = bytes.saturating_add(chunk.len() as u64);
        if bytes > CONTENT_MAX_BYTES {
            return Err(Problem::new(
                413,
                "too-large",
                "an image's content is at most 1 TiB",
            ));
        }
        digest.update(&chunk);
        let wanted = HEADER_BYTES.saturating_sub(header.len()).min(chunk.len());
        header.extend_from_slice(&chunk[..wanted]);
        file.write_all(&chunk)
            .await
            .map_err(|error| disk_problem("writing", &error))?;
    }
    file.sync_all()
        .await
        .map_err(|error| disk_problem("writing", &error))?;
    let (format, virtual_bytes) = probe(&header, bytes)?;
    Ok(ImageContent {
        sha256: hex(&digest.finalize()),
        format,
        file_bytes: bytes,
        virtual_bytes,
    })
}

fn checked(content: ImageContent, expected: Option<&str>) -> Result<ImageContent, Problem> {
    match expected {
        Some(expected) if expected != content.sha256 => {
            let detail = format!(
                "the content's SHA-256 is {}, expected was {expected}: send the right file",
                content.sha256
            );
            Err(Problem::invalid("digest-differs", detail))
        }
        _ => Ok(content),
    }
}

async fn keep(app: &App, temporary: &FilePath, content: ImageContent) -> Result<ImageContent, Problem> {
    let target = path(&app.images, &content.sha256);
    tokio::fs::rename(temporary, target)
        .await
        .map_err(|error| disk_problem("keeping", &error))?;
    Ok(content)
}

/// Tells format and size from the first bytes. Whatever would make QEMU read other files is refused.
fn probe(header: &[u8], bytes: u64) -> Result<(ImageFormat, u64), Problem> {
    let refuse = |why: &str| {
        let detail =
            format!("the content is not an image that can be used: {why}; give a qcow2 or a raw disk image");
        Err(Problem::invalid("not-an-image", detail))
    };
    if header.starts_with(b"QFI\xfb") {
        let be32 = |at: usize| {
            header
                .get(at..at + 4)
                .and_then(|b| b.try_into().ok())
                .map(u32::from_be_bytes)
        };
        let be64 = |at: usize| {
            header
                .get(at..at + 8)
                .and_then(|b| b.try_into().ok())
                .map(u64::from_be_bytes)
        };
        let (Some(version), Some(backing), Some(size)) = (be32(4), be64(8), be64(24)) else {
            return refuse("its qcow2 header is cut off");
        };
        if !matches!(version, 2 | 3) {
            return refuse("its qcow2 version is unknown");
        }
        if backing != 0 {
            return refuse("it needs a backing file, which would be read from the server: flatten it first");
        }
        // Bit 2 of the incompatible features: the data is in another file.
        if version == 3 && be64(72).is_none_or(|features| features & 4 != 0) {
            return refuse("its data is in another file");
        }
        if size == 0 || size > model::limits::DISK_MAX_BYTES {
            return refuse("its virtual size is zero or over 8 TiB");
        }
        return Ok((ImageFormat::Qcow2, size));
    }
    // A disk that a machine boots from ends its first sector so.
    let boots = header.get(510..512) == Some(&[0x55, 0xaa]);
    if boots && bytes.is_multiple_of(512) && bytes <= model::limits::DISK_MAX_BYTES {
        return Ok((ImageFormat::Raw, bytes));
    }
    refuse("it begins neither like a qcow2 image nor like a disk with a boot sector")
}

/// Gives an image's content to an agent.
pub async fn download(
    State(app): State<App>,
    _: Agent,
    Path(sha256): Path<String>,
) -> Result<Response, Refused> {
    let missing = || Problem::new(404, "no-content", "this server has no content with that digest");
    let is_hash = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hash {
        return Err(missing().into());
    }
    let file = File::open(path(&app.images, &sha256))
        .await
        .map_err(|_| missing())?;
    let length = file
        .metadata()
        .await
        .map_err(|error| disk_problem("reading", &error))?
        .len();
    Ok((
        [(header::CONTENT_LENGTH, length.to_string())],
        Body::from_stream(crate::backup::chunks(file)),
    )
        .into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2(version: u32, backing: u64, size: u64, features: u64) -> Vec<u8> {
        let mut header = vec![0; 512];
        header[..4].copy_from_slice(b"QFI\xfb");
        header[4..8].copy_from_slice(&version.to_be_bytes());
        header[8..16].copy_from_slice(&backing.to_be_bytes());
        header[24..32].copy_from_slice(&size.to_be_bytes());
        header[72..80].copy_from_slice(&features.to_be_bytes());
        header
    }

    #[test]
    fn what_is_no_image_or_would_read_other_files_is_refused() {
        assert_eq!(
            probe(&qcow2(3, 0, 1 << 20, 0), 9).unwrap(),
            (ImageFormat::Qcow2, 1 << 20)
        );
        for (bad, why) in [
            (qcow2(3, 104, 1 << 20, 0), "backing file"),
            (qcow2(3, 0, 1 << 20, 4), "another file"),
            (qcow2(4, 0, 1 << 20, 0), "version"),
            (qcow2(3, 0, 0, 0), "virtual size"),
            (b"QFI\xfb".to_vec(), "cut off"),
            (b"hello".to_vec(), "neither"),
            (Vec::new(), "neither"),
        ] {
            let problem = probe(&bad, bad.len() as u64).unwrap_err();
            assert!(problem.detail.contains(why), "{why}: {}", problem.detail);
        }
        let mut raw = vec![0; 512];
        raw[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(probe(&raw, 1024).unwrap(), (ImageFormat::Raw, 1024));
    }
}
