//! Having something done in a guest that runs, and telling how that ended.

use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use api::apply::{ApplyBody, ApplyFile, ApplyUser, CONTENT_MAX_BYTES, Encoding, Secret, TIMEOUT_S};
use api::client::ObjectOf;
use api::kinds::Operation;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::Reason;
use model::operation::{Applied, OperationPhase};

use super::wait::{Goal, Verdict, until_at};
use super::{Context, output, template};
use crate::cli::{GuestApplyArgs, Output};

/// How long after its deadline the end of an apply is waited for: when nobody knows it, the server says so.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Standard input, as a file.
const STDIN: &str = "-";
/// With this a step has failed in the guest that has a status.
const FAILED: &str = "apply-failed";

pub(super) async fn apply(context: &Context, args: GuestApplyArgs) -> anyhow::Result<ExitCode> {
    let timeout = context.timeout.unwrap_or(Duration::from_secs(TIMEOUT_S));
    let body = body(&args, timeout)?;
    let asked = context
        .writer(args.dry_run)
        .apply(&args.name, &body, None)
        .await?;
    drop(body);
    if args.dry_run {
        return output::one::<Operation>(context, &asked);
    }
    context.note(&format!("{}: {}", asked.name, asked.spec.steps.join(", ")));
    let deadline = context.started + timeout + PATIENCE;
    let ended = until_at::<Operation, _>(context, vec![asked], &Over, deadline).await;
    match ended.objects.as_slice() {
        [operation] if ended.all_reached => tell(context, operation),
        _ => Ok(ExitCode::FAILURE),
    }
}

/// The operation's end, however it ended.
pub(super) struct Over;

impl Goal<Operation> for Over {
    fn judge(&self, operation: &ObjectOf<Operation>) -> Verdict {
        match operation.status.phase {
            OperationPhase::Running => Verdict::NotYet,
            _ => Verdict::Reached,
        }
    }

    fn word(&self) -> String {
        "ended".to_owned()
    }
}

/// What the guest printed, as it is to be shown; then why it failed, if it did.
pub(super) fn tell(context: &Context, operation: &ObjectOf<Operation>) -> anyhow::Result<ExitCode> {
    let status = &operation.status;
    let applied = status.applied.clone().unwrap_or_default();
    match context.output {
        Output::Table => {
            let left_out = applied.output_bytes.saturating_sub(applied.output.len() as u64);
            if left_out > 0 {
                eprintln!("the first {left_out} bytes of what was printed are left out");
            }
            std::io::stdout().write_all(plain(&applied.output).as_bytes())?;
        }
        _ => output::several::<Operation>(context, &[operation])?,
    }
    if status.phase == OperationPhase::Done {
        return Ok(ExitCode::SUCCESS);
    }
    let reason = status.reason.as_ref();
    let why = reason.map_or("it has failed", |reason| reason.message.as_str());
    let code = reason.map_or("", |reason| reason.code.as_str());
    eprintln!("error: {}: {why} ({code})", operation.name);
    Ok(code_of(reason, &applied))
}

/// A guest's text for a terminal: what would move the cursor is left out.
fn plain(text: &str) -> String {
    text.replace(|c: char| c.is_control() && !matches!(c, '\n' | '\t'), "")
}

fn code_of(reason: Option<&Reason>, applied: &Applied) -> ExitCode {
    let status = applied.exit_status.and_then(|status| u8::try_from(status).ok());
    let has_failed = reason.is_some_and(|reason| reason.code == FAILED);
    match status.filter(|status| has_failed && *status > 0) {
        Some(status) => ExitCode::from(status),
        None => ExitCode::FAILURE,
    }
}

fn body(args: &GuestApplyArgs, timeout: Duration) -> anyhow::Result<ApplyBody> {
    let reads_script = args.script.as_deref() == Some(Path::new(STDIN));
    ensure!(
        !(reads_script && args.password_stdin),
        "standard input is either the script or the password: give the script as a file"
    );
    let files: anyhow::Result<_> = args
        .files
        .iter()
        .map(|(path, from)| file(args, path, from))
        .collect();
    Ok(ApplyBody {
        users: user(args)?.into_iter().collect(),
        files: files?,
        script: args.script.as_deref().map(script).transpose()?,
        timeout_s: Some(timeout.as_secs().max(1)),
    })
}

fn user(args: &GuestApplyArgs) -> anyhow::Result<Option<ApplyUser>> {
    let Some(name) = args.user.clone() else {
        return Ok(None);
    };
    let password = args.password_stdin.then(password).transpose()?;
    let ssh_keys = template::keys_in(&args.ssh_key_files)?;
    Ok(Some(ApplyUser {
        name,
        password,
        ssh_keys,
    }))
}

fn password() -> anyhow::Result<Secret> {
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .context("reading the password from standard input")?;
    let line = line.trim_end_matches(['\n', '\r']);
    ensure!(!line.is_empty(), "there is no password on standard input");
    Ok(Secret(line.to_owned()))
}

fn script(path: &Path) -> anyhow::Result<Secret> {
    let bytes = content(path)?;
    let text = String::from_utf8(bytes);
    let text = text.map_err(|_| {
        anyhow::anyhow!(
            "{} is no text: a script is UTF-8; send a program with --file",
            path.display()
        )
    })?;
    ensure!(!text.is_empty(), "{} is empty: give a script", path.display());
    Ok(Secret(text))
}

fn file(args: &GuestApplyArgs, path: &str, from: &Path) -> anyhow::Result<ApplyFile> {
    let bytes = content(from)?;
    let (content, encoding) = match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => (STANDARD.encode(error.as_bytes()), Some(Encoding::Base64)),
    };
    Ok(ApplyFile {
        path: path.to_owned(),
        content: Secret(content),
        encoding,
        mode: Some(args.mode.clone()),
        owner: Some(args.owner.clone()),
    })
}

/// A file's content, or standard input's, if it can be sent.
pub(super) fn content(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = CONTENT_MAX_BYTES as u64 + 1;
    let read = if path == Path::new(STDIN) {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
        file.take(limit).read_to_end(&mut bytes)
    };
    read.with_context(|| format!("reading {}", path.display()))?;
    if bytes.len() > CONTENT_MAX_BYTES {
        bail!("{} is larger than 1 MiB: have the guest fetch it", path.display());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_printed_moves_no_cursor() {
        assert_eq!(plain("a\u{1b}[2Jb\tc\n\r"), "a[2Jb\tc\n");
    }

    #[test]
    fn the_status_is_that_of_what_failed_in_the_guest() {
        let code = |code: &str, exit_status| {
            let reason = Reason::new(code, "");
            let applied = Applied {
                exit_status,
                ..Applied::default()
            };
            code_of(Some(&reason), &applied)
        };
        assert_eq!(code(FAILED, Some(3)), ExitCode::from(3));
        assert_eq!(code(FAILED, None), ExitCode::FAILURE);
        assert_eq!(code(FAILED, Some(0)), ExitCode::FAILURE);
        assert_eq!(code(FAILED, Some(256)), ExitCode::FAILURE);
        assert_eq!(code("apply-late", Some(137)), ExitCode::FAILURE);
    }
}
