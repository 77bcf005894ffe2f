//! The commands that stay: a server, an agent, or both on one machine. The only place that names concrete backends.

pub(crate) mod args;
mod env;
mod notify;
mod up;

use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};
use args::{AgentArgs, ServerArgs};
use jiff::SignedDuration;
use model::{Kind, key};
use rustix::process::Signal;
use store::Store;
use store_sqlite::{Options, SqliteStore};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

pub(crate) use env::System;
pub(crate) use up::outlet;
pub(crate) use up::{UP_LOCK, UP_SERVER_DIR, down, up};

/// Where the store is in a server's data directory.
pub(crate) const STORE_DIR: &str = "store";
/// The line with which a daemon says to whoever started it that it is ready.
const READY: &str = "ready";

/// Structured lines on standard error; `STERNA_LOG` chooses how much, and `STERNA_LOG_FORMAT=json` makes each an object.
fn log() {
    log_to(std::io::stderr);
}

/// The same lines elsewhere.
fn log_to(writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static) {
    let filter = EnvFilter::try_from_env("STERNA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(false);
    let _ = match std::env::var("STERNA_LOG_FORMAT").as_deref() {
        Ok("json") => lines.json().flatten_event(true).with_span_list(false).try_init(),
        _ => lines.try_init(),
    };
}

fn runtime(workers: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .context("starting the runtime")
}

/// Completes when the process is asked to end.
async fn asked_to_end() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    notify::tell(notify::STOPPING);
}

/// Says that the daemon is ready: to `sterna up`, and to systemd.
fn say_ready() {
    println!("{READY}");
    notify::tell(notify::READY);
}

/// Ends this process when its parent does, also if that is killed.
fn end_with(parent: Option<i32>) -> anyhow::Result<()> {
    let Some(parent) = parent else {
        return Ok(());
    };
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    ensure!(now == Some(parent), "the process that started this one has ended");
    Ok(())
}

/// A directory for the eyes of this user alone, if it is not there yet.
fn make_private(path: &Path) -> anyhow::Result<()> {
    let mut private = std::fs::DirBuilder::new();
    private.recursive(true).mode(0o700);
    private
        .create(path)
        .with_context(|| format!("making {}", path.display()))
}

/// A server.
pub(crate) fn server(args: ServerArgs) -> anyhow::Result<ExitCode> {
    log();
    end_with(args.parent)?;
    make_private(&args.data_dir)?;
    runtime(2)?.block_on(async {
        tokio::select! {
            ended = serve(args) => ended.map(|never| match never {}),
            () = asked_to_end() => Ok(ExitCode::SUCCESS),
        }
    })
}

/// The store of a server. What is written once and seldom read again, and grows with all that is done, is left in its file.
fn store_options(data_dir: &Path) -> Options {
    let seldom_read = [
        key::AUDIT_PREFIX.to_owned(),
        key::REQUEST_PREFIX.to_owned(),
        key::kind_prefix(Kind::Event),
    ];
    Options {
        left_in_file: seldom_read.into(),
        ..Options::new(data_dir.join(STORE_DIR))
    }
}

async fn serve(args: ServerArgs) -> anyhow::Result<std::convert::Infallible> {
    let mut listeners = Vec::new();
    for address in &args.listen {
        let listener = TcpListener::bind(address).await;
        listeners.push(
            listener.with_context(|| format!("listening on {address}: is another server running there?"))?,
        );
    }
    if args.listen_stdin {
        listeners.push(inherited().context("taking connections on standard input")?);
    }
    let bound: Vec<SocketAddr> = listeners
        .iter()
        .filter_map(|listener| listener.local_addr().ok())
        .collect();
    let addresses: Vec<IpAddr> = bound.iter().map(SocketAddr::ip).chain(args.address).collect();
    let names = std::iter::once("localhost".to_owned()).chain(args.name).collect();
    let options = store_options(&args.data_dir);
    let store = tokio::task::spawn_blocking(|| SqliteStore::open(options)).await??;
    let store: Arc<dyn Store> = Arc::new(store);
    if let Some(last) = server::history::last_id(store.as_ref()).await? {
        env::rise_above(last);
    }
    let config = server::Config {
        data_dir: args.data_dir,
        listeners,
        names,
        addresses,
        rates: server::Rates {
            user_per_s: args.requests_per_second,
            ..server::Rates::default()
        },
        certificate_life: SignedDuration::try_from(args.certificate_life)?,
        import_addresses: server::Addresses::allowing(args.import_allow),
        import_authorities: import_authorities(&args.import_ca)?,
        outlet: args.outlet.map(server::outlet::Outlet::at),
    };
    let ready = |_| {
        tracing::info!(?bound, "ready");
        say_ready();
    };
    let ended = server::run(config, store, Arc::new(env::System), ready).await;
    ended.map_err(|error| anyhow::anyhow!("the server ended: {error}"))
}

/// Whose certificates images' sources may show.
fn import_authorities(files: &[PathBuf]) -> anyhow::Result<server::Authorities> {
    server::Authorities::read(files).map_err(|why| anyhow::anyhow!("--import-ca {why}"))
}

/// The listening socket that standard input is.
fn inherited() -> anyhow::Result<TcpListener> {
    let listener = StdListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

/// An agent.
pub(crate) fn agent(args: AgentArgs) -> anyhow::Result<ExitCode> {
    log();
    end_with(args.parent)?;
    // An agent that is not root has its rights over networks from systemd, in a form that passes to children: QEMU, which
    // runs what guests say, must not have them.
    rustix::thread::clear_ambient_capability_set().context("giving up what children would inherit")?;
    if let Some(namespace) = &args.namespace {
        hostnet::world::enter_host(namespace)?;
    }
    make_private(&args.data_dir)?;
    let name = args.name.or_else(machine_name);
    let config = agent::Config {
        data_dir: std::fs::canonicalize(&args.data_dir)?,
        server: args.server,
        server_ca: args.cacert,
        join_token: args.join_token_file.map(agent::JoinToken::File),
        name,
        peer_listen: SocketAddr::new(args.address, args.peer_port),
        peer_advertise: None,
        underlay_address: args.address,
        reserved_mib: args.reserved_mib,
        migration_buffer: (args.migration_buffer_kib > 0)
            .then(|| usize::from(args.migration_buffer_kib) << 10),
        qemu_uids: args.qemu_uids,
        unneeded_kept_for: args.keep_unneeded_images,
    };
    runtime(2)?.block_on(agent::run(config, say_ready, asked_to_end()))?;
    Ok(ExitCode::SUCCESS)
}

/// The machine's name as a host's name: its first word in lower case.
fn machine_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let first = name.trim().split('.').next()?.to_ascii_lowercase();
    model::limits::check_name(&first).ok().map(|()| first)
}
