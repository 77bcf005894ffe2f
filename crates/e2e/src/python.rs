//! Python programs that tests need, each from a list with the digest of every file.
//!
//! They are installed once into a directory below `target/`, which needs Python with `venv`: `scripts/setup.sh test` installs
//! that.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use tokio::process::Command;

/// The lists, and the programs of our own.
pub const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python");

/// A Python of its own, with what a list names.
#[derive(Debug)]
pub struct Python(PathBuf);

impl Python {
    /// Installs what is listed, unless just that is there. `below` is `CARGO_TARGET_TMPDIR`.
    pub async fn install(below: &str, name: &str, list: &str) -> anyhow::Result<Self> {
        let dir = Path::new(below).join(name);
        let list = Path::new(SOURCES).join(list);
        let wanted = fs::read_to_string(&list)?;
        let stamp = dir.join("installed.txt");
        let python = Self(dir.join("venv"));
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
            return Ok(python);
        }
        fs::create_dir_all(&dir)?;
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv", "--clear"]).arg(&python.0);
        run(venv)
            .await
            .context("making a Python environment: `scripts/setup.sh test` installs what that needs")?;
        let mut pip = python.program("pip");
        pip.args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--require-hashes",
            "--only-binary=:all:",
        ]);
        pip.arg("--cache-dir").arg(dir.join("pip")).arg("-r").arg(&list);
        run(pip).await.context("installing what is listed")?;
        fs::write(&stamp, wanted)?;
        Ok(python)
    }

    /// A program that was installed.
    pub fn program(&self, name: impl AsRef<Path>) -> Command {
        Command::new(self.0.join("bin").join(name))
    }
}

/// Runs a program to its end; what it said.
pub async fn run(mut command: Command) -> anyhow::Result<String> {
    let ended = command
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("starting {command:?}"))?;
    let said = [ended.stdout, ended.stderr]
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .concat();
    ensure!(
        ended.status.success(),
        "{command:?} ended with {}:\n{said}",
        ended.status
    );
    Ok(said)
}
