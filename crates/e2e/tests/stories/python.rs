//! What others make of the document that the server serves: a client in another language runs a VM's life cycle, and
//! schemathesis asks for all that is described, in the right ways and in wrong ones.
//!
//! Both are installed once into a directory below `target/`, from lists with the digest of every file. They need Python
//! with `venv`, which `scripts/setup.sh test` installs.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use testkit::world::World;
use tokio::process::Command;

/// The generator and all that it needs, and the life cycle.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python");

#[tokio::test]
async fn a_generated_python_client_runs_a_life_cycle() -> anyhow::Result<()> {
    let python = Python::install("python", "requirements.txt").await?;
    let world = World::up(1).await?;
    world.make_template(192).await?;
    let dir = tempfile::tempdir()?;
    let document = dir.path().join("openapi.json");
    fs::write(&document, world.client().text("/openapi.json").await?)?;
    python
        .generate(&document, &dir.path().join("sterna_client"))
        .await?;
    let mut life_cycle = python.program("python");
    life_cycle.arg(Path::new(SOURCES).join("life_cycle.py"));
    life_cycle.env("PYTHONPATH", dir.path());
    life_cycle.envs(world.environment()?);
    run(life_cycle).await?;
    world.down().await
}

/// How long the server is asked.
const ASKED_FOR_S: &str = "40";

#[tokio::test]
async fn no_answer_is_other_than_described() -> anyhow::Result<()> {
    let python = Python::install("schemathesis", "schemathesis.txt").await?;
    let world = World::up(1).await?;
    world.make_template(192).await?;
    let environment = world.environment()?;
    let said = |key: &str| environment.get(key).with_context(|| format!("{key} is not set"));
    let dir = tempfile::tempdir()?;
    let document = dir.path().join("openapi.json");
    fs::write(&document, world.client().text("/openapi.json").await?)?;
    let mut ask = python.program("schemathesis");
    ask.current_dir(dir.path());
    ask.arg("--config-file")
        .arg(Path::new(SOURCES).join("schemathesis.toml"));
    ask.arg("run")
        .arg(&document)
        .args(["--url", said("STERNA_SERVER")?]);
    ask.args(["--tls-verify", said("STERNA_CACERT")?, "--request-timeout", "20"]);
    ask.args([
        "--header",
        &format!("Authorization: Bearer {}", said("STERNA_TOKEN")?),
    ]);
    let checks = [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "response_headers_conformance",
    ];
    ask.args([
        "--checks",
        &checks.join(","),
        "--phases",
        "examples,coverage,fuzzing",
    ]);
    ask.args(["--max-time", ASKED_FOR_S, "--generation-deterministic"]);
    ask.args(["--continue-on-failure", "--no-color", "--warnings", "off"]);
    println!("{}", run(ask).await?);
    world.down().await
}

/// A Python of its own, with what a list names.
struct Python(PathBuf);

impl Python {
    /// Installs what is listed, unless just that is there.
    async fn install(name: &str, list: &str) -> anyhow::Result<Self> {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
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

    fn program(&self, name: impl AsRef<Path>) -> Command {
        Command::new(self.0.join("bin").join(name))
    }

    /// Makes a client of a document. What the generator leaves out, it warns of.
    async fn generate(&self, document: &Path, client: &Path) -> anyhow::Result<()> {
        let mut generator = self.program("openapi-python-client");
        generator.args([OsStr::new("generate"), OsStr::new("--meta"), OsStr::new("none")]);
        generator
            .arg("--path")
            .arg(document)
            .arg("--output-path")
            .arg(client);
        generator
            .arg("--config")
            .arg(Path::new(SOURCES).join("generator.yaml"));
        let said = run(generator).await?;
        let left_out: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("Unable to") || line.starts_with("WARNING") || line.starts_with("ERROR"))
            // A stream of lines is nothing that this generator knows.
            .filter(|line| !line.contains("/progress"))
            .collect();
        ensure!(
            left_out.is_empty(),
            "the document has what generators do not take: {left_out:?}\n{said}"
        );
        Ok(())
    }
}

/// Runs a program to its end; what it said.
async fn run(mut command: Command) -> anyhow::Result<String> {
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
