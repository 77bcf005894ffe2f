//! `sterna up`: a server and N hosts on this machine, each host a network namespace. It supervises the same commands that
//! real servers and hosts run, and takes everything down when it ends; or everything but the guests, which the next one
//! in the same directory adopts.
//!
//! **What keeps a guest's network.** A namespace lasts as long as a process in it, and QEMU is one: the host's bridges,
//! tunnels and taps stay with its guests. Only the underlay goes with `up`; the next one joins the hosts to a new one,
//! with the same addresses.
//!
//! With `--simulate` nothing of that is done: see [`simulated`].

mod child;
mod down;
mod leftovers;
mod lock;
mod outlet;
mod setup;
mod simulated;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use hostnet::world::{HostIndex, WORLD_ADDRESS, World};

use super::args::UpArgs;
use super::{asked_to_end, import_authorities, log, runtime};
use child::Supervised;
pub(crate) use down::down;
use leftovers::Guest;
use lock::Lock;
pub(crate) use outlet::outlet;
use setup::Cloud;

/// The file in a data directory that says that it is one of `up`.
pub(crate) const UP_LOCK: &str = "up.lock";
/// Where the server's data is in it.
pub(crate) const UP_SERVER_DIR: &str = "server";
/// Where agents reach the server.
const SERVER_PORT: u16 = 8443;
/// Whoever uses it is on this machine, and so may have images taken from it.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1"];
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
    if let Some(hosts) = args.simulate {
        return simulated::up(&args, hosts);
    }
    log();
    // Said before anything is started.
    import_authorities(&args.import_ca)?;
    let dir = open_dir(&args.data_dir)?;
    let Some(_lock) = Lock::take(&dir)? else {
        bail!(
            "another `sterna up` runs in {}: end it with `sterna down`, or take another --data-dir",
            dir.0.display()
        );
    };
    simulated::is_not_in(&dir)?;
    let _ = std::fs::remove_file(dir.env());
    let adopted = leftovers::guests(&dir.hosts());
    have_hosts(&adopted, args.hosts)?;
    let listener = TcpListener::bind(args.listen)
        .with_context(|| format!("listening on {}: take another address with --listen", args.listen))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let _outlet = outlet::start(&dir)?;
    match adopted.first() {
        Some(guest) => hostnet::world::enter_world_beside(guest.pid().cast_unsigned())?,
        None => hostnet::world::enter_world()?,
    }
    runtime(2)?.block_on(async {
        let ended = run(&args, &dir, listener, &adopted).await;
        // A start that failed is no reason to end guests that were there before it.
        let keeps = args.keep || ended.is_err() && !adopted.is_empty();
        let _ = std::fs::remove_file(dir.env());
        leave(&dir, keeps).await?;
        ended
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Every guest that is there needs its host.
fn have_hosts(guests: &[Guest], hosts: u8) -> anyhow::Result<()> {
    let names: BTreeSet<String> = (0..hosts).map(host_name).collect();
    match guests.iter().find(|guest| !names.contains(&guest.host)) {
        None => Ok(()),
        Some(guest) => bail!(
            "a VM still runs on host {}: start as many --hosts as before, or end it with `sterna down`",
            guest.host
        ),
    }
}

fn loopback() -> server::Addresses {
    let ranges = LOOPBACK.iter().filter_map(|range| range.parse().ok());
    server::Addresses::allowing(ranges.collect())
}

fn host_name(number: u8) -> String {
    format!("h{}", u16::from(number) + 1)
}

/// Ends what is left once server and agents have ended: everything, or everything but the guests.
async fn leave(dir: &Dir, keeps: bool) -> anyhow::Result<()> {
    let guests = leftovers::guests(&dir.hosts());
    if !keeps {
        let ended = leftovers::end(&guests).await;
        leftovers::end_descendants(&BTreeSet::new());
        return ended;
    }
    leftovers::end_descendants(&guests.iter().map(Guest::pid).collect());
    eprintln!("{}", setup::farewell(guests.len(), dir));
    Ok(())
}

fn open_dir(path: &Path) -> anyhow::Result<Dir> {
    std::fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
    let dir = Dir(std::fs::canonicalize(path)?);
    super::make_private(&dir.server())?;
    for sub in [dir.hosts(), dir.datastore(), dir.0.join("log")] {
        std::fs::create_dir_all(&sub).with_context(|| format!("making {}", sub.display()))?;
    }
    Ok(dir)
}

/// From the start of everything to the end of all but the guests.
async fn run(args: &UpArgs, dir: &Dir, listener: TcpListener, adopted: &[Guest]) -> anyhow::Result<()> {
    let outside = listener.local_addr()?;
    let mut world = World::open().await?;
    let mut children = vec![Supervised::start(
        "server",
        dir.log("server"),
        server_command(args, dir, listener)?,
    )?];
    let started = tokio::select! {
        started = tokio::time::timeout(START_PATIENCE, start_hosts(args, dir, &mut world, &mut children, adopted)) => Some(started),
        () = asked_to_end() => None,
    };
    let lived = match started {
        Some(Ok(Ok(()))) => be_there(args, dir, outside).await,
        Some(Ok(Err(error))) => Err(error),
        Some(Err(late)) => {
            Err(late).context("not everything was ready in time: see the logs in the data directory")
        }
        None => Ok(()),
    };
    futures_util::future::join_all(children.into_iter().map(Supervised::end)).await;
    lived
}

/// Says that everything is ready, until it is to end.
async fn be_there(args: &UpArgs, dir: &Dir, outside: SocketAddr) -> anyhow::Result<()> {
    setup::write_env(dir, outside)?;
    println!("{}", setup::welcome(args, dir, outside));
    asked_to_end().await;
    eprintln!(
        "taking everything down{}",
        if args.keep { " but the VMs" } else { "" }
    );
    Ok(())
}

/// The server, which is the first of the children, then what every cloud needs, then the hosts.
async fn start_hosts(
    args: &UpArgs,
    dir: &Dir,
    world: &mut World,
    children: &mut Vec<Supervised>,
    adopted: &[Guest],
) -> anyhow::Result<()> {
    for server in &*children {
        server.ready().await;
    }
    let inside = format!("https://{WORLD_ADDRESS}:{SERVER_PORT}");
    let cloud = Cloud::connect(dir, &inside)?;
    cloud.make_defaults(dir).await?;
    for number in 0..args.hosts {
        let index = HostIndex::new(number).context("too many hosts")?;
        let name = host_name(number);
        let namespace = match adopted.iter().find(|guest| guest.host == name) {
            Some(guest) => world.adopt_host(index, guest.pid().cast_unsigned()).await?,
            None => world.add_host(index).await?,
        };
        let token = cloud.join_token(dir, &name).await?;
        let command = agent_command(args, dir, &name, index, &namespace, &inside, token.as_deref())?;
        children.push(Supervised::start(&name, dir.log(&name), command)?);
    }
    cloud.wait_for_hosts(args.hosts.into()).await
}

fn server_command(args: &UpArgs, dir: &Dir, listener: TcpListener) -> anyhow::Result<child::Command> {
    let mut command = child::Command::new(["server", "--listen-stdin"])?;
    command.option("--data-dir", dir.server());
    command.option("--listen", format!("{WORLD_ADDRESS}:{SERVER_PORT}"));
    command.option("--outlet", outlet::path(dir));
    for range in LOOPBACK {
        command.option("--import-allow", range);
    }
    for file in &args.import_ca {
        command.option("--import-ca", file);
    }
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
