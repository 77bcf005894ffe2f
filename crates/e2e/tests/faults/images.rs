//! Images on their way: from a source to the server, from a file to the server, and from the server to a host.
//!
//! **Owns:** the table [`ROWS`], the instant at which a part has come, and what must hold at each end.
//!
//! No guest is started. What a full disk does is in the server's tests (`full`) and, for VMs, in [`super::full`].

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use api::Create;
use api::kinds::{Image, ImageSpec, ImageState};
use model::lifecycle::Phase;
use model::vm::Power;
use serde_json::json;
use testkit::process::Frozen;
use testkit::vms::{self, PATIENCE};
use testkit::wait;
use testkit::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

const HOST: &str = "h1";
/// Enough to be met in the midst of it.
const CONTENT_BYTES: usize = 12 << 20;
/// A part of that.
const PART_BYTES: u64 = 1 << 20;
/// Shorter than the rest takes.
const PAUSE: Duration = Duration::from_millis(1);

/// What is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The server takes it from an HTTP server.
    Download,
    /// A person's command sends it.
    Upload,
    /// A host takes it from the server, for the disk of a VM that is made of it.
    Fetch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The server is killed, and started again.
    Server,
    /// The host's agent is killed, and started again.
    Agent,
    /// The image is deleted.
    Deletion,
}

/// What comes in whoever fails comes in, and goes on where it was; what is deleted leaves nothing; what is needed is not deleted.
const ROWS: [(Way, Fault); 7] = [
    (Way::Download, Fault::Server),
    (Way::Download, Fault::Deletion),
    (Way::Upload, Fault::Server),
    (Way::Upload, Fault::Deletion),
    (Way::Fetch, Fault::Server),
    (Way::Fetch, Fault::Agent),
    (Way::Fetch, Fault::Deletion),
];

#[tokio::test]
async fn images_come_in_whoever_fails() -> anyhow::Result<()> {
    let world = World::up(1).await?;
    let files = tempfile::tempdir()?;
    for (number, (way, fault)) in (1_u8..).zip(ROWS) {
        let begun = Instant::now();
        let row = Row {
            world: &world,
            name: format!("{way:?}-{fault:?}").to_lowercase(),
            content: files.path().join(number.to_string()),
        };
        fs::write(&row.content, content(number))?;
        let made = match way {
            Way::Download => row.download(fault).await,
            Way::Upload => row.upload(fault).await,
            Way::Fetch => row.fetch(fault).await,
        };
        made.with_context(|| format!("{way:?} and {fault:?}"))?;
        row.nothing_is_left().await?;
        println!("{way:?} and {fault:?}: well after {:?}", begun.elapsed());
    }
    world.down().await
}

/// A disk that a machine boots from, with something everywhere, and another one for each number.
fn content(number: u8) -> Vec<u8> {
    let mut content: Vec<u8> = (1_u8..=255).cycle().take(CONTENT_BYTES).collect();
    content[..510].fill(number);
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    content
}

struct Row<'w> {
    world: &'w World,
    name: String,
    content: PathBuf,
}

impl Row<'_> {
    async fn download(&self, fault: Fault) -> anyhow::Result<()> {
        let origin = Origin::start(fs::read(&self.content)?).await?;
        let body = Create {
            name: Some(self.name.clone()),
            labels: Default::default(),
            spec: serde_json::from_value::<ImageSpec>(json!({ "source": { "url": origin.url() } }))?,
        };
        self.world.client().create::<Image>(&body, None, false).await?;
        self.has_come(&self.kept(), "partial-").await?;
        if fault == Fault::Deletion {
            self.world.client().delete::<Image>(&self.name).await?;
            return wait::until_it_holds("nobody asks for it any more", PATIENCE, || origin.open() == 0)
                .await;
        }
        self.world.kill_server().await?;
        self.is_ready().await?;
        let asked = origin.asked();
        ensure!(
            matches!(asked[..], [0, from] if from >= PART_BYTES),
            "it did not go on where it was: {asked:?}"
        );
        Ok(())
    }

    async fn upload(&self, fault: Fault) -> anyhow::Result<()> {
        let mut sends = self.sends()?;
        self.has_come(&self.kept(), "incoming-").await?;
        if fault == Fault::Deletion {
            self.world.client().delete::<Image>(&self.name).await?;
            ensure!(!timeout(PATIENCE, sends.wait()).await??.success(), "it was taken");
            return Ok(());
        }
        self.world.kill_server().await?;
        // Whether it goes on by itself or not: the same command leads on.
        timeout(PATIENCE, sends.wait()).await??;
        ensure!(
            timeout(PATIENCE, self.sends()?.wait()).await??.success(),
            "it is not taken"
        );
        self.is_ready().await
    }

    fn sends(&self) -> anyhow::Result<Child> {
        let mut command: Command = self.world.command(&["image", "import", &self.name, "--file"])?;
        command
            .arg(&self.content)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(command.spawn()?)
    }

    async fn fetch(&self, fault: Fault) -> anyhow::Result<()> {
        let world = self.world;
        world.import_as(&self.name, &self.content).await?;
        let mut spec = vms::spec(Some(HOST), "");
        spec.template = None;
        (spec.image, spec.power) = (Some(self.name.clone()), Some(Power::Prepared));
        (spec.vcpus, spec.memory_mib) = (Some(1), Some(64));
        world.create_vm(&self.name, spec).await?;
        self.has_come(&self.fetched(), ".part").await?;
        match fault {
            Fault::Server => world.kill_server().await?,
            Fault::Agent => world.kill_agent(HOST).await?,
            Fault::Deletion => {
                let agent = Frozen::stop(world.agent_pid(HOST)?)?;
                let refused = world.client().delete::<Image>(&self.name).await;
                let code = refused.err().and_then(|error| error.code().map(str::to_owned));
                ensure!(code.as_deref() == Some("in-use"), "{code:?}");
                drop(agent);
            }
        }
        let vm = world.until_phase(&self.name, Phase::Off).await?;
        let disk = world.disk(&vm);
        let mut compare = Command::new("qemu-img");
        compare
            .args(["compare", "-q", "-f", "qcow2", "-F", "raw"])
            .arg(&disk)
            .arg(&self.content);
        ensure!(
            compare.status().await?.success(),
            "{} has another content",
            disk.display()
        );
        world.delete_vm(&self.name).await?;
        world.client().delete::<Image>(&self.name).await?;
        Ok(())
    }

    fn kept(&self) -> PathBuf {
        self.world.directory().join("server/images")
    }

    fn fetched(&self) -> PathBuf {
        self.world.volumes().with_file_name("images")
    }

    /// Waits until a part lies in a file whose name says that it is on its way.
    async fn has_come(&self, directory: &Path, says: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let parts = sizes(directory)?
                .into_iter()
                .filter(|(name, _)| name.contains(says));
            if parts.map(|(_, bytes)| bytes).any(|bytes| bytes >= PART_BYTES) {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "nothing comes");
            sleep(PAUSE).await;
        }
    }

    async fn is_ready(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            // A server that was killed does not answer for a while.
            if let Ok(image) = self.world.client().get::<Image>(&self.name).await {
                ensure!(image.status.state != ImageState::Failed, "{:?}", image.status);
                if image.status.state == ImageState::Ready {
                    break;
                }
            }
            ensure!(begun.elapsed() < PATIENCE, "{} is never ready", self.name);
            sleep(100 * PAUSE).await;
        }
        self.world.client().delete::<Image>(&self.name).await?;
        Ok(())
    }

    /// Each image is deleted when it is known to be whole: so the server keeps nothing, and nothing is on its way anywhere.
    async fn nothing_is_left(&self) -> anyhow::Result<()> {
        let is_empty = || sizes(&self.kept()).is_ok_and(|files| files.is_empty());
        wait::until_it_holds("the server has no file of it", PATIENCE, is_empty).await?;
        let files = sizes(&self.fetched())?;
        ensure!(files.iter().all(|(name, _)| name.ends_with(".raw")), "{files:?}");
        Ok(())
    }
}

/// What is in a directory; nothing if there is none yet.
fn sizes(directory: &Path) -> anyhow::Result<Vec<(String, u64)>> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(Vec::new());
    };
    let size = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        // One that is gone meanwhile has nothing.
        let bytes = entry.metadata().ok()?.len();
        Some((entry.file_name().to_string_lossy().into_owned(), bytes))
    };
    Ok(entries.filter_map(size).collect())
}

/// An HTTP server whose first answer stops in the middle, until who asked is gone. It says that its file is the same.
struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    content: Vec<u8>,
    /// From where each request wanted it, and how many are being answered.
    state: Mutex<(Vec<u64>, usize)>,
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut (Vec<u64>, usize)) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn answer(&self, mut stream: TcpStream) -> anyhow::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let range = |line: &str| {
            line.strip_prefix("range: bytes=")?
                .strip_suffix('-')?
                .parse::<u64>()
                .ok()
        };
        let from = head.lines().find_map(range).unwrap_or(0);
        let number = self.change(|(asked, open)| {
            *open += 1;
            asked.push(from);
            asked.len()
        });
        let answered = self.send(&mut stream, from, number == 1).await;
        self.change(|(_, open)| *open -= 1);
        answered
    }

    async fn send(&self, stream: &mut TcpStream, from: u64, is_first: bool) -> anyhow::Result<()> {
        let all = self.content.len();
        let from = usize::try_from(from)?;
        let status = if from == 0 {
            "200 OK"
        } else {
            "206 Partial Content"
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nETag: \"1\"\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{all}\r\nConnection: close\r\n\r\n",
            all - from,
            all - 1
        );
        stream.write_all(head.as_bytes()).await?;
        let to = if is_first { all / 2 } else { all };
        stream
            .write_all(self.content.get(from..to).unwrap_or_default())
            .await?;
        if is_first {
            let _ = stream.read_u8().await;
        }
        Ok(stream.shutdown().await?)
    }
}

impl Origin {
    async fn start(content: Vec<u8>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            content,
            state: Mutex::default(),
        });
        let serving = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = serving.clone();
                tokio::spawn(async move { shared.answer(stream).await });
            }
        });
        Ok(Self {
            address,
            shared,
            task,
        })
    }

    fn url(&self) -> String {
        format!("http://{}/disk.raw", self.address)
    }

    fn asked(&self) -> Vec<u64> {
        self.shared.change(|(asked, _)| asked.clone())
    }

    fn open(&self) -> usize {
        self.shared.change(|(_, open)| *open)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}
