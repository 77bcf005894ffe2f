//! `sterna up`: a server and N hosts on this machine, each host a network namespace. It supervises the same commands that
//! real servers and hosts run, and takes everything down when it ends.

mod child;
mod leftovers;
mod setup;

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use hostnet::world::{HostIndex, WORLD_ADDRESS, World};
use rustix::fs::FlockOperation;

use super::args::UpArgs;
use super::{asked_to_end, log, runtime};
use child::Supervised;
use setup::Cloud;

/// The file in a data directory that says that it is one of `up`.
pub(crate) const UP_LOCK: &str = "up.lock";
/// Where the server's data is in it.
pub(crate) const UP_SERVER_DIR: &str = "server";
/// Where agents reach the server.
const SERVER_PORT: u16 = 8443;
/// How long the start of everything may take.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// The directory of one `up`.
pub(crate) struct Dir(PathBuf);

impl Dir {
    fn env(&self) -> PathBuf {
        self.0.join("env")
    }

    fn server(&self) -> PathBuf {
        self.0.join(UP_SERVER_DIR)
    }

    fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }

    fn host(&self, name: &str) -> PathBuf {
        self.hosts().join(name)
    }

    fn datastore(&self) -> PathBuf {
        self.0.join("datastore")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.0.join("log").join(format!("{name}.log"))
    }
}

/// A server and agents on this machine.
pub(crate) fn up(args: UpArgs) -> anyhow::Result<ExitCode> {
    log();
    let dir = open_dir(&args.data_dir)?;
    let _lock = take_lock(&dir)?;
    let _ = std::fs::remove_file(dir.env());
    leftovers::end_recorded(&dir.hosts())?;
    let listener = TcpListener::bind(args.listen)
        .with_context(|| format!("listening on {}: take another address with --listen", args.listen))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    hostnet::world::enter_world()?;
    let ended = runtime(2)?.block_on(run(&args, &dir, listener));
    let _ = std::fs::remove_file(dir.env());
    leftovers::end_descendants();
    ended?;
    Ok(ExitCode::SUCCESS)
}

fn open_dir(path: &Path) -> anyhow::Result<Dir> {
    std::fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
    let dir = Dir(std::fs::canonicalize(path)?);
    for sub in [dir.server(), dir.hosts(), dir.datastore(), dir.0.join("log")] {
        std::fs::create_dir_all(&sub).with_context(|| format!("making {}", sub.display()))?;
    }
    Ok(dir)
}

fn take_lock(dir: &Dir) -> anyhow::Result<File> {
    let path = dir.0.join(UP_LOCK);
    let lock = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!(
            "another `sterna up` runs in {}: end it, or take another --data-dir",
            dir.0.display()
        );
    }
    Ok(lock)
}

/// From the start of everything to the end of everything.
async fn run(args: &UpArgs, dir: &Dir, listener: TcpListener) -> anyhow::Result<()> {
    let outside = listener.local_addr()?;
    let mut world = World::open().await?;
    let server = Supervised::start("server", dir.log("server"), server_command(dir, listener)?)?;
    let inside = format!("https://{WORLD_ADDRESS}:{SERVER_PORT}");
    let started = tokio::select! {
        started = tokio::time::timeout(START_PATIENCE, start_hosts(args, dir, &mut world, &server, &inside)) => started,
        () = asked_to_end() => return Ok(()),
    };
    let agents =
        started.context("not everything was ready in time: see the logs in the data directory")??;
    setup::write_env(dir, outside)?;
    println!("{}", setup::welcome(args.hosts, dir, outside));
    asked_to_end().await;
    eprintln!("taking everything down");
    drop(agents);
    drop(server);
    Ok(())
}

/// The server first, then what every cloud needs, then the hosts.
async fn start_hosts(
    args: &UpArgs,
    dir: &Dir,
    world: &mut World,
    server: &Supervised,
    inside: &str,
) -> anyhow::Result<Vec<Supervised>> {
    server.ready().await;
    let cloud = Cloud::connect(dir, inside)?;
    cloud.make_defaults(dir).await?;
    let mut agents = Vec::new();
    for number in 0..args.hosts {
        let index = HostIndex::new(number).context("too many hosts")?;
        let name = format!("h{}", u16::from(number) + 1);
        let namespace = world.add_host(index).await?;
        let token = cloud.join_token(dir, &name).await?;
        let command = agent_command(args, dir, &name, index, &namespace, inside, token.as_deref())?;
        agents.push(Supervised::start(&name, dir.log(&name), command)?);
    }
    cloud.wait_for_hosts(args.hosts).await?;
    Ok(agents)
}

fn server_command(dir: &Dir, listener: TcpListener) -> anyhow::Result<child::Command> {
    let mut command = child::Command::new(["server", "--listen-stdin"])?;
    command.option("--data-dir", dir.server());
    command.option("--listen", format!("{WORLD_ADDRESS}:{SERVER_PORT}"));
    command.hand_over(listener.into());
    Ok(command)
}

fn agent_command(
    args: &UpArgs,
    dir: &Dir,
    name: &str,
    index: HostIndex,
    namespace: &Path,
    server: &str,
    token: Option<&Path>,
) -> anyhow::Result<child::Command> {
    let mut command = child::Command::new(["agent"])?;
    command.option("--data-dir", dir.host(name));
    command.option("--server", server);
    command.option("--cacert", dir.server().join("ca.pem"));
    command.option("--name", name);
    command.option("--address", index.address().to_string());
    command.option("--reserved-mib", setup::reserved_mib(args.hosts)?.to_string());
    command.option("--namespace", namespace);
    if let Some(token) = token {
        command.option("--join-token-file", token);
    }
    Ok(command)
}
