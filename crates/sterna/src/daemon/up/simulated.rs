//! `sterna up --simulate N`: a server, and hosts that are simulated beside it in the same process.
//!
//! The server is the one that `sterna server` runs, with its store and its controllers, over TLS. The hosts have the agents'
//! own cores over a model of QEMU. What they run is nowhere but in this process's memory, so the cloud begins anew with
//! each start: a store that remembers VMs on hosts that have forgotten them would be no cloud that there can be.

use std::convert::Infallible;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail, ensure};
use server::shared::Cloud as Shared;
use store_sqlite::SqliteStore;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::lock::Lock;
use super::setup::{self, Cloud};
use super::{Dir, import_authorities, open_dir};
use crate::daemon::args::UpArgs;
use crate::daemon::{STORE_DIR, asked_to_end, env, log_to, runtime, store_options};

/// Says that the cloud in a directory is a simulated one.
const MARK: &str = "simulated";

/// What runs: the server, the hosts.
type Parts = JoinSet<anyhow::Result<Infallible>>;

/// A server and simulated hosts, until this is asked to end.
pub(super) fn up(args: &UpArgs, hosts: u16) -> anyhow::Result<ExitCode> {
    let dir = open_dir(&args.data_dir)?;
    let Some(_lock) = Lock::take(&dir)? else {
        bail!(
            "another `sterna up` runs in {}: end it with `sterna down`, or take another --data-dir",
            dir.0.display()
        );
    };
    begin_anew(&dir)?;
    let log = File::create(dir.log("server")).context("making the server's log")?;
    log_to(Mutex::new(log));
    let ended = runtime(2)?.block_on(async {
        tokio::select! {
            ended = run(args, &dir, hosts) => ended.map(|never| match never {}),
            () = asked_to_end() => Ok(()),
        }
    });
    let _ = std::fs::remove_file(dir.env());
    ended?;
    eprintln!("the simulated hosts are gone, and all that they ran");
    Ok(ExitCode::SUCCESS)
}

/// Refuses a directory in which a simulated cloud was.
pub(super) fn is_not_in(dir: &Dir) -> anyhow::Result<()> {
    ensure!(
        !dir.0.join(MARK).exists(),
        "the cloud in {} was a simulated one: take another --data-dir",
        dir.0.display()
    );
    Ok(())
}

/// Removes the simulated cloud that was there before, and refuses to remove a real one.
fn begin_anew(dir: &Dir) -> anyhow::Result<()> {
    let (store, mark) = (dir.server().join(STORE_DIR), dir.0.join(MARK));
    if store.exists() {
        ensure!(
            mark.exists(),
            "there is a cloud in {} whose hosts are not simulated: take another --data-dir",
            dir.0.display()
        );
        std::fs::remove_dir_all(&store).with_context(|| format!("removing {}", store.display()))?;
    }
    let _ = std::fs::remove_file(dir.env());
    std::fs::write(&mark, "").with_context(|| format!("writing {}", mark.display()))
}

async fn run(args: &UpArgs, dir: &Dir, hosts: u16) -> anyhow::Result<Infallible> {
    let listen = args.listen;
    let import_authorities = import_authorities(&args.import_ca)?;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listening on {listen}: take another address with --listen"))?;
    let address = listener.local_addr()?;
    let (ready, is_ready) = oneshot::channel();
    let mut parts = Parts::new();
    parts.spawn(serve(dir.server(), listener, import_authorities, ready));
    if let Ok(shared) = is_ready.await {
        parts.spawn(async move {
            let ids = sim::join(&shared, hosts).await.context("taking the hosts in")?;
            Ok(sim::live(shared, &ids).await)
        });
    }
    tokio::select! {
        ended = first_end(&mut parts) => ended,
        there = be_there(dir, address, hosts) => match there {
            Ok(()) => first_end(&mut parts).await,
            Err(error) => Err(error),
        },
    }
}

/// No part ends by itself.
async fn first_end(parts: &mut Parts) -> anyhow::Result<Infallible> {
    let ended = parts.join_next().await.context("nothing runs")?;
    ended.context("a part of the simulated cloud broke off")?
}

/// The server, with no bound on how often may be asked: load tests are what it is for.
async fn serve(
    data_dir: PathBuf,
    listener: TcpListener,
    import_authorities: server::Authorities,
    ready: oneshot::Sender<Arc<Shared>>,
) -> anyhow::Result<Infallible> {
    let options = store_options(&data_dir);
    let store = tokio::task::spawn_blocking(|| SqliteStore::open(options)).await??;
    let addresses = vec![listener.local_addr()?.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let config = server::Config {
        data_dir,
        listeners: vec![listener],
        names: vec!["localhost".to_owned()],
        addresses,
        rates: server::Rates {
            user_per_s: 0,
            ..server::Rates::default()
        },
        certificate_life: server::CERTIFICATE_LIFE,
        import_addresses: super::loopback(),
        import_authorities,
        outlet: None,
    };
    let tell = |shared| drop(ready.send(shared));
    let ended = server::run(config, Arc::new(store), Arc::new(env::System), tell).await;
    ended.map_err(|error| anyhow::anyhow!("the server ended: {error}"))
}

/// Makes what a VM needs, and says that everything is ready when it is.
async fn be_there(dir: &Dir, server: SocketAddr, hosts: u16) -> anyhow::Result<()> {
    let cloud = Cloud::connect(dir, &format!("https://{server}"))?;
    cloud.make_defaults(dir).await?;
    cloud.make_template().await?;
    cloud.wait_for_hosts(hosts.into()).await?;
    setup::write_env(dir, server)?;
    println!("{}", setup::welcome_to_simulated(dir, server, hosts));
    Ok(())
}
