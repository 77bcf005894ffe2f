//! Images that the server of a real cloud takes from outside of its network: from an object store that speaks TLS with a CA of
//! its own, by the way out of `sterna up`.
//!
//! The object store is moto, which keeps objects, with AWS' own library in front of it, which checks signatures.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Context, ensure};
use e2e::python::{Python, SOURCES};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use testkit::world::{World, guest_image};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

const ACCESS_KEY: &str = "AKIASTERNATEST";
const SECRET_KEY: &str = "pla/nted+secret=key-8c1f02";
const TOKEN: &str = "planted+session/token==-55d0";
const REGION: &str = "eu-west-7";

/// An object store with the guest's image, and the CA that it is known by.
struct Store {
    port: String,
    dir: tempfile::TempDir,
    _child: Child,
}

impl Store {
    async fn start() -> anyhow::Result<Self> {
        let python = Python::install(env!("CARGO_TARGET_TMPDIR"), "moto", "moto.txt").await?;
        let dir = tempfile::tempdir()?;
        certify(dir.path())?;
        let mut program = python.program("python");
        program
            .args(["-W", "ignore"])
            .arg(Path::new(SOURCES).join("object_store.py"));
        program
            .args(["images", "a dir/guest ö+1.qcow2"])
            .arg(guest_image()?);
        program.arg(dir.path().join("server.pem")).arg(REGION);
        program.args([ACCESS_KEY, SECRET_KEY, TOKEN]);
        program
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = program.spawn().context("starting the object store")?;
        let mut lines = BufReader::new(child.stdout.take().context("it has no output")?).lines();
        let port = lines.next_line().await?.context("the object store ended")?;
        Ok(Self {
            port,
            dir,
            _child: child,
        })
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }
}

/// A CA, and a certificate for loopback with its key.
fn certify(dir: &Path) -> anyhow::Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(["localhost".to_owned()])?.signed_by(&key, &ca)?;
    fs::write(dir.join("ca.pem"), ca.pem())?;
    fs::write(dir.join("server.pem"), certificate.pem() + &key.serialize_pem())?;
    Ok(())
}

/// Imports an object as a person does. What was said.
async fn import(world: &World, store: &Store, name: &str, key: &str, secret: &str) -> anyhow::Result<Output> {
    let endpoint = format!("https://localhost:{}", store.port);
    let url = format!("s3://images/{key}");
    let words = ["image", "import", name, "--url", &url, "--endpoint", &endpoint];
    let mut command = world.command(&words)?;
    command.args(["--region", REGION, "--path-style"]);
    command
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", secret);
    command.env("AWS_SESSION_TOKEN", TOKEN);
    Ok(command.output().await?)
}

#[tokio::test]
async fn an_object_of_a_store_with_its_own_ca_becomes_an_image_and_no_secret_is_left() -> anyhow::Result<()> {
    let store = Store::start().await?;
    let ca = store.ca();
    let world = World::up_told(1, &["--import-ca", &ca.to_string_lossy()]).await?;
    let key = "a%20dir/guest ö+1.qcow2";
    let done = import(&world, &store, "guest", key, SECRET_KEY).await?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let mut said = vec![done];
    for (name, key, secret, why) in [
        ("wrong-key", key, "another", "SignatureDoesNotMatch"),
        ("missing", "missing", SECRET_KEY, "NoSuchKey: look at the names"),
    ] {
        let refused = import(&world, &store, name, key, secret).await?;
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && text.contains(why), "{text}");
        said.push(refused);
    }
    let mut all: Vec<Vec<u8>> = said
        .into_iter()
        .flat_map(|said| [said.stdout, said.stderr])
        .collect();
    for words in [
        &["image", "list", "-o", "json"][..],
        &["image", "get", "guest", "-o", "json"],
        &["image", "history", "guest", "-o", "json"],
    ] {
        let told = world.command(words)?.output().await?;
        ensure!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        all.push(told.stdout);
    }
    for log in fs::read_dir(world.directory().join("log"))? {
        all.push(fs::read(log?.path())?);
    }
    for text in all {
        let text = String::from_utf8_lossy(&text);
        for secret in [SECRET_KEY, "planted%2Bsession", TOKEN, "X-Amz-Signature="] {
            ensure!(!text.contains(secret), "{secret} is told: {text}");
        }
    }
    world.down().await
}
