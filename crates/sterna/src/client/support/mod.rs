//! The support bundle: a compressed archive of what is needed to find a fault.
//!
//! **Owns:** what is in it. Whatever cannot be had is named in `missing.txt`, and the rest goes on.
//!
//! **Does not know:** what a secret looks like: see [`blot`], which everything passes on its way into the archive.
//!
//! **Start here:** [`bundle`].

mod blot;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use model::Kind;
use serde_json::{Value, json};

use super::{Context, now, output};
use crate::cli::{BundleArgs, Output};
use crate::offline::NewFile;
use crate::units;

/// How much of the end of each log is taken.
const LOG_BYTES: u64 = 4 << 20;
/// How many log files are taken.
const LOGS_MAX: usize = 200;
/// How many events are taken, the newest.
const EVENTS: usize = 1000;
/// The units whose logs are asked for on this machine.
const UNITS: [&str; 2] = ["sterna-server", "sterna-agent"];
/// The settings of those.
const SETTINGS: [&str; 2] = ["/etc/sterna/server.conf", "/etc/sterna/agent.conf"];

pub(super) async fn bundle(context: &Context, args: BundleArgs) -> anyhow::Result<ExitCode> {
    let mut file = NewFile::beside(&args.file, args.force)?;
    let mut parts = Parts::default();
    parts.versions(context).await;
    for kind in Kind::ALL {
        parts.objects(context, kind).await;
    }
    for (name, path) in [
        ("store.json", "/v1/store"),
        ("tokens.json", "/v1/tokens"),
        ("metrics.txt", "/metrics"),
    ] {
        let text = context.client.text(path).await;
        parts.add(name, text.map_err(Into::into));
    }
    parts.settings();
    parts.journals();
    for path in &args.logs {
        parts.logs(path);
    }
    let files = parts.write(&mut file)?;
    let bytes = file.keep()?;
    let path = args.file.display().to_string();
    if context.output == Output::Table {
        let size = units::size(bytes);
        output::lines([format!(
            "{path} has {files} files ({size}): look through it before you send it"
        )])?;
    } else {
        output::value(
            context.output,
            &json!({ "file": path, "files": files, "size_bytes": bytes }),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The files of the bundle, and what could not be had.
#[derive(Default)]
struct Parts {
    files: Vec<(String, String)>,
    missing: Vec<String>,
}

impl Parts {
    fn add(&mut self, name: &str, text: anyhow::Result<String>) {
        match text {
            Ok(text) => self.files.push((name.to_owned(), blot::text(&text))),
            Err(error) => self.missing.push(format!("{name}: {error:#}")),
        }
    }

    fn add_json(&mut self, name: &str, value: &Value) {
        let text = serde_json::to_string_pretty(value).context("writing it as JSON");
        self.add(name, text);
    }

    async fn versions(&mut self, context: &Context) {
        let served = context.client.text("/openapi.json").await;
        let api = served
            .ok()
            .and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let kernel = std::fs::read_to_string("/proc/version").unwrap_or_default();
        let versions = json!({
            "made_at": now(),
            "client": env!("CARGO_PKG_VERSION"),
            "interface": api.map(|document| document["info"]["version"].clone()),
            "kernel_here": kernel.trim(),
        });
        self.add_json("versions.json", &versions);
    }

    /// Every object of a kind; of events the newest.
    async fn objects(&mut self, context: &Context, kind: Kind) {
        let name = format!("objects/{}.json", kind.plural());
        match objects(context, kind).await {
            Ok(mut items) => {
                items.iter_mut().for_each(blot::fields);
                self.add_json(&name, &Value::Array(items));
            }
            Err(error) => self.missing.push(format!("{name}: {error:#}")),
        }
    }

    fn settings(&mut self) {
        for path in SETTINGS.map(Path::new).into_iter().filter(|path| path.exists()) {
            let name = format!("settings/{}", file_name(path));
            self.add(&name, std::fs::read_to_string(path).map_err(Into::into));
        }
    }

    fn journals(&mut self) {
        for unit in UNITS {
            let name = format!("logs/{unit}.log");
            let mut ask = Command::new("journalctl");
            ask.args([
                "--unit",
                unit,
                "--lines",
                "20000",
                "--output",
                "short-iso",
                "--no-pager",
            ]);
            match ask.output() {
                Ok(said) if said.status.success() => {
                    self.add(&name, Ok(String::from_utf8_lossy(&said.stdout).into_owned()));
                }
                Ok(said) => {
                    let why = String::from_utf8_lossy(&said.stderr);
                    self.missing.push(format!("{name}: journalctl: {}", why.trim()));
                }
                Err(error) => self.missing.push(format!("{name}: journalctl: {error}")),
            }
        }
    }

    /// A log, or those in a directory.
    fn logs(&mut self, path: &Path) {
        let mut files: Vec<PathBuf> = if path.is_dir() {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries
                .map(|entry| entry.path())
                .filter(|path| path.is_file())
                .collect()
        } else {
            vec![path.to_owned()]
        };
        files.sort();
        if files.len() > LOGS_MAX {
            let left_out = files.split_off(LOGS_MAX).len();
            self.missing
                .push(format!("{}: {left_out} more files", path.display()));
        }
        for file in files {
            let name = format!("logs/{}", file_name(&file));
            let end = end_of(&file).with_context(|| format!("reading {}", file.display()));
            self.add(&name, end);
        }
    }

    /// Writes the archive; how many files it has.
    fn write(mut self, file: &mut NewFile) -> anyhow::Result<usize> {
        let missing = self.missing.join("\n") + "\n";
        self.add("missing.txt", Ok(missing));
        let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        let seconds = u64::try_from(now().as_second()).unwrap_or(0);
        for (name, text) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(seconds);
            let path = format!("sterna-support/{name}");
            archive
                .append_data(&mut header, path, text.as_bytes())
                .context("writing the bundle")?;
        }
        let gzip = archive.into_inner().context("writing the bundle")?;
        gzip.finish()
            .and_then(|file| file.flush())
            .context("writing the bundle")?;
        Ok(self.files.len())
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

async fn objects(context: &Context, kind: Kind) -> anyhow::Result<Vec<Value>> {
    let plural = kind.plural();
    let newest = if kind == Kind::Event {
        format!("&sort=-created_at&limit={EVENTS}")
    } else {
        String::new()
    };
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let text = context
            .client
            .text(&format!("/v1/{plural}?{after}{newest}"))
            .await?;
        let mut page: Value = serde_json::from_str(&text)?;
        if let Value::Array(items) = page["items"].take() {
            all.extend(items);
        }
        match page["next"].as_str() {
            Some(next) if kind != Kind::Event => after = format!("after={next}"),
            _ => return Ok(all),
        }
    }
}

/// The end of a log, from the beginning of a line on.
fn end_of(path: &Path) -> anyhow::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let skipped = length.saturating_sub(LOG_BYTES);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let whole = match text.split_once('\n') {
        Some((_, rest)) if skipped > 0 => rest.to_owned(),
        _ => text.into_owned(),
    };
    Ok(whole)
}
