//! The store of a running server: how it is, a backup of it, and the way on after a restore.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use api::client::{BackupStream, ClientError};
use api::store::{ResumeBody, StoreStatus};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::{Context, image, output};
use crate::cli::{Output, StoreCommand};
use crate::offline::{NewFile, backed_up};
use crate::units;

/// How often is asked whether hosts have ended what they were to end.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn run(context: &Context, command: StoreCommand) -> anyhow::Result<ExitCode> {
    match command {
        StoreCommand::Status => status(context).await,
        StoreCommand::Backup(args) => backup(context, &args.file, args.force).await,
        StoreCommand::Resume(args) => resume(context, args.end_unknown).await,
        StoreCommand::Restore(_) | StoreCommand::Check(_) => bail!("this command asks no server"),
    }
}

async fn status(context: &Context) -> anyhow::Result<ExitCode> {
    let status = context.client.store_status().await?;
    print(context, &status)
}

fn print(context: &Context, status: &StoreStatus) -> anyhow::Result<ExitCode> {
    match context.output {
        Output::Table => output::lines(text(status))?,
        output => output::value(output, status)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn text(status: &StoreStatus) -> Vec<String> {
    let mut lines = vec![
        format!("Engine    {}", status.backend),
        format!("Keys      {}", status.keys),
        format!(
            "Revision  {}, readable from {} on",
            status.revision, status.compacted
        ),
    ];
    if let Some(bytes) = status.size_bytes {
        let free = status.free_bytes.unwrap_or(0);
        let (bytes, free) = (units::size(bytes), units::size(free));
        lines.push(format!(
            "Size      {bytes}, of which {free} are free for what comes"
        ));
    }
    lines.extend(status.restored.iter().flat_map(|restored| {
        let mut lines = vec![format!(
            "Restored  at {} from a backup of revision {}: nothing is decided until `sterna store resume`",
            restored.at, restored.from_revision
        )];
        let silent = restored.silent_hosts.iter();
        lines.extend(silent.map(|host| format!("  {host} has not said yet what it runs")));
        lines.extend(restored.unknown.iter().map(|run| {
            let vm = run.name.clone().unwrap_or_else(|| run.vm.to_string());
            format!(
                "  {} runs VM {vm} as incarnation {}, which the backup does not know",
                run.host, run.incarnation
            )
        }));
        lines
    }));
    lines
}

/// Writes a backup beside its place, and puts it there once its digest is right.
async fn backup(context: &Context, path: &Path, force: bool) -> anyhow::Result<ExitCode> {
    let mut file = NewFile::beside(path, force)?;
    let backup = context.client.backup().await?;
    let revision = backup.revision;
    receive(context, backup, &mut file).await?;
    let bytes = file.keep()?;
    backed_up(path, revision, bytes);
    Ok(ExitCode::SUCCESS)
}

async fn receive<B: AsRef<[u8]>>(
    context: &Context,
    mut backup: BackupStream<impl Stream<Item = Result<B, ClientError>> + Unpin>,
    file: &mut NewFile,
) -> anyhow::Result<()> {
    let bar = image::bar(context, backup.bytes.unwrap_or(0), "receiving");
    let mut digest = Sha256::new();
    while let Some(chunk) = backup.chunks.next().await {
        let chunk = chunk?;
        digest.update(chunk.as_ref());
        file.write_all(chunk.as_ref())
            .with_context(|| format!("writing beside {}", file.path().display()))?;
        bar.inc(chunk.as_ref().len() as u64);
    }
    bar.finish_and_clear();
    let came = format!("sha-256=:{}:", STANDARD.encode(digest.finalize()));
    if came != backup.digest {
        bail!(
            "the backup did not arrive as it was sent ({came}, sent was {}), and nothing was kept: take it again",
            backup.digest
        );
    }
    Ok(())
}

/// Asks until the store goes on: hosts need a moment to end what they are to end.
async fn resume(context: &Context, end_unknown: bool) -> anyhow::Result<ExitCode> {
    let body = ResumeBody { end_unknown };
    loop {
        let status = context.client.resume_store(&body).await?;
        let Some(restored) = &status.restored else {
            context.note("The store goes on: everything is decided again.");
            return print(context, &status);
        };
        if Instant::now() > context.deadline() {
            let left = restored.unknown.len();
            bail!(
                "hosts have not ended all that the backup does not know ({left} left): look at `sterna store status`"
            );
        }
        sleep(PAUSE).await;
    }
}
