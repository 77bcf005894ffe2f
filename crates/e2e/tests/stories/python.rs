//! What others make of the document that the server serves: a client in another language runs a VM's life cycle, and
//! schemathesis asks for all that is described, in the right ways and in wrong ones.
//!
//! Both are installed once, from lists with the digest of every file.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use e2e::python::{Python, SOURCES, run};
use testkit::world::World;

#[tokio::test]
async fn a_generated_python_client_runs_a_life_cycle() -> anyhow::Result<()> {
    let python = Python::install(env!("CARGO_TARGET_TMPDIR"), "python", "requirements.txt").await?;
    let world = World::up(1).await?;
    world.make_template(192).await?;
    let dir = tempfile::tempdir()?;
    let document = dir.path().join("openapi.json");
    fs::write(&document, world.client().text("/openapi.json").await?)?;
    generate(&python, &document, &dir.path().join("sterna_client")).await?;
    let mut life_cycle = python.program("python");
    life_cycle.arg(Path::new(SOURCES).join("life_cycle.py"));
    life_cycle.env("PYTHONPATH", dir.path());
    life_cycle.envs(world.environment()?);
    run(life_cycle).await?;
    world.down().await
}

/// How long the server is asked.
const ASKED_FOR_S: &str = "25";

#[tokio::test]
async fn no_answer_is_other_than_described() -> anyhow::Result<()> {
    let python = Python::install(env!("CARGO_TARGET_TMPDIR"), "schemathesis", "schemathesis.txt").await?;
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

/// Makes a client of a document. What the generator leaves out, it warns of.
async fn generate(python: &Python, document: &Path, client: &Path) -> anyhow::Result<()> {
    let mut generator = python.program("openapi-python-client");
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
