//! How long an image takes to be imported over HTTP, beside the slower of the two tools that do a part of it each: `curl |
//! sha256sum`, which fetches and digests, and `qemu-img convert`, which copies to qcow2.
//!
//! **Start here:** [`measure`]. `STERNA_BENCH_MIB` makes it smaller, for a try.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api::Create;
use api::kinds::{Image, ImageSource, ImageSpec, ImageState};
use futures_util::StreamExt;
use model::digest::hex;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::server::Server;
use crate::stats::Series;

/// The size of the image.
const MIB: u64 = 2048;
/// Where `scripts/setup.sh test` unpacks nginx.
const NGINX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/servers/usr/sbin/nginx");
const PATIENCE: Duration = Duration::from_secs(600);

/// Prints rows: of an image that is kept as it comes, and of one that is made qcow2.
pub(crate) async fn measure(root: &Path, runs: usize) -> anyhow::Result<()> {
    let mib = match std::env::var("STERNA_BENCH_MIB") {
        Ok(text) => text.parse().context("STERNA_BENCH_MIB is a number")?,
        Err(_) => MIB,
    };
    let files = root.join("files");
    fs::create_dir(&files)?;
    let raw = files.join("disk.raw");
    fill(&raw, mib)?;
    let vmdk = files.join("disk.vmdk");
    convert(&raw, "vmdk", &vmdk).await?;
    let nginx = Nginx::start(root, &files).await?;
    let server = Server::alone_with(&root.join("server"), &["--import-allow", "127.0.0.0/8"]).await?;
    println!(
        "| import over loopback HTTP, s | Sterna | curl \\| sha256sum | qemu-img convert | to the slower | asked for |"
    );
    println!("|---|---|---|---|---|---|");
    for (file, asked) in [(&raw, "1.2"), (&vmdk, "–")] {
        let [mut ours, mut digested, mut converted, mut slower] = [(); 4].map(|()| Series::default());
        for run in 0..=runs {
            let name = file_name(file);
            let [a, b, c] = [
                imported(&server, &nginx.url(&name), run).await?,
                curl(&nginx.url(&name), &digest(file)?).await?,
                convert(file, "qcow2", &root.join("copy.qcow2")).await?,
            ];
            // The first run warms caches.
            if run > 0 {
                ours.push(a);
                digested.push(b);
                converted.push(c);
                slower.push(b.max(c));
            }
        }
        let ratio = ours.ratio_to(&slower);
        println!(
            "| {mib} MiB {} | {ours} | {digested} | {converted} | {ratio} | {asked} |",
            file_name(file)
        );
    }
    println!();
    server.end().await
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// A disk with a boot sector and something in every block, as nothing is spared then.
fn fill(path: &Path, mib: u64) -> anyhow::Result<()> {
    let mut piece = vec![0; 1 << 20];
    File::open("/dev/urandom")?.read_exact(&mut piece)?;
    let mut file = File::create(path)?;
    for number in 0..mib {
        // No two blocks are the same.
        for block in piece.chunks_mut(4096) {
            block[..8].copy_from_slice(&number.to_le_bytes());
        }
        if number == 0 {
            piece[510..512].copy_from_slice(&[0x55, 0xaa]);
        }
        file.write_all(&piece)?;
    }
    Ok(())
}

fn digest(path: &Path) -> anyhow::Result<String> {
    let mut sha256 = Sha256::new();
    let mut file = File::open(path)?;
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hex(&sha256.finalize())),
            read => sha256.update(&piece[..read]),
        }
    }
}

/// From the request to the image that is ready; then it is deleted, so that the next run finds nothing.
async fn imported(server: &Server, url: &str, run: usize) -> anyhow::Result<f64> {
    let client = server.client()?;
    let spec = ImageSpec {
        expected_sha256: None,
        source: Some(ImageSource {
            url: url.to_owned(),
            ..ImageSource::default()
        }),
        from_vm: None,
    };
    let name = format!("run-{run}");
    let image = Create {
        name: Some(name.clone()),
        labels: Default::default(),
        spec,
    };
    let (_, revision) = client.list::<Image>().await?;
    let mut changes = client.watch::<Image>(Some(revision)).await?;
    let begun = Instant::now();
    client.create::<Image>(&image, None, false).await?;
    loop {
        let change = tokio::time::timeout(PATIENCE, changes.next())
            .await
            .context("nothing changes")?;
        let image = change.context("the watch ended")??.object;
        ensure!(
            image.status.state != ImageState::Failed,
            "{:?}",
            image.status.reason
        );
        if image.status.state == ImageState::Ready {
            break;
        }
    }
    let took = begun.elapsed().as_secs_f64();
    client.delete::<Image>(&name).await?;
    Ok(took)
}

async fn curl(url: &str, expected: &str) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut shell = Command::new("sh");
    shell.args(["-c", "curl -sSf \"$1\" | sha256sum", "sh", url]);
    let said = shell.kill_on_drop(true).output().await?;
    let took = begun.elapsed().as_secs_f64();
    ensure!(
        String::from_utf8_lossy(&said.stdout).starts_with(expected),
        "{said:?}"
    );
    Ok(took)
}

async fn convert(from: &Path, format: &str, to: &Path) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut tool = Command::new("qemu-img");
    tool.args(["convert", "-O", format]).arg(from).arg(to);
    let said = tool.kill_on_drop(true).output().await?;
    ensure!(said.status.success(), "{said:?}");
    Ok(begun.elapsed().as_secs_f64())
}

/// nginx with the files of a directory, on loopback.
struct Nginx {
    port: u16,
    _child: Child,
}

impl Nginx {
    async fn start(root: &Path, files: &Path) -> anyhow::Result<Self> {
        // Whoever takes the port in between makes this fail, which is seen.
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let here = root.display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary = temporary
            .map(|of| format!("{of}_temp_path {here}/{of};"))
            .join(" ");
        let config = format!(
            "daemon off; master_process off; pid {here}/pid; error_log stderr; user root; events {{}}\n\
             http {{ access_log off; sendfile on; {temporary} server {{ listen 127.0.0.1:{port}; root {}; }} }}\n",
            files.display()
        );
        fs::write(root.join("nginx.conf"), config)?;
        let program = if Path::new(NGINX).exists() {
            PathBuf::from(NGINX)
        } else {
            PathBuf::from("nginx")
        };
        let mut command = Command::new(program);
        command
            .arg("-c")
            .arg(root.join("nginx.conf"))
            .arg("-p")
            .arg(root)
            .args(["-e", "stderr"]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let child = command
            .spawn()
            .context("nginx: `scripts/setup.sh test` gets it")?;
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            ensure!(begun.elapsed() < Duration::from_secs(30), "nginx does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Self { port, _child: child })
    }

    fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}", self.port)
    }
}
